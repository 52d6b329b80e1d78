"""HTTP: finds the function of a request and answers, whole, in ranges or with an error as the Hub words it."""

from __future__ import annotations

import base64
import json
import re
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from .state import Hub, Refused


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
