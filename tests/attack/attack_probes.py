"""What a case calls instead of a command: a parser alone, or a server under hostile requests.

An assertion that fails here is a wrong case.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def show(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts))


def _only(folder: Path) -> Path:
    (path,) = (folder / "in").iterdir()
    return path


def read_pictures(folder: Path) -> None:
    from rtseg.data.images import read_gray, read_image, read_png

    path = _only(folder)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    read_png(path)
    assert read_gray(path).shape == image.shape[:2]


def read_recording(folder: Path) -> None:
    from rtseg.data.frames import Frame, Unreadable
    from rtseg.data.playback import open_recording

    frames, told = 0, []
    for item in open_recording(str(_only(folder))):
        if isinstance(item, Unreadable):
            told.append(item.reason)
        else:
            assert isinstance(item, Frame)
            assert item.image.dtype == np.uint8
            assert item.image.ndim == 3
            frames += 1
    show(frames=frames, skipped=told)


def serve(folder: Path) -> None:
    """An artifact through all that reads it. If it is served, it says what the sound one says."""
    import cv2
    from rtseg.data.classes import CAMVID
    from rtseg.runtime import load
    from rtseg.runtime.description import describe
    from rtseg.runtime.preflight import check

    known = np.load(folder / "known.npy")
    files = sorted((folder / "in").iterdir(), key=lambda path: path.suffix in (".json", ".bin"))
    frame = cv2.imread(str(folder / "frame.png"))
    assert frame is not None
    describe(files[0])
    verdict = check(files[0])
    with load(files[0]) as segmenter:
        assert verdict.ok, f"served, and check says: {verdict.reason}"
        assert segmenter.card.classes == CAMVID.names
        assert (segmenter(frame) == known).all(), "other labels"


def check_engine(folder: Path) -> None:
    from rtseg.runtime.artifact import read_card
    from rtseg.runtime.preflight import check
    from test_preflight import FACTS, MACHINE, card_of, plan_of

    path = folder / "in" / "net.engine"
    verdict = check(path, MACHINE)
    if verdict.ok:
        assert path.read_bytes() == plan_of(FACTS)
        assert read_card(path).classes == card_of().classes
        return
    assert "\n" not in verdict.reason
    from rtseg.errors import ArtifactError

    raise ArtifactError(verdict.reason)


def load_weights(folder: Path) -> None:
    import torch
    from rtseg.models import build, load_checkpoint

    network = build("csfcn_nano", 11)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        load_checkpoint(network, _only(folder))
    except Exception:
        now = network.state_dict()
        assert all(torch.equal(now[name], value) for name, value in before.items()), "half loaded"
        raise
    assert any(not torch.equal(network.state_dict()[n], value) for n, value in before.items())


def read_classes(folder: Path) -> None:
    from rtseg.data.classes import load_class_set

    classes = load_class_set(_only(folder))
    assert 2 <= len(classes) <= 255
    assert all(0 <= value <= 255 for color in classes.palette for value in color)


def read_class_map(folder: Path) -> None:
    from rtseg.data.classes import CAMVID
    from rtseg.data.soft_labels import load_class_map

    assert all(0 <= each < 11 or each == 255 for each in load_class_map(_only(folder), CAMVID))


def read_fault_plan(folder: Path) -> None:
    from rtseg.runtime.drive.faults import KINDS, read_plan

    for fault in read_plan(_only(folder)):
        assert fault.fault in KINDS
        assert 0 <= fault.at < 1e10
        assert 0 <= fault.seconds < 1e10


def read_recipe(folder: Path) -> None:
    from rtseg.train.recipe import load_recipe

    recipe = load_recipe(_only(folder))
    assert 0 < recipe.optimizer.learning_rate < 1e6


def read_soft_labels(folder: Path) -> None:
    from rtseg.data.classes import CAMVID
    from rtseg.data.soft_labels import SoftLabels

    labels = SoftLabels(folder / "in", CAMVID)["a"]
    assert labels.ndim == 3
    assert len(labels) == 11


def read_report(folder: Path) -> None:
    """Of an older export into the same folder, to which another one adds its own."""
    from rtseg.export.artifacts import write_report

    (folder / "report.json").write_bytes(_only(folder).read_bytes())
    write_report(folder, [])
    assert isinstance(json.loads((folder / "report.json").read_text()), dict)
    (folder / "report.json").unlink()


def read_log(folder: Path) -> None:
    """Of a log that a fleet labeled."""
    from rtseg.fleet.logs import REPORT, DriveLog

    (folder / "out" / "a").mkdir(parents=True)
    (folder / "out" / "a" / REPORT).write_bytes(_only(folder).read_bytes())
    assert not DriveLog("a", "a").is_done(folder / "out", {})
    (folder / "out" / "a" / REPORT).unlink()


def read_sealed_record(folder: Path) -> None:
    """Of a proof, a known frame or a self-test."""
    from rtseg.runtime.records import read_record

    assert read_record(_only(folder)) is None


def _result() -> Any:
    from rtseg.runtime.drive.messages import Result

    labels = (np.arange(24, dtype=np.uint8) % 11).reshape(4, 6)
    image = np.zeros((4, 6, 3), np.uint8)
    return Result(7, 7, "a", 1, 2, labels, image, "large", {}, 10.0, 1 << 60, 1 << 61)


RESULT = _result()


def read_ring(folder: Path) -> None:
    """A reader gives the sound mask, or nothing; it neither waits nor believes what is damaged."""
    from rtseg.runtime.sinks.shared_memory import RingReader

    reader = RingReader(_only(folder))
    for after in (0, 1 << 62):
        entry = reader.latest(after)
        if entry is not None and entry.kind is None:
            assert (entry.labels == RESULT.labels).all()
            assert entry.frame_id == RESULT.frame_id
    reader.close()


def _ask(port: int, request: bytes) -> bytes:
    import contextlib
    import socket

    answer = b""
    with socket.create_connection(("127.0.0.1", port), 5) as line:
        line.settimeout(3)
        with contextlib.suppress(OSError):  # a server may close before all was sent
            line.sendall(request)
            while len(answer) < 1 << 20 and (more := line.recv(1 << 16)):
                answer += more
    return answer


def _hold_out(port: int, request: bytes, sound: bytes) -> None:
    """Ask, then ask soundly: the second is answered whatever the first was."""
    answer = _ask(port, request)
    assert b"root:" not in answer
    assert b"Traceback" not in answer
    if b"evil.example" in request.split(b"Host:")[-1]:
        assert answer.split(b"\r\n")[0].split(b" ")[1:2] != [b"200"], "another host was answered"
    assert b" 200 " in _ask(port, sound).split(b"\r\n")[0], "a sound request was not answered"


def ask_health(folder: Path) -> None:
    from rtseg.runtime.drive.page_server import PageServer

    server = PageServer({"/health": lambda: (200, "text/plain", b"well")}, 0)
    sound = b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n"
    try:
        _hold_out(server.port, _only(folder).read_bytes(), sound)
    finally:
        server.close()


def ask_page(folder: Path) -> None:
    from rtseg.data.classes import CAMVID
    from rtseg.demo.live import LivePage
    from rtseg.demo.web import Server

    page = LivePage(CAMVID, "none")
    request = _only(folder).read_bytes().replace(b"/health", b"/status")
    with Server(page, port=0) as server:
        sound = b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        _hold_out(server.port, request, sound)


def label_fleet(folder: Path) -> None:
    """A fleet in this process, as Ray would run it: the sound log is done whatever the other is."""
    import contextlib
    import logging
    from collections.abc import Iterator

    from rtseg.cli._console import JobFailed
    from rtseg.fleet import fleet as module
    from rtseg.fleet.logs import REPORT
    from rtseg.fleet.workers import Labeler, read_log

    logging.getLogger("rtseg").addHandler(logging.NullHandler())  # the command's are JSON

    @contextlib.contextmanager
    def no_ray(options: object) -> Iterator[int]:
        yield 1

    def label(logs: Any, opener: Any, out: Path, options: Any, workers: int) -> Iterator[Any]:
        labeler = Labeler(opener, str(out), options.form)
        for log in logs:
            for row in read_log({"log": log.name, "input": log.input}):
                yield labeler.answer(row)

    module.start_ray, module._label_logs = no_ray, label  # type: ignore[assignment]
    given, out = folder / "in", folder / "out"
    if (before := given / "before.json").exists():
        (out / "sound").mkdir(parents=True)
        (out / "sound" / REPORT).write_bytes(before.read_bytes())
    inputs = [f"@{given / 'list.txt'}"] if (given / "list.txt").exists() else []
    summary = module.fleet([*inputs, str(given / "logs" / "*")], given / "net.onnx", out)
    assert summary.logs["sound"]["frames"] == 1, "the sound log was not done"
    for name, facts in summary.logs.items():
        written = json.loads((out / name / REPORT).read_text())
        assert written["frames"] == facts["frames"] == len(list((out / name / "labels").iterdir()))
    missing = {"bad.mp4": 12, "bad.mcap": 12}
    for name, facts in summary.logs.items():
        wanted = missing.get(Path(str(facts["input"])).name, 1)
        assert facts["frames"] >= wanted - 1 or facts["skipped"], f"{name} lacks frames untold"
    if summary.failed:
        assert not any("\n" in why for why in summary.failed.values())
        raise JobFailed(f"{len(summary.failed)} logs failed: {'; '.join(summary.failed.values())}")


def run_on_small_disk(folder: Path) -> None:
    """A command that writes to a file system of a few kilobytes, which ends with this process."""
    import ctypes

    from attack_run import is_whole
    from rtseg.cli import app

    facts, out = json.loads((folder / "in" / "job.json").read_text()), folder / "out"
    libc = ctypes.CDLL(None, use_errno=True)
    out.mkdir()
    private, own_mounts = 1 << 18 | 1 << 14, 0x20000
    options = f"size={facts['kilobytes']}k".encode()
    done = libc.unshare(own_mounts) or libc.mount(None, b"/", None, private, None)
    done = done or libc.mount(b"tmpfs", str(out).encode(), b"tmpfs", 0, options)
    assert not done, f"the file system could not be mounted: {ctypes.get_errno()}"
    sys.argv = ["rtseg", *facts["argv"]]
    try:
        app.main()
    finally:
        for path in out.rglob("*"):
            if path.is_file() and path.suffix != ".partial":
                assert not path.name.startswith("."), f"left: {path.name}"
                assert is_whole(path), f"not whole: {path.name}"


FEW, IDLE = 160, 200  # descriptors that a process may have; connections that say nothing
IDLER = """
import socket, sys, time
lines = []
for _ in range(int(sys.argv[2])):
    line = socket.socket()
    line.settimeout(0.2)
    try:
        line.connect(("127.0.0.1", int(sys.argv[1])))
    except OSError:
        continue
    lines.append(line)
