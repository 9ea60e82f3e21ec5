"""Pictures, videos and logs."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from attack_materials import NOT_AT_ALL, SIZE, Materials, generator, spoil, write_log, write_video
from attack_run import Case, Outcome
from rtseg.data.scenes import scene

PICTURES = (".png", ".jpg", ".bmp", ".tiff", ".webp", ".ppm")


def put(name: str, content: bytes, folder: Path) -> None:
    """Write a case's input."""
    path = folder / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def labels_of(folder: Path) -> list[Path]:
    return sorted((folder / "out" / "labels").glob("*.png"))


def one_label_a_frame(folder: Path, outcome: Outcome) -> str:
    """Judges `predict --json`: a label map for each frame that it counts, and every frame that it
    does not count is told."""
    facts = json.loads(outcome.stdout)
    there = len(labels_of(folder))
    if facts["frames"] != there:
        return f"{facts['frames']} frames counted, {there} label maps written"
    return "" if there else "nothing was done"


def media_cases(made: Materials) -> Iterator[Case]:
    yield from _pictures(made)
    yield from _folders(made)
    yield from _videos(made)
    yield from _logs(made)


def _predict(made: Materials, what: str) -> tuple[str, ...]:
    return "predict", what, "--model", str(made.onnx), "-o", "out", "--json"


def _pictures(made: Materials) -> Iterator[Case]:
    for ending in PICTURES:
        sound = cv2.imencode(ending, scene(SIZE, 3))[1].tobytes()
        for name, content in spoil(sound, 12, ending):
            build = partial(put, f"bad{ending}", content)
            label = f"{ending}, {name}"
            yield Case("images", label, build, probe="attack_probes:read_pictures")
        for name, content in NOT_AT_ALL.items():
            build = partial(put, f"bad{ending}", content)
            label = f"{ending}, {name}"
            if ending in (".png", ".tiff"):
                argv = _predict(made, f"in/bad{ending}")
                yield Case("images", label, build, argv, may_pass=False)
            else:
                yield Case(
                    "images", label, build, probe="attack_probes:read_pictures", may_pass=False
                )
    claims = ((1 << 31) - 1, 1), (65_500, 65_500), (20_000, 20_000), (0, 5), (1, (1 << 31) - 1)
    for width, height in claims:
        build = partial(put, "bomb.png", png_that_claims(width, height))
        name = f"a PNG that claims {width}x{height}"
        yield Case("images", name, build, _predict(made, "in/bomb.png"), may_pass=False)
    for name, picture in odd_pictures().items():
        content = cv2.imencode(".png", picture)[1].tobytes()
        build = partial(put, "odd.png", content)
        yield Case("images", name, build, _predict(made, "in/odd.png"), judge=one_label_a_frame)


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def odd_pictures() -> dict[str, np.ndarray]:
    rng = generator("odd")
    return {
        "one pixel": np.zeros((1, 1, 3), np.uint8),
        "one row": rng.integers(0, 256, (1, 3000, 3), np.uint8),
        "one column": rng.integers(0, 256, (3000, 1, 3), np.uint8),
        "16 bits": rng.integers(0, 65536, (*SIZE, 3), np.uint16),
        "alpha": rng.integers(0, 256, (*SIZE, 4), np.uint8),
        "gray": rng.integers(0, 256, SIZE, np.uint8),
    }


