"""Uploads: preupload, LFS, commits."""

from __future__ import annotations

import base64
import hashlib
import json
from fnmatch import fnmatch

from .handler import KIND, NAME, PLAIN, prefix, route
from .state import File, Refused


LFS = ("*.safetensors", "*.bin", "*.pt", "*.pickle", "*.pth", "*.gz", "*.zip", "*.onnx", "*.h5", "*.parquet", "*.png")


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


def changed(files, key, value, repo, rev, contents):
    """The files of a commit after one of its operations."""
    path = checked_path(value["path"])
    if key == "file":
        data = value["content"]
        data = base64.b64decode(data) if value.get("encoding") == "base64" else data.encode()
        return {**files, path: File(data)}
    if key == "lfsFile":
        return {**files, path: File(contents[value["oid"]], value["oid"])}
    if key == "copyFile":
        source = repo.resolve(value.get("srcRevision") or rev).files.get(value["srcPath"])
        if source is None:
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        return {**files, path: File(source.data, source.sha256)}
    gone = {p for p in files if p.startswith(path.rstrip("/") + "/")}  # deletedFile or deletedFolder
    if key == "deletedFile" and path in files:
        gone = {path}
    if not gone:
        raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
    return {p: file for p, file in files.items() if p not in gone}


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
            if line["key"] != "header":
                files = changed(files, line["key"], line["value"], repo, rev, contents)
        more = {}
        if as_pull:
            repo.pulls += 1
            ref = f"refs/pr/{repo.pulls}"
            more = {"pullRequestUrl": f"{h.hub.url}/{prefix(kind)}{name}/discussions/{repo.pulls}"}
        made = repo.add_commit(ref, files, header["summary"], header.get("description") or "", h.user, head.id)
    url = f"{h.hub.url}/{prefix(kind)}{name}/commit/{made}"
    h.reply(200, {"success": True, "commitOid": made, "commitUrl": url, "hookOutput": "", **more})
