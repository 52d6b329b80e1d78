"""
A Hub for tests: repositories, branches, tags, commits, LFS and Xet, in memory and on a real socket.

It answers what huggingface_hub and hf_xet ask for (their own tests run against it, see test_hub_server.py), and can
be told to fail: `hub.faults` holds functions that get each request first.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml


ATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in ("*.safetensors", "*.bin", "*.pt", "*.pickle")
).encode()
LFS = ("*.safetensors", "*.bin", "*.pt", "*.pickle", "*.pth", "*.gz", "*.zip", "*.onnx", "*.h5", "*.parquet", "*.png")


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
        import os
        import tempfile

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


def xet_hex(raw):
    return "".join(f"{value:016x}" for value in struct.unpack("<4Q", raw))


def parse_shard(data):
    """Per file of a shard its hash, segments `(xorb, bytes, first chunk, last chunk)` and sha256."""
    place, files = 48, []
    while place + 48 <= len(data):
        raw, flags, count, _ = struct.unpack_from("<32sIIQ", data, place)
        place += 48
        if raw == b"\xff" * 32:
            break
        segments = []
        for _ in range(count):
            xorb, _, length, begin, end = struct.unpack_from("<32sIIII", data, place)
            segments.append((xet_hex(xorb), length, begin, end))
            place += 48
        place += 48 * count if flags >> 31 & 1 else 0
        sha256 = None
        if flags >> 30 & 1:
            sha256 = xet_hex(data[place : place + 32])
            place += 48
        files.append((xet_hex(raw), segments, sha256))
    return files


def chunk_offsets(xorb):
    """Where each chunk of a serialised xorb begins, and where the last one ends."""
    place, offsets = 0, []
    while place + 8 <= len(xorb) and xorb[place : place + 7] != b"XETBLOB":
        offsets.append(place)
        place += 8 + int.from_bytes(xorb[place + 1 : place + 4], "little")
    return [*offsets, place]


ROUTES = []


def route(method, pattern):
    def mark(function):
        ROUTES.append((method, re.compile(pattern + r"\Z"), function))
        return function

    return mark


KIND = r"/api/(?P<kind>models|datasets|spaces)"
NAME = r"/(?P<name>[^/]+/[^/]+)"
PLAIN = r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+?)"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def handle_any(self):
        split = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(split.query, keep_blank_values=True).items()}
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.read_body(length)
        self.hub.log.append((self.command, split.path))
        try:
            for fault in list(self.hub.faults):
                if fault(self):
                    return
            self.user = self.authenticate(split.path)
            for method, pattern, function in ROUTES:
                match = pattern.match(split.path)
                if match and (method == self.command or (method == "GET" and self.command == "HEAD")):
                    groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    if "kind" in match.groupdict():
                        groups["kind"] = groups.get("kind", "models")
                    function(self, **groups)
                    return
            code = "RepoNotFound" if split.path.startswith("/api/") or "/resolve/" in split.path else None
            raise Refused(404, f"Sorry, there is nothing at {self.command} {split.path}", code)
        except Refused as refusal:
            headers = {"X-Error-Message": refusal.message, **refusal.headers}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            try:
                self.reply(refusal.status, refusal.body or {"error": refusal.message}, headers)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client did not wait for the answer

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def read_body(self, length):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(length)

    def authenticate(self, path):
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        if not token or path.startswith(("/cas/", "/lfs/", "/v1/")):
            return None
        if scheme == "Basic":
            token = base64.b64decode(token).decode().partition(":")[2]
        if token not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def reply(self, status, body=b"", headers=None):
        kind = "application/octet-stream"
        if not isinstance(body, bytes):
            body, kind = json.dumps(body).encode(), "application/json"
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "X-Request-Id": "test", **(headers or {})}
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json_body(self):
        return json.loads(self.body or b"{}")

    def send_bytes(self, data, headers=None):
        headers = {"Accept-Ranges": "bytes", **(headers or {})}
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not match or match[0] == "bytes=-":
            self.reply(200, data, headers)
            return
        begin = int(match[1]) if match[1] else max(0, len(data) - int(match[2]))
        end = min(int(match[2]), len(data) - 1) if match[1] and match[2] else len(data) - 1
        if begin >= len(data):
            self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        self.reply(206, data[begin : end + 1], {**headers, "Content-Range": f"bytes {begin}-{end}/{len(data)}"})


def prefix(kind):
    return "" if kind == "models" else f"{kind}/"


@route("GET", r"/api/whoami-v2")
def whoami(h):
    if h.user is None:
        raise Refused(401, "Invalid username or password.")
    access = {"displayName": "t", "role": "write"}
    user = {"type": "user", "id": h.user, "name": h.user, "fullname": h.user, "email": "", "emailVerified": True}
    token = {"type": "access_token", "accessToken": access}
    h.reply(200, {**user, "orgs": [], "isPro": False, "canPay": False, "periodEnd": None, "auth": token})


def named(h):
    body = h.json_body()
    if h.user is None:
        raise Refused(401, "Invalid username or password.")
    kind = (body.get("type") or "model") + "s"
    name, owner = body["name"], body.get("organization") or h.user
    if "/" in name:
        owner, name = name.split("/")
    if owner != h.user:
        raise Refused(403, f"You don't have the rights to create a repository under the namespace {owner!r}")
    return body, kind, f"{owner}/{name}"


@route("POST", r"/api/repos/create")
def create(h):
    body, kind, name = named(h)
    url = f"{h.hub.url}/{prefix(kind)}{name}"
    with h.hub.lock:
        if (kind, name) in h.hub.repos:
            message = f"You already created this {kind[:-1]} repo"
            raise Refused(409, message, body={"error": message, "url": url})
        private = body.get("visibility") == "private" or bool(body.get("private"))
        repo = h.hub.repos[kind, name] = Repo(kind, name, private, created=now())
        files = {".gitattributes": File(ATTRIBUTES)}
        for path, text in (body.get("files") or {}).items():
            files[path] = File(text.encode())
        repo.add_commit("refs/heads/main", files, "initial commit", author=h.user)
    h.reply(200, {"url": url, "name": name, "id": repo.id})


@route("DELETE", r"/api/repos/delete")
def delete(h):
    _, kind, name = named(h)
    h.hub.repo(kind, name, h.user, write=True)
    del h.hub.repos[kind, name]
    h.reply(200, {})


@route("POST", r"/api/repos/move")
def move(h):
    body = h.json_body()
    kind = (body.get("type") or "model") + "s"
    repo = h.hub.repo(kind, body["fromRepo"], h.user, write=True)
    if (kind, body["toRepo"]) in h.hub.repos:
        raise Refused(409, f"A {kind[:-1]} repository called {body['toRepo']} already exists")
    if body["toRepo"].split("/")[0] != h.user:
        raise Refused(403, "You don't have the rights to move a repository to that namespace.")
    repo.name = body["toRepo"]
    h.hub.repos[kind, repo.name] = h.hub.repos.pop((kind, body["fromRepo"]))
    h.reply(200, {})


@route("PUT", KIND + NAME + "/settings")
def settings(h, kind, name):
    repo, body = h.hub.repo(kind, name, h.user, write=True), h.json_body()
    if "visibility" in body or "private" in body:
        repo.private = body.get("visibility") == "private" or bool(body.get("private"))
    if "gated" in body:
        repo.gated = body["gated"]
    h.reply(200, {"private": repo.private, "gated": repo.gated})


@route("POST", r"/api/validate-yaml")
def validate_yaml(h):
    content = h.json_body()["content"]
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---", content, re.DOTALL)
    if not match:
        h.reply(200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        return
    try:
        data = yaml.safe_load(match[1])
        problem = None if data is None or isinstance(data, dict) else "metadata must be a mapping"
    except yaml.YAMLError as error:
        data, problem = None, str(error)
    licence = (data or {}).get("license")
    if problem is None and not isinstance((data or {}).get("model-index", []), list):
        problem = '"model-index" must be an array'
    if problem is None and isinstance(licence, str) and not re.fullmatch(r"[a-z0-9.+-]+", licence):
        problem = '"license" must be one of a list of known ones'
    if problem:
        raise Refused(400, problem, body={"errors": [{"message": problem}], "warnings": []})
    h.reply(200, {"errors": [], "warnings": []})


def is_lfs(path, size, sample):
    return bool(size) and (any(fnmatch(path, p) for p in LFS) or size > 10 * 2**20 or b"\0" in sample)


@route("POST", KIND + NAME + r"/preupload/(?P<rev>.+)")
def preupload(h, kind, name, rev):
    repo, body = h.hub.repo(kind, name, h.user, write=h.query.get("create_pr") is None), h.json_body()
    if h.user is None:
        raise Refused(401, "Invalid username or password.")
    commit = repo.resolve(rev)
    there = commit.files.get(".gitignore", File(b"")).data.decode()
    ignored = [line.strip() for line in (body.get("gitIgnore") or there).splitlines() if line.strip()]
    answers = []
    for file in body["files"]:
        path, there = file["path"], commit.files.get(file["path"])
        mode = "lfs" if is_lfs(path, file["size"], base64.b64decode(file.get("sample") or "")) else "regular"
        oid = None if there is None else there.sha256 if mode == "lfs" else there.oid
        skip = any(fnmatch(path, p) or fnmatch(path.rsplit("/")[-1], p) or path.startswith(p.rstrip("/") + "/")
                   for p in ignored)  # fmt: skip
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": skip, "oid": oid})
    h.reply(200, {"files": answers, "commitOid": commit.id})


@route("POST", PLAIN + r"(?:\.git)/info/lfs/objects/batch")
def lfs_batch(h, kind, name):
    h.hub.repo(kind, name, h.user, write=True)
    body, answers = h.json_body(), []
    for wanted in body["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        answer = {"oid": oid, "size": size, "authenticated": True}
        if oid not in h.hub.objects and oid not in h.hub.xet_of:
            upload = {"href": f"{h.hub.url}/lfs/{oid}?size={size}", "header": {}}
            part = 400_000
            if "multipart" in body["transfers"] and size > 5_000_000:
                count = -(-size // part)
                links = {str(k + 1): f"{h.hub.url}/lfs/{oid}/{k + 1}" for k in range(count)}
                upload = {"href": f"{h.hub.url}/lfs/{oid}/complete", "header": {"chunk_size": str(part), **links}}
            verify = {"href": f"{h.hub.url}/{prefix(kind)}{name}/lfs-verify", "header": {}}
            answer["actions"] = {"upload": upload, "verify": verify}
        answers.append(answer)
    h.reply(200, {"transfer": "basic", "objects": answers})


def store(h, oid, data):
    if hashlib.sha256(data).hexdigest() != oid:
        raise Refused(400, "The content does not have the announced sha256")
    h.hub.objects[oid] = data
    h.reply(200, b"", {"ETag": '"done"'})


@route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})")
def lfs_put(h, oid):
    store(h, oid, h.body)


@route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)")
def lfs_part(h, oid, part):
    h.hub.parts[oid, int(part)] = h.body
    h.reply(200, b"", {"ETag": f'"{part}"'})


@route("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete")
def lfs_complete(h, oid):
    numbers = sorted(part["partNumber"] for part in h.json_body()["parts"])
    store(h, oid, b"".join(h.hub.parts.pop((oid, number)) for number in numbers))


@route("POST", PLAIN + "/lfs-verify")
def lfs_verify(h, kind, name):
    h.hub.repo(kind, name, h.user, write=True)
    oid = h.json_body()["oid"]
    if oid not in h.hub.objects:
        raise Refused(422, f"The object {oid} is not there")
    h.reply(200, {})


def checked_path(path):
    if not path or path.startswith("/") or "\\" in path or ".." in path.split("/"):
        raise Refused(422, f"Invalid path: {path!r}")
    return path


@route("POST", KIND + NAME + r"/commit/(?P<rev>.+)")
def commit(h, kind, name, rev):
    as_pull = h.query.get("create_pr") == "1"
    repo = h.hub.repo(kind, name, h.user, write=not as_pull)
    if h.user is None:
        raise Refused(401, "Invalid username or password.")
    lines = [json.loads(line) for line in h.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    large = {line["value"]["oid"] for line in lines if line["key"] == "lfsFile"}
    contents = {oid: h.hub.content(oid) for oid in large}  # outside of the lock: hf_xet calls back
    with h.hub.lock:
        ref = rev if rev.startswith("refs/") else f"refs/heads/{rev}"
        if ref not in repo.refs:
            raise Refused(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        head = repo.resolve(rev)
        if header.get("parentCommit") and header["parentCommit"] not in (head.id, head.id[:7]):
            if not as_pull:
                message = "The branch was updated since you opened this page. Please refresh and try again."
                raise Refused(412, message)
            head = repo.resolve(header["parentCommit"])
        files = dict(head.files)
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                continue
            path = checked_path(value["path"])
            if key == "file":
                data = value["content"]
                files[path] = File(base64.b64decode(data) if value.get("encoding") == "base64" else data.encode())
            elif key == "lfsFile":
                files[path] = File(contents[value["oid"]], value["oid"])
            elif key == "deletedFile" and path in files:
                del files[path]
            elif key == "deletedFile":
                if not any(p.startswith(path + "/") for p in files):
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                files = {p: file for p, file in files.items() if not p.startswith(path + "/")}
            elif key == "deletedFolder":
                inside = [p for p in files if p.startswith(path.rstrip("/") + "/")]
                if not inside:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                for p in inside:
                    del files[p]
            elif key == "copyFile":
                source = repo.resolve(value.get("srcRevision") or rev).files.get(value["srcPath"])
                if source is None:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                files[path] = File(source.data, source.sha256)
        more = {}
        if as_pull:
            repo.pulls += 1
            ref = f"refs/pr/{repo.pulls}"
            more = {"pullRequestUrl": f"{h.hub.url}/{prefix(kind)}{name}/discussions/{repo.pulls}"}
        made = repo.add_commit(ref, files, header["summary"], header.get("description") or "", h.user, head.id)
    url = f"{h.hub.url}/{prefix(kind)}{name}/commit/{made}"
    h.reply(200, {"success": True, "commitOid": made, "commitUrl": url, "hookOutput": "", **more})


def lfs_info(file):
    return {"sha256": file.sha256, "oid": file.sha256, "size": len(file.data),
            "pointerSize": len(pointer(file.sha256, len(file.data)))}  # fmt: skip


def card_of(commit):
    match = re.match(rb"\s*---\r?\n(.*?)\r?\n---", commit.files.get("README.md", File(b"")).data, re.DOTALL)
    try:
        data = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        data = None
    return data if isinstance(data, dict) else None


@route("GET", KIND + NAME + r"(?:/revision/(?P<rev>.+))?")
def info(h, kind, name, rev="main"):
    repo = h.hub.repo(kind, name, h.user)
    commit = repo.resolve(rev)
    siblings = []
    for path, file in sorted(commit.files.items()):
        sibling = {"rfilename": path}
        if h.query.get("blobs", "").lower() in ("true", "1"):
            sibling |= {"size": len(file.data), "blobId": file.oid}
            if file.sha256:
                sibling["lfs"] = lfs_info(file)
        siblings.append(sibling)
    card = card_of(commit)
    tags = list((card or {}).get("tags") or [])
    h.reply(200, {"_id": repo.id, "id": name, "modelId": name, "author": name.split("/")[0], "sha": commit.id,
                  "lastModified": commit.date, "createdAt": repo.created, "private": repo.private, "gated": repo.gated,
                  "disabled": False, "downloads": 0, "likes": 0, "tags": tags, "cardData": card, "usedStorage": 0,
                  "library_name": (card or {}).get("library_name"), "siblings": siblings})  # fmt: skip


def described(h, repo, path, file, expand):
    entry = {"type": "file", "path": path, "size": len(file.data), "oid": file.oid}
    if file.sha256:
        entry["lfs"] = lfs_info(file)
        if file.sha256 in h.hub.xet_of:
            entry["xetHash"] = h.hub.xet_of[file.sha256]
    if expand:
        last = repo.commits[file.commit]
        entry["lastCommit"] = {"id": last.id, "title": last.title, "date": last.date}
        entry["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
    return entry


def folder(path, commit, expand):
    entry = {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
    if expand:
        entry["lastCommit"] = {"id": commit.id, "title": commit.title, "date": commit.date}
    return entry


@route("GET", KIND)
def listing(h, kind):
    found = [{"id": repo.name, "modelId": repo.name, "private": repo.private, "tags": [], "_id": repo.id,
              "createdAt": repo.created, "downloads": 0, "likes": 0}
             for (of, name), repo in h.hub.repos.items()
             if of == kind and (not repo.private or h.user == name.split("/")[0])
             and name.startswith(h.query.get("author", "")) and h.query.get("search", "") in name]  # fmt: skip
    h.reply(200, found)


def truth(h, key):
    return h.query.get(key, "").lower() in ("true", "1")


@route("GET", KIND + NAME + r"/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?")
def tree(h, kind, name, rev, path=""):
    repo = h.hub.repo(kind, name, h.user)
    commit = repo.resolve(rev)
    inside = path.rstrip("/") + "/" if path else ""
    files = {p: f for p, f in sorted(commit.files.items()) if p.startswith(inside)}
    if path and not files:
        raise Refused(404, f"{path} does not exist on {rev}", "EntryNotFound")
    expand, found, folders = truth(h, "expand"), [], set()
    for p, file in files.items():
        parents = p[len(inside) :].split("/")[:-1]
        steps = [inside + "/".join(parents[: k + 1]) for k in range(len(parents))]
        for step in steps if truth(h, "recursive") else steps[:1]:
            if step not in folders:
                folders.add(step)
                found.append(folder(step, commit, expand))
        if truth(h, "recursive") or not parents:
            found.append(described(h, repo, p, file, expand))
    limit = int(h.query.get("limit") or 1000)
    begin = int(h.query.get("cursor") or 0)
    headers = {}
    if begin + limit < len(found):
        here = urlsplit(h.path).path
        options = "&".join(f"{k}={v}" for k, v in {**h.query, "cursor": begin + limit}.items())
        headers["Link"] = f'<{h.hub.url}{here}?{options}>; rel="next"'
    h.reply(200, found[begin : begin + limit], headers)


@route("POST", KIND + NAME + r"/paths-info/(?P<rev>.+)")
def paths_info(h, kind, name, rev):
    repo = h.hub.repo(kind, name, h.user)
    commit, form = repo.resolve(rev), parse_qs(h.body.decode())
    expand, found = form.get("expand", ["false"])[-1].lower() == "true", []
    for path in form.get("paths", []):
        path = path.rstrip("/")
        if path in commit.files:
            found.append(described(h, repo, path, commit.files[path], expand))
        elif any(p.startswith(path + "/") for p in commit.files):
            found.append(folder(path, commit, expand))
    h.reply(200, found)


@route("GET", KIND + NAME + "/refs")
def refs(h, kind, name):
    repo = h.hub.repo(kind, name, h.user)

    def listed(start):
        return [{"name": ref.removeprefix(start), "ref": ref, "targetCommit": target}
                for ref, target in repo.refs.items() if ref.startswith(start)]  # fmt: skip

    answer = {"branches": listed("refs/heads/"), "tags": listed("refs/tags/"), "converts": []}
    if h.query.get("include_prs"):
        answer["pullRequests"] = [{**pr, "name": pr["ref"]} for pr in listed("refs/pr/")]
    h.reply(200, answer)


@route("GET", KIND + NAME + r"/commits/(?P<rev>.+)")
def commits(h, kind, name, rev):
    repo = h.hub.repo(kind, name, h.user)
    h.reply(200, [{"id": c.id, "title": c.title, "message": c.message, "authors": [{"user": c.author}], "date": c.date}
                  for c in repo.history(repo.resolve(rev))])  # fmt: skip


@route("POST", KIND + NAME + r"/super-squash/(?P<rev>.+)")
def squash(h, kind, name, rev):
    repo, body = h.hub.repo(kind, name, h.user, write=True), h.json_body()
    head = repo.resolve(rev)
    repo.add_commit(f"refs/heads/{rev}", dict(head.files), body.get("message") or f"Super-squash branch '{rev}'",
                    author=h.user)  # fmt: skip
    h.reply(200, {})


@route("POST", KIND + NAME + r"/branch/(?P<branch>.+)")
def branch_create(h, kind, name, branch):
    repo, body = h.hub.repo(kind, name, h.user, write=True), h.json_body()
    if branch.startswith("refs/"):
        raise Refused(400, f"Invalid branch name: {branch}")
    if f"refs/heads/{branch}" in repo.refs:
        raise Refused(409, f"Reference refs/heads/{branch} already exists")
    if body.get("emptyBranch"):
        repo.add_commit(f"refs/heads/{branch}", {}, "empty branch", author=h.user)
    else:
        repo.refs[f"refs/heads/{branch}"] = repo.resolve(body.get("startingPoint") or "main").id
    h.reply(200, {})


@route("DELETE", KIND + NAME + r"/branch/(?P<branch>.+)")
def branch_delete(h, kind, name, branch):
    repo = h.hub.repo(kind, name, h.user, write=True)
    if branch == "main":
        raise Refused(403, "Cannot delete refs/heads/main")
    if repo.refs.pop(f"refs/heads/{branch}", None) is None:
        raise Refused(404, f"Invalid rev id: refs/heads/{branch}", "RevisionNotFound")
    h.reply(200, {})


@route("POST", KIND + NAME + r"/tag/(?P<rev>.+)")
def tag_create(h, kind, name, rev):
    repo, tag = h.hub.repo(kind, name, h.user, write=True), h.json_body()["tag"]
    target = repo.resolve(rev).id
    if not re.fullmatch(r"[\w][\w./-]*", tag):
        raise Refused(400, f"Invalid tag name: {tag}")
    if f"refs/tags/{tag}" in repo.refs:
        raise Refused(409, f"Tag reference exists already: {tag}")
    repo.refs[f"refs/tags/{tag}"] = target
    h.reply(200, {})


@route("DELETE", KIND + NAME + r"/tag/(?P<tag>.+)")
def tag_delete(h, kind, name, tag):
    repo = h.hub.repo(kind, name, h.user, write=True)
    if repo.refs.pop(f"refs/tags/{tag}", None) is None:
        raise Refused(404, f"Tag does not exist: {tag}", "RevisionNotFound")
    h.reply(200, {})


@route("GET", PLAIN + r"/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
def resolve(h, kind, name, rev, path):
    repo = h.hub.repo(kind, name, h.user)
    if repo.gated and h.user != name.split("/")[0]:
        raise Refused(403, "Access to this repository is restricted", "GatedRepo")
    commit = repo.resolve(rev)
    file = commit.files.get(path)
    if file is None:
        raise Refused(404, "Entry not found", "EntryNotFound", headers={"X-Repo-Commit": commit.id})
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{file.oid}"'}
    if file.sha256:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": len(file.data), "ETag": f'"{file.sha256}"'}
        if file.sha256 in h.hub.xet_of:
            token = f"{h.hub.url}/api/{kind}/{name}/xet-read-token/{commit.id}"
            headers |= {"X-Xet-Hash": h.hub.xet_of[file.sha256], "Link": f'<{token}>; rel="xet-auth"'}
    h.send_bytes(file.data, headers)


# --- Xet -------------------------------------------------------------------------------------------------------------


@route("GET", KIND + NAME + r"/xet-(?P<mode>read|write)-token/(?P<rev>.+)")
def xet_token(h, kind, name, mode, rev):
    if not h.hub.xet:
        raise Refused(404, "No Xet here")
    pull = h.query.get("create_pr") is not None
    repo = h.hub.repo(kind, name, h.user, write=mode == "write" and not pull)
    repo.resolve(rev)
    url, token, end = f"{h.hub.url}/cas", "internal", int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": end}
    h.reply(200, {"casUrl": url, "accessToken": token, "exp": end}, headers)


@route("POST", r"/cas/v1/xorbs/default/(?P<xorb>[0-9a-f]{64})")
def xorb_put(h, xorb):
    h.hub.xorbs[xorb] = h.body
    h.reply(200, {"was_inserted": True})


@route("POST", r"/cas/v1/shards")
def shard_put(h):
    for file_hash, segments, sha256 in parse_shard(h.body):
        missing = [xorb for xorb, *_ in segments if xorb not in h.hub.xorbs]
        if missing:
            raise Refused(400, f"The xorb {missing[0]} was never uploaded")
        h.hub.shards[file_hash] = segments
        if sha256:
            h.hub.xet_of[sha256] = file_hash
    h.reply(200, {"result": 1})


@route("GET", r"/cas/v1/reconstructions/(?P<file_hash>[0-9a-f]{64})")
def reconstruction(h, file_hash):
    if file_hash not in h.hub.shards:
        raise Refused(404, "No such file")
    segments = h.hub.shards[file_hash]
    total = sum(length for _, length, _, _ in segments)
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", h.headers.get("Range") or "")
    begin, end = (int(match[1]), min(int(match[2] or total), total - 1)) if match else (0, total - 1)
    if begin >= total and total:
        raise Refused(416, "Past the end")
    terms, fetch, place, skipped = [], {}, 0, None
    for xorb, length, first, last in segments:
        if place + length > begin and place <= end:
            skipped = begin - place if skipped is None else skipped
            offsets = chunk_offsets(h.hub.xorbs[xorb])
            terms.append({"hash": xorb, "unpacked_length": length, "range": {"start": first, "end": last}})
            piece = {"range": {"start": first, "end": last}, "url": f"{h.hub.url}/cas/xorbs/{xorb}",
                     "url_range": {"start": offsets[first], "end": offsets[last] - 1}}  # fmt: skip
            if piece not in fetch.setdefault(xorb, []):
                fetch[xorb].append(piece)
        place += length
    h.reply(200, {"offset_into_first_range": max(skipped or 0, 0), "terms": terms, "fetch_info": fetch})


@route("GET", r"/cas/xorbs/(?P<xorb>[0-9a-f]{64})")
def xorb_get(h, xorb):
    if xorb not in h.hub.xorbs:
        raise Refused(404, "No such xorb")
    h.send_bytes(h.hub.xorbs[xorb])


class serve:
    """
    A running Hub: `with serve() as hub: hub.url`.

    Args:
        xet: whether it offers Xet; without it uploads need HF_HUB_DISABLE_XET=1.
        port: where to listen; 0 for any free one.
    """

    def __init__(self, xet=True, port=0, tokens=None):
        self.hub = Hub(xet, tokens)
        handler = type("BoundHandler", (Handler,), {"hub": self.hub})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.hub.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self.hub

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def quoted(revision):
    return quote(revision, safe="")
