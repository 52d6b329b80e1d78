"""The tests of an installed package, from its source distribution: fetched, not copied."""

import subprocess
import sys
import tarfile
from importlib.metadata import version

import pytest


def fetched_sources(package, folder):
    """The unpacked sources of the installed version of a package; the test is skipped where they cannot be had."""
    wanted = f"{package}=={version(package)}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    fetched = subprocess.run([*command, "-q", "-d", str(folder), wanted], capture_output=True, text=True)
    archives = list(folder.glob("*.tar.gz"))
    if fetched.returncode or not archives:
        pytest.skip(f"the sources of {wanted} cannot be had here")
    with tarfile.open(archives[0]) as archive:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not before Python 3.11.4
        archive.extractall(folder, **safe)
    (root,) = (path for path in folder.glob(f"{package}-*") if path.is_dir())
    (root / "tests" / "__init__.py").touch()
    return root
