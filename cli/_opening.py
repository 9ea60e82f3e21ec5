"""Opens what a user named: an artifact, a network by name, a checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ._console import note, working
from ._options import View, parse_sizes

if TYPE_CHECKING:
    from ..data.classes import ClassSet


@contextmanager
def labeller(
    model: str,
    weights: Path | None,
    classes: str | None,
    backend: str | None,
    device: str | None,
    view: View,
    data_classes: ClassSet,
) -> Iterator[tuple[Any, Sequence[str]]]:
    """(frame -> labels, class names) of an artifact, or of a network as it is without `backend`.

    view: how a network looks at a frame; an artifact has settled that already. data_classes: of the
    labels; a name alone takes the weights that ship for them, if there are any.
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


def _ships_for(model: str, classes: ClassSet) -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    from ..models.loading import shipped_weights

    return bool(shipped_weights(model, classes))


def check_classes(names: Sequence[str], classes: ClassSet) -> None:
    """Raises ValueError where a model answers in other classes than the labels are in."""
    if tuple(names) != classes.names:
        raise UsageError(
            f"the model knows {len(names)} classes ({', '.join(names[:3])}, ...), "
            f"the data {len(classes)} ({', '.join(classes.names[:3])}, ...): they must be the same"
        )
