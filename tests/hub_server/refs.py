"""Branches, tags, and the history of commits."""

from __future__ import annotations

import re

from .handler import KIND, NAME, route
from .state import Refused


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
