"""ROS 2 over Zenoh in rmw_zenoh's format: key expressions, attachments, liveliness tokens.

Written after rmw_zenoh's `docs/design.md`, `liveliness_utils.cpp` and `attachment_helpers.cpp`
(github.com/ros2/rmw_zenoh).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
import time
from itertools import count
from typing import Any
from weakref import finalize

from ...errors import MissingPackage, UsageError
from .ros_messages import MessageType

ROUTER = "tcp/localhost:7447"  # where `ros2 run rmw_zenoh_cpp rmw_zenohd` listens
INSTALL = 'ROS 2 topics need eclipse-zenoh: pip install "rtseg[ros2]"'
NODE = "rtseg"
# Differences from rmw_zenoh's default QoS, which is reliable, volatile, keep last 42:
# reliability:durability:history,depth:deadline:lifespan:liveliness.
QOS = {"newest": "2::,1:,:,:,,", "labels": "::,1:,:,:,,", "latched": ":1:,1:,:,:,,"}
LABELED_DISTROS = ("humble", "jazzy")  # whose rmw_zenoh names the fields of attachments
LABELS = (b"\x0fsequence_number", b"\x10source_timestamp", b"\x0asource_gid")
HEARTBEAT_S = 0.5


def encode_attachment(number: int, at_ns: int, gid: bytes, labeled: bool) -> bytes:
    """The attachment that rmw_zenoh expects with each message, in Zenoh's own serialization.

    Args:
        number: of the message, from 1.
        at_ns: when it was sent, since 1970.
        gid: 16 bytes that only this publisher has.
        labeled: with the fields' names, as up to Jazzy.
    """
    values = struct.pack("<q", number), struct.pack("<q", at_ns), bytes([len(gid)]) + gid
    if not labeled:
        return b"".join(values)
    return b"".join(part for pair in zip(LABELS, values, strict=True) for part in pair)


class ZenohLink:
    """A session and a node in it.

    The configuration is rmw_zenoh's: a peer that connects to the router on this machine, no
    multicast; ZENOH_SESSION_CONFIG_URI and ZENOH_CONFIG_OVERRIDE count here too.

    Args:
        domain: as ROS_DOMAIN_ID.
        connect: the router's endpoint in place of ROUTER.
        attachment: "plain" or "labeled"; "" takes what ROS_DISTRO wants, else what messages that
            come in have, else plain.

    Raises:
        MissingPackage: eclipse-zenoh is not installed.
        UsageError: the configuration is none.
        OSError: the session cannot be opened.
    """

    def __init__(self, domain: int, connect: str = "", attachment: str = ""):
        try:
            import zenoh
        except ImportError as error:
            raise MissingPackage(INSTALL) from error
        config = _config(connect)
        try:
            self.session = zenoh.open(config)
        except zenoh.ZError as error:
            raise OSError(f"no Zenoh session: {error}") from error
        finalize(self, _close, self.session)
        self.domain = domain
        known = "labeled" if os.environ.get("ROS_DISTRO") in LABELED_DISTROS else ""
        self._wished = attachment or known or ("plain" if os.environ.get("ROS_DISTRO") else "")
        self._seen_labeled = False
        self._ids = count()
        self._zid = str(self.session.info.zid())
        node = next(self._ids)
        self._node = f"@ros2_lv/{domain}/{self._zid}/{node}"
        self._token = self.declare(f"{self._node}/{node}/NN/%/%/{NODE}")

    @property
    def labeled(self) -> bool:
        """Whether attachments have labels."""
        return self._wished == "labeled" or (not self._wished and self._seen_labeled)

    def saw(self, sample: Any) -> None:
        """Learn from a message the kind of attachments that ROS has here."""
        if sample.attachment is not None:
            self._seen_labeled = bytes(sample.attachment).startswith(LABELS[0])

    def key(self, topic: str, kind: MessageType, digest: str | None = None) -> str:
        """The key expression of a topic."""
        return f"{self.domain}/{topic.strip('/')}/{kind.wire_name}/{digest or kind.digest}"

    def token(self, role: str, topic: str, kind: MessageType, qos: str) -> str:
        """The key of a liveliness token. role: "MP" for a publisher, "MS" for a subscription."""
        mangled = topic.replace("/", "%")
        what = f"{mangled}/{kind.wire_name}/{kind.digest}/{QOS[qos]}"
        return f"{self._node}/{next(self._ids)}/{role}/%/%/{NODE}/{what}"

    def declare(self, token: str) -> Any:
        """Make a token visible, as long as what is returned lives."""
        return self.session.liveliness().declare_token(token)

    def subscribe(self, topic: str, kind: MessageType, reliable: bool) -> ZenohSubscription:
        return ZenohSubscription(self, topic, kind, reliable)

    def advertise(self, topic: str, kind: MessageType, latched: bool = False) -> ZenohPublication:
        return ZenohPublication(self, topic, kind, latched)


class Newest:
    """Holds one sample; a newer one takes its place."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._sample: object = None

    def put(self, sample: object) -> None:
        with self._news:
            self._sample = sample
            self._news.notify()

    def take(self, timeout_s: float) -> Any:
        with self._news:
            self._news.wait_for(lambda: self._sample is not None, timeout_s)
            sample, self._sample = self._sample, None
        return sample


