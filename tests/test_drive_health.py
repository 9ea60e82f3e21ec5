"""Health of a drive for whoever asks: a port, a file, systemd; before there is a drive, too."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from rtseg.cli._console import _JsonLines
from rtseg.data.frames import Frame
from rtseg.data.scenes import scene
from rtseg.errors import UsageError
from rtseg.runtime import Drive, State
from rtseg.runtime.drive.health_server import HealthPoint, Systemd, serve_health
from rtseg.runtime.drive.messages import Health
from rtseg.runtime.drive.page_server import MOST_CONNECTIONS
from rtseg.runtime.drive.report import DriveSnapshot

LIMIT_S = 300.0  # reached by nothing but a defect, however busy the machine is


def frames(count: int) -> Iterator[Frame]:
    for index in range(count):
        yield Frame(np.zeros((4, 6, 3), np.uint8), index, time.monotonic_ns(), f"f{index}")


def ask(port: int, path: str, host: str = "") -> tuple[int, str]:
    """Status and body."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_health_on_a_port() -> None:
    now = DriveSnapshot(state="running")
    with closing(serve_health(lambda: now, 0)) as server:
        status, body = ask(server.port, "/health")
        assert (status, json.loads(body)) == (200, json.loads(json.dumps(now.to_dict())))
        assert ask(server.port, "/ready") == (200, "running")
        assert ask(server.port, "/live") == (200, "live")
        now = DriveSnapshot(state="stale")
        assert ask(server.port, "/health")[0] == 503
        assert ask(server.port, "/ready") == (503, "stale")
        assert ask(server.port, "/live") == (200, "live")  # a restart would not bring frames
        now = DriveSnapshot(state="failed", reasons=["the loop has not turned for 9 s"])
        assert ask(server.port, "/live") == (503, "stalled")
        assert ask(server.port, "/") == (404, "here are /health, /ready, /live\n")
        assert ask(server.port, "/health", "localhost")[0] == 503
        refused = ask(server.port, "/health", "evil.example")  # through a browser's DNS
        assert refused == (403, "only this machine may ask\n")
        with pytest.raises(OSError, match=f"port {server.port} of 127.0.0.1"):
            serve_health(lambda: now, server.port)
    with pytest.raises(UsageError, match="a port is 0 to 65535, not 70000"):
        serve_health(lambda: now, 70000)


