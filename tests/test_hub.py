"""Push and pull over a real socket, with Xet and without (hub_cases.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_push_and_pull(xet):
    env = {**os.environ, "HF_HUB_DISABLE_XET": "0" if xet else "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    env.pop("HF_TOKEN", None)
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "hub_cases.py"]
    run = subprocess.run(command, cwd=Path(__file__).parent, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:]
    assert " passed" in run.stdout.strip().splitlines()[-1]