print(len(lines), flush=True)
time.sleep(60)
"""


def drive_under_idle_connections(folder: Path) -> None:
    """Connections without a token neither stop the loop nor lock anybody out."""
    import resource
    import subprocess
    import threading
    import time

    from rtseg.data.classes import CAMVID
    from rtseg.data.playback import open_drive_source
    from rtseg.demo.live import LivePage
    from rtseg.demo.web import Server
    from rtseg.runtime import Drive, Result

    page, published = LivePage(CAMVID, "none"), []

    def count(message: object) -> None:
        if isinstance(message, Result):
            published.append(message.frame_id)

    # Each frame opens a file, so that it needs a descriptor.
    source = open_drive_source(str(folder / "in"), 20.0, loops=True)
    health = folder / "health.json"
    drive = Drive(source, lambda frame: frame[:, :, 0] // 30, [count, page], health=health)
    under: list[int] = []
    with Server(page, "0.0.0.0", 0, "a token of many letters") as server:
        words = [sys.executable, "-c", IDLER, str(server.port), str(IDLE)]
        attacker = subprocess.Popen(words, stdout=subprocess.PIPE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, FEW))

        def watch() -> None:
            assert attacker.stdout is not None
            attacker.stdout.readline()
            before = len(published)
            time.sleep(3)
            under.append(len(published) - before)
            request = (
                b"GET /status HTTP/1.0\r\nHost: x\r\n"
                b"Authorization: Bearer a token of many letters\r\n\r\n"
            )
            under.append(int(b" 200 " in _ask(server.port, request).split(b"\r\n")[0]))
            drive.stop()

        threading.Thread(target=watch, daemon=True).start()
        drive.run(60)
        attacker.kill()
        attacker.wait()
    (folder / "health.json").unlink()
    assert under[0] > 20, f"{under[0]} masks in 3 s under attack"
    assert under[1], "a viewer with the token was locked out"
