"""
A Hub for tests: repositories, branches, tags, commits, LFS and Xet, in memory and on a real socket.

It answers what huggingface_hub and hf_xet ask for (their own tests run against it, see test_hub_server.py), and can
be told to fail: `hub.faults` holds functions that get each request first.
"""

from __future__ import annotations

import threading
from http.server import ThreadingHTTPServer

from . import downloads, refs, repositories, uploads  # noqa: F401  # their routes
from . import xet as _xet  # noqa: F401
from .handler import Handler
from .state import Hub


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
