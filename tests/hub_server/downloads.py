"""What is read: a repository, its lists of files, and files."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import parse_qs, urlsplit

import yaml

from .handler import KIND, NAME, PLAIN, route
from .state import File, Refused, pointer


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
