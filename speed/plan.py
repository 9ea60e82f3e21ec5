"""Plan of a measurement: from names and files to contests; missing files are exported."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.scenes import scenes
from ..data.signature import required_key
from ..errors import ArtifactError, CheckpointError, UsageError
from ..reporting import Progress
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
from ..usage import NoiseWatch
from .baselines import Eager, as_artifact_error
from .config import BenchConfig, Size
from .contestant import ArtifactContestant, Contestant, Frames
from .peers import PEERS, peer_class
from .plain_exports import OriginalFile, PlainExport
from .result import name_size
from .roofline import Work, count_work

if TYPE_CHECKING:
    from ..models import Network
    from ..models.loading import Model
    from .config import Measurable

SCENES = 4
AUTO = "auto"  # the fastest form that passes on this machine
NO_TORCH = 'PyTorch is not installed: pip install "rtseg[export]"'


@dataclass(frozen=True)
class Entry:
    """An artifact and the backend that runs it. hint: the precision that OpenVINO shall compute in,
    None for its default; size: which of those that it takes, None for its only one. asked_for: if
    False, a failure to load only leaves the row out."""

    path: Path
    backend: str
    hint: str | None
    asked_for: bool
    size: Size | None = None

    @property
    def title(self) -> str:
        return f"{self.path.name} in {self.backend}"

    @property
    def runner(self) -> str:
        return f"{self.backend} {self.hint or ''}".strip()

    def open(self, frames: Frames, threads: int, device: str | None) -> Contestant:
        options: dict[str, object] = {}
        if self.backend != "tensorrt":
            options["threads"] = threads
        if self.hint is not None:
            options["precision"] = self.hint
        if self.size is not None:
            options["size"] = self.size
        return ArtifactContestant.open(self.path, self.backend, frames, device=device, **options)


@dataclass(frozen=True)
class PeerEntry:
    """The network as others run it. peer: a name of PEERS; device: "cpu" or "cuda[:N]"."""

    peer: str
    contest: Contest
    device: str
    asked_for: bool = True

    @property
    def title(self) -> str:
        return f"{self.contest.card.model} in {PEERS[self.peer].title}"

    @property
    def runner(self) -> str:
        return f"{PEERS[self.peer].title} on {self.device}"

    def open(self, frames: Frames, threads: int, device: str | None) -> Contestant:
        source, size = self.contest.model, self.contest.card.size  # without PyTorch this says so
        from ..models import count, digest

        # A copy: peers take it to a device or to float16, and the next one needs it as it was.
        network = copy.deepcopy(source.network)
        kind = _class_of_peer(self.peer, self.device, network, self.asked_for)
        macs, weights = count(network, size).macs, digest(network)
        on = device if device and device.startswith(self.device) else self.device
        # Only a busy machine asks for fewer threads: on a quiet one eager gets all of them.
        watch = NoiseWatch()
        card = self.contest.card
        with as_artifact_error(kind.title):
            if issubclass(kind, PlainExport) and kind is not OriginalFile:
                kind = kind.of(source, size, card.batch)
            peer = kind(
                network, size, weights, macs, frames, on, threads, source.trained, card.fit,
                card.batch, card.pad_color,
            )  # fmt: skip
            peer.frame_to_labels()
        if on == "cpu" and kind is Eager and not watch.noise().quiet:
            peer.keep_faster_thread_count()
        return peer


def _class_of_peer(peer: str, device: str, network: Network, asked_for: bool) -> type[Eager]:
    """What runs a peer; somebody's ONNX file runs as it is where a module runs in PyTorch."""
    from ..models.onnx_file import OnnxNetwork

    if not isinstance(network, OnnxNetwork):
        return peer_class(peer, device, asked_for)
    if peer not in ("eager", "onnxruntime"):
        raise ArtifactError(f"{network.info.name} is an ONNX file, which {peer} does not run")
    return OriginalFile


