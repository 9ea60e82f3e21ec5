"""Replay of an incident: every mask once more, bit for bit, or what differs from then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..data.files import digest_of
from ..data.images import decode_image
from ..data.limits import parse_json
from ..data.ros.ros_messages import CompressedImage
from ..errors import UsageError
from ..reporting import Table
from .drive.engine import Picture
from .drive.worker_process import describe_backend
from .open_artifact import load
from .provenance import describe_provenance, find_differences
from .segmenter import Segmenter
from .sinks.black_box import BlackBox
from .sinks.incident_file import FRAME, HEALTH, LABELS, RESULT, IncidentRecord, read_incident

MOST_ROWS = 20  # of masks that differ, in a table
TOO_FAST = "{} messages, a mask each or a status, which came faster than the box could write"


@dataclass(frozen=True)
class DifferingMask:
    """A mask that came out otherwise than then; pixels: how many differ."""

    frame_id: int
    level: str
    pixels: int


@dataclass
class IncidentReplay:
    """What came of an incident's frames.

    Attributes:
        file, reason: of the incident.
        frames: that have a mask; exact: whose mask is the same bit for bit.
        dropped: messages that came faster than the box could write, in the seconds of the incident.
        skipped: of artifacts that were not at hand, by their name.
        differing: masks that are not the same.
        differences: libraries, machine and engines that are others than then.
    """

    file: str
    reason: str
    frames: int = 0
    exact: int = 0
    dropped: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    differing: list[DifferingMask] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def failure(self) -> str:
        """Why the masks were not all replayed; "" if they were."""
        if self.skipped:
            return "; ".join(f"{name}: {why}" for name, why in self.skipped.items())
        if not self.frames:
            return "the incident holds no mask"
        if not self.differing:
            return ""
        causes = "; ".join(self.differences) or (
            "nothing that is recorded differs, so the engine was disturbed then, or its sums vary "
            "from run to run"
        )
        return f"{len(self.differing)} of {self.frames} masks differ: {causes}"

    def to_dict(self) -> dict[str, Any]:
        """The values that JSON has."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """For people: what was replayed, and what differs."""
        facts = [
            ("incident", f"{self.file}: {self.reason}"),
            ("masks", f"{self.frames}, {self.exact} of them the same bit for bit"),
            *([("not kept", TOO_FAST.format(self.dropped))] if self.dropped else []),
            *(("not replayed", f"{name}: {why}") for name, why in self.skipped.items()),
            *(("differs from then", each) for each in self.differences),
        ]
        found = [Table(("", ""), facts, words=("",))]
        if self.differing:
            rows = [(each.frame_id, each.level, each.pixels) for each in self.differing[:MOST_ROWS]]
            found.append(Table(("frame", "artifact", "pixels"), rows, "Masks that differ"))
        return found


@dataclass(frozen=True)
class _RecordedMask:
    """A frame of an incident, with the mask that it had then."""

    frame_id: int
    level: str
    image: Picture
    labels: Picture


def replay_incident(path: Path, models: Sequence[Path] = ()) -> IncidentReplay:
    """Label an incident's frames again with the artifacts that it names.

    Args:
        path: of the incident.
        models: the artifacts, where they lie elsewhere than then; known by their digest.

    Raises:
        UsageError: the file is no incident, or an artifact in `models` is none of it.
    """
    facts, records = read_incident(path)
    done = IncidentReplay(path.name, str(facts.get("reason", "the drive was cut off")))
    done.differences += find_differences(facts, describe_provenance())
    artifacts = _find_artifacts(facts.get("artifacts", {}), models)
    with ExitStack() as opened:
        segmenters: dict[str, Segmenter | None] = {}
        for mask in _pair_masks(_count_dropped(records, done)):
            if mask.level not in segmenters:
                segmenters[mask.level] = _open(mask.level, artifacts, facts, done, opened)
            segment = segmenters[mask.level]
            if segment is None:
                continue
            done.frames += 1
            pixels = int(np.count_nonzero(segment(mask.image) != mask.labels))
            done.exact += not pixels
            if pixels:
                done.differing.append(DifferingMask(mask.frame_id, mask.level, pixels))
    return done


def _count_dropped(
    records: Iterator[IncidentRecord], done: IncidentReplay
) -> Iterator[IncidentRecord]:
    """The records as they are; `done` gets what the box's queue dropped between the first look at
    the drive's counters and the last."""
    first = None
    for record in records:
        if record.topic == HEALTH:
            sinks = parse_json(record.data, record.topic).get("sinks", ())
            count = sum(each["dropped"] for each in sinks if each["name"] == BlackBox.name)
            first = count if first is None else first
            done.dropped = count - first
        yield record


def _pair_masks(records: Iterator[IncidentRecord]) -> Iterator[_RecordedMask]:
    pictures: dict[str, tuple[int, Picture]] = {}
    for record in records:
        if record.topic in (FRAME, LABELS):
            content = np.frombuffer(CompressedImage.decode(record.data).data, np.uint8)
            picture = decode_image(content, record.topic, cv2.IMREAD_UNCHANGED)
            pictures[record.topic] = record.frame_id, picture
        elif record.topic == RESULT:
            level = str(parse_json(record.data, record.topic)["level"])
            kept = [pictures.get(topic, (-1, None)) for topic in (FRAME, LABELS)]
            (one, image), (other, labels) = kept
            if one == other == record.frame_id and image is not None and labels is not None:
                yield _RecordedMask(record.frame_id, level, image, labels)


def _find_artifacts(
    known: Mapping[str, Mapping[str, Any]], models: Sequence[Path]
) -> dict[str, dict[str, Any]]:
    """The artifacts of an incident, with the path that each has now."""
    found = {name: dict(each) for name, each in known.items()}
    for path in models:
        digest = digest_of(path)
        names = [name for name, each in found.items() if each["sha256"] == digest]
        if not names:
            raise UsageError(
                f"{path} is none of this incident's artifacts: "
                + ", ".join(f"{name} has SHA-256 {each['sha256']}" for name, each in found.items())
            )
        for name in names:
            found[name]["path"] = str(path)
    return found


def _open(
    level: str,
    artifacts: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
    done: IncidentReplay,
    opened: ExitStack,
) -> Segmenter | None:
    """The artifact of a level; None where it is not at hand, which `done` then says."""
    known = artifacts.get(level)
    if known is None:
        done.skipped[level] = "the incident does not name its file"
        return None
    path = Path(known["path"])
    if not path.is_file():
        done.skipped[level] = f"{path} is not here: name the file with --model"
        return None
    if digest_of(path) != known["sha256"]:
        done.skipped[level] = (
            f"{path} is another file than then, whose SHA-256 was {known['sha256']}: name that "
            "one with --model"
        )
        return None
    segment = opened.enter_context(load(path, known["backend"], known["device"]))
    segment.picks_size = False  # as the drive has it
    then, now = _find_engine(level, facts), describe_backend(segment)
    if then and then != now:
        done.differences.append(f"{level} ran on {then}, runs on {now}")
    return segment


def _find_engine(level: str, facts: Mapping[str, Any]) -> str:
    for engine in facts.get("engines", {}).values():
        named = dict(zip(engine.get("levels", ()), engine.get("backends", ()), strict=False))
        if level in named:
            return str(named[level])
    return ""
