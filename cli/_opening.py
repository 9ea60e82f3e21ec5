"""Opens what a user named: an artifact, a network by name, a checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ._console import note, working
from ._options import View, parse_sizes

if TYPE_CHECKING:
    import numpy as np

    from ..data.classes import ClassSet


@contextmanager
def labeller(
    model: str,
    weights: Path | None,
    classes: str | None,
    backend: str | None,
    device: str | None,
    view: View,
    data_classes: ClassSet | None = None,
) -> Iterator[tuple[Any, Sequence[str]]]:
    """(frame -> labels, class names) of an artifact, or of a network as it is without `backend`.

    view: how a network looks at a frame; an artifact has settled that already. data_classes: of the
    labels, if the model must answer in them: a name alone takes the weights that ship for them.
    """
    from ..resolve import is_artifact, open_segmenter

    artifact = is_artifact(model)
    chosen: str | ClassSet | None = classes
    if classes is None and weights is None and not artifact and _ships_for(model, data_classes):
        chosen = data_classes
    if backend or artifact:
        if view != View():
            raise UsageError("an artifact runs as exported: leave out --size, --scale, --flip, ...")
        with working() as step:
            segmenter = open_segmenter(
                model, classes=chosen, backend=backend, device=device, progress=step
            )
        with segmenter:
            yield segmenter, segmenter.card.classes
        return
    from ..models.loading import load_model
    from ..train.predictor import Predictor

    source = load_model(model, weights, chosen)
    note(f"{source.network.info.name}, weights: {source.weights_from}")
    yield (
        Predictor(
            source.network.to(device or "cpu"),
            size=parse_sizes([view.size])[0] if view.size else None,
            scales=view.scales or (1.0,),
            flip=view.flip,
            window=parse_sizes([view.window])[0] if view.window else None,
            precision=view.precision,
        ),
        source.classes.names,
    )


def _ships_for(model: str, classes: ClassSet | None) -> bool:
    if classes is None or importlib.util.find_spec("torch") is None:
        return False
    from ..models.loading import shipped_weights

    return bool(shipped_weights(model, classes))


def map_labels(
    segment: Callable[[np.ndarray], np.ndarray], names: Sequence[str], source: str, to: ClassSet
) -> Callable[[np.ndarray], np.ndarray]:
    """`segment`, whose labels are in `names`, in the classes that a class map brings them to.

    Raises UsageError for a map that does not fit, or that leaves a class out: every pixel of a
    prediction counts.
    """
    import numpy as np

    from ..data.classes import IGNORE
    from ..data.soft_labels import load_class_map

    ids = load_class_map(source, to)
    if len(ids) != len(names) or IGNORE in ids:
        raise UsageError(
            f"--class-map gives {len(ids) - ids.count(IGNORE)} of its {len(ids)} classes a place, "
            f"and the model has {len(names)}: it must give each one of them a class of {to.name}"
        )
    table = np.array(ids, np.uint8)
    return lambda frame: table[segment(frame)]


def check_classes(names: Sequence[str], classes: ClassSet) -> None:
    """Raises ValueError where a model answers in other classes than the labels are in."""
    if tuple(names) != classes.names:
        raise UsageError(
            f"the model knows {len(names)} classes ({', '.join(names[:3])}, ...), "
            f"the data {len(classes)} ({', '.join(classes.names[:3])}, ...): they must be the same"
        )
