"""Users and repositories: create, move, settings, delete."""

from __future__ import annotations

import re

import yaml

from .handler import KIND, NAME, prefix, route
from .state import File, Refused, Repo, now


ATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in ("*.safetensors", "*.bin", "*.pt", "*.pickle")
).encode()


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
