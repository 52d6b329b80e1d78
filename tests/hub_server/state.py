"""What the Hub of the tests holds: repositories, their commits and files, and uploaded content."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime


class Refused(Exception):
    def __init__(self, status, message, code=None, body=None, headers=None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.body, self.headers = body, headers or {}


@dataclass
class File:
    """A file of a commit: its bytes, and its sha256 if it is stored as LFS."""

    data: bytes
    sha256: str | None = None
    commit: str = ""

    @property
    def oid(self):
        """The git blob's id; of an LFS file, that of its pointer."""
        data = self.data
        if self.sha256:
            data = pointer(self.sha256, len(data))
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(sha256, size):
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass
class Commit:
    id: str
    title: str
    message: str
    files: dict
    parent: str | None
    author: str
    date: str


@dataclass
class Repo:
    kind: str
    name: str
    private: bool
    refs: dict = field(default_factory=dict)  # "refs/heads/main": commit id
    commits: dict = field(default_factory=dict)
    gated: object = False
    created: str = ""
    pulls: int = 0
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:24])

    def add_commit(self, ref, files, title, message="", author="user", parent=None):
        commit_id = hashlib.sha1(uuid.uuid4().bytes).hexdigest()
        for file in files.values():
            file.commit = file.commit or commit_id
        self.commits[commit_id] = Commit(commit_id, title, message, files, parent, author, now())
        self.refs[ref] = commit_id
        return commit_id

    def resolve(self, revision):
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        if revision == "HEAD":
            return self.resolve("main")
        found = self.commits.get(revision) or next((c for i, c in self.commits.items() if i[:7] == revision), None)
        if found is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def history(self, commit):
        while commit is not None:
            yield commit
            commit = self.commits.get(commit.parent)


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class Hub:
    """The state of the server. Use [`serve`] for one that listens."""

    def __init__(self, xet=True, tokens=None):
        self.xet = xet
        self.tokens = tokens or {"hf_user": "user", "hf_other": "other"}
        self.repos = {}
        self.objects = {}  # LFS: sha256 to bytes
        self.parts = {}
        self.xorbs = {}
        self.shards = {}  # Xet file hash to its segments
        self.xet_of = {}  # sha256 to Xet file hash
        self.faults = []
        self.log = []
        self.lock = threading.RLock()
        self.url = ""

    def repo(self, kind, name, user, write=False):
        repo = next((r for key, r in self.repos.items() if (key[0], key[1].lower()) == (kind, name.lower())), None)
        name = repo.name if repo else name
        if repo is None or (repo.private and user != name.split("/")[0]):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise Refused(401, "Invalid username or password.")
        if write and user != name.split("/")[0]:
            raise Refused(403, "You don't have the rights to write to this repository.")
        return repo

    def content(self, sha256):
        """Bytes of a large file: an LFS object, or a Xet file that hf_xet itself puts together."""
        if sha256 in self.objects:
            return self.objects[sha256]
        if sha256 in self.xet_of:
            self.objects[sha256] = self.read_xet(self.xet_of[sha256], sha256)
            return self.objects[sha256]
        raise Refused(400, f"The LFS object {sha256} was never uploaded")

    def read_xet(self, file_hash, sha256):
        from hf_xet import XetFileInfo, XetSession

        size = sum(length for _, length, _, _ in self.shards[file_hash])
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "file")
            with XetSession().new_file_download_group(
                endpoint=f"{self.url}/cas", token="internal", token_expiry_unix_secs=int(time.time()) + 3600
            ) as group:
                group.start_download_file(XetFileInfo(file_hash, size), path)
            with open(path, "rb") as file:
                data = file.read()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Refused(400, "The uploaded chunks do not give the announced sha256")
        return data
