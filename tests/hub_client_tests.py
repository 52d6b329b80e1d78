"""
A pytest plugin that runs huggingface_hub's own tests against the server of hub_server.py (see test_hub_server.py).

The tests come from the source distribution of the installed version; nothing of them is copied. The distribution lacks
their conftest.py, whose fixtures are made here. HF_ENDPOINT says where the server listens.
"""

import os
import sys
import types

import pytest
from huggingface_hub import HfApi


# They import a type from the conftest.py that is not distributed.
sys.modules.setdefault("tests.conftest", types.SimpleNamespace(RepoFactory=object))


def pytest_configure(config):
    from tests import testing_constants

    testing_constants.ENDPOINT_STAGING = os.environ["HF_ENDPOINT"]


@pytest.fixture(scope="session")
def api():
    from tests.testing_constants import TOKEN

    return HfApi(endpoint=os.environ["HF_ENDPOINT"], token=TOKEN)


@pytest.fixture
def repo_factory(api):
    from tests.testing_utils import repo_name

    made = []

    def create(repo_type="model", repo_id=None, **options):
        url = api.create_repo(repo_id or repo_name(), repo_type=repo_type, **options)
        made.append((url.repo_id, url.repo_type, options.get("token")))
        return url

    yield create
    for repo_id, repo_type, token in made:
        api.delete_repo(repo_id, repo_type=repo_type, token=token, missing_ok=True)
