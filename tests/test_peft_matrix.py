"""PEFT's own tests of custom models, on rows of DSO: fetched from the sources of the installed version, not copied."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sources import fetched_sources


pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def peft_sources(tmp_path_factory):
    return fetched_sources("peft", tmp_path_factory.mktemp("peft"))


def test_custom_model_matrix(peft_sources):
    # The installed PEFT is judged, not the fetched one: only its tests are on the path.
    (peft_sources / "src").rename(peft_sources / "not-imported")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "peft_matrix", "-p", "no:cacheprovider"]
        # A folder that holds only a pickle is refused on purpose.
        + ["-k", "DSO and not save_pretrained_pickle", "--rootdir", str(peft_sources), "tests/test_custom_models.py"],
        cwd=peft_sources,
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{peft_sources}", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    summary = run.stdout.strip().splitlines()[-1]
    assert int(summary.split(" passed")[0].split()[-1]) > 150, summary
