"""Steps of the GPU suite: PyTorch's backend beside eager and `torch.compile`, label by label."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .gpu_job import Job

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..models import Network
    from ..models.loading import Model
    from ..speed.contestant import Contestant
    from ..speed.timing import Lane


def torch_backend(job: Job) -> None:
    """Our PyTorch backend against eager, and its labels against the CPU's."""
    for size in job.plan.sizes:
        for name in job.plan.models:
            with job.part(model=name, size=size):
                measure(job, name, size, job.plan.precisions, ("eager",), labels=True)


def torch_compile(job: Job) -> None:
    """`torch.compile` at its best against ours; compiling takes minutes, so it comes apart."""
    import torch

    if job.dry:  # the frontend alone: a C++ compiler would take most of the dry run
        torch.compile = partial(torch.compile, backend="eager")
    for size in job.plan.sizes:
        for name in job.plan.models:
            with job.part(model=name, size=size):
                measure(job, name, size, job.plan.precisions[:1], ("compile",), labels=False)


def measure(
    job: Job,
    name: str,
    size: tuple[int, int],
    precisions: tuple[str, ...],
    peers: tuple[str, ...],
    labels: bool,
) -> None:
    """A row a contestant: our backend in each precision, and each peer, timed in turns."""
    from ..data.scenes import scenes
    from ..models.loading import load_model
    from ..speed.contestant import ArtifactContestant
    from ..speed.timing import Lane, race

    model, frames = load_model(name), scenes(2, size)
    opened: dict[str, tuple[Contestant, Lane]] = {}

    def enter(title: str, start: Callable[[], Contestant]) -> None:
        with job.part(model=name, size=size, contestant=title):
            each = start()
            calls = {"frame_to_labels": each.frame_to_labels, "network": each.network}
            opened[title] = each, Lane(calls)

    for precision in precisions:
        path = write_weights(model, size, precision, job.rows.parent)
        start = partial(ArtifactContestant.open, path, "torch", frames, device=job.device)
        enter(f"torch {precision}", start)
    for peer in peers:
        enter(peer, partial(open_peer, job, model, size, peer, frames))
    if opened:
        race([lane for _, lane in opened.values()], job.plan.limits)
    for title, (each, lane) in opened.items():
        job.row(model=name, size=size, contestant=title, **timed(job, each, lane, opened, peers))
    if labels:
        for title, (each, _) in opened.items():
            with job.part(model=name, size=size, contestant=title, labels="against the CPU"):
                facts = compare_labels(model.network, size, frames, each)
                job.row(model=name, size=size, contestant=title, **facts)
    for each, _ in opened.values():
        each.close()


def timed(
    job: Job, each: Contestant, lane: Lane, opened: dict[str, Any], peers: tuple[str, ...]
) -> dict[str, Any]:
    """Its times, those of a peer over its own, and the GPU's own clock beside the wall's."""
    from ..speed.timing import Timing, ratio

    subject = each.subject
    facts: dict[str, Any] = {
        "precision": subject.precision,
        "options": dict(subject.options),
        **{call: asdict(Timing.of(lane.times(call))) for call in lane.calls},
    }
    facts["device_ms"] = each.device_ms()
    for peer in peers:
        if not subject.peer and peer in opened:
            other = opened[peer][1]
            facts[f"against {peer}"] = {
                call: asdict(ratio(lane.rounds[call], other.rounds[call])) for call in lane.calls
            }
    return facts


def write_weights(model: Model, size: tuple[int, int], precision: str, folder: Path) -> Path:
    """Weights with a card, as `rtseg export --to torch` writes them, without its ONNX packages and
    without a proof: the suite compares the labels itself."""
    import torch

    from .. import __version__
    from ..models import count, digest, save_checkpoint
    from ..runtime.artifact import Card, digest_of_tensors

    info, cost = model.network.info, count(model.network, size)
    path = folder / f"{info.name}_{size[0]}x{size[1]}_{precision}.safetensors"
    save_checkpoint(model.network, path)
    card = Card(
        model=info.name, size=size, trained_size=model.trained_size, fit=model.fit,
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


def open_peer(job: Job, model: Model, size: tuple[int, int], name: str, frames: Any) -> Contestant:
    from ..models import count, digest
    from ..speed.baselines import PlainExport, as_artifact_error, peer_class

    kind = peer_class(name, job.device.partition(":")[0])
    network = copy.deepcopy(model.network)
    macs, weights = count(network, size).macs, digest(network)
    with as_artifact_error(kind.title):
        if issubclass(kind, PlainExport):
            kind = kind.of(model, size)
        on, fit = job.device, model.fit
        return kind(network, size, weights, macs, frames, on, None, model.trained, fit)


def compare_labels(
    network: Network, size: tuple[int, int], frames: Any, each: Contestant
) -> dict[str, Any]:
    """Pixels whose label is not that of float32 on the CPU, and the widest lead that one of them
    had there: far below 1, since only near ties turn. leads are over the logits' deviation."""
    different, widest = 0, 0.0
    for frame in frames:
        labels, lead = label_on_cpu(network, size, frame)
        turned = each.label(frame) != labels
        different += int(turned.sum())
        widest = max(widest, float(lead[turned].max(initial=0)))
    pixels = len(frames) * size[0] * size[1]
    return {"labels_differ": different, "pixels": pixels, "widest_lead_of_those": round(widest, 5)}


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
