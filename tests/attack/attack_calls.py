"""Calls of the Python API that make no sense: each ends with an error that says so.

A call that Python itself refuses, for its type, counts as told: that is a program's mistake.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NAN, INF = float("nan"), float("inf")
Call = Callable[[Path, Path], object]  # of the case's folder and a sound artifact


def call(folder: Path) -> None:
    """The call that `in/call.json` names."""
    from rtseg.errors import UsageError

    facts = json.loads((folder / "in" / "call.json").read_text())
    make, _ = CALLS[facts["call"]]
    try:
        make(folder, Path(facts["onnx"]))
    except TypeError as error:
        raise UsageError(f"a type that it does not take: {error}") from error


def _load(*arguments: Any, **options: Any) -> Call:
    def make(folder: Path, onnx: Path) -> None:
        import rtseg

        rtseg.load(*(arguments or (onnx,)), **options).close()

    return make


def _segment(frame: Any) -> Call:
    def make(folder: Path, onnx: Path) -> None:
        import rtseg

        with rtseg.load(onnx, device="cpu") as segment:
            segment(frame)

    return make


def _load_model(*arguments: Any, **options: Any) -> Call:
    def make(folder: Path, onnx: Path) -> None:
        import rtseg

        rtseg.load_model(*arguments, **options)

    return make


def _own(output: Any) -> Call:
    """A network of one's own that gives something else than labels."""

    def make(folder: Path, onnx: Path) -> None:
        import rtseg
        import torch
        from rtseg.data.classes import ClassSet

        class Own(torch.nn.Module):
            def forward(self, image: torch.Tensor) -> Any:
                return output(image) if callable(output) else output

        two = ClassSet("two", ("a", "b"), ((0, 0, 0), (255, 255, 255)))
        model = rtseg.load_model(Own(), classes=two, size=(32, 64), normalize="none")
        rtseg.export(model, out=folder / "out")

    return make


def _export(**options: Any) -> Call:
    def make(folder: Path, onnx: Path) -> None:
        import rtseg

        where = {"out": folder / "out"}
        rtseg.export("csfcn_nano:camvid", **({"size": (64, 128)} | where | options))

    return make


def _export_into_a_file(folder: Path, onnx: Path) -> None:
    _export(out=folder / "in" / "frame.png")(folder, onnx)


def _frames(count: int = 5) -> Any:
    from rtseg.data.frames import Frame

    return [Frame(np.zeros((16, 32, 3), np.uint8), i, 1) for i in range(count)]


def _drive(source: Any = None, segmenter: Any = None, **options: Any) -> Call:
    """A drive of a few frames, by default sound; it has to end."""

    def make(folder: Path, onnx: Path) -> None:
        from rtseg.runtime import Drive, DriveLimits

        limits = DriveLimits(**options.pop("limits", {}))
        duration = options.pop("duration_s", 3.0)
        frames = _frames() if source is None else source
        serve = (lambda image: image[:, :, 0]) if segmenter is None else segmenter
        report = Drive(frames, serve, limits=limits, **options).run(duration)
        counts = report.frames
        assert counts.captured == counts.published + sum(counts.dropped.values()) + counts.open

    return make


def _raises(image: Any) -> Any:
    raise KeyError("a bug of the caller's")


def _bad_sink(message: Any) -> None:
    raise ValueError("a sink's own")


class _Odd:
    """A source that is not what it says."""

    def __init__(self, *items: Any):
        self.items = items

    def __iter__(self) -> Any:
        yield from self.items


def _frame_of(image: Any, captured_ns: Any = 1, index: Any = 0) -> Any:
    from rtseg.data.frames import Frame

    return Frame(image, index, captured_ns)