def _folders(made: Materials) -> Iterator[Case]:
    sound = made.frame.read_bytes()

    def folder_of(names: dict[str, bytes], folder: Path) -> None:
        for name, content in names.items():
            put(name, content, folder)

    def special(kind: str, folder: Path) -> None:
        place = folder / "in"
        put("good.png", sound, folder)
        if kind == "a pipe":
            os.mkfifo(place / "bad.png")
        elif kind == "a link to itself":
            (place / "bad.png").symlink_to("bad.png")
        elif kind == "a link to nothing":
            (place / "bad.png").symlink_to("nowhere")
        elif kind == "a link to /dev/zero":
            (place / "bad.png").symlink_to("/dev/zero")
        elif kind == "a folder called .png":
            (place / "bad.png").mkdir()
        elif kind == "a folder that holds itself":
            (place / "deep").symlink_to(place)

    kinds = (
        "a pipe", "a link to itself", "a link to nothing", "a link to /dev/zero",
        "a folder called .png", "a folder that holds itself",
    )  # fmt: skip
    for kind in kinds:
        argv = _predict(made, "in")
        build = partial(special, kind)
        yield Case("folders", f"{kind} beside a frame", build, argv, judge=one_label_a_frame)
        if kind != "a folder that holds itself":
            yield Case("folders", kind, build, _predict(made, "in/bad.png"), may_pass=False)
    names = {
        "same stems": ["a/000.png", "b/000.png"],
        "same names with other endings": ["a.png", "a.PNG"],
        "names of two bytes": ["ü ñ 路.png", "\N{ROCKET}.png"],
        "a name with a line break": ["a\nb.png"],
        "a name with a percent sign": ["%d.png", "100%.png"],
        "a name like an option": ["-o.png", "--json.png"],
        "a long name": ["n" * 240 + ".png"],
        "names that begin with a dot": [".hidden.png", "seen.png"],
        "brackets": ["[a].png", "{b}.png", "c*.png"],
        "a name that is no UTF-8": [os.fsdecode(b"\xff\xfe.png")],
        "numbers beyond 64 bits": ["9" * 40 + ".png", "8" * 40 + ".png"],
        "unlike digits": ["²³.png", "٣.png"],
    }
    for kind, several in names.items():
        build = partial(folder_of, dict.fromkeys(several, sound))
        yield Case(
            "folders", kind, build, _predict(made, "in"), judge=_all_of(len(several)),
            leaves=r"\.hidden",
        )  # fmt: skip
    for kind, where in {
        "nothing there": "in/none.png", "an empty folder": "in", "a glob of nothing": "in/*.png",
        "an open bracket": "in/[", "no name": "", "a NUL": "in/a\0b.png",
        "a name beyond all length": "in/" + "x" * 5000, "the root's null": "/dev/null",
        "far up": "../" * 60 + "none.png", "a user's home": "~nobody-here/x.png",
    }.items():  # fmt: skip
        yield Case("folders", kind, lambda folder: None, _predict(made, where), may_pass=False)


def _all_of(count: int):
    def judge(folder: Path, outcome: Outcome) -> str:
        there = len(labels_of(folder))
        return "" if there == count else f"{there} label maps of {count} frames"

    return judge


def _videos(made: Materials) -> Iterator[Case]:
    pictures = [scene(SIZE, index) for index in range(12)]
    for ending, codec, count in ((".mp4", "mp4v", 24), (".avi", "MJPG", 12), (".mkv", "mp4v", 12)):
        sound_at = made.folder / f"sound{ending}"
        write_video(sound_at, codec, pictures)
        sound = sound_at.read_bytes()
        for number, (name, content) in enumerate(spoil(sound, count, "video", ending)):
            build = partial(put, f"bad{ending}", content)
            label = f"{ending}, {name}"
            probe = None if number % 4 == 0 else "attack_probes:read_recording"
            argv = _predict(made, f"in/bad{ending}") if probe is None else None
            yield Case(
                "videos", label, build, argv, probe, judge=frames_or_told(len(pictures)),
                leaves=r"\.mp4\.partial$",
            )  # fmt: skip
        for name, content in NOT_AT_ALL.items():
            build = partial(put, f"bad{ending}", content)
            yield Case(
                "videos", f"{ending}, {name}", build, _predict(made, f"in/bad{ending}"),
                may_pass=False,
            )  # fmt: skip
    fast = made.folder / "fast.mp4"
    fast.write_bytes(index_first((made.folder / "sound.mp4").read_bytes()))
    whole = fast.read_bytes()
    for share in (0.5, 0.7, 0.9):  # its index is whole, its frames are not
        build = partial(put, "half.mp4", whole[: int(len(whole) * share)])
        argv = _predict(made, "in/half.mp4")
        judge = frames_or_told(len(pictures))
        yield Case(
            "videos", f"{share:.0%} of an MP4 with its index first", build, argv, judge=judge
        )


