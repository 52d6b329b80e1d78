"""PEFT's own tests of custom models, on rows of DSO: fetched from the sources of the installed version, not copied."""

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest


pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def peft_sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft")
    wanted = f"peft=={version('peft')}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    fetched = subprocess.run([*command, "-q", "-d", str(folder), wanted], capture_output=True, text=True)
    archives = list(folder.glob("peft-*.tar.gz"))
    if fetched.returncode or not archives:
        pytest.skip(f"the sources of {wanted} cannot be had here")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    (root,) = (path for path in folder.glob("peft-*") if path.is_dir())
    (root / "tests" / "__init__.py").touch()
    return root


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