@dataclass
class Contest:
    """Artifacts of one network at one size: what is measured together, in turns.

    Attributes:
        source: the PyTorch network for the peers; None where it is not at hand, and `why` then.
    """

    card: Card
    entries: list[Entry]
    source: Model | None
    why: str = ""

    @property
    def title(self) -> str:
        return f"{self.card.model} {name_size(self.card.size, self.card.batch)}"

    @property
    def model(self) -> Model:
        """The PyTorch network. Raises ArtifactError where it is not at hand."""
        if self.source is None:
            raise ArtifactError(self.why)
        return self.source

    def scenes(self) -> Frames:
        size = self.card.camera_size or self.card.size
        return scenes(max(SCENES, self.card.batch), size)

    def peer(self, name: str, device: str, asked_for: bool = True) -> PeerEntry:
        return PeerEntry(name, self, device, asked_for)

    def work(self) -> Work:
        """What the plain network has to do for a frame; its layers only where it is at hand."""
        if self.source is not None:
            return count_work(self.source.network, self.card.size)
        height, width = self.card.size
        return Work(self.card.macs, self.card.params, height * width)


def plan(config: BenchConfig, progress: Progress) -> tuple[list[Contest], list[str]]:
    """Find or export the artifacts to measure.

    Returns:
        The contests in the order given, and lines on what was asked for and does not exist.

    Raises:
        UsageError: for sizes and precisions that do not fit the models.
        ArtifactError, MissingPackage: for a backend that was named and cannot run here.
    """
    check_backends(config.backends)
    planner = _Planner(config, progress)
    contests: dict[tuple[str, int, Size, int], Contest] = {}
    for measured in config.models:
        model, why = planner.open(measured)
        for entry in planner.entries(measured, model):
            card = read_card(entry.path).at(entry.size)
            # Those that do the same work race; precisions and backends of it are what is compared.
            key = card.model, len(card.classes), card.size, card.batch
            contests.setdefault(key, Contest(card, [], model, why)).entries.append(entry)
    if not contests:
        raise UsageError("; ".join(planner.absent))
    return list(contests.values()), planner.absent


class _Planner:
    """From models to entries; `absent` lists what was requested and is impossible."""

    def __init__(self, config: BenchConfig, progress: Progress):
        self.config, self.progress = config, progress
        self.absent: list[str] = []

    def open(self, measured: Measurable) -> tuple[Model | None, str]:
        """(the PyTorch network of what is measured, why there is none)."""
        path = _artifact(measured)
        if path is None:
            return load_source(measured, self.config.weights, self.config.classes), ""
        if required_key() is not None:
            return None, "PyTorch's network has no signature of its own"
        if not (self.config.eager or self.config.peers or self.config.roofline):
            return None, ""  # a vehicle's install has no PyTorch, and needs none for its own rows
        card = read_card(path)
        if importlib.util.find_spec("torch") is None:
            return None, NO_TORCH
        model = _network_of(path, card, self.config.weights)
        if model is None and card.weights_from.endswith(".onnx"):
            return None, (
                f"{card.weights_from}, which {path.name} was made of, is neither beside it nor "
                "here: put it there to have it measured too"
            )
        if model is None:
            return None, (
                f"{card.model} is not in rtseg's zoo, so that PyTorch has no network to run: name "
                "its checkpoint or module instead of the artifact"
            )
        from ..models import digest

        if digest(model.network) != card.weights:
            self.absent.append(
                f"the peers of {path.name} run other weights than its own ({model.weights_from}): "
                f"name those with --weights ({card.weights_from})"
            )
        return model, ""

    def entries(self, measured: Measurable, model: Model | None) -> Iterable[Entry]:
        path = _artifact(measured)
        if path is not None:
            return self._of_artifact(path)
        assert model is not None
        return self._of_network(model)

    def _of_artifact(self, path: Path) -> Iterable[Entry]:
        card, config = read_card(path), self.config
        sizes = [size for size in card.all_sizes if not config.sizes or size in config.sizes]
        if not sizes:
            known = " and ".join(f"{height}x{width}" for height, width in card.all_sizes)
            raise UsageError(
                f"{path.name} takes {known} only, as exported: leave the size "
                f"out, or name {card.model} instead to have it exported at other sizes"
            )
        if config.batch not in (None, card.batch):
            raise UsageError(
                f"{path.name} takes {card.batch} at once, as exported: leave --batch out, or name "
                f"{card.model} instead to have it exported for {config.batch}"
            )
        ways = [
            (backend, hint)
            for backend, graph, hint in self._ways(self._able(path), card.precision)
            if graph == card.precision
        ]
        if not ways:
            raise UsageError(
                f"{path.name} is {card.precision} and does not run as "
                f"{' or '.join(config.precisions)}: leave the precision out, or name {card.model} "
                "instead to have it exported"
            )
        return [
            Entry(path, backend, hint, bool(config.backends), size if card.sizes else None)
            for size in sizes
            for backend, hint in ways
        ]

    def _able(self, path: Path) -> list[str]:
        """The backends for a file: those asked for or installed that read it, one at least."""
        fitting = [b for b in self._backends() if path.suffix in BACKENDS[b].suffixes]
        if fitting:
            return fitting
        asked = self.config.backends
        return [choose(path, asked[0] if asked else None, self.config.device)]

    def _of_network(self, model: Model) -> Iterator[Entry]:
        config = self.config
        for size in dict.fromkeys(config.sizes or [model.trained_size]):
            for graph, ways in self._by_graph().items():
                backends = list(dict.fromkeys(backend for backend, _ in ways))
                paths = cached_export(
                    model, size, backends, graph, self.progress, config.calib, config.batch or 1
                )
                for backend, hint in ways:
                    yield Entry(paths[backend], backend, hint, bool(config.backends))

    def _by_graph(self) -> dict[str, list[tuple[str, str | None]]]:
        """(backend, hint) by the precision of the graph that they share."""
        grouped: dict[str, list[tuple[str, str | None]]] = {}
        for backend, graph, hint in self._ways(
            self._backends(), graph_precision(self.config.device)
        ):
            grouped.setdefault(graph, []).append((backend, hint))
        return grouped

    def _ways(self, backends: Iterable[str], default: str) -> Iterator[tuple[str, str, str | None]]:
        """(backend, precision of the graph, hint); `default`: the graph where none is asked for."""
        for backend in backends:
            for precision in self.config.precisions or [AUTO]:
                if precision == AUTO:
                    yield backend, default, None
                elif found := BACKENDS[backend].precisions.get(precision):
                    yield backend, *found
                else:
                    able = [name for name, spec in BACKENDS.items() if precision in spec.precisions]
                    self.absent.append(
                        f"{backend} {precision} left out: only {', '.join(able)} computes in it"
                    )

    def _backends(self) -> Sequence[str]:
        return list(dict.fromkeys(self.config.backends)) or fastest_backends(self.config.device)


