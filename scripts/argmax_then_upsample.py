"""Accuracy by the way from an NPU's int8 logits to labels: exact, or one of the usual shortcuts.

    python scripts/argmax_then_upsample.py csfcn_nano:camvid --root data/camvid

The network runs in float32; its coarse logits are rounded to int8 by one scale, as an NPU's output
is. Prints mIoU over all pixels and in the band of 3 pixels on each side of the truth's borders.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rtseg import exact_labels
from rtseg.data.classes import IGNORE
from rtseg.data.datasets import open_data
from rtseg.errors import UsageError
from rtseg.models.loading import load_model
from rtseg.models.pipeline import find_last_upsample, normalize_frame, run_to_last_upsample
from rtseg.reporting import Table
from rtseg.runtime.verify import BAND, find_borders
from rtseg.train.evaluate import Confusion, percent

Array = Any


def upsample(logits: Array, size: tuple[int, int], aligned: bool) -> Array:
    """(K, h, w) -> (K, H, W) float32."""
    given = torch.from_numpy(logits[None].astype(np.float32))
    full = torch.nn.functional.interpolate(given, size, mode="bilinear", align_corners=aligned)
    return full[0].numpy()


def repeat(labels: Array, size: tuple[int, int]) -> Array:
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)


def ways(scale: float, aligned: bool) -> dict[str, Callable[[Array, tuple[int, int]], Array]]:
    """Float32 logits (K, h, w) and a size -> labels, by what happens on the way."""

    def rounded(logits: Array) -> Array:
        return np.clip(np.rint(logits / scale), -128, 127).astype(np.int8)

    return {
        "float32 logits, upsampled, argmax": lambda logits, size: (
            upsample(logits, size, aligned).argmax(0).astype(np.uint8)
        ),
        "int8 logits, `exact_labels`": lambda logits, size: exact_labels(
            rounded(logits), size, align_corners=aligned
        ),
        "int8 logits, `exact_labels`, the wrong corners": lambda logits, size: exact_labels(
            rounded(logits), size, align_corners=not aligned
        ),
        "int8 logits, upsampled and rounded to int8, argmax": lambda logits, size: (
            np.rint(upsample(rounded(logits), size, aligned)).argmax(0).astype(np.uint8)
        ),
        "int8 logits, argmax, labels upsampled": lambda logits, size: repeat(
            rounded(logits).argmax(0).astype(np.uint8), size
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a network whose logits are upsampled bilinearly")
    parser.add_argument("--root", type=Path, required=True, help="CamVid's folder")
    parser.add_argument("--split", default="val")
    asked = parser.parse_args()
    data = open_data("camvid", asked.root, asked.split)
    network = load_model(asked.model, classes=data.classes).network.eval()
    frames: list[Array] = []
    truths: list[Array] = []
    for index in range(len(data)):
        sample = data[index]
        size = sample.image.shape[:2]
        with torch.inference_mode():
            coarse, _ = run_to_last_upsample(
                network, network.forward_logits(normalize_frame(sample.image, network)), *size
            )
        frames.append(coarse[0].numpy())
        truths.append(sample.label)
    how = find_last_upsample(network, size)
    if how not in ("bilinear", "bilinear_aligned"):
        raise UsageError(f"{asked.model} does not upsample its logits bilinearly but by {how}")
    scale = max(float(np.abs(each).max()) for each in frames) / 127
    rows: list[list[object]] = []
    found = ways(scale, how == "bilinear_aligned")
    plain = next(iter(found.values()))
    for name, way in found.items():
        whole, band = Confusion(len(data.classes)), Confusion(len(data.classes))
        same, pixels = 0, sum(truth.size for truth in truths)
        for logits, truth in zip(frames, truths, strict=True):
            labels = way(logits, truth.shape)
            whole.update(truth, labels)
            # Borders of what is labeled: unlabeled stripes along objects have none of their own.
            band.update(np.where(find_borders(truth), truth, IGNORE), labels)
            same += int((labels == plain(logits, truth.shape)).sum())
        rows.append([name, percent(whole.miou()), percent(band.miou()), f"{same / pixels:.2%}"])
    print(f"{asked.model}, {len(frames)} frames of CamVid {asked.split}, logits {frames[0].shape}")
    header = ["from the network's output to labels", "mIoU", f"within {BAND} px of borders"]
    print(Table([*header, "labels as in float32"], rows).markdown())


if __name__ == "__main__":
    main()
