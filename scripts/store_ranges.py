"""Measures the int8 ranges that ship with weights, on frames that the weights were trained on.

python scripts/store_ranges.py csfcn_nano:streets --calib frames/ --size 512x1024 --source "CamVid"
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rtseg.cli._options import parse_sizes
from rtseg.export.calibrate import Calibration, pick_frames
from rtseg.export.export import make_card
from rtseg.export.graph import to_onnx
from rtseg.export.quantize import SizedGraph, quantize
from rtseg.export.reference import ProofFrames, read_shipped_frames, run_reference
from rtseg.export.stored_ranges import ENDING, StoredRanges, write_ranges
from rtseg.models.loading import PRETRAINED, load_model


def main() -> None:
    """Measure, search the layers that stay in float, write the file beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--size", required=True)
    parser.add_argument("--source", required=True, help="what the frames are of, in words")
    parser.add_argument(
        "--shipped", action="store_true", help="judge by the photographs that ship, not by --calib"
    )
    parser.add_argument(
        "--float",
        action="append",
        default=[],
        help="a layer to keep in float beside those that the search finds; may be repeated",
    )
    options = parser.parse_args()
    model, size = load_model(options.model), parse_sizes([options.size])[0]
    card = make_card(model, size, "int8", "labels", model.fit)
    picked = pick_frames(Calibration(options.calib, frames=options.frames))
    # Those of an export's proof: what is stored must hold its bar there.
    proof = read_shipped_frames() if options.shipped else ProofFrames(picked.held_out, "held out")
    expected = run_reference(model.network.eval(), proof, size, model.fit, print)
    plain = to_onnx(model.network, size, "fp32", ("labels",))
    form = SizedGraph(plain, card, expected)
    made = quantize([form], picked, lambda line, share: print(line, flush=True))
    path = (PRETRAINED / model.weights_from).with_suffix(ENDING)
    stored = StoredRanges(
        weights=card.weights,
        size=size,
        method=made.facts.method,
        frames=made.facts.frames,
        source=options.source,
        ranges={name: float(f"{most:.6g}") for name, most in sorted(made.ranges.items())},
        in_float=tuple(dict.fromkeys((*made.facts.excluded, *options.float))),
    )
    write_ranges(path, stored)
    total = made.facts.layers + len(made.facts.excluded)
    print(f"{path}: {len(stored.in_float)} of {total} layers in float")


if __name__ == "__main__":
    main()
