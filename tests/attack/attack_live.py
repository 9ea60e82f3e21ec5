"""Requests to what listens, and rings that somebody wrote."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from attack_materials import Materials, spoil
from attack_media import put
from attack_run import Case

HERE = b" HTTP/1.1\r\nHost: localhost\r\n"
HOST = HERE + b"\r\n"
GET = b"GET /health" + HERE
REQUESTS: dict[str, bytes] = {
    "nothing": b"",
    "a line break": b"\r\n",
    "no method": b"/health\r\n\r\n",
    "an unknown method": b"BREW /health" + HOST,
    "POST": b"POST /health" + HERE + b"Content-Length: 9\r\n\r\n123456789",
    "a body that never comes": b"POST /health" + HERE + b"Content-Length: 999999999\r\n\r\n",
    "a negative body": b"POST /" + HERE + b"Content-Length: -1\r\n\r\n",
    "endless chunks": b"POST /" + HERE + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n",
    "HTTP/9.9": b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "HTTP/x": b"GET /health HTTP/x\r\n\r\n",
    "HTTP/1.0 without a host": b"GET /health HTTP/1.0\r\n\r\n",
    "another host": b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "a host that looks like ours": b"GET /health HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n",
    "a host with a user": b"GET /health HTTP/1.1\r\nHost: localhost@evil.example\r\n\r\n",
    "a host in brackets": b"GET /health HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "a host of NULs": b"GET /health HTTP/1.1\r\nHost: \0\0\r\n\r\n",
    "a host's port beyond": b"GET /health HTTP/1.1\r\nHost: localhost:99999999\r\n\r\n",
    "two hosts": GET + b"Host: evil.example\r\n\r\n",
    "a path that climbs": b"GET /../../etc/passwd" + HOST,
    "an encoded climb": b"GET /%2e%2e/%2e%2e/etc/passwd" + HOST,
    "a NUL in the path": b"GET /health\0" + HOST,
    "a path of 1 MB": b"GET /" + b"a" * 1_000_000 + HOST,
    "a header of 1 MB": GET + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "10,000 headers": GET + b"X: y\r\n" * 10_000 + b"\r\n",
    "a header without an end": GET + b"X",
    "half a request": b"GET /hea",
    "folded headers": GET + b"X: a\r\n b\r\n\r\n",
    "a header without a name": GET + b": y\r\n\r\n",
    "smuggling": GET
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
    "a query of lists": b"GET /health?after=1&after=2&after[]=3" + HOST,
    "after what is no number": b"GET /frame?after=NaN" + HOST,
    "after 10^4000": b"GET /frame?after=" + b"9" * 4400 + HOST,
    "a cookie of brackets": GET + b'Cookie: rtseg_token="\\\\; [=]; \x80=\xff\r\n\r\n',
    "no UTF-8": b"\xff\xfe\xfd /\xff HTTP/1.1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "a proxy's request": b"CONNECT evil.example:443" + HOST,
    "a whole address": b"GET http://evil.example/health" + HOST,
    "an upgrade": GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "ranges": GET + b"Range: bytes=0-,0-,0-,-1\r\n\r\n",
    "100 at once": (GET + b"\r\n") * 100,
}  # fmt: skip


def live_cases(made: Materials) -> Iterator[Case]:
    for server in ("health", "page"):
        for name, content in REQUESTS.items():
            build = partial(put, "request", content)
            probe = f"attack_probes:ask_{server}"
            yield Case("HTTP", f"{server}, {name}", build, probe=probe)
    yield Case(
        "HTTP", "200 idle connections and 160 descriptors", partial(_copy_frames, made),
        probe="attack_probes:drive_under_idle_connections",
    )  # fmt: skip
    ring = made.folder / "sound.ring"
    if not ring.exists():
        write_ring(ring)
    sound = ring.read_bytes()
    for name, content in spoil(sound, 24, "ring"):
        build = partial(put, "bad.ring", content)
        yield Case("rings", name, build, probe="attack_probes:read_ring")
    for name, content in spoil(sound[:192], 24, "ring head"):
        build = partial(put, "bad.ring", content + sound[192:])
        yield Case("rings", f"its head, {name}", build, probe="attack_probes:read_ring")
    for name, at, value in (
        ("no slots", 12, 0), ("endless slots", 12, 2**32 - 1), ("slots of nothing", 16, 0),
        ("endless slots' bytes", 16, 2**63), ("a number of 0", 24, 0),
        ("a number beyond all", 24, 2**64 - 1), ("version 9", 8, 9),
    ):  # fmt: skip
        width = 4 if at in (8, 12) else 8
        spoiled = sound[:at] + value.to_bytes(width, "little") + sound[at + width :]
        build = partial(put, "bad.ring", spoiled)
        yield Case("rings", name, build, probe="attack_probes:read_ring")


def _copy_frames(made: Materials, folder: Path) -> None:
    for path in made.frames.iterdir():
        put(path.name, path.read_bytes(), folder)


def write_ring(path: Path) -> None:
    """A ring that its writer left."""
    import os

    from attack_probes import RESULT
    from rtseg.runtime.sinks.shared_memory import Ring

    work = path.with_suffix(".work.ring")
    ring = Ring(work)
    for _ in range(3):
        ring(RESULT)
    os.link(work, path)
    ring.close()
