"""Incident files: MCAP logs of a drive's last seconds, whose pictures are lossless."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...data.files import RecordingFile, explain_failure
from ...data.ros.ros_messages import CompressedImage
from ...errors import MissingPackage, UsageError
from .mcap_writer import FACTS, INSTALL

FRAME, LABELS = "/rtseg/frame", "/rtseg/labels"
RESULT, STATUS = "/rtseg/result", "/rtseg/status"
HEALTH, MACHINE = "/rtseg/health", "/rtseg/machine"
PICTURES = (FRAME, LABELS)
METADATA = "rtseg.incident"


@dataclass(frozen=True)
class IncidentRecord:
    """A message: of a topic, at nanoseconds since 1970; frame_id: of the drive, or 0."""

    topic: str
    at_ns: int
    data: bytes
    frame_id: int = 0


class IncidentWriter:
    """Writes an incident's records to an open file, each at once: what was written is the kernel's,
    and outlives this process.

    Args:
        file: to write to.
        facts: of the drive and what ran in it, which begin the file.

    Raises:
        MissingPackage: the mcap package is not installed.
    """

    def __init__(self, file: BinaryIO, facts: Mapping[str, Any]):
        try:
            from mcap.writer import Writer
        except ImportError as error:
            raise MissingPackage(INSTALL) from error
        self._file = file
        self._writer = Writer(file, use_chunking=False)
        self._writer.start(profile="", library="rtseg")
        self._writer.add_metadata(
            METADATA, {key: json.dumps(value) for key, value in facts.items()}
        )
        self._channels: dict[str, int] = {}

    def add(self, record: IncidentRecord) -> None:
        if record.topic not in self._channels:
            self._channels[record.topic] = self._register(record.topic)
        channel = self._channels[record.topic]
        self._writer.add_message(
            channel, record.at_ns, record.data, record.at_ns, sequence=record.frame_id & 0xFFFFFFFF
        )
        self._file.flush()

    def finish(self) -> None:
        self._writer.finish()  # type: ignore[no-untyped-call]

    def _register(self, topic: str) -> int:
        if topic in PICTURES:
            kind = CompressedImage.TYPE
            schema = self._writer.register_schema(kind.name, "ros2msg", kind.schema().encode())
            return int(self._writer.register_channel(topic, "cdr", schema))
        facts = json.dumps(FACTS).encode()
        schema = self._writer.register_schema(str(FACTS["title"]), "jsonschema", facts)
        return int(self._writer.register_channel(topic, "json", schema))


def read_incident(path: Path) -> tuple[dict[str, Any], Iterator[IncidentRecord]]:
    """Facts and records of an incident file, also of one that was cut short.

    Raises:
        MissingPackage: the mcap package is not installed.
        UsageError: the file is no incident's.
    """
    records = _read_records(path)
    facts = next(records, None)
    if not isinstance(facts, dict):
        raise UsageError(f"{path} is no incident of a drive's black box")
    return facts, (each for each in records if isinstance(each, IncidentRecord))


def _read_records(path: Path) -> Iterator[dict[str, Any] | IncidentRecord]:
    try:
        from mcap import records as kinds
        from mcap.stream_reader import StreamReader
    except ImportError as error:
        raise MissingPackage(INSTALL) from error
    topics: dict[int, str] = {}
    # What a killed process was writing has no end; whatever else is wrong ends the file there too.
    with path.open("rb") as file, contextlib.suppress(Exception):
        for record in StreamReader(file, record_size_limit=1 << 30).records:
            if isinstance(record, kinds.Metadata) and record.name == METADATA:
                yield {key: json.loads(value) for key, value in record.metadata.items()}
            elif isinstance(record, kinds.Channel):
                topics[record.id] = record.topic
            elif isinstance(record, kinds.Message):
                topic = topics[record.channel_id]
                yield IncidentRecord(topic, record.log_time, record.data, record.sequence)


def write_incident(path: Path, facts: Mapping[str, Any], parts: Iterable[Path]) -> Path:
    """Make one file of a ring's parts, oldest first.

    Args:
        path: the name wished for; a number is added where it is taken.
        facts: of what became of the drive; what ran in it is in the parts.
        parts: files of records.

    Returns:
        The file.

    Raises:
        WriteError: the disk does not take it.
    """
    recording = RecordingFile(path)
    parts = list(parts)
    try:
        with explain_failure(recording.partial), recording.open() as file:
            writer = IncidentWriter(file, {**_find_newest_facts(parts), **facts})
            for part in parts:
                with contextlib.suppress(UsageError):  # killed before its first record was whole
                    for record in read_incident(part)[1]:
                        writer.add(record)
            writer.finish()
    except BaseException:
        recording.abandon()
        raise
    recording.publish()
    return recording.path


def _find_newest_facts(parts: Sequence[Path]) -> dict[str, Any]:
    """What the newest part knows: engines tell of themselves once they are ready."""
    for part in reversed(parts):
        with contextlib.suppress(UsageError):
            return read_incident(part)[0]
    return {}
