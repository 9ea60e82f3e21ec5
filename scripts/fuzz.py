"""Fuzzing of all parsers with random damage, one target each.

python scripts/fuzz.py                       # all, ten seconds each
python scripts/fuzz.py mcap --seconds 600    # one
python scripts/fuzz.py safetensors --atheris -- -max_total_time=600

Whatever is neither an answer nor an error of rtseg's own is a finding: its input is kept in
`fuzz-findings`, and the exit code is 1. With `--atheris` (pip install atheris) libFuzzer looks for
inputs that reach new lines; options after `--` are passed to it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from rtseg.data.classes import CAMVID, load_class_set
from rtseg.data.frames import open_source
from rtseg.data.images import read_gray, read_image
from rtseg.data.mcap_reader import McapLog
from rtseg.data.ros.ros_bag import RosBag
from rtseg.data.ros.ros_messages import Header, Image
from rtseg.data.scenes import scene
from rtseg.data.soft_labels import load_class_map, read_probabilities
from rtseg.errors import RtsegError
from rtseg.runtime.artifact import Card, append_card, read_card
from rtseg.runtime.description import describe
from rtseg.runtime.drive.faults import read_plan
from rtseg.runtime.sinks.shared_memory import RingReader
from rtseg.speed.replay_side import RECORD, ReplaySide, read_recorded

FOUND = Path("fuzz-findings")
MODULES = ("rtseg.data", "rtseg.runtime", "rtseg.models", "rtseg.train")


class Target:
    """A parser.

    Args:
        suffix: of the files that it reads.
        parse: reads a file; may raise RtsegError and OSError.
        sample: the content of a sound file.
    """

    def __init__(
        self, suffix: str, parse: Callable[[Path], object], sample: Callable[[], bytes]
    ) -> None:
        self.suffix, self.parse, self.sample = suffix, parse, sample


def _picture(suffix: str) -> bytes:
    return cv2.imencode(suffix, scene((32, 64), 1))[1].tobytes()


def _mcap() -> bytes:
    import base64

    from mcap.writer import Writer

    file = io.BytesIO()
    writer = Writer(file)
    writer.start()
    schema = writer.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
    channel = writer.register_channel("/camera", "json", schema)
    message = json.dumps({"data": base64.b64encode(_picture(".png")).decode()}).encode()
    for index in range(3):
        writer.add_message(channel, index, message, index)
    writer.finish()  # type: ignore[no-untyped-call]
    return file.getvalue()


def _ros_image() -> bytes:
    return Image(Header(1, "camera"), 6, 8, "bgr8", 24, bytes(range(144))).encode()


def _ros_bag() -> bytes:
    """The database of a bag, which a `.db3` file alone is read as."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bag"
        with Writer(path, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
            store = get_typestore(Stores.ROS2_JAZZY)
            connection = writer.add_connection("/camera", Image.TYPE.name, typestore=store)
            for index in range(3):
                writer.write(connection, index + 1, _ros_image())
        return next(path.glob("*.db3")).read_bytes()


def _video() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.mp4")
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 32))
        for index in range(4):
            writer.write(scene((32, 64), index))
        writer.release()
        return path.read_bytes()


def _ring() -> bytes:
    from rtseg.runtime.drive.messages import Result
    from rtseg.runtime.sinks.shared_memory import Ring

    labels = np.zeros((4, 6), np.uint8)
    image = np.zeros((4, 6, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        ring = Ring(Path(folder, "a.ring"))
        ring(Result(1, 1, "a", 1, 1, labels, image, "large", {}, 1.0, 1, 1 << 61))
        content = ring.path.read_bytes()
        ring.close()
    return content


def _soft() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, probabilities=np.zeros((11, 4, 6), np.uint8))
    return file.getvalue()


def _weights() -> bytes:
    import torch
    from safetensors.torch import save

    return save({"a": torch.zeros(3, 4), "b": torch.ones(5)}, {"classes": '["a", "b"]'})


def _pickle() -> bytes:
    import torch

    file = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(3, 4)}, "epoch": 3}, file)
    return file.getvalue()


