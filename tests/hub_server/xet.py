"""Xet: tokens, chunks and how a file is put together from them."""

from __future__ import annotations

import re
import struct
import time

from .handler import KIND, NAME, route
from .state import Refused


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
