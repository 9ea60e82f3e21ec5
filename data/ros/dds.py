"""ROS 2 over DDS with Cyclone DDS: topics, types and QoS named as rmw does."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Any

from ...errors import MissingPackage
from .ros_messages import MessageType

# Pictures are many packets: with the kernel's default buffer a burst of them loses some, and with
# one the whole picture. Bigger packets are fewer ones.
CONFIG = """<CycloneDDS><Domain>
<General><MaxMessageSize>65500B</MaxMessageSize><FragmentSize>60000B</FragmentSize></General>
<Internal><SocketReceiveBufferSize min="default" max="16MB"/></Internal>
</Domain></CycloneDDS>"""
INSTALL = 'ROS 2 topics need cyclonedds: pip install "rtseg[ros2]"'
DEPTH = 1
WRITE_LIMIT_NS = 50_000_000  # that a reliable reader may hold up a writer


class DdsLink:
    """A participant in a ROS domain.

    Where CYCLONEDDS_URI is set, Cyclone's configuration comes from there, else it is CONFIG.

    Raises:
        MissingPackage: cyclonedds is not installed.
        OSError: the domain cannot be joined.
    """

    def __init__(self, domain: int):
        try:
            from cyclonedds.core import DDSException
            from cyclonedds.domain import Domain, DomainParticipant
        except ImportError as error:
            raise MissingPackage(INSTALL) from error
        try:
            # Kept: a domain that is dropped ends with all that is in it.
            self._domain = None if os.environ.get("CYCLONEDDS_URI") else Domain(domain, CONFIG)
            self.participant = DomainParticipant(domain)
        except DDSException as error:
            raise OSError(f"the ROS domain {domain} cannot be joined: {error}") from error

    def subscribe(self, topic: str, kind: MessageType, reliable: bool) -> DdsSubscription:
        return DdsSubscription(self, topic, kind, reliable)

    def advertise(self, topic: str, kind: MessageType, latched: bool = False) -> DdsPublication:
        return DdsPublication(self, topic, kind, latched)


class DdsSubscription:
    """The newest sample of a topic; volatile, keep last 1."""

    def __init__(self, link: DdsLink, topic: str, kind: MessageType, reliable: bool):
        from cyclonedds.core import InstanceState, ReadCondition, SampleState, ViewState, WaitSet
        from cyclonedds.sub import DataReader

        self._link = link
        self._topic, qos = _topic(link, topic, kind, reliable, latched=False)
        self._reader = DataReader(link.participant, self._topic, qos)
        new = ReadCondition(self._reader, ViewState.Any | InstanceState.Alive | SampleState.NotRead)
        self._waitset = WaitSet(link.participant)
        self._waitset.attach(new)
        self._new = new

    def take(self, timeout_s: float) -> bytes | None:
        """See `Subscription`."""
        sample = self._newest()
        if sample is None and self._waitset.wait(int(timeout_s * 1e9)):
            sample = self._newest()
        return sample

    def _newest(self) -> bytes | None:
        newest = None
        while samples := self._reader.take(N=8):
            # Those without a message tell that a publisher left.
            valid = [each.message for each in samples if hasattr(each, "message")]
            newest = valid[-1] if valid else newest
        return newest

    def publishers(self) -> int:
        """See `Subscription`."""
        return len(self._reader.get_matched_publications())

    def close(self) -> None:
        self._waitset.detach(self._new)
        del self._waitset, self._new, self._reader, self._topic


class DdsPublication:
    """A writer, reliable, so that readers of both kinds match; keep last 1."""

    def __init__(self, link: DdsLink, topic: str, kind: MessageType, latched: bool):
        from cyclonedds.pub import DataWriter

        self._link = link
        self._topic, qos = _topic(link, topic, kind, True, latched)
        self._writer = DataWriter(link.participant, self._topic, qos)

    def send(self, message: bytes) -> None:
        """Raises OSError if it cannot be written, such as where a reliable reader is stuck."""
        from cyclonedds.core import DDSException

        try:
            self._writer.write(self._topic.data_type(message))
        except DDSException as error:
            raise OSError(f"DDS did not take the message: {error}") from error

    def close(self) -> None:
        del self._writer, self._topic


def _topic(
    link: DdsLink, name: str, kind: MessageType, reliable: bool, latched: bool
) -> tuple[Any, Any]:
    """Topic and QoS of its reader or writer."""
    from cyclonedds.qos import Policy, Qos
    from cyclonedds.topic import Topic

    qos = Qos(
        Policy.Reliability.Reliable(WRITE_LIMIT_NS) if reliable else Policy.Reliability.BestEffort,
        Policy.Durability.TransientLocal if latched else Policy.Durability.Volatile,
        Policy.History.KeepLast(DEPTH),
        Policy.DataRepresentation(use_cdrv0_representation=True),
        # As rmw does since Iron, for `ros2 topic info --verbose`.
        Policy.Userdata(f"typehash={kind.digest};".encode()),
    )
    return Topic(link.participant, f"rt{name}", _data_type(kind)), qos


@cache
def _data_type(kind: MessageType) -> Any:
    """Cyclone's class of a message, made of its definition. Its samples are CDR already: Cyclone's
    own way takes a sequence of bytes through a list of numbers, tens of milliseconds a picture."""
    made = _make(kind.name, kind.definition, kind, {})
    made.__init__ = _hold_message
    made.serialize = lambda sample, *_, **__: sample.message
    made.deserialize = classmethod(lambda cls, message, *_, **__: cls(message))
    made.deserialize_key = classmethod(lambda cls, *_, **__: None)
    return made


def _hold_message(sample: Any, message: bytes) -> None:
    sample.message = message


def _make(name: str, definition: str, kind: MessageType, made: dict[str, object]) -> Any:
    from cyclonedds.idl import make_idl_struct

    if name not in made:
        package, _, short = name.split("/")
        fields = {
            field: _field(written, kind, made)
            for written, field in re.findall(r"^(\S+) (\w+)$", definition, flags=re.MULTILINE)
        }
        made[name] = make_idl_struct(f"{short}_", f"{package}::msg::dds_::{short}_", fields)
    return made[name]


def _field(written: str, kind: MessageType, made: dict[str, object]) -> object:
    """Cyclone's type of a field of a .msg file."""
    import cyclonedds.idl.types

    types: Any = cyclonedds.idl.types
    if written.endswith("[]"):
        return types.sequence[_field(written[:-2], kind, made)]
    if written == "string":
        return str
    if "/" not in written:
        return getattr(types, written)  # uint8, int32, byte, ...
    name = written.replace("/", "/msg/")
    return _make(name, kind.uses[name], kind, made)
