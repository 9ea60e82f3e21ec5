"""What is to be measured: from names and files to contests, exporting what is not there yet."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.classes import ClassSet
from ..data.scenes import scenes
from ..errors import UsageError
from ..resolve import (
    cached_export,
    check_backends,
    fastest_backends,
    graph_precision,
    is_artifact,
    load_source,
)
from ..runtime import Card, read_card
from ..runtime.backends.backend import BACKENDS, choose
from ..system import NoiseWatch
from .baselines import PEERS, Plain, peer_class
from .cache import plain_export, text_of
from .contestant import Artifact, Contestant, Frames
from .roofline import Work, work_of

if TYPE_CHECKING:
    from ..models.loading import Model

Size = tuple[int, int]
Progress = Callable[[str, float], None]
SCENES = 4


@dataclass(frozen=True)
class Entry:
    """An artifact and the backend that runs it. hint: the precision that OpenVINO shall compute in,
    None for its default. asked_for: if False, a failure to load only leaves the row out. model: the
    network that it was exported from for this measurement."""

    path: Path
    backend: str
    hint: str | None
    asked_for: bool
    model: Model | None = None

    @property
    def title(self) -> str:
        return f"{self.path.name} in {self.backend}"

    def open(self, frames: Frames, threads: int, device: str | None) -> Contestant:
        options: dict[str, object] = {}
        if self.backend != "tensorrt":
            options["threads"] = threads
        if self.hint is not None:
            options["precision"] = self.hint
        return Artifact.open(self.path, self.backend, frames, device=device, **options)


@dataclass(frozen=True)
class PeerEntry:
    """The network as others run it. peer: a name of PEERS; device: "cpu" or "cuda[:N]"."""

    peer: str
    source: Model
    size: Size
    device: str

    @property
    def title(self) -> str:
        return f"{self.source.network.info.name} in {PEERS[self.peer].title}"

    def open(self, frames: Frames, threads: int, device: str | None) -> Contestant:
        from ..models import count, digest

        network = copy.deepcopy(self.source.network)
        macs, weights = count(network, self.size).macs, digest(network)
        on = device if device and device.startswith(self.device) else self.device
        kind = peer_class(self.peer)
        if issubclass(kind, Plain):
            kind = kind.on(plain_export(self.source, self.size))
        watch = NoiseWatch()
        peer = kind(network, self.size, weights, macs, frames, on, threads, self.source.trained)
        peer.frame_to_labels()
        if on == "cpu" and self.peer == "eager" and not watch.noise().quiet:
            peer.keep_faster_thread_count()
        return peer


@dataclass
class Contest:
    """Artifacts of one network at one size: what is measured together, in turns."""

    card: Card
    entries: list[Entry]
    model: Model | None = None  # the network that they were exported from, where it is at hand

    @property
    def title(self) -> str:
        height, width = self.card.size
        return f"{self.card.model} {height}x{width}"

    def scenes(self) -> Frames:
        return scenes(SCENES, self.card.size)

    def peer(self, name: str, device: str) -> PeerEntry:
        return PeerEntry(name, self._source, self.card.size, device)

    def work(self) -> Work:
        """What the plain network has to do for a frame; without its layers if PyTorch is absent."""
        pixels = self.card.size[0] * self.card.size[1]
        if not self.has_network:
            return Work(self.card.macs, self.card.params, pixels)
        return work_of(self._source.network, self.card.size)

    @property
    def has_network(self) -> bool:
        """Whether the plain network can be run beside: an artifact may be of one unknown here."""
        if self.model is not None:
            return True
        if importlib.util.find_spec("torch") is None:
            return False
        from ..models import VARIANTS

        return self.card.model in VARIANTS

    @cached_property
    def _source(self) -> Model:
        """The network that was exported; of an artifact the variant, with its shipped or seeded
        weights: they do not change its speed."""
        return self.model or load_source(self.card.model, classes=self.card.class_table)


def plan(
    models: Sequence[str | Model],
    sizes: Sequence[Size],
    backends: Sequence[str],
    precisions: Sequence[str],
    device: str | None,
    progress: Progress,
    *,
    calib: Path | None = None,
    classes: ClassSet | None = None,
) -> tuple[list[Contest], list[str]]:
    """(contests in the order given, lines on what was asked for and does not exist).

    calib: folder of frames that int8 graphs are calibrated on; classes: of networks that are
    exported, by default those of their weights.

    Raises ValueError for names, sizes, backends and precisions that do not fit each other.
    """
    if not models:
        raise UsageError("nothing to measure: name a variant, a checkpoint or an artifact")
    check_backends(backends)
    wish = _Wish(sizes, backends, precisions, device, progress, calib, classes)
    contests: dict[tuple[str, int, Size], Contest] = {}
    for model in models:
        for entry in wish.entries(model):
            card = read_card(entry.path)
            key = card.model, len(card.classes), card.size
            contest = contests.setdefault(key, Contest(card, [], entry.model))
            contest.entries.append(entry)
    if not contests:
        raise UsageError("; ".join(wish.absent))
    return list(contests.values()), wish.absent


class _Wish:
    """What the user asked for, beside the models; `absent` tells what of it cannot be."""

    def __init__(
        self,
        sizes: Sequence[Size],
        backends: Sequence[str],
        precisions: Sequence[str],
        device: str | None,
        progress: Progress,
        calib: Path | None = None,
        classes: ClassSet | None = None,
    ):
        self.calib, self.classes = calib, classes
        self.sizes, self.backends, self.precisions = sizes, backends, precisions
        self.device, self.progress = device, progress
        self.absent: list[str] = []

    def entries(self, model: str | Model) -> Iterable[Entry]:
        if isinstance(model, str) and is_artifact(model):
            return self._of_artifact(Path(model))
        return self._of_network(model)

    def _of_artifact(self, path: Path) -> Iterable[Entry]:
        card = read_card(path)
        if self.sizes and card.size not in self.sizes:
            raise UsageError(
                f"{path.name} takes {text_of(card.size)} only, as exported: leave the size out, "
                f"or name {card.model} instead to have it exported at other sizes"
            )
        ways = [
            (backend, hint)
            for backend, graph, hint in self._ways(self._able(path), card.precision)
            if graph == card.precision
        ]
        if not ways:
            raise UsageError(
                f"{path.name} is {card.precision} and does not run as "
                f"{' or '.join(self.precisions)}: leave the precision out, or name {card.model} "
                "instead to have it exported"
            )
        return [Entry(path, backend, hint, bool(self.backends)) for backend, hint in ways]

    def _able(self, path: Path) -> list[str]:
        """The backends for a file: those asked for or installed that read it, one at least."""
        fitting = [b for b in self._backends() if path.suffix in BACKENDS[b].suffixes]
        if fitting:
            return fitting
        return [choose(path, self.backends[0] if self.backends else None, self.device)]

    def _of_network(self, model: str | Model) -> Iterator[Entry]:
        source = load_source(model, classes=self.classes)
        for size in dict.fromkeys(self.sizes or [source.trained_size]):
            for graph, ways in self._by_graph().items():
                backends = list(dict.fromkeys(backend for backend, _ in ways))
                paths = cached_export(source, size, backends, graph, self.progress, self.calib)
                for backend, hint in ways:
                    yield Entry(paths[backend], backend, hint, bool(self.backends), source)

    def _by_graph(self) -> dict[str, list[tuple[str, str | None]]]:
        """(backend, hint) by the precision of the graph that they share."""
        grouped: dict[str, list[tuple[str, str | None]]] = {}
        for backend, graph, hint in self._ways(self._backends(), graph_precision(self.device)):
            grouped.setdefault(graph, []).append((backend, hint))
        return grouped

    def _ways(self, backends: Iterable[str], default: str) -> Iterator[tuple[str, str, str | None]]:
        """(backend, precision of the graph, hint); `default`: the graph where none is asked for."""
        for backend in backends:
            if not self.precisions:
                yield backend, default, None
            for precision in self.precisions:
                if found := BACKENDS[backend].precisions.get(precision):
                    yield backend, *found
                else:
                    able = [name for name, spec in BACKENDS.items() if precision in spec.precisions]
                    self.absent.append(
                        f"{backend} {precision} left out: only {', '.join(able)} computes in it"
                    )

    def _backends(self) -> list[str]:
        return list(dict.fromkeys(self.backends)) or fastest_backends(self.device)
