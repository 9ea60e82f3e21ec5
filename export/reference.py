"""Reference of a proof: its frames, and the plain float32 network's answers on them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..data.camera_formats import to_bgr
from ..data.frames import SHIPPED_FRAMES, open_source
from ..data.images import read_gray, read_image
from ..data.letterbox import Color, Fit, find_place, find_view, fit_frame, fit_labels
from ..data.scenes import scenes
from ..errors import ExportError, UsageError
from ..models import Network
from ..models.pipeline import normalize_frame
from ..models.preprocessing import OwnInput, Preprocess
from ..reporting import Progress
from ..runtime.artifact import Card, Upsampling
from ..runtime.preprocess_facts import PreprocessFacts
from ..runtime.verify import MARGIN_STEPS, Reference

LabelMap = NDArray[np.uint8]  # (H, W)
Logits = NDArray[np.float32]  # (K, H, W)
Frames = Sequence[tuple[str, NDArray[np.uint8]]]  # (name, (H, W, 3) BGR) each
Origin = Literal["drawn", "shipped", "given", "held out"]

MOST_FRAMES = 24  # of a folder; more make a proof of minutes and find nothing else
LOGITS_LIMIT = 2**30  # bytes of reference logits to keep; frames beyond are judged by labels alone


@dataclass(frozen=True)
class ProofFrames:
    """Frames to prove an export on.

    Attributes:
        frames: (name, (H, W, 3) uint8 BGR) each.
        origin: "drawn" scenes, "shipped" photographs, "given" by the user, or "held out" from
            int8's calibration.
        total: how many there were to take them from; 0: no more than these.
        truth: label maps (H, W) uint8 of the frames that have one; empty where none has.
    """

    frames: Frames
    origin: Origin = "given"
    total: int = 0
    truth: Sequence[LabelMap | None] = ()


def draw_frames(count: int, size: tuple[int, int]) -> ProofFrames:
    """`count` drawn street scenes of `size` (height, width)."""
    drawn = [(f"scene {i}", scene) for i, scene in enumerate(scenes(count, size))]
    return ProofFrames(drawn, "drawn")


def read_shipped_frames() -> ProofFrames:
    """The photographs of a motorway that ship: real frames for networks that know streets.

    Raises:
        DataError: one of them is damaged.
    """
    return replace(read_frames(SHIPPED_FRAMES), origin="shipped")


def read_frames(folder: Path, labels: Path | None = None, most: int = MOST_FRAMES) -> ProofFrames:
    """At most `most` images of a folder, spread over it, and their label PNGs in `labels`.

    Raises:
        UsageError: the folder holds no image, or no label map fits by name.
        DataError: an image or a label map is damaged.
    """
    paths = open_source(folder).paths
    chosen = [paths[place] for place in spread(len(paths), most)]
    frames = [(path.stem, read_image(path)) for path in chosen]
    if labels is None:
        return ProofFrames(frames, "given", len(paths))
    truth: list[LabelMap | None] = []
    for name, _ in frames:
        path = labels / f"{name}.png"
        truth.append(read_gray(path) if path.is_file() else None)
    if all(each is None for each in truth):
        raise UsageError(f"{labels} has no label PNG of any frame, such as {frames[0][0]}.png")
    return ProofFrames(frames, "given", len(paths), truth)


def gather_frames(
    frames: str | os.PathLike[str] | Frames | None,
    labels: str | os.PathLike[str] | None,
    most: int,
    held_out: Frames | None,
    shipped: bool,
    batch: int,
) -> ProofFrames | None:
    """The frames that were given, held out or shipped; None where scenes have to be drawn.

    Args:
        frames: a folder, or frames.
        labels: folder of label maps of the former.
        most: how many to take of a folder.
        held_out: from int8's calibration.
        shipped: whether the weights are a file of this package.
        batch: how many frames the artifact takes at once.

    Raises:
        ExportError: there are labels without a folder of frames, or the frames are given as such.
    """
    if isinstance(frames, (str, os.PathLike)):
        if labels is not None and Path(labels).resolve() == Path(frames).resolve():
            raise ExportError(
                f"--labels is the folder of the frames themselves, {frames}: give that of their "
                "label PNGs"
            )
        return read_frames(Path(frames), None if labels is None else Path(labels), most)
    if labels is not None:
        raise ExportError("--labels are of the images in --frames: give that folder too")
    if frames is not None:
        return ProofFrames(frames)
    if held_out is not None:
        return ProofFrames(held_out, "held out")
    # Drawn scenes are unlike anything that such weights have seen: bfloat16 and int8 would be
    # judged where logits lie closer together than on any street. A batch may need more frames.
    photographs = read_shipped_frames() if shipped else None
    return photographs if photographs and len(photographs.frames) >= batch else None


def as_camera_sees(
    proof: ProofFrames, card: Card
) -> tuple[ProofFrames, list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """(pictures of the card's size, by OpenCV's conversion of a camera's bytes; those bytes; the
    camera's pictures). All are the frames that were given where an artifact takes any picture."""
    if not card.takes_camera:
        given = [frame for _, frame in proof.frames]
        return proof, given, given
    taken = [card.encode(frame) for _, frame in proof.frames]
    names = [name for name, _ in proof.frames]
    whole = [to_bgr(frame, card.input) for frame in taken]
    seen = [_resize_exactly(picture, card) for picture in whole]
    size = card.camera_size or card.size
    truth = [None if each is None else fit_labels(each, size, card.fit) for each in proof.truth]
    return replace(proof, frames=list(zip(names, seen, strict=True)), truth=truth), taken, whole


def _resize_exactly(picture: NDArray[np.uint8], card: Card) -> NDArray[np.uint8]:
    """What `fit_frame` does, without OpenCV's rounding of the weights: that moves a tenth of the
    values by a level, and labels with them, for which an artifact cannot be blamed."""
    size, camera = card.size, (picture.shape[0], picture.shape[1])
    if camera == size:
        return picture
    view = torch.from_numpy(picture[find_view(camera, size, card.fit)]).permute(2, 0, 1)[None]
    place = find_place(camera, size, card.fit)
    sides = tuple(part.stop - part.start for part in place)
    levels = functional.interpolate(view.double(), sides, mode="bilinear")[0] + 0.5
    whole = np.full((*size, 3), (card.pad_color or (0, 0, 0))[::-1], np.uint8)
    whole[place] = levels.floor().byte().permute(1, 2, 0).numpy()
    return whole


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the places 0 to count - 1, as evenly as possible."""
    return sorted(set(np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist()))


@dataclass(frozen=True)
class ReferenceOutputs:
    """The float32 network's answers on the proof's frames.

    Attributes:
        reference: what travels with an engine: frames, labels and margins.
        logits: (K, H, W) of every frame, or of as many, spread over them, as LOGITS_LIMIT holds.
        truth: label maps (H, W) of the frames where they have any, 255 where unlabeled.
        align_corners: how logits below the frame's size are upsampled to it.
        origin, total: as of ProofFrames.
        preprocess: what became of the user's own, where there is one.
    """

    reference: Reference
    logits: list[Logits | None]
    truth: list[LabelMap | None]
    align_corners: bool
    origin: Origin = "given"
    total: int = 0
    preprocess: PreprocessFacts | None = None

    @property
    def described(self) -> str:
        """The frames in words."""
        count = len(self.logits)
        if self.origin == "drawn":
            return f"{count} drawn scenes: this shows equality, not use on a street"
        if self.origin == "shipped":
            return f"{count} motorway frames that ship with rtseg: prove it on your own, --frames"
        return f"{count} of {self.total} frames {self.origin}"

    def sample(self, count: int) -> ReferenceOutputs:
        """`count` of the frames, spread over them, with their logits: all if there are fewer."""
        known = [i for i, logits in enumerate(self.logits) if logits is not None]
        places = [known[i] for i in spread(len(known), count)]
        whole = self.reference
        part = Reference(
            whole.frames[places],
            whole.labels[places],
            whole.margins[places],
            tuple(whole.names[i] for i in places),
        )
        return replace(
            self,
            reference=part,
            logits=[self.logits[i] for i in places],
            truth=[self.truth[i] for i in places],
        )

    def upsample_coarse(self, coarse: NDArray[np.generic], how: Upsampling) -> Logits:
        """Coarse logits (channels, h, w) as `LabelMaker` enlarges them, (K, H, W) float32."""
        tensor, size = torch.from_numpy(np.asarray(coarse, np.float32))[None], self.size
        if how == "shuffle":
            return functional.pixel_shuffle(tensor, size[0] // tensor.shape[2])[0].numpy()
        return _upsample(tensor, size, how == "bilinear_aligned")[0].numpy()

    @property
    def size(self) -> Sequence[int]:
        return self.reference.labels.shape[1:]

    def with_frames(self, frames: Sequence[NDArray[np.uint8]]) -> ReferenceOutputs:
        """The same answers, to the frames as an artifact of a camera's format takes them."""
        return replace(self, reference=replace(self.reference, frames=np.stack(frames)))

    def upsample(self, scores: NDArray[np.generic]) -> Logits:
        """Scores as an argmax reads them, (1, K, h, w) or before a pixel shuffle (1, K, p, h, w),
        as (K, H, W) float32 of the frame's size."""
        tensor = torch.from_numpy(np.asarray(scores, np.float32))
        if tensor.ndim == 5:
            # p positions of a shuffle are factor x factor pixels.
            factor = round(tensor.shape[2] ** 0.5)
            tensor = functional.pixel_shuffle(tensor.flatten(1, 2), factor)
        return _upsample(tensor, self.reference.labels.shape[1:], self.align_corners)[0].numpy()


def _upsample(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    if logits.shape[2:] == tuple(size):
        return logits
    return functional.interpolate(logits, tuple(size), mode="bilinear", align_corners=align_corners)


def run_reference(
    network: Network,
    proof: ProofFrames,
    size: tuple[int, int],
    fit: Fit = "letterbox",
    progress: Progress = lambda step, share: None,
    preprocess: Preprocess | None = None,
    pictures: Sequence[NDArray[np.uint8]] = (),
    pad_color: Color | None = None,
) -> ReferenceOutputs:
    """Run the plain network in float32 on the frames, brought to `size` as the runtime will.

    Args:
        network: from the zoo or outside of it.
        proof: the frames.
        size: (height, width) in pixels.
        fit: how a frame of another aspect comes to that.
        progress: called with what is being done and the share of it that is done, 0..1.
        preprocess: the user's own. The network reads what it makes of each frame; where that is
            ours up to a resize's rounding, which no artifact can be blamed for, ours counts and
            the labels of both are compared.
        pictures: that it takes, where those are not the frames.
        pad_color: beside letterboxed frames, in RGB; None: black.

    Raises:
        UsageError: it does something else than the export.
    """
    info = network.info
    own_input = preprocess and OwnInput(preprocess, network, size, fit, pad_color)
    agreed: list[float] = []
    fitted, labels, margins = [], [], []
    logits: list[Logits | None] = []
    one = info.num_classes * size[0] * size[1] * 4
    # Spread over the frames, and two at least, however large one frame's logits are.
    kept = set(spread(len(proof.frames), max(2, LOGITS_LIMIT // one)))
    for place, (name, frame) in enumerate(proof.frames):
        progress(f"frame {place + 1} of {len(proof.frames)}", (place + 1) / len(proof.frames))
        image = fit_frame(frame, size, fit, pad_color)
        given, other = normalize_frame(image, network), None
        if own_input:
            picture = pictures[place] if pictures else frame
            theirs, exact = own_input.read(name, picture)
            # A camera's picture is resized with OpenCV's rounding, which no artifact repeats.
            given, other = (theirs, None) if exact and picture is frame else (given, theirs)
        with torch.inference_mode():
            full, chosen = _answer(network, given, size)
            if other is not None:
                agreed.append(float((_answer(network, other, size)[1] == chosen).float().mean()))
            best = full.topk(2, dim=0).values
            # A number added to all classes changes no label, but would make every margin small.
            largest = (full - full.mean(dim=0)).abs().max()
            # In steps of the largest logit, so that a margin fits a byte and travels with an
            # engine.
            lead = (best[0] - best[1]) / largest * MARGIN_STEPS
        fitted.append(image)
        labels.append(chosen.numpy().astype(np.uint8))
        margins.append(lead.nan_to_num(0.0).clamp(0, 255).numpy().astype(np.uint8))
        logits.append(full.numpy() if place in kept else None)
    return ReferenceOutputs(
        Reference(
            np.stack(fitted),
            np.stack(labels),
            np.stack(margins),
            tuple(name for name, _ in proof.frames),
        ),
        logits,
        [
            None if each is None else fit_labels(each, size, fit)
            for each in proof.truth or [None] * len(labels)
        ],
        info.align_corners,
        proof.origin,
        proof.total or len(proof.frames),
        PreprocessFacts(
            frames=own_input.frames, largest=own_input.largest, agreement=min(agreed, default=1.0)
        )
        if own_input
        else None,
    )


def _answer(network: Network, given: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(logits (K, H, W), labels (H, W)) at `size` of an input (1, 3, H, W)."""
    answer, own = network.answer(given)
    full = _upsample(answer, size, network.info.align_corners)[0]
    return full, own[0] if own is not None and own.shape[1:] == size else full.argmax(0)