def _checkpoint(path: Path) -> object:
    from rtseg.models.checkpoints import read_checkpoint, unwrap_state_dict

    return unwrap_state_dict(read_checkpoint(path))


def _recipe(path: Path) -> object:
    from rtseg.train.recipe import load_recipe

    return load_recipe(path)


def _recipe_sample() -> bytes:
    from rtseg.train.recipe import RECIPES

    return (RECIPES / "csfcn_nano_camvid.yaml").read_bytes()


def _card() -> Card:
    facts = {
        "model": "csfcn_tiny", "size": (32, 64), "precision": "fp32", "outputs": ("labels",),
        "classes": ("road", "car"), "palette": ((0, 0, 0), (9, 9, 9)), "class_set": "two",
        "mean": (0, 0, 0), "std": (1, 1, 1), "weights": "w", "weights_from": "random",
        "trained": False, "macs": 1, "params": 1, "tools": {},
    }  # fmt: skip
    return Card.model_validate(facts)


def _beside(path: Path) -> object:
    """The card beside an artifact that has no room for one in it."""
    artifact = path.with_suffix("")
    artifact.write_bytes(b"content")
    return read_card(artifact)


def _baseline(path: Path) -> object:
    return read_recorded(path.rename(path.with_name(RECORD)).parent)


def _baseline_sample() -> bytes:
    side = ReplaySide(
        "net", "net.onnx", "d", "fp32", (32, 64), ("road", "car"), "onnxruntime", "1", "cpu", 2,
        "cpu", "3.11", [[1.5, 2.0]], [0.0, 0.1], 3.5, [0.9, 0.8],
    )  # fmt: skip
    frames = [{"name": "0001", "pixels": "d"}]
    return json.dumps({"format": 1, "side": asdict(side), "frames": frames}).encode()