BLANK = np.zeros((16, 32, 3), np.uint8)
# What is called, and whether it may end well.
CALLS: dict[str, tuple[Call, bool]] = {
    "load nothing": (_load(""), False),
    "load a NUL": (_load("a\0b.onnx"), False),
    "load a folder": (_load("."), False),
    "load a device": (_load("/dev/null"), False),
    "load a number": (_load(7), False),
    "load a name that is no UTF-8": (_load(b"\xff.onnx".decode(errors="surrogateescape")), False),
    "load in an unknown backend": (_load(backend="magic"), False),
    "load in a backend for other files": (_load(backend="tensorrt"), False),
    "load on no device": (_load(device="tpu"), False),
    "load on device -1": (_load(device="cuda:-1"), False),
    "load on device 99": (_load(device="cuda:99"), False),
    "load on an empty device": (_load(device=""), True),
    "load with an unknown option": (_load(surprise=1), False),
    "load with -1 threads": (_load(device="cpu", threads=-1), False),
    "load with 10^12 threads": (_load(device="cpu", threads=10**12), False),
    "load with words for threads": (_load(device="cpu", threads="many"), False),
    "load with NaN threads": (_load(device="cpu", threads=NAN), False),
    "load with an unknown argmax": (_load(argmax="maybe"), False),
    "load with a key that is none": (_load(require_signature="no.key"), False),
    "load with a key of rubbish": (_load(require_signature="ed25519:????"), False),
    "a frame of nothing": (_segment(np.zeros((0, 0, 3), np.uint8)), False),
    "a frame that is None": (_segment(None), False),
    "a frame of text": (_segment(np.array("x")), False),
    "a frame of objects": (_segment(np.full((4, 4, 3), None)), False),
    "a frame of NaN": (_segment(np.full((4, 4, 3), np.nan)), False),
    "a frame of 10^300": (_segment(np.full((4, 4, 3), 1e300)), False),
    "a frame of complex numbers": (_segment(np.zeros((4, 4, 3), complex)), False),
    "a frame of dates": (_segment(np.zeros((4, 4, 3), "datetime64[s]")), False),
    "a frame of five dimensions": (_segment(np.zeros((1, 1, 4, 4, 3), np.uint8)), False),
    "a frame with channels first": (_segment(np.zeros((3, 40, 40), np.uint8)), False),
    "a frame of one pixel": (_segment(np.zeros((1, 1, 3), np.uint8)), True),
    "a frame of one row of 60,000": (_segment(np.zeros((1, 60_000, 3), np.uint8)), True),
    "a frame with strides backwards": (_segment(BLANK[::-1, ::-1, ::-1]), True),
    "a frame of a masked array": (_segment(np.ma.masked_all((4, 4, 3), np.uint8)), True),
    "a model of no name": (_load_model(""), False),
    "a model of a misspelt name": (_load_model("csfcn_nanoo"), False),
    "a model that climbs": (_load_model("../../../etc/passwd"), False),
    "a model of a NUL": (_load_model("\0"), False),
    "a model that is a number": (_load_model(7), False),
    "a model with weights that are not there": (_load_model("csfcn_nano", weights="no.pth"), False),
    "a model with weights that are a folder": (_load_model("csfcn_nano", weights="."), False),
    "a model with weights of text": (_load_model("csfcn_nano", weights="in/call.json"), False),
    "a model with classes that are none": (_load_model("csfcn_nano", classes="no.yaml"), False),
    "a model with one class": (_load_model("csfcn_nano", classes=["a"]), False),
    "a model with 300 classes": (_load_model("csfcn_nano", classes=["a"] * 300), False),
    "a model with 300 names": (
        _load_model("csfcn_nano", classes=[f"c{i}" for i in range(300)]), False,
    ),
    "a model with numbers for classes": (_load_model("csfcn_nano", classes=[1, 2]), False),
    "a network that gives None": (_own(None), False),
    "a network that gives text": (_own("labels"), False),
    "a network that gives an empty list": (_own([]), False),
    "a network that raises": (_own(_raises), False),
    "a network that gives a number": (_own(lambda image: image.sum()), False),
    "a network that gives three classes": (_own(lambda image: image), False),
    "a network that gives NaN": (_own(lambda image: image[:, :2] * NAN), False),
    "export to no size": (_export(size=(0, 0)), False),
    "export to a negative size": (_export(size=(-64, 128)), False),
    "export to an endless size": (_export(size=(1 << 40, 1 << 40)), False),
    "export to a size of text": (_export(size=("a", "b")), False),
    "export to a size of floats": (_export(size=(64.5, 128.5)), False),
    "export to a size of three": (_export(size=(64, 128, 3)), False),
    "export to what there is not": (_export(to="coreml"), False),
    "export to nothing": (_export(to=[]), False),
    "export in no precision": (_export(precision="fp7"), False),
    "export in int8 by frames of nowhere": (_export(precision="int8", calib="nowhere"), False),
    "export with an unknown fit": (_export(fit="bend"), False),
    "export of an unknown output": (_export(output="pictures"), False),
    "export to a NUL": (_export(out="a\0b"), False),
    "export to /proc": (_export(out="/proc/none"), False),
    "export to a device": (_export(out="/dev/null"), False),
    "export into a file": (_export_into_a_file, False),
    "export with an unknown option": (_export(surprise=1), False),
    "a drive": (_drive(), True),
    "a drive of nothing": (_drive([]), True),
    "a drive of None": (_drive(_Odd(None, None)), True),
    "a drive of numbers": (_drive(_Odd(1, 2.5, "x")), True),
    "a drive of frames without pictures": (_drive(_Odd(_frame_of(None))), True),
    "a drive of frames of floats": (_drive(_Odd(_frame_of(np.zeros((4, 4, 3))))), True),
    "a drive of frames of one dimension": (_drive(_Odd(_frame_of(np.zeros(9, np.uint8)))), True),
    "a drive of frames without pixels": (
        _drive(_Odd(_frame_of(np.zeros((0, 9, 3), np.uint8)))), True,
    ),
    "a drive of frames of no time": (_drive(_Odd(_frame_of(BLANK, None))), True),
    "a drive of frames of NaN": (_drive(_Odd(_frame_of(BLANK, NAN))), True),
    "a drive of frames of 10^30": (_drive(_Odd(_frame_of(BLANK, 10**30))), True),
    "a drive of frames of -10^30": (_drive(_Odd(_frame_of(BLANK, -(10**30)))), True),
    "a drive of frames without a number": (_drive(_Odd(_frame_of(BLANK, 1, None))), True),
    "a drive without a segmenter": (_drive(segmenter=[]), False),
    "a drive with an artifact that is not there": (_drive(segmenter="none.onnx"), False),
    "a drive with a number": (_drive(segmenter=7), False),
    "a drive with a segmenter that raises": (_drive(segmenter=_raises), True),
    "a drive with a segmenter of None": (_drive(segmenter=lambda image: None), True),
    "a drive with labels of another size": (
        _drive(segmenter=lambda image: np.zeros((3, 3), np.uint8)), True,
    ),
    "a drive with labels of floats": (
        _drive(segmenter=lambda image: np.full(image.shape[:2], NAN)), True,
    ),
    "a drive with a fallback that is not there": (_drive(fallback="none.onnx"), False),
    "a drive with a sink that raises": (_drive(sinks=[_bad_sink]), True),
    "a drive with a sink that is none": (_drive(sinks=[7]), False),
    "a drive on port 70000": (_drive(health=70_000), False),
    "a drive on port -1": (_drive(health=-1), False),
    "a drive with a health of NUL": (_drive(health="a\0b"), False),
    "a drive with its health in /proc": (_drive(health="/proc/none/x"), False),
    "a drive at a host that is none": (_drive(health=0, health_host="no.such.invalid"), False),
    "a drive of NaN seconds": (_drive(duration_s=NAN), False),
    "a drive of no seconds": (_drive(duration_s=0), False),
    "a drive of endless seconds": (_drive(duration_s=INF), False),
    "a drive of negative seconds": (_drive(duration_s=-1.0), False),
    "a drive with a deadline of NaN": (_drive(limits={"deadline_ms": NAN}), False),
    "a drive with a deadline of -1": (_drive(limits={"deadline_ms": -1}), False),
    "a drive with an endless age": (_drive(limits={"max_age_ms": INF}), False),
    "a drive with an age of text": (_drive(limits={"max_age_ms": "old"}), False),
}  # fmt: skip
