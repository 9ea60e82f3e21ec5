"""Sound inputs, made once, and what spoils them: seeded, so that every run attacks alike."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rtseg.data.scenes import scene

SIZE = 64, 128
FRAMES = 12
SEED = 13


@dataclass(frozen=True)
class Materials:
    """Sound files in a folder; labels: what `onnx` says of `frame`, (H, W) uint8."""

    folder: Path
    labels: np.ndarray[Any, Any]

    def __getattr__(self, name: str) -> Path:
        names = {
            "onnx": "art/csfcn_nano_64x128_fp32.onnx",
            "openvino": "art/csfcn_nano_64x128_fp32.xml",
            "torch": "art/csfcn_nano_64x128_fp32.safetensors",
            "frame": "frames/0.png",
            "frames": "frames",
            "video": "clip.mp4",
            "log": "clip.mcap",
        }
        if name not in names:
            raise AttributeError(name)
        return self.folder / names[name]


def make_materials(folder: Path) -> Materials:
    """Export csfcn_nano, and write frames, a video and a log."""
    run = [sys.executable, "-m", "rtseg"]
    words = "csfcn_nano:camvid --size 64x128 --fit stretch --precision fp32 -o"
    made = [*words.split(), folder / "art"]
    targets = [word for name in ("onnx", "openvino", "torch") for word in ("--to", name)]
    subprocess.run([*run, "export", *map(str, made), *targets], check=True, capture_output=True)
    (folder / "frames").mkdir()
    pictures = [scene(SIZE, index) for index in range(FRAMES)]
    for index, picture in enumerate(pictures[:2]):
        cv2.imwrite(str(folder / "frames" / f"{index}.png"), picture)
    write_video(folder / "clip.mp4", "mp4v", pictures)
    write_log(folder / "clip.mcap", pictures)
    artifact = str(folder / "art" / "csfcn_nano_64x128_fp32.onnx")
    done = [*run, "predict", str(folder / "frames" / "0.png"), "--model", artifact]
    subprocess.run([*done, "-o", str(folder / "known")], check=True, capture_output=True)
    labels = cv2.imread(str(folder / "known" / "labels" / "0.png"), cv2.IMREAD_UNCHANGED)
    assert labels is not None
    return Materials(folder, labels)


def write_video(path: Path, codec: str, pictures: list[np.ndarray[Any, Any]]) -> None:
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 20, (width, height))
    for picture in pictures:
        writer.write(picture)
    writer.release()


def write_log(path: Path, pictures: list[np.ndarray[Any, Any]], compression: str = "NONE") -> None:
    """An MCAP log of compressed images, as JSON."""
    import base64

    from mcap.writer import CompressionType, Writer

    with path.open("wb") as file:
        writer = Writer(file, compression=CompressionType[compression], chunk_size=20_000)
        writer.start()
        schema = writer.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
        channel = writer.register_channel("/camera", "json", schema)
        for index, picture in enumerate(pictures):
            data = base64.b64encode(cv2.imencode(".jpg", picture)[1].tobytes()).decode()
            content = json.dumps({"data": data, "format": "jpeg"}).encode()
            writer.add_message(channel, index * 50_000_000, content, index * 50_000_000)
        writer.finish()


def generator(*names: object) -> np.random.Generator:
    """The random numbers of one format."""
    return np.random.default_rng([SEED, *(zlib.crc32(str(name).encode()) for name in names)])


Spoil = Callable[[bytes, np.random.Generator], bytes]


def _flip(content: bytes, rng: np.random.Generator, bits: int = 1) -> bytes:
    spoiled = bytearray(content)
    for at in rng.integers(0, len(content), bits):
        spoiled[at] ^= 1 << int(rng.integers(8))
    return bytes(spoiled)


def _span(content: bytes, rng: np.random.Generator) -> tuple[int, int]:
    start = int(rng.integers(0, len(content)))
    return start, min(len(content), start + 1 + int(rng.integers(1, max(2, len(content) // 4))))


def _zero(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + bytes(end - start) + content[end:]


def _noise(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + rng.bytes(end - start) + content[end:]


def _remove(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + content[end:]


def _repeat(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(content, rng)
    return content[:end] + content[start:end] + content[end:]


SPOILS: dict[str, Spoil] = {
    "cut": lambda content, rng: content[: int(rng.integers(0, len(content)))],
    "head cut off": lambda content, rng: content[1 + int(rng.integers(0, len(content) - 1)) :],
    "one bit": _flip,
    "a bit in the head": lambda content, rng: _flip(content[:64], rng) + content[64:],
    "a bit in the tail": lambda content, rng: content[:-64] + _flip(content[-64:], rng),
    "forty bits": lambda content, rng: _flip(content, rng, 40),
    "zeros": _zero,
    "noise": _noise,
    "a piece gone": _remove,
    "a piece twice": _repeat,
    "more behind": lambda content, rng: content + rng.bytes(int(rng.integers(1, 4096))),
    "more before": lambda content, rng: rng.bytes(int(rng.integers(1, 64))) + content,
}
NOT_AT_ALL: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\0",
    "text": b"no such thing\n" * 30,
    "a web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "a pointer of git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "0xFF": b"\xff" * 70_000,
    "zeros": bytes(70_000),
    "a zip": b"PK\x05\x06" + bytes(18),
}


def spoil(content: bytes, count: int, *names: object) -> Iterator[tuple[str, bytes]]:
    """`count` spoiled versions of a file's content, each with a name."""
    rng = generator(*names)
    for number in range(count):
        kind = list(SPOILS)[number % len(SPOILS)]
        spoiled = SPOILS[kind](content, rng)
        yield f"{kind}, {number}", spoiled
