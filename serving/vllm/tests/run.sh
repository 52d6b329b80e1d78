#!/usr/bin/env bash
# Makes the environment of the plug-in, lets the package make the references, and runs the tests of the plug-in.
# Usage: serving/vllm/tests/run.sh FOLDER [pytest arguments]    (FOLDER holds the environment and the references)
# The `python` on the PATH must be that of the package's own environment.
set -euo pipefail
folder=${1:?usage: run.sh FOLDER [pytest arguments]}
shift
here=$(cd "$(dirname "$0")/.." && pwd)
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

"$here/tests/environment.sh" "$folder/venv"
[ -e "$folder/references/references.json" ] || python "$here/tests/make_references.py" "$folder/references"
cd "$here"
export DSO_REFERENCES="$folder/references" DSO_PACKAGE_PYTHON="$(command -v python)"
"$folder/venv/bin/python" -m pytest tests "$@"
PYTHONPATH="$folder/venv/vision" "$folder/venv/bin/python" -m pytest tests/test_features.py -k vision_language
