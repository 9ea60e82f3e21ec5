"""A race of the GPU suite: our contestants and their peers, timed in turns."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .gpu_job import Job

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..data.camera_formats import CameraFormat
    from ..models import Network
    from ..models.loading import Model
    from ..speed.contestant import Contestant
    from ..speed.timing import Lane

QUICK = ("eager", "onnxruntime")  # peers that open in seconds
SLOW = ("tensorrt", "compile", "torch_tensorrt", "torch2trt")  # the likeliest to end well first
WATCHED_S = 0.2  # of a row, its clocks and power
RESAMPLES = 200  # of a handful of rounds, which have few different draws


@dataclass
class Entry:
    """A contestant in a race; `facts` go into its rows, and its labels are compared once."""

    each: Contestant
    lane: Lane
    facts: dict[str, Any]
    compared: bool = False


class Race:
    """Contestants of one network at one size. One that cannot run is a row that says why.

    A step may be ended at any time, and builders take minutes: `run` may be called whenever another
    contestant has come, and writes everybody's row anew. The last `heat` of a step has them all.
    """

    def __init__(self, job: Job, name: str, size: tuple[int, int]):
        from ..data.scenes import scenes
        from ..models.loading import load_model

        self.job, self.size = job, size
        self.model, self.frames = load_model(name), scenes(2, size)
        self.named: dict[str, Any] = {"model": name, "size": size}
        self.opened: dict[str, Entry] = {}
        self.heat = 0
        self._raced: set[str] = set()

    def enter(self, title: str, start: Callable[[], Contestant], **facts: Any) -> bool:
        """Open a contestant; whether it runs."""
        from ..speed.timing import Lane

        with self.job.part(**self.named, contestant=title, **facts):
            each = start()
            each.network()  # now: one that cannot would end the race for all
            calls = {"frame_to_labels": each.frame_to_labels, "network": each.network}
            self.opened[title] = Entry(each, Lane(calls), facts)
        return title in self.opened

    def enter_artifact(self, title: str, path: Path, backend: str, **options: Any) -> None:
        """One of ours, by `options` of its backend."""
        from ..speed.contestant import ArtifactContestant

        opening = partial(ArtifactContestant.open, path, backend, self.frames)
        self.enter(title, partial(opening, device=self.job.device, **options), **options)

    def enter_torch(self, precision: str) -> None:
        """Our PyTorch backend."""
        with self.job.part(**self.named, contestant=f"torch {precision}"):
            path = write_weights(self.model, self.size, precision, self.job.rows.parent)
            self.enter_artifact(f"torch {precision}", path, "torch")

    def enter_peer(self, name: str) -> bool:
        opening = partial(open_peer, self.job, self.model, self.size, name, self.frames)
        return self.enter(name, opening, peer=True)

    def run(self) -> None:
        """Time all that are open in turns, a row each; not again where nobody has come since."""
        from ..speed.timing import race

        if self._raced == self.opened.keys():
            return
        self._raced, self.heat = set(self.opened), self.heat + 1
        with self.job.part(**self.named, heat=self.heat):
            race([entry.lane for entry in self.opened.values()], self.job.plan.limits)
            for title, entry in self.opened.items():
                facts = {**self.named, "contestant": title, "heat": self.heat, **entry.facts}
                self.job.row(**facts, **self._timed(entry))

    def run_with_slow_peers(self) -> None:
        """A heat with each of the peers that take minutes to build, if it could be."""
        for name in SLOW:
            if self.enter_peer(name):
                self.run()

    def _timed(self, entry: Entry) -> dict[str, Any]:
        """Its times, those of each peer over its own, the GPU's own clock beside the wall's, the
        GPU's state under it, and what shares of the machine are taken of."""
        from ..gpu import watch_gpu
        from ..speed.timing import Timing, ratio

        subject, lane = entry.each.subject, entry.lane
        facts: dict[str, Any] = {
            "precision": subject.precision,
            "options": dict(subject.options),
            **{call: asdict(Timing.of(lane.times(call))) for call in lane.calls},
            "device_ms": entry.each.device_ms(),
        }
        if not self.job.dry:
            state = watch_gpu(entry.each.frame_to_labels, self.job.index, WATCHED_S)
            facts |= {"gpu": asdict(state), "doubt": state.warning(subject.title)} if state else {}
        if subject.size == self.size:  # a dry run's pretended engine is of another network
            facts["work"] = self._work(subject)
        for name, other in self.opened.items():
            if other.each.subject.peer and not subject.peer:
                facts[f"against {name}"] = {
                    call: asdict(ratio(lane.rounds[call], other.lane.rounds[call], RESAMPLES))
                    for call in lane.calls
                }
        return facts

    def _work(self, subject: Any) -> dict[str, Any]:
        """What `gpu_shares.py` takes for the roofline."""
        from ..models import count
        from ..speed.roofline import Work, arithmetic_of

        cost, arithmetic = count(self.model.network, self.size), arithmetic_of(subject)
        least = Work(cost.macs, cost.params, math.prod(self.size)).minimal_bytes(arithmetic)
        return {"macs": cost.macs, "minimal_bytes": least, "arithmetic": arithmetic}

    def watch_memory(self) -> None:
        """Of each of ours, over many frames."""
        from ..gpu import gpu_memory_used
        from ..usage import read_usage

        frames = self.job.plan.steady
        for title, entry in self.opened.items():
            if entry.each.subject.peer:
                continue
            with self.job.part(**self.named, contestant=title, frames=frames):
                before = gpu_memory_used(), read_usage().resident_mib
                for _ in range(frames):
                    entry.each.frame_to_labels()
                after = gpu_memory_used(), read_usage().resident_mib
                growth = [
                    None if a is None or b is None else round(b - a, 1)
                    for a, b in zip(before, after, strict=True)
                ]
                self.job.row(
                    **self.named, contestant=title, frames=frames, **entry.facts,
                    device_bytes_grown=growth[0], host_mib_grown=growth[1],
                )  # fmt: skip

    def compare_labels(self) -> None:
        """A row each, once: pixels whose label is not that of float32 on the CPU, and the widest
        lead that one of them had there: far below 1, since only near ties turn. Leads are over the
        logits' deviation."""
        for title, entry in self.opened.items():
            if entry.compared or entry.each.subject.size != self.size:
                continue
            entry.compared = True
            named = {**self.named, "contestant": title, **entry.facts}
            with self.job.part(**named, labels="against the CPU"):
                different, widest = 0, 0.0
                for frame, (labels, lead) in zip(self.frames, self._by_cpu, strict=True):
                    turned = entry.each.label(frame) != labels
                    different += int(turned.sum())
                    widest = max(widest, float(lead[turned].max(initial=0)))
                pixels = len(self.frames) * math.prod(self.size)
                self.job.row(
                    **named, labels_differ=different, pixels=pixels,
                    widest_lead_of_those=round(widest, 5),
                )  # fmt: skip

    @cached_property
    def _by_cpu(self) -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
        return [label_on_cpu(self.model.network, self.size, frame) for frame in self.frames]

    def close(self) -> None:
        for entry in self.opened.values():
            entry.each.close()


