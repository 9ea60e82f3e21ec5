"""What the plain float32 network says of the frames that an export is proven on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..data.frames import read_folder
from ..errors import UsageError
from ..models import Network
from ..models.pipeline import normalize_frame
from ..runtime.parity import MARGIN_STEPS, Reference

Logits = NDArray[np.float32]  # (K, H, W)
LOGITS_LIMIT = 2**30  # bytes of reference logits to keep; frames beyond are judged by labels alone


@dataclass(frozen=True)
class Expected:
    """The reference's answers: what travels with an engine, and the full logits of every frame, or
    of as many, spread over them, as LOGITS_LIMIT holds.

    `truth`: label maps (H, W) of the frames where they have any, 255 where unlabeled.
    `align_corners`: how logits below the frame's size are enlarged to it.
    """

    reference: Reference
    logits: list[Logits | None]
    truth: list[NDArray[np.uint8] | None]
    align_corners: bool

    def spread(self, count: int) -> Expected:
        """`count` of the frames, spread over them, with their logits: all if there are fewer."""
        known = [i for i, logits in enumerate(self.logits) if logits is not None]
        places = [known[i] for i in _spread(len(known), count)]
        whole = self.reference
        return Expected(
            Reference(
                whole.frames[places],
                whole.labels[places],
                whole.margins[places],
                tuple(whole.names[i] for i in places),
            ),
            [self.logits[i] for i in places],
            [self.truth[i] for i in places],
            self.align_corners,
        )

    def enlarged(self, scores: NDArray[Any]) -> Logits:
        """Scores as an argmax reads them, (1, K, h, w) or before a pixel shuffle (1, K, p, h, w),
        as (K, H, W) float32 of the frame's size."""
        tensor = torch.from_numpy(np.asarray(scores, np.float32))
        if tensor.ndim == 5:
            factor = round(tensor.shape[2] ** 0.5)
            tensor = torch.nn.functional.pixel_shuffle(tensor.flatten(1, 2), factor)
        size = self.reference.labels.shape[1:]
        if tensor.shape[2:] != size:
            tensor = torch.nn.functional.interpolate(
                tensor, size, mode="bilinear", align_corners=self.align_corners
            )
        full: Logits = tensor[0].numpy()
        return full


def read_frames(
    frames: Path | None, labels: Path | None
) -> tuple[list[tuple[str, NDArray[np.uint8]]] | None, list[NDArray[np.uint8] | None]]:
    """(name, image) of every image of the folder `frames`, and their label maps in `labels`.

    (None, []) without a folder. Raises ValueError if it holds no image, an unreadable one, or no
    label map fits by name.
    """
    if frames is None:
        if labels is not None:
            raise UsageError("--labels are of the images in --frames: give that folder too")
        return None, []
    pictures = read_folder(frames)
    if labels is None:
        return pictures, []
    truth: list[NDArray[np.uint8] | None] = []
    for name, _ in pictures:
        path = labels / f"{name}.png"
        found = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) if path.is_file() else None
        truth.append(None if found is None else np.asarray(found, np.uint8))
    if not any(map_ is not None for map_ in truth):
        raise UsageError(f"{labels} has no label PNG of any frame, such as {pictures[0][0]}.png")
    return pictures, truth


def expect(
    network: Network,
    frames: Sequence[tuple[str, NDArray[np.uint8]]],
    size: tuple[int, int],
    truth: Sequence[NDArray[np.uint8] | None] = (),
) -> Expected:
    """Run the plain network in float32 on frames (name, (H, W, 3) uint8 BGR), resized to `size`."""
    height, width = size
    fitted, labels, margins = [], [], []
    logits: list[Logits | None] = []
    one = network.info.num_classes * height * width * 4
    kept = set(_spread(len(frames), max(2, LOGITS_LIMIT // one)))
    for place, (_, frame) in enumerate(frames):
        image = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
        with torch.inference_mode():
            full = network(normalize_frame(np.asarray(image), network))
            if full.shape[-2:] != size:
                corners = network.info.align_corners
                full = torch.nn.functional.interpolate(
                    full, size, mode="bilinear", align_corners=corners
                )
            best = full[0].topk(2, dim=0).values
            lead = (best[0] - best[1]) / full.abs().max() * MARGIN_STEPS
        fitted.append(image)
        labels.append(full[0].argmax(0).numpy().astype(np.uint8))
        margins.append(lead.clamp(0, 255).numpy().astype(np.uint8))
        logits.append(full[0].numpy() if place in kept else None)
    reference = Reference(
        np.stack(fitted), np.stack(labels), np.stack(margins), tuple(name for name, _ in frames)
    )
    maps: list[NDArray[np.uint8] | None] = [
        None
        if each is None
        else np.asarray(
            cv2.resize(each, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8
        )
        for each in (truth or [None] * len(labels))
    ]
    return Expected(reference, logits, maps, network.info.align_corners)


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the places 0 to count - 1, as evenly as possible."""
    return sorted(set(np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist()))
