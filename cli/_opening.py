"""Opens what a user named: an artifact, a network by name, a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ._console import note, working
from ._options import View, class_set, parse_sizes

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
) -> Iterator[tuple[Any, Sequence[str]]]:
    """(frame -> labels, class names) of an artifact, or of a network as it is without `backend`.

    view: how a network looks at a frame; an artifact has settled that already.
    """
    from ..resolve import is_artifact, open_segmenter

    if backend or is_artifact(model):
        if view != View():
            raise UsageError("an artifact runs as exported: leave out --size, --scale, --flip, ...")
        with working() as step:
            segmenter = open_segmenter(model, backend=backend, device=device, progress=step)
        with segmenter:
            yield segmenter, segmenter.card.classes
        return
    from ..models.loading import open_source
    from ..train.predictor import Predictor

    source = open_source(model, weights, class_set(classes))
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


def check_classes(names: Sequence[str], classes: ClassSet) -> None:
    """Raises ValueError where a model answers in other classes than the labels are in."""
    if tuple(names) != classes.names:
        raise UsageError(
            f"the model knows {len(names)} classes ({', '.join(names[:3])}, ...), "
            f"the data {len(classes)} ({', '.join(classes.names[:3])}, ...): they must be the same"
        )