TARGETS = {
    "png": Target(".png", read_image, lambda: _picture(".png")),
    "jpeg": Target(".jpg", read_image, lambda: _picture(".jpg")),
    "bmp": Target(".bmp", read_image, lambda: _picture(".bmp")),
    "tiff": Target(".tiff", read_image, lambda: _picture(".tiff")),
    "webp": Target(".webp", read_image, lambda: _picture(".webp")),
    "label": Target(".png", read_gray, lambda: _picture(".png")),
    "video": Target(".mp4", lambda path: list(open_source(path)), _video),
    "mcap": Target(".mcap", lambda path: list(McapLog(path)), _mcap),
    "ros-image": Target(".cdr", lambda path: Image.decode(path.read_bytes()), _ros_image),
    "ros-bag": Target(".db3", lambda path: list(RosBag(path)), _ros_bag),
    "onnx-card": Target(".onnx", read_card, lambda: append_card(bytes(200), _card())),
    "card-beside": Target(".qnn.json", _beside, lambda: _card().to_json().encode()),
    "replay-baseline": Target(".json", _baseline, _baseline_sample),
    "safetensors": Target(".safetensors", describe, _weights),
    "weights": Target(".safetensors", _checkpoint, _weights),
    "pickle": Target(".pth", _checkpoint, _pickle),
    "soft-labels": Target(".npz", read_probabilities, _soft),
    "classes": Target(
        ".yaml", load_class_set, lambda: b"- {name: road, color: [1, 2, 3]}\n- car\n"
    ),
    "class-map": Target(
        ".yaml", lambda path: load_class_map(path, CAMVID), lambda: b"[sky, null, 3, 255]"
    ),
    "fault-plan": Target(".yaml", read_plan, lambda: b"- {at: 2, fault: camera_cut, seconds: 1}"),
    "recipe": Target(".yaml", _recipe, _recipe_sample),
    "ring": Target(".ring", lambda path: RingReader(path).latest(), _ring),
}


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four random edits: bits, pieces lost, doubled, overwritten, lengths made extreme."""
    spoiled = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, len(spoiled) + 1))
        end = min(len(spoiled), at + int(rng.integers(1, 40)))
        kind = int(rng.integers(6))
        if kind == 0 and at < len(spoiled):
            spoiled[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del spoiled[at:end]
        elif kind == 2:
            spoiled[at:at] = spoiled[at:end]
        elif kind == 3:
            spoiled[at:end] = rng.bytes(end - at)
        elif kind == 4:
            extreme = (0, 0x7F, 0xFF, 0x80)[int(rng.integers(4))]
            spoiled[at : at + 4] = bytes([extreme] * 4)
        else:
            del spoiled[at:]
    return bytes(spoiled)


def judge(target: Target, content: bytes, folder: Path) -> str:
    """What is wrong with how a parser took a content; "" if nothing is."""
    path = folder / f"input{target.suffix}"
    path.write_bytes(content)
    try:
        target.parse(path)
    except (RtsegError, OSError) as error:
        return "" if str(error).strip() else f"{type(error).__name__} without a word"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def fuzz(
    target: Target, seconds: float, seed: int = 0, most: int = 1 << 40
) -> tuple[int, dict[str, bytes]]:
    """Parse random damage for a while.

    Args:
        target: the parser.
        seconds: how long.
        seed: of the damage.
        most: inputs, at most.

    Returns:
        How many inputs there were, and one for each kind of finding.
    """
    rng, found, count = np.random.default_rng(seed), dict[str, bytes](), 0
    corpus, end = [target.sample()], time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="rtseg-fuzz-") as folder:
        if why := judge(target, corpus[0], Path(folder)):
            raise ValueError(f"the sound sample is refused: {why}")
        while time.monotonic() < end and count < most:
            content = mutate(corpus[int(rng.integers(len(corpus)))], rng)
            if why := judge(target, content, Path(folder)):
                found.setdefault(why.split(":")[0], content)
            elif len(corpus) < 50 and rng.random() < 0.05:
                corpus.append(content)  # damage upon damage
            count += 1
    return count, found


def keep(name: str, why: str, content: bytes) -> Path:
    FOUND.mkdir(exist_ok=True)
    digest = hashlib.sha256(content).hexdigest()[:12]
    path = FOUND / f"{name}-{digest}{TARGETS[name].suffix}"
    path.write_bytes(content)
    sys.stdout.write(f"{name}: {why}: {path}\n")
    return path


def fuzz_by_coverage(name: str, options: Sequence[str]) -> None:
    """Through atheris; never returns."""
    atheris = importlib.import_module("atheris")
    target = TARGETS[name]
    folder = Path(tempfile.mkdtemp(prefix="rtseg-fuzz-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "sound").write_bytes(target.sample())

    def one(content: bytes) -> None:
        if why := judge(target, content, folder):
            keep(name, why, content)
            raise RuntimeError(why)

    for module in [each for each in sys.modules if each.startswith(MODULES)]:
        for function in vars(sys.modules[module]).values():
            if callable(function) and getattr(function, "__module__", "") == module:
                code = getattr(function, "__code__", None)
                if code is not None:
                    atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], str(corpus), *options], one)
    atheris.Fuzz()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="?", choices=sorted(TARGETS), help="all by default")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true", help="by coverage; needs a target")
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    options, rest = parser.parse_args(words[:end]), words[end + 1 :]
    if options.atheris:
        fuzz_by_coverage(options.target or parser.error("--atheris needs a target"), rest)
        return
    failed = False
    for name in [options.target] if options.target else TARGETS:
        count, found = fuzz(TARGETS[name], options.seconds, options.seed)
        sys.stdout.write(f"{name}: {count} inputs, {len(found)} kinds of findings\n")
        sys.stdout.flush()
        failed |= bool(found)
        for why, content in found.items():
            keep(name, why, content)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
