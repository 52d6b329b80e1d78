"""The Hub of the tests, judged by huggingface_hub's own tests from its source distribution."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import serve
from sources import fetched_sources


pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
TOKENS = {
    # From their testing_constants.py: not secret, and only good for a test server.
    "hf_HubCITokenXXXXXXXXXXXXXXXXXXXXX": "__DUMMY_HUB_USER__",
    "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": "DVUser",
}
# The part about repositories, commits, files and refs.
CLASSES = (
    "TestHfApiRepoFileExists or TestHfApiEndpoints or TestCommitApi or TestHfApiUploadEmptyFile or "
    "TestHfApiDeleteFolder or TestHfApiListRepoTree or TestHfApiTagEndpoint or TestHfApiBranchEndpoint or "
    "TestHfApiDeleteFiles or TestHfApiPrivate or TestSquashHistory or TestCommitInBackground or "
    "TestDownloadHfApiAlias or TestListGitRefs or TestListGitCommits or TestHfApiTokenAttribute"
)
# What needs the real Hub's models, discussions, organisations or rendered texts.
LEFT_OUT = (
    "whoami_with_passing_token or create_repo_private_by_default or empty_commit_on_pr or "
    "list_tree_with_expand or list_files_without_expand or list_tree_with_xethash or "
    "super_squash_history_on_special_ref or list_refs_gpt2 or list_refs_bigcode or list_refs_with_prs or "
    "list_commits_include_formatted or upload_folder_create_pr"
)


@pytest.fixture(scope="module")
def client_sources(tmp_path_factory):
    return fetched_sources("huggingface_hub", tmp_path_factory.mktemp("hub"))


@pytest.mark.parametrize("xet", [False, True])
def test_the_clients_own_tests_pass(client_sources, tmp_path, xet):
    chosen = f"({CLASSES}) and not ({LEFT_OUT})"
    with serve(tokens=TOKENS) as hub:
        env = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "PYTHONPATH": f"{HERE}{os.pathsep}{client_sources}",
        }
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
            env.pop(name, None)
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "hub_client_tests",
                "-p",
                "no:cacheprovider",
                "-o",
                "addopts=",
            ]
            + ["--rootdir", str(client_sources), "tests/test_hf_api.py", "-k", chosen],
            cwd=client_sources,
            env=env,
            capture_output=True,
            text=True,
        )
    assert run.returncode == 0, run.stdout[-6000:]
    assert int(run.stdout.strip().splitlines()[-1].split(" passed")[0].split()[-1]) > 100
    used = any("xorbs" in path for _, path in hub.log)
    assert used == xet  # the mode that was meant is the one that was tested