def raw(address: object, lines: str) -> str:
    """The answer to a request as it is written."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as line:
        line.settimeout(LIMIT_S)
        line.connect(address)  # type: ignore[arg-type]
        line.sendall(f"GET {lines}\n\n".replace("\n", "\r\n").encode())
        return b"".join(iter(lambda: line.recv(4096), b"")).decode()


def test_other_machines_need_a_token() -> None:
    now = DriveSnapshot(state="running")
    with pytest.raises(UsageError, match=r"connect to 0\.0\.0\.0, so .* need a token there"):
        serve_health(lambda: now, 0, "0.0.0.0")
    with pytest.raises(UsageError, match="8 or more printable"):
        serve_health(lambda: now, 0, "0.0.0.0", "short")
    with closing(serve_health(lambda: now, 0, "0.0.0.0", "a long secret")) as server:
        at = "127.0.0.1", server.port
        of_others = "HTTP/1.0\nHost: vehicle.lan"  # no name of this machine is asked for
        for path in ("/live", "/ready"):  # which say one word
            assert " 200 " in raw(at, f"{path} {of_others}").splitlines()[0]
        for bearer in (
            "",
            "\nAuthorization: Bearer a long secre",
            "\nAuthorization: a long secret",
        ):
            refused = raw(at, f"/health {of_others}{bearer}")
            assert " 401 " in refused.splitlines()[0]
            assert "\nWWW-Authenticate: Bearer" in refused
            assert "running" not in refused
        told = raw(at, f"/health {of_others}\nAuthorization: bearer a long secret")
        assert json.loads(told.split("\r\n\r\n")[1])["state"] == "running"


def test_health_on_a_unix_socket(tmp_path: Path) -> None:
    path, now = tmp_path / "health.sock", DriveSnapshot(state="running")
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(path))  # and nobody listens: a process that was killed
    with HealthPoint(f"unix:{path}", "0.0.0.0") as point:  # the host is of ports alone
        assert raw(str(path), "/ready HTTP/1.0").endswith("starting")
        assert path.stat().st_mode & 0o777 == 0o660
        with pytest.raises(OSError, match=f"in use: {path}"):
            serve_health(lambda: now, f"unix:{path}")
        point.snapshot = lambda: now
        assert raw(str(path), "/ready HTTP/1.0").endswith("running")
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(OSError, match="in use"):
        serve_health(lambda: now, f"unix:{path}")
    assert path.read_text() == "mine"
    for bad in ("unix:", "80a"):
        with pytest.raises(UsageError, match="a port or unix:PATH"):
            serve_health(lambda: now, bad)


def test_idle_connections_keep_nobody_out() -> None:
    with ExitStack() as opened:
        server = opened.enter_context(closing(serve_health(DriveSnapshot, 0)))
        threads = threading.active_count()
        address = ("127.0.0.1", server.port)
        for _ in range(100):
            opened.enter_context(closing(socket.create_connection(address, LIMIT_S)))
        assert ask(server.port, "/live") == (200, "live")
        assert threading.active_count() - threads <= 2 * MOST_CONNECTIONS


def test_health_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "health.json"
    Drive(frames(20), lambda image: image[..., 0].copy(), every_frame=True, health=path).run()
    facts = json.loads(path.read_text())
    assert (facts["state"], facts["ended"]) == ("ended", "source ended")
    assert facts["reasons"] == ["source ended"]
    assert facts["frames"]["captured"] == 20


def test_systemd_hears_when_it_is_ready_and_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(LIMIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        monkeypatch.setenv("WATCHDOG_USEC", "3000000")
        systemd = Systemd()
        second = 10**9
        systemd.tell(10 * second, Health(State.starting, ("no frame",)))
        assert manager.recv(999).decode() == "STATUS=starting; no frame\nWATCHDOG=1"
        systemd.tell(10 * second + 1, Health(State.failed, ("no inference",)))
        assert manager.recv(999).decode() == "STATUS=failed; no inference"  # and not ready
        systemd.tell(10 * second + 2, Health(State.running))
        assert manager.recv(999).decode() == "READY=1\nSTATUS=running"
        systemd.tell(10 * second + second // 2, Health(State.running))  # nothing new, none due
        systemd.tell(11 * second, Health(State.running))
        assert manager.recv(999).decode() == "WATCHDOG=1"
        systemd.stopping()
        assert manager.recv(999).decode() == "STOPPING=1"


def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Systemd().tell(1, Health(State.running))


def test_a_port_answers_before_there_is_a_drive_and_then_for_it() -> None:
    with HealthPoint(0) as point:
        port = point.port
        assert port is not None
        point.tell("exporting nano: proof of onnx, frame 2 of 24")
        status, body = ask(port, "/health")
        facts = json.loads(body)
        assert (status, facts["state"]) == (503, "starting")
        assert facts["reasons"] == ["exporting nano: proof of onnx, frame 2 of 24"]
        assert ask(port, "/ready") == (503, "starting")
        assert ask(port, "/live") == (200, "live")
        asked: list[int] = []

        def segment(image: np.ndarray[object, np.dtype[np.uint8]]) -> np.ndarray[object, object]:
            if image[0, 0, 0] == 2:  # a mask came already
                asked.append(ask(port, "/ready")[0])
            return image[..., 0].copy()

        def source() -> Iterator[Frame]:
            for index, frame in enumerate(frames(3)):
                frame.image[:] = index
                yield frame

        Drive(source(), segment, every_frame=True, health=point).run()
        assert asked == [200]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/live", timeout=LIMIT_S)


def test_a_start_that_fails_is_told_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    point = HealthPoint(path)
    assert json.loads(path.read_text())["state"] == "starting"
    point.__exit__(UsageError, UsageError("no model is called so"), None)
    facts = json.loads(path.read_text())
    assert (facts["state"], facts["reasons"]) == ("failed", ["no model is called so"])
    assert facts["ended"] == "no model is called so"


def test_the_command_says_starting_while_it_exports(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "one.png"), scene((64, 128)))
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "rtseg", "drive", tmp_path, "--model", "csfcn_nano:camvid",
        "--rate", "0", "--health", port,
    ]  # fmt: skip
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},  # so that it has to export
    )  # fmt: skip
    told: set[tuple[str, str]] = set()
    try:
        while process.poll() is None:
            try:
                facts = json.loads(ask(port, "/health")[1])
                alive = ask(port, "/live")[0]
            except OSError:  # not open yet, or closed at the end
                time.sleep(0.02)
                continue
            told.update((facts["state"], reason.split(":")[0]) for reason in facts["reasons"])
            assert alive == 200
    finally:
        process.kill()
    assert process.returncode == 0, process.communicate()[1]
    assert ("starting", "exporting csfcn_nano_360x480_fp32") in told, told


def test_log_lines_carry_state_cause_frame_and_source() -> None:
    class Street:
        where = "rtsp://me:secret@camera/1"

        def __iter__(self) -> Iterator[Frame]:
            for index, frame in enumerate(frames(8)):
                frame.image[:] = index
                yield frame

    def breaks(image: np.ndarray[object, np.dtype[np.uint8]]) -> np.ndarray[object, object]:
        if image[0, 0, 0] >= 3:
            raise RuntimeError("out of memory")
        return image[..., 0].copy()

    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(_JsonLines())
    logger = logging.getLogger("rtseg")
    level = logger.level
    logger.setLevel("INFO")
    logger.addHandler(handler)
    try:
        Drive(Street(), breaks, fallback=lambda image: image[..., 0], every_frame=True).run()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert "secret" not in text.getvalue()
    lines = [json.loads(line) for line in text.getvalue().splitlines()]
    failed, *_ = [line for line in lines if "failed (backend)" in line["message"]]
    told = {key: failed[key] for key in ("level", "engine", "cause", "frame")}
    assert told == {"level": "warning", "engine": "primary", "cause": "backend", "frame": 3}
    taken, *_ = [line for line in lines if "in place of the primary" in line["message"]]
    assert (taken["engine"], taken["cause"], taken["frame"] >= 3) == ("standby", "backend", True)
    states = [line for line in lines if "state" in line]
    assert {"running", "degraded"} <= {line["state"] for line in states}
    assert {line["source"] for line in states} == {"rtsp://camera/1"}
    degraded = next(line for line in states if line["state"] == "degraded")
    assert (degraded["cause"], degraded["frame"] >= 3) == ("backend", True)
