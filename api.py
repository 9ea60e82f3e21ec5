"""Calls that need several subpackages: evaluation of any model, and the test server's zip."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .data.classes import IGNORE, ClassSet
from .data.corruptions import CORRUPTIONS, check_corruptions
from .data.corruptions import corrupt as corrupt_picture
from .data.datasets import SegmentationData, open_data
from .data.images import write_png
from .errors import UsageError
from .resolve import is_artifact, load_source, open_segmenter
from .runtime import Segmenter
from .runtime.backends.backend import choose_certifying
from .runtime.steadiness import SteadyLabels
from .train.evaluate import Evaluation, Segment, evaluate_frames, evaluate_sequences
from .train.reliability import Reliability

if TYPE_CHECKING:
    from .models.loading import Model

What = str | os.PathLike[str]
logger = logging.getLogger("rtseg")
Seen = Callable[[int], None]  # called with the index of each finished frame


def evaluate(
    model: What | Model | Segmenter,
    data: str | SegmentationData,
    root: What | None = None,
    split: str = "val",
    *,
    classes: What | ClassSet | None = None,
    worst: What | None = None,
    reliability: What | None = None,
    corrupt: bool | Sequence[str] = False,
    temporal: bool = False,
    steady: bool = False,
    images: int | None = None,
    seen: Seen = lambda index: None,
    **view: Any,
) -> Evaluation:
    """Measure mIoU on labeled frames.

    Args:
        model: what `load_model` or `load` takes or returns.
        data: the name of a data set, or an open one.
        root: the data set's folder.
        split: which part of the data set.
        classes: class set of `data="folder"`, and of a network that has none.
        worst: PNG file for a picture of the frames with the lowest mIoU.
        reliability: PNG file for a diagram of how often labels are right by their confidence; of
            artifacts that give one.
        corrupt: measure mIoU on corrupted frames too: True for all `CORRUPTIONS`, or their names.
        temporal: measure flicker between consecutive frames of a sequence too.
        steady: with `temporal`: hold uncertain labels steady, as `SteadyLabels` does.
        images: how many frames to score, spread over the split; by default all.
        seen: called with the index of each frame that is done, once for each corruption too.
        view: options of `open_labeler`.

    Returns:
        The confusion matrix with its mIoU, and of each further wish what was measured.

    Raises:
        DataError: the data set is missing, damaged or without labels.
        UsageError: the model's classes differ from those of the labels, it gives no confidence, or
            options do not go together.
    """
    if steady and not temporal:
        raise UsageError("labels are held steady along a sequence: add --temporal to --steady")
    if temporal and reliability is not None:
        raise UsageError("--temporal and --reliability are measured one at a time")
    if temporal and images is not None:
        raise UsageError("flicker is of whole sequences: leave --images or --temporal out")
    corruptions = check_corruptions(CORRUPTIONS if corrupt is True else corrupt or ())
    if isinstance(data, str):
        data = open_dataset(data, root, split, classes)
    if images is not None:
        data = sample_frames(data, images)
    leads = steady or reliability is not None  # are read, where the model's card bounds their error
    if leads and isinstance(model, (str, os.PathLike)) and is_artifact(model):
        asked = view.get("backend"), view.get("device")
        view["backend"] = choose_certifying(Path(model), *asked)
    with open_labeler(model, data.classes, classes=classes, **view) as (segment, ran):
        if steady:
            held = SteadyLabels(_find_segmenter(segment))
            result = evaluate_sequences(held, data, seen, held.reset)
        elif temporal:
            result = evaluate_sequences(segment, data, seen)
        elif reliability is None:
            result = evaluate_frames(segment, data, seen=seen)
        else:
            result = _evaluate_confidence(segment, data, Path(reliability), seen)
        result.backend, result.precision = ran
        for name in corruptions:
            under = evaluate_frames(_corrupt_first(segment, name), data, seen=seen)
            result.corruptions[name] = under.confusion.miou()
        if worst is not None:
            from .train.evaluate import draw_worst_frames

            write_png(Path(worst), draw_worst_frames(result, segment, data))
    return result


def sample_frames(data: SegmentationData, images: int) -> SegmentationData:
    """A data set of at most so many of its frames, spread over it."""
    if images < 1:
        raise UsageError(f"--images is 1 or more, not {images}")
    part = copy(data)
    last, count = len(data) - 1, min(images, len(data))
    part.files = [data.files[round(i * last / max(1, count - 1))] for i in range(count)]
    return part


def _evaluate_confidence(
    segment: Segment, data: SegmentationData, picture: Path, seen: Seen
) -> Evaluation:
    meter = Reliability(_find_segmenter(segment))
    result = evaluate_frames(meter, data, seen=seen, compared=meter.count)
    result.reliability = meter
    write_png(picture, meter.draw())
    return result


def _find_segmenter(segment: Segment) -> Segmenter:
    """The one whose labels these are, which knows their confidence too."""
    served = getattr(segment, "__self__", None)  # of its `label_picture`
    if not isinstance(served, Segmenter) or served.card.takes_camera:
        raise UsageError(
            "only an artifact that takes pictures has confidences, and without --class-map: export "
            "the network, and evaluate what that wrote"
        )
    return served


def _corrupt_first(segment: Segment, name: str) -> Segment:
    return lambda frame: segment(corrupt_picture(frame, name))


def submit(
    model: What | Model | Segmenter,
    root: What,
    out: What = "cityscapes_test.zip",
    *,
    split: str = "test",
    seen: Seen = lambda index: None,
    **view: Any,
) -> int:
    """Predict the frames of Cityscapes in the format of its test server: label ids, in a zip.

    Args:
        model: what `load_model` or `load` takes or returns.
        root: the folder of Cityscapes.
        out: the zip to upload.
        split: which part of it.
        seen: called with the index of each frame that is done.
        view: options of `open_labeler`.

    Returns:
        How many frames it holds.
    """
    from .train.submit import submit as run

    data = open_data("cityscapes", Path(root), split)
    with open_labeler(model, data.classes, **view) as (segment, _):
        return run(segment, data, Path(out), seen=seen)


def open_dataset(
    name: str, root: What | None, split: str, classes: What | ClassSet | None = None
) -> SegmentationData:
    """A split of a data set; `classes` are those of a "folder", which names none itself."""
    from .data.classes import load_class_set

    if root is None:
        raise UsageError(f"{name} needs the data set's folder: add root (--root DIR)")
    if isinstance(classes, (str, os.PathLike)):
        classes = load_class_set(os.fspath(classes))
    return open_data(name, Path(root), split, classes if name == "folder" else None)


@contextmanager
def open_labeler(
    model: What | Model | Segmenter,
    expected: ClassSet,
    *,
    class_map: str | None = None,
    weights: What | None = None,
    classes: What | ClassSet | None = None,
    size: tuple[int, int] | None = None,
    scale: Sequence[float] = (),
    flip: bool = False,
    window: tuple[int, int] | None = None,
    precision: str = "fp32",
    backend: str | None = None,
    device: str | None = None,
) -> Iterator[tuple[Segment, tuple[str, str]]]:
    """A function from frame (H, W, 3) uint8 BGR to labels (H, W) uint8 in the `expected` classes,
    and the backend and the precision that it runs in.

    Args:
        model: an artifact or a Segmenter, which runs as exported; a network otherwise, which runs
            in PyTorch, or as its export where a `backend` is named.
        expected: the classes that it has to answer in; a name alone takes the weights that ship for
            them.
        class_map: what each class of the model is in those, such as "cityscapes_to_camvid"; without
            one, it has to know just those.
        weights: of a network, as `load_model` takes them.
        classes: of a network, as `load_model` takes them.
        size: (height, width) in pixels that a frame is brought to; by default its own.
        scale: factors on that size, whose probabilities are averaged.
        flip: the mirrored frame counts as well.
        window: (height, width) of a sliding window; by default the whole frame.
        precision: "fp32", "bf16" or "fp16".
        backend: what runs an artifact.
        device: "cpu" or "cuda[:N]".

    Raises:
        UsageError: the classes differ, or an artifact is asked to look in another way.
    """
    artifact = isinstance(model, (str, os.PathLike)) and is_artifact(model)
    looks = size or scale or flip or window or precision != "fp32"
    if looks and (artifact or backend or isinstance(model, Segmenter)):
        raise UsageError("an artifact runs as exported: leave out --size, --scale, --flip, ...")
    if not artifact and weights is None and classes is None and class_map is None:
        # A bare name stands for several weights: those for the data's own classes are meant.
        classes = shipped_for(model, expected)
    with ExitStack() as opened:
        segment: Segment
        if isinstance(model, Segmenter):
            segment, names = model.label_picture, model.card.classes
            ran = model.info.name, model.info.precision
        elif artifact or backend:
            network = {} if artifact else {"weights": weights, "classes": classes}
            served = opened.enter_context(
                open_segmenter(model, backend=backend, device=device, **network)
            )
            segment, names = served.label_picture, served.card.classes
            ran = served.info.name, served.info.precision
        else:
            from .train.predictor import Predictor

            source = load_source(model, weights, classes)
            names, ran = source.classes.names, ("torch", precision)
            logger.log(
                logging.INFO if source.trained else logging.WARNING,
                "%s, weights: %s",
                source.network.info.name,
                source.weights_from,
            )
            segment = Predictor(
                source.network.to(device or "cpu"),
                size=size,
                scales=tuple(scale) or (1.0,),
                flip=flip,
                window=window,
                precision=precision,
                aspect=source.fit,
                pad_color=source.pad_color,
            )
        if class_map is not None:
            segment = _map_labels(segment, names, class_map, expected)
        else:
            check_classes(names, expected)
        yield segment, ran


def shipped_for(model: object, classes: ClassSet) -> ClassSet | None:
    """The classes of a data set, if weights for them ship with the network of that name."""
    if not isinstance(model, (str, os.PathLike)):
        return None
    if importlib.util.find_spec("torch") is None:
        return None
    from .models.loading import shipped_weights

    return classes if shipped_weights(os.fspath(model), classes) else None


def _map_labels(segment: Segment, names: Sequence[str], source: str, to: ClassSet) -> Segment:
    """`segment`, whose labels are in `names`, in the classes that a class map brings them to. A map
    may leave no class out: every pixel of a prediction counts."""
    from .data.soft_labels import load_class_map

    ids = load_class_map(source, to)
    if len(ids) != len(names) or IGNORE in ids:
        raise UsageError(
            f"--class-map maps {len(ids) - ids.count(IGNORE)} of its {len(ids)} classes, and the "
            f"model has {len(names)}: it must map each of them to a class of {to.name}"
        )
    table = np.full(256, IGNORE, np.uint8)  # what a model does not see stays unlabeled
    table[: len(ids)] = ids
    return lambda frame: table[segment(frame)]


def check_classes(names: Sequence[str], expected: ClassSet) -> None:
    """Refuse a model whose classes differ from those of the labels."""
    if tuple(names) != expected.names:
        raise UsageError(
            f"the model has {len(names)} classes ({', '.join(names[:3])}, ...), the data "
            f"{len(expected)} ({', '.join(expected.names[:3])}, ...): they must be the same"
        )