def open_peer(job: Job, model: Model, size: tuple[int, int], name: str, frames: Any) -> Contestant:
    from ..models import count, digest
    from ..speed.baselines import as_artifact_error
    from ..speed.peers import peer_class
    from ..speed.plain_exports import PlainExport

    kind = peer_class(name, job.device.partition(":")[0])
    network = copy.deepcopy(model.network)
    macs, weights = count(network, size).macs, digest(network)
    with as_artifact_error(kind.title):
        if issubclass(kind, PlainExport):
            kind = kind.of(model, size)
        on, fit = job.device, model.fit
        return kind(network, size, weights, macs, frames, on, None, model.trained, fit)


def write_weights(
    model: Model,
    size: tuple[int, int],
    precision: str,
    folder: Path,
    input: CameraFormat = "bgr",
    camera: tuple[int, int] | None = None,
) -> Path:
    """Weights with a card, as `rtseg export --to torch` writes them, without its ONNX packages and
    without a proof: the suite compares the labels itself."""
    import torch

    from .. import __version__
    from ..models import count, digest, save_checkpoint
    from ..runtime.artifact import Card
    from ..runtime.safetensors_card import digest_of_tensors

    info, cost = model.network.info, count(model.network, size)
    camera = None if camera == size else camera
    start = f"{info.name}_{size[0]}x{size[1]}_{precision}"
    path = folder / f"{start}_{input}_{camera}.safetensors".replace(" ", "")
    save_checkpoint(model.network, path)
    card = Card(
        model=info.name, size=size, trained_size=model.trained_size, fit=model.fit,
        input=input, camera_size=camera,
        precision=precision, outputs=("labels",),  # type: ignore[arg-type]
        classes=model.classes.names, palette=model.classes.palette,
        label_ids=model.classes.label_ids, class_set=model.classes.name,
        mean=info.mean, std=info.std, weights=digest(model.network),
        weights_from=model.weights_from, trained=model.trained, macs=cost.macs,
        params=cost.params, tools={"rtseg": __version__, "torch": torch.__version__},
        files={"": digest_of_tensors(path)},
    )  # fmt: skip
    save_checkpoint(model.network, path, metadata={"card": card.to_json()})
    return path


def label_on_cpu(
    network: Network, size: tuple[int, int], frame: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(labels (H, W), by how much each leads the second class, in deviations of the logits)."""
    import torch

    from ..models.pipeline import normalize_frame

    with torch.inference_mode():
        logits = network.eval()(normalize_frame(frame, network))
        if tuple(logits.shape[-2:]) != size:
            logits = torch.nn.functional.interpolate(
                logits, size, mode="bilinear", align_corners=network.info.align_corners
            )
        best = logits.topk(2, dim=1)
        lead = (best.values[0, 0] - best.values[0, 1]) / logits.std()
        return logits.argmax(1)[0].to(torch.uint8).numpy(), lead.numpy()
