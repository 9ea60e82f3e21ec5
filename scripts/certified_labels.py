"""Certified labels against the float32 network, on frames that no proof has seen.

python scripts/certified_labels.py camvid/train camvid/val --labels camvid/trainannot -o certified
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rtseg.data.files import write_atomically
from rtseg.export import export
from rtseg.export.calibrate import Calibration
from rtseg.export.error_bound import find_halved_lead
from rtseg.export.reference import ReferenceOutputs, read_frames, run_reference
from rtseg.models.loading import load_model
from rtseg.reporting import Table
from rtseg.runtime import Segmenter, load
from rtseg.speed.timing import Lane, Limits, race, ratio
from rtseg.system import read_system

# (network, precision of the graph, what its other layers compute in, None: as the proof chose)
CASES: tuple[tuple[str, str, str | None], ...] = (
    ("csfcn_nano:camvid", "fp32", "bf16"),
    ("csfcn_nano:camvid", "int8", None),
    ("csfcn_tiny:camvid", "fp32", "bf16"),
    ("csfcn_tiny:camvid", "int8", None),
    ("pidnet_s", "fp16", "fp32"),
)
Picture = NDArray[np.uint8]
DAMAGES: dict[str, Callable[[Picture], Picture]] = {  # what a camera or a driver does to a frame
    "red and blue swapped": lambda image: np.ascontiguousarray(image[..., ::-1]),
    "upside down": lambda image: np.ascontiguousarray(image[::-1]),
    "noise, sigma 40": lambda image: _noisy(image),
    "blurred, sigma 6": lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), 6), np.uint8),
}


def _noisy(image: Picture) -> Picture:
    noise = np.random.default_rng(0).normal(0, 40, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class CertifiedCase:
    """One artifact on frames that its proof has not seen.

    share: of pixels that are certified; differ: of all pixels, those with another label than
    float32's; wrong: how many pixels are certified and differ; bound: the lead above which a pixel
    is certified; by_error: that from the largest error alone, and the share it would certify;
    beyond: frames of which a lead above the bound lost half or more in float32, of `frames`;
    largest: such a lead of all; cost: time of details over that of labels alone, the whole call,
    taken in turns; damaged: certified share by damage of the frames.
    """

    network: str
    trained: bool
    precision: str
    arithmetic: str
    bound: float
    by_error: tuple[float, float]
    proof_frames: int
    risk: float
    frames: int
    pixels: int
    share: float
    differ: float
    wrong: int
    beyond: int
    largest: float
    cost: float
    damaged: dict[str, float]

    def row(self) -> list[str]:
        return [
            self.network + ("" if self.trained else " (random weights)"),
            self.precision,
            self.arithmetic,
            f"{self.bound:.3g} ({self.proof_frames})",
            f"{self.by_error[0]:.3g}: {self.by_error[1]:.2%}",
            f"{self.risk:.1%}",
            f"{self.beyond} of {self.frames}",
            f"{self.differ:.3%}",
            f"{self.share:.2%}",
            f"{self.wrong} of {round(self.share * self.pixels)}",
            f"{self.cost:.2f}",
        ]


HEADER = (
    "network", "graph", "computed in", "lead (frames)", "by largest error", "risk a frame",
    "frames beyond", "pixels that differ", "certified", "certified and differ", "cost",
)  # fmt: skip


def measure_case(
    segment: Segmenter, expected: ReferenceOutputs, name: str, precision: str
) -> CertifiedCase:
    """Run an artifact on the reference's frames, which have its size."""
    bound, maker = segment.bound, segment.backend.maker
    if bound is None or maker is None:
        raise SystemExit(f"{name}: {segment.details(expected.reference.frames[0]).why}")
    certified = wrong = differ = beyond = by_error = 0
    largest = 0.0
    pairs = zip(expected.reference.labels, expected.logits, strict=True)
    for frame, (float32, logits) in zip(expected.reference.frames, pairs, strict=True):
        details = segment.details(frame)
        assert details.certified is not None
        other = details.labels != float32
        certified += int(details.certified.sum())
        differ += int(other.sum())
        wrong += int((other & details.certified).sum())
        if logits is not None:
            ours = expected.upsample_coarse(maker.coarse[0], maker.upsampling)
            halved = find_halved_lead(ours, logits)
            largest, beyond = max(largest, halved), beyond + (halved > bound.lead)
            second, first = np.partition(ours, -2, axis=0)[-2:]
            by_error += int(np.count_nonzero(first - second > 2 * bound.observed))
    pixels = expected.reference.labels.size
    return CertifiedCase(
        network=name,
        trained=segment.card.trained,
        precision=precision,
        arithmetic=bound.arithmetic,
        bound=bound.lead,
        by_error=(2 * bound.observed, by_error / pixels),
        proof_frames=bound.frames,
        risk=bound.risk,
        frames=len(expected.reference.frames),
        pixels=pixels,
        share=certified / pixels,
        differ=differ / pixels,
        wrong=wrong,
        beyond=beyond,
        largest=largest,
        cost=_cost(segment, expected.reference.frames[0]),
        damaged=dict(_damaged(segment, [*expected.reference.frames[::8]])),
    )


