"""Addresses of ROS 2 topics and the links to them: `ros2:` over DDS, `zenoh:`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl
from weakref import WeakValueDictionary

from ...errors import UsageError
from .ros_messages import MessageType

TRANSPORTS = ("ros2", "zenoh")
TOPIC = re.compile(r"(/[A-Za-z_][A-Za-z0-9_]*)+")
OPTIONS: Mapping[str, tuple[str, ...]] = {  # and the values that they may have, if these are few
    "domain": (),
    "stamp": ("header", "arrival"),
    "reliability": ("best_effort", "reliable"),
    "type": ("raw", "compressed"),
    "connect": (),
    "attachment": ("plain", "labeled"),
}
LARGEST_DOMAIN = 232  # of DDS: higher ones have no ports


@dataclass(frozen=True)
class RosAddress:
    """A topic or a prefix of topics, and how it is reached.

    Attributes:
        transport: one of TRANSPORTS.
        topic: absolute, "/camera/image_raw".
        domain: as ROS_DOMAIN_ID.
        options: what followed the question mark, of OPTIONS.
    """

    transport: str
    topic: str
    domain: int = 0
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.transport}:{self.topic}"


class Subscription(Protocol):
    """Holds on to the newest message of a topic."""

    def take(self, timeout_s: float) -> bytes | memoryview | None:
        """The newest message, once it is there; None after `timeout_s`."""
        ...

    def publishers(self) -> int:
        """How many are known that publish to the topic."""
        ...

    def close(self) -> None: ...


class Publication(Protocol):
    """Sends messages to a topic."""

    def send(self, message: bytes) -> None: ...

    def close(self) -> None: ...


class Link(Protocol):
    """A participant of DDS or a session of Zenoh; it ends with its last user."""

    def subscribe(self, topic: str, kind: MessageType, reliable: bool) -> Subscription: ...

    def advertise(self, topic: str, kind: MessageType, latched: bool = False) -> Publication:
        """latched: late subscribers get the last message too (transient local)."""
        ...


def is_ros_address(where: str) -> bool:
    """Whether `where` begins as a ROS 2 topic's address does."""
    return where.split(":", 1)[0] in TRANSPORTS and ":" in where


def parse_address(where: str) -> RosAddress:
    """The address in "ros2:/camera/image_raw?domain=3" or "zenoh:/camera/image_raw".

    Raises:
        UsageError: it is not a topic's name, or has an unknown option.
    """
    transport, _, rest = where.partition(":")
    name, _, query = rest.partition("?")
    topic = "/" + name.strip("/")
    if transport not in TRANSPORTS or not TOPIC.fullmatch(topic):
        raise UsageError(
            f"{where!r} is no ROS 2 topic: write ros2:/camera/image_raw or zenoh:/camera/image_raw"
        )
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key, value in options.items():
        if key not in OPTIONS:
            raise UsageError(f"{where!r} has the option {key!r}: there are {', '.join(OPTIONS)}")
        if OPTIONS[key] and value not in OPTIONS[key]:
            raise UsageError(f"{where!r}: {key} is one of {', '.join(OPTIONS[key])}")
    if transport != "zenoh" and not options.keys().isdisjoint(("connect", "attachment")):
        raise UsageError(f"{where!r}: connect and attachment go with zenoh: only")
    domain = options.get("domain", os.environ.get("ROS_DOMAIN_ID") or "0")
    if not domain.isdecimal() or int(domain) > LARGEST_DOMAIN:
        raise UsageError(f"a ROS domain is a number from 0 to {LARGEST_DOMAIN}, not {domain!r}")
    return RosAddress(transport, topic, int(domain), options)


def open_link(address: RosAddress) -> Link:
    """The link of an address; all with the same domain and options share one.

    Raises:
        MissingPackage: cyclonedds or eclipse-zenoh is not installed.
        OSError: the domain or the router cannot be reached.
    """
    connect, attachment = (address.options.get(key, "") for key in ("connect", "attachment"))
    key = (address.transport, address.domain, connect, attachment)
    link = _LINKS.get(key)
    if link is None:
        if address.transport == "ros2":
            from .dds import DdsLink

            link = DdsLink(address.domain)
        else:
            from .zenoh_link import ZenohLink

            link = ZenohLink(address.domain, connect, attachment)
        _LINKS[key] = link
    return link


_LINKS: WeakValueDictionary[tuple[str, int, str, str], Link] = WeakValueDictionary()
