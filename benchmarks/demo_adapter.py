"""
Make the adapter that comes with the package (`peft_dso/demo/adapter/`): run the quick start, or take what a run of it
left, and put its adapter there with its card and its report.

    python benchmarks/demo_adapter.py                     # runs the quick start
    python benchmarks/demo_adapter.py --run quickstart-out  # takes what `peft-dso quickstart` has written
"""

import argparse
import json
import platform
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from peft_dso.demo.quickstart import run
from peft_dso.demo.trained import ADAPTER
from peft_dso.evaluation import load_report, save_report
from peft_dso.export import save_card
from peft_dso.inspect import REPORT


BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
FILES = ("adapter_config.json", "adapter_model.safetensors")
LARGEST = 300_000  # bytes: it travels with every installation


def install(output: Path, folder: Path = ADAPTER) -> None:
    """Put the adapter of a run of the quick start into a folder, described."""
    size = (output / "adapter" / FILES[1]).stat().st_size
    if size >= LARGEST:
        raise SystemExit(f"{output / 'adapter'} has {size} bytes: more than {LARGEST} do not come along.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(output / "adapter" / name, folder / name)
    # The folder that the model was converted into is nobody else's.
    config = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = BASE
    (folder / FILES[0]).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    report = load_report(output / "report.json")
    report.description["command"] = "python benchmarks/demo_adapter.py"
    report.description["python"] = platform.python_version()
    report.description |= {name: version(name) for name in ("peft_dso", "torch", "transformers", "peft", "trl")}
    save_report(report, folder / REPORT)
    save_card(
        folder,
        license="apache-2.0",
        repo_id="peft_dso/demo-adapter",
        trained_on='The pronoun task of peft_dso (sentences such as "The nurse said that"; which pronoun comes '
        "next?), with the quick start's settings, by `benchmarks/demo_adapter.py`. It is an example to look at, not "
        "one to deploy.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder that a run of the quick start has written")
    options = parser.parse_args()
    if options.run is not None:
        install(options.run)
        return
    with tempfile.TemporaryDirectory() as scratch:
        run(scratch, lambda line: print(line, flush=True))
        install(Path(scratch))


if __name__ == "__main__":
    main()
