"""mIoU under latency: the mask available at a moment, against the label of that moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.datasets import Cached, SegmentationData
from ..errors import UsageError
from ..train.evaluate import Confusion
from .bench import Setup
from .camera_rate import Pace, Shot, play
from .contestant import Contestant
from .result import Column, Report, Subject, tabulate

Labels = NDArray[np.uint8]


def mask_at(shots: Sequence[Shot]) -> list[int | None]:
    """For each frame the index of the frame whose labels were the newest to lie ready when it was
    due, or None if there were none yet.

    A frame's own labels are never ready when it is due, so that at best it meets those of the frame
    before.
    """
    newest: list[int | None] = []
    ready = [
        (shot.ended_ns, index) for index, shot in enumerate(shots) if shot.ended_ns is not None
    ]
    last, following = None, 0
    for shot in shots:
        while following < len(ready) and ready[following][0] <= shot.due_ns:
            last = ready[following][1]
            following += 1
        newest.append(last)
    return newest


def score(
    labels: Sequence[Labels | None],
    masks: Mapping[int, Labels],
    shown: Sequence[int | None],
    start: int,
    classes: int,
) -> float:
    """mIoU of the mask `shown` at each frame against that frame's label, from frame `start` on.

    labels: (H, W) uint8 train ids, 255 where nothing counts, None for a frame without; masks: by
    frame. Frames at which no mask is shown do not count.
    """
    confusion = Confusion(classes)
    for label, index in list(zip(labels, shown, strict=True))[start:]:
        if label is not None and index is not None:
            confusion.update(label, masks[index])
    return confusion.miou()


@dataclass(frozen=True)
class LatencyScore:
    """One operating point. offline_miou: every frame's own mask against its label; latency_miou: in
    real time, 0 if no mask came in time; lag: mean frames by which the mask is behind; both mIoUs
    are over the same frames."""

    offline_miou: float
    latency_miou: float
    lag: float
    pace: Pace


@dataclass(frozen=True)
class _Played:
    """One contestant's real time run, and its mask of every frame."""

    subject: Subject
    shots: Sequence[Shot]
    masks: Mapping[int, Labels]

    @property
    def shown(self) -> list[int | None]:
        return mask_at(self.shots)


def sequence(
    setup: Setup,
    data: SegmentationData | Cached,
    name: str,
    rate_hz: float,
) -> Report:
    """Plays the labeled sequence `data` to every row in real time, and names the best row.

    The first frames, for which some row has no mask yet, count for none: all are scored on the same
    frames. A row that has none in all the sequence has an mIoU of 0 under latency.

    Raises ValueError where a model answers in other classes than the labels are in.
    """
    # Decoded before the clock starts: a camera's frames come from no disk.
    samples = data if isinstance(data, Cached) else Cached(data)
    played: list[_Played] = []
    for contest in setup.single_frame_contests:
        _check_classes(contest.card.classes, samples)
        with setup.host.open_all(contest) as opened:
            played += [_play(setup, each.contestant, samples, rate_hz) for each in opened]
    # One start for all rows: a slow network would else be spared the frames that it has no mask
    # for.
    start = _first_scored(played)
    facts: list[dict[str, object]] = []
    for each in played:
        point = _point(each, samples, start, rate_hz)
        facts.append({**each.subject.facts(), **_flat(point), "scored_from": start})
    columns: dict[str, Column] = {
        "offline mIoU %": ("offline_miou", 100),
        "mIoU %": ("latency_miou", 100),
        "lost %": lambda fact: 100 * (fact["offline_miou"] - fact["latency_miou"]),
        "frames behind": lambda fact: (
            "never" if fact["frames_behind"] is None else fact["frames_behind"]
        ),
        "call p50 ms": "pace.service.p50_ms",
        "dropped %": lambda fact: 100 * fact["pace"]["dropped"] / fact["pace"]["frames"],
    }
    title = f"mIoU under latency on {name} at {rate_hz:g} Hz: the mask at hand when a label is due"
    settings = {"sequence": name, "rate_hz": rate_hz, "frames": len(samples)}
    tables = [tabulate(title, facts, columns)]
    return setup.report("sequence", tables, facts, settings, answer=best_line(facts, rate_hz))


def _play(setup: Setup, contestant: Contestant, samples: Cached, rate_hz: float) -> _Played:
    setup.host.progress(f"{contestant.subject.title}: offline", 0.0)
    images = [samples[index].image for index in range(len(samples))]
    # Made before and looked up later: the real time run is about when, not about what.
    masks = {index: contestant.label(image) for index, image in enumerate(images)}
    setup.host.progress(f"{contestant.subject.title}: in real time", 0.0)
    return _Played(contestant.subject, _live(setup, contestant, images, rate_hz), masks)


def _live(
    setup: Setup, contestant: Contestant, images: Sequence[Labels], rate_hz: float
) -> list[Shot]:
    # Warm: the sequence begins with a drive under way, not with a first call.
    contestant.label(images[0])
    return play(lambda index: contestant.label(images[index]), len(images), rate_hz)


def _first_scored(played: Sequence[_Played]) -> int:
    """The first frame at which every row has a mask, those apart that never have one."""
    firsts = []
    for each in played:
        first = next((i for i, index in enumerate(each.shown) if index is not None), None)
        if first is not None:
            firsts.append(first)
    return max(firsts, default=0)


def _point(played: _Played, samples: Cached, start: int, rate_hz: float) -> LatencyScore:
    labels = [samples[index].label for index in range(len(samples))]
    shown = played.shown
    own: list[int | None] = list(range(len(samples)))
    classes = len(samples.classes)
    lags = [i - index for i, index in enumerate(shown) if index is not None and i >= start]
    return LatencyScore(
        offline_miou=score(labels, played.masks, own, start, classes),
        latency_miou=score(labels, played.masks, shown, start, classes),
        lag=float(np.mean(lags)) if lags else float("nan"),
        pace=Pace.of(played.shots, rate_hz),
    )


def _flat(point: LatencyScore) -> dict[str, object]:
    value = asdict(point)
    lag = value.pop("lag")
    value["frames_behind"] = None if np.isnan(lag) else round(lag, 3)
    for name in ("offline_miou", "latency_miou"):
        value[name] = round(value[name], 6)
    return value


def best_line(facts: Sequence[Mapping[str, Any]], rate_hz: float) -> str:
    """The operating point for this machine: the most accurate under latency, the faster of two."""
    ours = [fact for fact in facts if not fact["peer"]] or facts
    best = max(ours, key=lambda f: (f["latency_miou"], -f["pace"]["service"]["p50_ms"]))
    height, width = best["size"]
    return (
        f"best at {rate_hz:g} Hz on this machine: {best['model']} {height}x{width} "
        f"{best['precision']} in {best['backend']}, mIoU {best['latency_miou']:.1%} under latency "
        f"({best['offline_miou']:.1%} offline)"
    )


def _check_classes(names: Sequence[str], samples: Cached) -> None:
    if tuple(names) != samples.classes.names:
        raise UsageError(
            f"the model has {len(names)} classes ({', '.join(names[:3])}, ...), the sequence "
            f"{len(samples.classes)} ({', '.join(samples.classes.names[:3])}, ...): they must be "
            "the same"
        )
