"""Faults for `hub.faults`: each is given a request first, and answers whether it has dealt with it."""

from __future__ import annotations

import socket


def cut(h):
    """The connection ends without an answer."""
    h.connection.shutdown(socket.SHUT_RDWR)
    h.close_connection = True
    return True


def is_upload(h):
    return h.path.startswith(("/lfs/", "/cas/v1/xorbs")) and h.command in ("PUT", "POST")


def answer(status, message, when, times=10**9, headers=None):
    left = [times]

    def fault(h):
        if left[0] <= 0 or not when(h):
            return False
        left[0] -= 1
        h.reply(status, {"error": message}, {"X-Error-Message": message, **(headers or {})})
        return True

    return fault


def is_commit(h):
    return "/commit/" in h.path