class ZenohSubscription:
    """The newest sample of a topic."""

    def __init__(self, link: ZenohLink, topic: str, kind: MessageType, reliable: bool):
        from zenoh.handlers import Callback

        self._link, self._newest = link, Newest()
        # Any hash: Humble's rmw_zenoh has none, and the name of the type says enough.
        key = link.key(topic, kind, "*")
        # An indirect callback has a thread of its own, which the process' end would wait for.
        handler = Callback(self._newest.put, indirect=False), None
        subscriber = link.session.declare_subscriber(key, handler)
        token = link.declare(link.token("MS", topic, kind, "labels" if reliable else "newest"))
        self._end = finalize(self, _undeclare, subscriber, token)
        mangled = topic.replace("/", "%")
        self._others = f"@ros2_lv/{link.domain}/*/*/*/MP/*/*/*/{mangled}/{kind.wire_name}/**"

    def take(self, timeout_s: float) -> bytes | None:
        """See `Subscription`."""
        sample = self._newest.take(timeout_s)
        if sample is None:
            return None
        self._link.saw(sample)
        return bytes(sample.payload)

    def publishers(self) -> int:
        """See `Subscription`."""
        found = self._link.session.liveliness().get(self._others, timeout=0.1)
        return sum(1 for reply in found if reply.ok is not None)

    def close(self) -> None:
        self._end()


class ZenohPublication:
    """A publisher that drops messages where the network is congested."""

    def __init__(self, link: ZenohLink, topic: str, kind: MessageType, latched: bool):
        import zenoh
        from zenoh import ext

        self._link = link
        lasting: dict[str, Any] = {}
        if latched:
            lasting = {
                "cache": ext.CacheConfig(max_samples=1),
                "publisher_detection": True,
                "sample_miss_detection": ext.MissDetectionConfig(
                    heartbeat=None, sporadic_heartbeat=HEARTBEAT_S
                ),
            }
        self._publisher: Any = ext.declare_advanced_publisher(
            link.session,
            link.key(topic, kind),
            congestion_control=zenoh.CongestionControl.DROP,
            reliability=zenoh.Reliability.RELIABLE,
            **lasting,
        )
        token = link.token("MP", topic, kind, "latched" if latched else "labels")
        # rmw_zenoh takes another hash (XXH3), which nobody compares; it only has to be unique.
        self._gid = hashlib.blake2b(token.encode(), digest_size=16).digest()
        self._token = link.declare(token)
        self._numbers = count(1)

    def send(self, message: bytes) -> None:
        """Raises OSError if the session is closed."""
        import zenoh

        number, labeled = next(self._numbers), self._link.labeled
        attachment = encode_attachment(number, time.time_ns(), self._gid, labeled)
        try:
            self._publisher.put(message, attachment=attachment)
        except zenoh.ZError as error:
            raise OSError(f"Zenoh did not take the message: {error}") from error

    def close(self) -> None:
        self._token.undeclare()
        self._publisher.undeclare()


def _undeclare(*declared: Any) -> None:
    for each in declared:
        each.undeclare()


def _close(session: Any) -> None:
    session.close()


def _config(connect: str) -> Any:
    """rmw_zenoh's defaults, or the user's file, with what the environment overrides."""
    import zenoh

    values = {
        "mode": "peer",
        "connect/endpoints": [connect or ROUTER],
        "connect/timeout_ms": -1,  # tries on behind the scenes
        "connect/exit_on_failure": False,
        "listen/endpoints": ["tcp/localhost:0"],
        "scouting/multicast/enabled": False,
        "timestamping/enabled": True,  # without which publishers keep nothing for later readers
    }
    try:
        if uri := os.environ.get("ZENOH_SESSION_CONFIG_URI"):
            config = zenoh.Config.from_file(uri.removeprefix("file://"))
            values = {"connect/endpoints": [connect]} if connect else {}
        else:
            config = zenoh.Config()
        for key, value in values.items():
            config.insert_json5(key, json.dumps(value))
        for pair in filter(None, os.environ.get("ZENOH_CONFIG_OVERRIDE", "").split(";")):
            key, _, value = pair.partition("=")
            config.insert_json5(key.strip(), value.strip())
    except (zenoh.ZError, OSError) as error:
        raise UsageError(f"the Zenoh configuration cannot be used: {error}") from error
    return config