def index_first(content: bytes) -> bytes:
    """An MP4 whose index (moov) stands before its frames (mdat), as for streaming."""
    boxes, at = [], 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        boxes.append((content[at + 4 : at + 8], content[at : at + size]))
        at += size
    moov = next(box for kind, box in boxes if kind == b"moov")
    shift, at = len(moov), moov.find(b"stco")
    count = int.from_bytes(moov[at + 8 : at + 12], "big")
    moved = bytearray(moov)
    for each in range(count):
        place = at + 12 + 4 * each
        offset = int.from_bytes(moov[place : place + 4], "big") + shift
        moved[place : place + 4] = offset.to_bytes(4, "big")
    head = b"".join(box for kind, box in boxes if kind == b"ftyp")
    rest = b"".join(box for kind, box in boxes if kind not in (b"ftyp", b"moov"))
    return head + bytes(moved) + rest


def frames_or_told(count: int):
    """Judges a damaged recording: a frame that is missing is told."""

    def judge(folder: Path, outcome: Outcome) -> str:
        facts = json.loads(outcome.stdout)
        frames, told = facts["frames"], facts["skipped"]
        if frames < count - 1 and not told:  # a container's count may be one off
            return f"{frames} of {count} frames, and nothing said so"
        return ""

    return judge


def _logs(made: Materials) -> Iterator[Case]:
    pictures = [scene(SIZE, index) for index in range(12)]
    for kind in ("NONE", "ZSTD", "LZ4"):
        sound_at = made.folder / f"{kind}.mcap"
        write_log(sound_at, pictures, kind)
        for name, content in spoil(sound_at.read_bytes(), 16, "mcap", kind):
            build = partial(put, "bad.mcap", content)
            probe = "attack_probes:read_recording"
            yield Case(
                "MCAP logs", f"{kind}, {name}", build, probe=probe,
                judge=frames_or_told(len(pictures)),
            )  # fmt: skip
    drive = "drive", "in/bad.mcap", "--model", str(made.onnx), "--rate", "0", "--json"
    for number, (name, content) in enumerate(NOT_AT_ALL.items()):
        argv = drive if number % 2 else _predict(made, "in/bad.mcap")
        build = partial(put, "bad.mcap", content)
        yield Case("MCAP logs", name, build, argv, may_pass=False)
    for name, message in {
        "no JSON": b"{",
        "a list": b"[]",
        "no data": b"{}",
        "data that is a number": b'{"data": 7}',
        "data that is no base64": b'{"data": "!!!"}',
        "data that is no picture": b'{"data": "AAAA"}',
        "null": b"null",
        "100,000 brackets": b"[" * 100_000,
        "a bomb": json.dumps({"data": _base64(png_that_claims(30_000, 30_000))}).encode(),
        "nothing": b"",
    }.items():
        build = partial(_write_messages, [message] * 2)
        probe = "attack_probes:read_recording"
        yield Case("MCAP logs", f"messages of {name}", build, probe=probe, judge=frames_or_told(2))


def _base64(content: bytes) -> str:
    import base64

    return base64.b64encode(content).decode()


def _write_messages(messages: list[bytes], folder: Path) -> None:
    from mcap.writer import Writer

    with (folder / "in" / "bad.mcap").open("wb") as file:
        writer = Writer(file)
        writer.start()
        schema = writer.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
        channel = writer.register_channel("/camera", "json", schema)
        for index, content in enumerate(messages):
            writer.add_message(channel, index, content, index)
        writer.finish()