def _cost(segment: Segmenter, frame: Picture) -> float:
    plain = Lane({"run": lambda: segment(frame)})
    details = Lane({"run": lambda: segment.details(frame)})
    race([plain, details], Limits(runs=30, seconds=5.0))
    return ratio(plain.rounds["run"], details.rounds["run"]).value


def _damaged(segment: Segmenter, frames: Sequence[Picture]) -> Iterator[tuple[str, float]]:
    for name, damage in {"none": lambda image: image, **DAMAGES}.items():
        shares = [segment.details(damage(frame)).certified_share for frame in frames]
        yield name, float(np.mean([share for share in shares if share is not None]))


def run_network(
    name: str, given: argparse.Namespace, folder: Path, cases: Sequence[tuple[str, str | None]]
) -> Iterator[CertifiedCase]:
    model, size = load_model(name, given.weights, classes="camvid"), (360, 480)
    proof: dict[str, Any] = {"frames": given.proof, "labels": given.labels}
    unseen = read_frames(given.unseen, most=given.frames)
    expected = run_reference(model.network, unseen, size, model.fit)
    for precision, computed in cases:
        how = {"calib": Calibration(given.proof)} if precision == "int8" else proof
        kept = _kept(folder, name, precision)
        (made,) = export(
            model, size, "openvino", precision, out=folder, proof_frames=given.proof_frames, **how
        )
        options: dict[str, Any] = {"precision": computed} if computed else {}
        with load(made.path, **options) as segment:
            case = measure_case(segment, expected, name, precision)
        write_atomically(kept, (json.dumps(asdict(case)) + "\n").encode())
        yield case


def _kept(folder: Path, name: str, precision: str) -> Path:
    return folder / f"case-{name.replace(':', '_')}-{precision}.json"


def read_kept(path: Path) -> CertifiedCase:
    """A case that an earlier run of the script measured."""
    facts = json.loads(path.read_text())
    return CertifiedCase(**facts | {"by_error": tuple(facts["by_error"])})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("proof", type=Path, help="folder of frames for proof and calibration")
    parser.add_argument("unseen", type=Path, help="folder of frames to judge by")
    parser.add_argument("--labels", type=Path, help="label PNGs of the proof's frames")
    parser.add_argument("--frames", type=int, default=1000, help="of the unseen, at most")
    parser.add_argument("--proof-frames", type=int, default=24)
    parser.add_argument("--network", action="append", help="one of the cases; may be repeated")
    parser.add_argument("--weights", type=Path, help="checkpoint of the one --network")
    parser.add_argument("-o", "--out", type=Path, default=Path("certified"), help="folder")
    given = parser.parse_args(arguments)
    if given.weights and len(given.network or ()) != 1:
        parser.error("--weights is of one network: name it by --network")
    logging.getLogger("rtseg").setLevel(logging.ERROR)
    done = []
    for name in dict.fromkeys(name for name, *_ in CASES):
        if given.network and name not in given.network:
            continue
        cases = [(precision, computed) for each, precision, computed in CASES if each == name]
        kept = [_kept(given.out, name, precision) for precision, _ in cases]
        found = [path for path in kept if path.is_file()]
        done += [read_kept(path) for path in found]
        left = [case for case, path in zip(cases, kept, strict=True) if path not in found]
        for case in run_network(name, given, given.out, left) if left else ():
            sys.stdout.write(json.dumps(asdict(case)) + "\n")
            sys.stdout.flush()
            done.append(case)
    facts = {"machine": str(read_system()), "cases": [asdict(case) for case in done]}
    write_atomically(given.out / "certified.json", (json.dumps(facts, indent=2) + "\n").encode())
    sys.stdout.write(Table(HEADER, [case.row() for case in done]).markdown() + "\n")


if __name__ == "__main__":
    main()