def _artifact(measured: Measurable) -> Path | None:
    """Its path, None for what has to be exported first."""
    if isinstance(measured, (str, Path)) and is_artifact(measured):
        return Path(measured)
    return None


def _network_of(path: Path, card: Card, weights: Path | None) -> Model | None:
    """The network that an artifact was made of, with the same weights where they are at hand:
    given, beside the artifact, in this folder, shipped or drawn."""
    from ..models import VARIANTS, digest

    if card.weights_from.endswith(".onnx"):
        return _original_of(path, card)
    if card.model not in VARIANTS:
        return None
    if weights is not None:
        return load_source(card.model, weights, card.class_table)
    for place in (path.with_name(card.weights_from), Path(card.weights_from)):
        if place.is_file():
            with suppress(CheckpointError):
                # A file of that name counts only if its weights have the card's digest.
                model = load_source(card.model, place, card.class_table)
                if digest(model.network) == card.weights:
                    return model
    return load_source(card.model, classes=card.class_table)


def _original_of(path: Path, card: Card) -> Model | None:
    """The ONNX file that an artifact was made of, if it lies beside the artifact or in this folder:
    its digest is that of the card in one of the two channel orders."""
    from ..models import digest
    from ..models.own import Normalization

    for place in (path.with_name(card.weights_from), Path(card.weights_from)):
        if not place.is_file():
            continue
        rgb = Normalization(card.mean, card.std)
        bgr = Normalization(card.mean[::-1], card.std[::-1], order="bgr")
        for normalize in (rgb, bgr):
            with suppress(UsageError):
                model = load_source(
                    place,
                    classes=card.class_table,
                    size=card.size,
                    normalize=normalize,
                    fit=card.fit,
                    pad_color=card.pad_color,
                )
                if digest(model.network) == card.weights:
                    return model
    return None
