"""The one way to the Hub, for the command line and the trainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Optional

from huggingface_hub import HfApi

from ..inspect import read_adapter


PUBLISHED = ["*.safetensors", "*.json", "*.md", "*.png"]  # what may leave for the Hub
KEPT_BACK = ["_*", "checkpoint-*"]


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    revision: Optional[str] = None,
    token: Optional[str] = None,
    commit_message: Optional[str] = None,
    blocking: bool = True,
) -> Any:
    """
    Upload a folder to a repository that is there; nothing but safetensors, JSON, Markdown and PNG files leaves it.

    Args:
        folder (`str`): what to upload.
        repo_id (`str`): `USER/NAME`.
        revision (`str`, *optional*): branch; default main.
        token (`str`, *optional*): default the stored one.
        commit_message (`str`, *optional*): of the commit.
        blocking (`bool`, defaults to `True`): wait for the upload.

    Returns:
        `CommitInfo`: the commit, or a `Future` of it if not `blocking`.
    """
    upload: Any = HfApi(token=token).upload_folder  # its overloads want the value of run_as_future to be known
    return upload(
        repo_id=repo_id,
        folder_path=Path(folder),
        revision=revision,
        commit_message=commit_message,
        run_as_future=not blocking,
        allow_patterns=PUBLISHED,
        ignore_patterns=KEPT_BACK,
    )


def push_adapter(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: Optional[bool] = None,
    revision: Optional[str] = None,
    token: Optional[str] = None,
    commit_message: str = "Upload DSO adapter",
) -> str:
    """
    Upload the folder of an adapter, with its card, report and picture. `model.push_to_hub` uploads the adapter too,
    but with transformers' empty card; a card that is on the Hub already is kept by it.

    Args:
        folder (`str`): with the adapter; nothing but safetensors, JSON, Markdown and PNG files leaves it.
        repo_id (`str`): `USER/NAME`; made if it does not exist.
        private (`bool`, *optional*): whether a new repository is private.
        revision (`str`, *optional*): branch; made if it does not exist.
        token (`str`, *optional*): default the stored one.
        commit_message (`str`): of the commit.

    Returns:
        `str`: address of the commit.

    Raises:
        ValueError: the folder holds no DSO adapter.
    """
    read_adapter(folder)
    api = HfApi(token=token)
    name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(name, branch=revision, exist_ok=True)
    commit = push_folder(folder, name, revision=revision, token=token, commit_message=commit_message)
    return str(commit.commit_url)
