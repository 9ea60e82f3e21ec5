"""Plants faults in an engine that a proof that goes on watches, and counts alarms without any.

The engine and its reference label one stream of frames in turn, so a verified frame is judged
before the next one: a drive adds as many frames as come during the reference's work. The engine
repeats the known frame at the same pace, as a drive's worker does.

    python scripts/verify_faults.py camvid/val --model int8.onnx --verify-with fp32.onnx
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rtseg.data.frames import read_folder
from rtseg.runtime import Segmenter, load
from rtseg.runtime.artifact import read_card
from rtseg.runtime.backends.backend import choose, open_backend
from rtseg.runtime.drive.agreement import move_frame
from rtseg.runtime.drive.clock import LoopClock
from rtseg.runtime.drive.continuous_proof import ContinuousProof, VerifiedLevel, VerifyPace
from rtseg.runtime.drive.engine import Answer
from rtseg.runtime.drive.evidence import FileWatch
from rtseg.runtime.drive.known_frame import KnownFrame
from rtseg.runtime.drive.messages import Result

Picture = NDArray[np.uint8]
Segment = Callable[[Picture], Picture]
SCENE = 12  # frames of one picture, over which it moves and grows
DARKEST = 0.3
SETTLE = 3  # paces without a fault before each


class ReferenceInTurn:
    """An engine that answers at once."""

    levels, baselines_ms, ready, fault = ("reference",), (1.0,), True, ""
    batches = (1,)

    def __init__(self, segment: Segment):
        self.segment = segment
        self.answer: Answer | None = None

    def submit(self, job: int, image: Picture, level: int) -> None:
        self.answer = Answer(job, self.segment(image))

    def submit_batch(self, job: int, images: Sequence[Picture], level: int) -> None:
        (image,) = images
        self.submit(job, image, level)

    def take(self) -> Answer | None:
        answer, self.answer = self.answer, None
        return answer

    def kill(self) -> None:
        self.ready = False


@dataclass
class FaultFigures:
    """Of one kind of fault: how often it was planted and found, of that by the known frame alone;
    frames until the alarm. unseen: of those not found, how many changed no label of any frame."""

    fault: str
    planted: int = 0
    found: int = 0
    within: int = 0
    by_known_frame: int = 0
    most_frames: int = 0
    unseen: int = 0


class VerifiedStream:
    """Frames through an engine with a proof along, one after another."""

    def __init__(
        self,
        pictures: list[Picture],
        proof: ContinuousProof,
        size: tuple[int, int],
        seed: int = 0,
    ):
        self.pictures, self.proof, self.size = pictures, proof, size
        self.known: KnownFrame | None = None
        self.changed = ""  # the known frame's, at the last alarm
        self.number = 0
        self.rng = np.random.default_rng(seed)
        self.frames = self._make_frames()
        # By hand in this thread, so that no frame passes meanwhile.
        proof._thread = object()  # type: ignore[assignment]

    def _make_frames(self) -> Iterator[Picture]:
        """Endless: cuts of the pictures that move, grow and darken."""
        height, width = self.size
        while True:
            picture = self.pictures[int(self.rng.integers(len(self.pictures)))]
            light = self.rng.uniform(DARKEST, 1.0) if self.rng.integers(3) == 0 else 1.0
            step = self.rng.uniform(-0.006, 0.006, 2)
            for each in range(SCENE):
                share = 0.85 + 0.006 * each
                rows, columns = (round(share * side) for side in picture.shape[:2])
                top, left = (
                    round(np.clip((1 - share) / 2 + each * move, 0, 1 - share) * side)
                    for move, side in zip(step, picture.shape[:2], strict=True)
                )
                cut = picture[top : top + rows, left : left + columns]
                frame = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA)
                yield np.asarray(frame * light, np.uint8)

    def drive(self, segment: Segment, level: str, frames: int) -> int | None:
        """Frames until an alarm; None if there is none."""
        for passed in range(frames):
            frame = next(self.frames)
            self.number += 1
            self.proof(make_result(self.number, segment(frame), frame, level))
            for _ in range(3):
                self.proof.step()
            self.changed = ""
            if self.known is not None and self.number % self.proof.pace.every == 0:
                self.changed = self.known.find_change(segment)
            if self.proof.take_alarm() is not None or self.changed:
                return passed + 1
        return None


def make_result(number: int, labels: Picture, frame: Picture, level: str) -> Result:
    return Result(
        frame_id=number, index=number, name="", captured_ns=number, captured_wall_ns=number,
        labels=labels, image=frame, level=level, stages_ms={}, age_ms=0.0, published_ns=number,
        expires_ns=1 << 62,
    )  # fmt: skip


def flip_bit(path: Path, folder: Path, rng: np.random.Generator) -> Path:
    """The ONNX file with the highest bit below the sign flipped in one of its weights."""
    import onnx
    from onnx import numpy_helper

    tensors = [
        each
        for each in onnx.load(path).graph.initializer
        if np.prod(each.dims) > 64 and each.raw_data
    ]
    tensor = tensors[int(rng.integers(len(tensors)))]
    bytes_each = numpy_helper.to_array(tensor).itemsize
    content = bytearray(path.read_bytes())
    at = (int(rng.integers(np.prod(tensor.dims))) + 1) * bytes_each - 1  # little-endian
    content[content.index(tensor.raw_data) + at] ^= 1 << 6
    out = folder / f"flipped-{rng.integers(1 << 30)}.onnx"
    out.write_bytes(content)
    return out


def open_unchecked(path: Path) -> Segmenter:
    """An artifact whose digests no longer hold, as after a fault in memory."""
    card = read_card(path).model_copy(update={"files": {}})
    return Segmenter(open_backend(choose(path, None, "cpu"), path, "cpu", card=card, threads=1))


def make_faults(
    path: Path, segment: Segmenter, swap: Path | None, folder: Path, rng: np.random.Generator
) -> dict[str, Callable[[], Segment]]:
    """What plants each kind of fault anew."""
    classes = len(segment.card.classes)

    def swapped() -> Segment:
        table = np.arange(256, dtype=np.uint8)
        one, other = 0, 1 + int(rng.integers(min(4, classes - 1)))
        table[[one, other]] = table[[other, one]]
        return lambda frame: table[segment(frame)]

    def shifted() -> Segment:
        move = [(0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5)][int(rng.integers(4))]
        return lambda frame: segment(move_frame(frame, move))

    def stuck() -> Segment:
        kept: list[Picture] = []

        def give(frame: Picture) -> Picture:
            kept[:] = kept or [segment(frame)]
            return kept[0]

        return give

    ways: dict[str, Callable[[], Segment]] = {
        "swapped classes": swapped,
        "half a pixel's shift": shifted,
        "stuck output buffer": stuck,
        "flipped weight bit": lambda: open_unchecked(flip_bit(path, folder, rng)),
    }
    if swap is not None:
        ways["swapped file"] = lambda: load(swap, device="cpu", threads=1)
    return ways


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("frames", type=Path, help="a folder of pictures")
    parser.add_argument("--model", type=Path, required=True, help="the engine's artifact (ONNX)")
    parser.add_argument("--verify-with", type=Path, required=True, help="the reference")
    parser.add_argument("--swap", type=Path, help="an artifact to put in the engine's place")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--sound", type=int, default=50_000, help="frames without a fault")
    parser.add_argument("--plant", type=int, default=20, help="faults of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the stream; a long count in parts")
    parser.add_argument(
        "--no-known-frame", action="store_true", help="what the comparison finds by itself"
    )
    options = parser.parse_args(arguments)
    pictures = [picture for _, picture in read_folder(options.frames)]
    reference = load(options.verify_with, "onnxruntime", "cpu", threads=1)
    segment = load(options.model, device="cpu", threads=1)
    level = options.model.name
    proof = ContinuousProof(
        options.verify_with.name,
        lambda clock: ReferenceInTurn(reference),
        {level: VerifiedLevel(segment.card, FileWatch(options.model))},
        VerifyPace(options.every),
        clock=LoopClock(),
    )
    facts = {"levels": [level], "precisions": [segment.info.precision]}
    proof.engine_facts = lambda: facts
    stream = VerifiedStream(pictures, proof, segment.card.size, options.seed)
    stream.known = None if options.no_known_frame else KnownFrame(segment)

    def tell(what: object) -> None:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(1)
        ways = make_faults(options.model, segment, options.swap, Path(folder), rng)
        for name, plant in ways.items():
            figures = FaultFigures(name)
            for _ in range(options.plant):
                proof.begin_anew()
                early = stream.drive(
                    segment, level, SETTLE * options.every + int(rng.integers(options.every))
                )
                assert early is None, "an alarm without a fault"
                faulty = plant()
                after = stream.drive(faulty, level, 6 * options.every)
                figures.planted += 1
                figures.found += after is not None
                figures.within += after is not None and after <= 2 * options.every
                figures.by_known_frame += bool(stream.changed)
                figures.most_frames = max(figures.most_frames, after or 0)
                if after is None:
                    tried = [next(stream.frames) for _ in range(20)]
                    figures.unseen += all(np.array_equal(faulty(f), segment(f)) for f in tried)
                proof.begin_anew()
            tell(asdict(figures))
    before = proof.counts()
    alarms, driven = 0, 0
    while driven < options.sound:
        after = stream.drive(segment, level, min(1000, options.sound - driven))
        driven += after or min(1000, options.sound - driven)
        alarms += after is not None
        if driven % 10_000 == 0:
            tell({"sound frames": driven, "false alarms": alarms})
    now = proof.counts()
    tell(
        {
            "engine": f"{segment.info.name} {segment.info.precision}",
            "seed": options.seed,
            "sound frames": driven,
            "verified": now.verified - before.verified,
            "suspects": now.suspects - before.suspects,
            "false alarms": alarms,
        }
    )


if __name__ == "__main__":
    main()
