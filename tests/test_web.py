"""The live page: its server, its guard, and the page itself in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ROOT
from rtseg.data.classes import CAMVID
from rtseg.data.scenes import scenes
from rtseg.demo.live import LivePage, histogram
from rtseg.export import export
from rtseg.models.loading import Model
from rtseg.runtime import Result, Status, StatusKind
from rtseg.runtime.drive.report import DriveSnapshot
from rtseg.runtime.drive.stats import FrameCounts
from rtseg.runtime.sinks import SinkQueue

pytest.importorskip("starlette", reason='needs Starlette: pip install "rtseg[web]"')
pytest.importorskip("uvicorn", reason='needs uvicorn: pip install "rtseg[web]"')
from rtseg.demo.web import WAIT_S, Server

SIZE = (90, 160)
DEADLINE_MS = 40.0
WAIT_MS = 60_000
ARTIFACTS = ROOT / "build" / "artifacts"


def result(number: int, size: tuple[int, int] = SIZE, age_ms: float = 20.0) -> Result:
    """A drawn scene and stripes of labels that wander with the frame's number."""
    now = time.monotonic_ns()
    columns = (np.arange(size[1]) // 8 + number) % len(CAMVID)
    return Result(
        frame_id=number,
        index=number,
        name=str(number),
        captured_ns=now - int(age_ms * 1e6),
        captured_wall_ns=time.time_ns(),
        labels=np.broadcast_to(columns, size).astype(np.uint8),
        image=scenes(1, size, seed=number % 5)[0],
        level="nano_90x160",
        stages_ms={"waiting": 1.0, "inference": age_ms - 1, "publishing": 0.0},
        age_ms=age_ms,
        published_ns=now,
        expires_ns=now + 10**12,  # never, however busy the machine is
    )


def fed() -> LivePage:
    return LivePage(CAMVID, "csfcn_nano", DEADLINE_MS)


def get(url: str, path: str = "", **headers: str) -> tuple[int, bytes, Any]:
    request = urllib.request.Request(url.split("?")[0] + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_a_frame_comes_as_it_was_published() -> None:
    page = fed()
    page(result(7))
    with Server(page, port=0) as server:
        status, body, headers = get(server.url, "frame?after=-1")
        facts = json.loads(headers["X-Frame"])
        again = get(server.url, "frame?after=7")[0]
    assert (status, again) == (200, 204)
    assert (facts["frame_id"], facts["age_ms"], facts["level"]) == (7, 20.0, "nano_90x160")
    parts = body[: facts["jpeg_bytes"]], body[facts["jpeg_bytes"] :]
    jpeg, png = (
        cv2.imdecode(np.frombuffer(part, np.uint8), cv2.IMREAD_UNCHANGED) for part in parts
    )
    np.testing.assert_array_equal(png, result(7).labels)
    assert jpeg.shape == (*SIZE, 3)
    assert np.abs(jpeg.astype(int) - result(7).image).mean() < 10


def test_old_masks_are_not_shown() -> None:
    """Nor their rate: ten seconds after a cut, `/frame` still gave the last one."""
    page, then = fed(), time.monotonic_ns() - 10 * 10**9
    for number in range(20):
        published = then + number * 10**7
        page(replace(result(number), published_ns=published, expires_ns=published + 5 * 10**8))
    assert page.newer_than(-1, 0) is None
    assert page.status()["rate_hz"] == 0
    page(result(20))
    assert page.newer_than(-1, 0) is not None


def test_large_frames_are_sent_smaller() -> None:
    page = fed()
    page(result(0, (1024, 2048)))
    picture = page.newer_than(-1, 0)
    assert picture is not None
    png = picture.body[picture.facts["jpeg_bytes"] :]
    labels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (640, 1280)
    assert page.newer_than(-1, 0) is picture  # encoded once for all viewers


def test_the_numbers_are_those_of_the_results() -> None:
    page = fed()
    for number in range(10):
        page(result(number, age_ms=90.0 if number < 3 else 20.0))
    page(Status(StatusKind.LATE, "late", "no mask within 500 ms", 0, 0))
    facts = page.status()
    assert (facts["published"], facts["deadline_misses"], facts["level"]) == (10, 3, "nano_90x160")
    assert facts["last_status"] == "LATE (late): no mask within 500 ms"
    assert sum(facts["latency"]["counts"]) == 10
    assert facts["latency"]["counts"][-1] == 3  # beyond twice the deadline
    assert histogram([], None)["p99_ms"] == 0


def test_a_drive_s_own_view_comes_first() -> None:
    page = fed()
    page.watch = lambda: DriveSnapshot(
        state="degraded",
        reasons=["backend: out of memory"],
        level="nano_64x96",
        deadline_misses=5,
        frames=FrameCounts(published=9, dropped={"replaced": 2}),
    )
    page(result(0))
    facts = page.status()
    assert (facts["state"], facts["reasons"]) == ("degraded", ["backend: out of memory"])
    assert (facts["level"], facts["deadline_misses"]) == ("nano_64x96", 5)
    assert (facts["published"], facts["dropped"]) == (9, {"replaced": 2})


def test_other_sites_names_for_this_machine_are_refused() -> None:
    with Server(fed(), port=0) as server:
        assert "token" not in server.url
        assert get(server.url, "status")[0] == 200
        assert get(server.url, "status", Host="evil.example:8017")[0] == 421
        _, _, headers = get(server.url)
    assert "default-src 'self'" in headers["Content-Security-Policy"]


def test_beyond_this_machine_a_token_is_needed() -> None:
    with Server(fed(), host="0.0.0.0", port=0) as server:
        token = server.url.partition("?token=")[2]
        assert len(token) >= 20
        url = f"http://127.0.0.1:{server.port}/"
        for path in ("", "status", "frame", "classes", "page.js", "?token=guess"):
            assert get(url, path)[0] == 401, path
        assert get(url, "status", Authorization=f"Bearer {token}")[0] == 200
        assert get(url, "status", Cookie=f"rtseg_token={token}")[0] == 200
        assert get(url, "status", Cookie="rtseg_token=guess")[0] == 401
        assert get(url, f"status?token={token}")[0] == 200


def test_a_short_token_is_refused() -> None:
    with pytest.raises(ValueError, match="8 or more"):
        Server(fed(), port=0, token="short")
    with pytest.raises(ValueError, match="a port is 0 to 65535, not 70000"):
        Server(fed(), port=70000)


def test_idle_connections_lock_no_viewer_out() -> None:
    page = fed()
    page(result(0))
    with Server(page, port=0) as server, ExitStack() as opened:
        for _ in range(150):
            idle = socket.create_connection(("127.0.0.1", server.port), 60)
            opened.enter_context(closing(idle))
        assert get(server.url, "status")[0] == 200
        assert get(server.url, "frame?after=-1")[0] == 200


def test_clients_that_stop_reading_do_not_slow_the_loop() -> None:
    """They ask for many frames and read none; results flow on, and another viewer sees them."""
    page = fed()
    queue = SinkQueue(page)
    queue.start()
    scenes_and_labels = [result(number, (360, 640)) for number in range(5)]
    times_ms: list[float] = []
    with Server(page, port=0) as server:
        page(scenes_and_labels[0])
        deaf = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
        for each in deaf:
            each.sendall(b"GET /frame?after=-1 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
        seen, until = set[int](), time.monotonic() + 60
        while len(seen) < 5 or len(times_ms) < 60:
            assert time.monotonic() < until
            newest = replace(scenes_and_labels[len(times_ms) % 5], frame_id=len(times_ms))
            began = time.perf_counter()
            queue.offer(newest)
            times_ms.append(1000 * (time.perf_counter() - began))
            time.sleep(0.01)
            if len(times_ms) % 10 == 0:
                _, _, headers = get(server.url, "frame?after=-1")
                seen.add(json.loads(headers["X-Frame"])["frame_id"])
        for each in deaf:
            each.close()
    queue.close()
    assert queue.join(10)
    assert queue.delivered + queue.dropped == len(times_ms)
    assert queue.delivered > len(times_ms) / 4  # the page took its share of them
    assert np.median(times_ms) < 1000  # it waits for nobody, however busy the machine is


def test_the_end_does_not_wait_for_viewers() -> None:
    """One that waits for the next frame is answered when there will be none."""
    page, answers = fed(), list[int]()
    page(result(7))
    with Server(page, port=0) as server:
        waiting = threading.Thread(
            target=lambda: answers.append(get(server.url, "frame?after=7")[0]), daemon=True
        )
        waiting.start()
        time.sleep(0.3)
        began = time.monotonic()
        page.close()
        waiting.join(10)
        assert time.monotonic() - began < WAIT_S - 0.5
    assert answers == [204]


@pytest.fixture
def live() -> Iterator[tuple[LivePage, Server, threading.Event]]:
    """A page whose results come at 15 Hz until the event is set."""
    page, stop = fed(), threading.Event()

    def feed() -> None:
        number = 0
        while not stop.wait(1 / 15):
            page(result(number, (180, 320), age_ms=20.0 + 30 * (number % 4 == 0)))
            number += 1

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    with Server(page, port=0) as server:
        yield page, server, stop
        stop.set()
        thread.join()


@pytest.fixture
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install it")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with api.sync_playwright() as playwright:
        program = playwright.chromium.launch(executable_path=path, args=flags)
        yield program
        program.close()


PIXELS = """() => {
  const sum = (id) => {
    const c = document.getElementById(id);
    const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
    let total = 0;
    for (let i = 0; i < data.length; i += 1) total = (total * 31 + data[i]) % 1000000007;
    return total;
  };
  return [sum("frame"), sum("labels")];
}"""
HIGHER = """([where, than]) => parseInt(document.querySelector(where).textContent) > than"""
COLUMN = """(x) => {
  const c = document.getElementById("labels");
  return Array.from(c.getContext("2d").getImageData(x, 10, 1, 1).data).slice(0, 3);
}"""

BLACK = """() => {
  const c = document.getElementById("labels"), half = c.width / 2;
  return [0, half].map((x) => {
    const data = c.getContext("2d").getImageData(x, 0, half, c.height).data;
    let black = 0;
    for (let i = 0; i < data.length; i += 4) black += data[i] + data[i + 1] + data[i + 2] === 0;
    return 4 * black / data.length;
  });
}"""


def wait_for_text(tab: Any, where: str, start: str) -> None:
    from playwright.sync_api import expect

    expect(tab.locator(where)).to_have_text(re.compile(f"^{start}"), timeout=WAIT_MS)


def wait_for_new_picture(tab: Any, old: list[int]) -> None:
    """Until both the frame's and the labels' pixels are others."""
    changed = f"(old) => ({PIXELS})().every((sum, i) => sum !== old[i])"
    tab.wait_for_function(changed, arg=old, timeout=WAIT_MS)


def opened(browser: Any, url: str) -> tuple[Any, list[str]]:
    tab = browser.new_page(viewport={"width": 1360, "height": 860})
    troubles: list[str] = []
    tab.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.goto(url)
    for name in ("frame-id", "published"):
        wait_for_text(tab, f"#{name}", "[1-9]")
    return tab, troubles


def test_the_page_lives(browser: Any, live: tuple[LivePage, Server, threading.Event]) -> None:
    _, server, _ = live
    tab, troubles = opened(browser, server.url)
    text = tab.inner_text
    wait_for_new_picture(tab, tab.evaluate(PIXELS))
    for number in ("#frame-id", "#published"):
        tab.wait_for_function(HIGHER, arg=[number, int(text(number))], timeout=WAIT_MS)
    tab.wait_for_function(HIGHER, arg=["#misses", 0], timeout=WAIT_MS)
    assert text("#state") == "running"
    assert text("#level") == "nano_90x160"
    assert tab.locator("#legend li").all_inner_texts() == list(CAMVID.names)
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    shot = tab.screenshot(path=ARTIFACTS / "live-page.png", full_page=True)
    assert len(shot) > 20_000
    assert troubles == []


def test_its_controls_work(browser: Any, live: tuple[LivePage, Server, threading.Event]) -> None:
    page, server, stop = live
    tab, troubles = opened(browser, server.url)
    tab.click("#pause")
    held = tab.evaluate(PIXELS)
    tab.wait_for_timeout(600)
    assert tab.evaluate(PIXELS) == held
    assert tab.get_attribute("#pause", "aria-pressed") == "true"
    tab.locator("#opacity").fill("20")
    assert tab.evaluate("document.getElementById('labels').style.opacity") == "0.2"
    tab.keyboard.press("]")
    assert tab.evaluate("document.getElementById('labels').style.opacity") == "0.25"
    colors = {tuple(rgb) for rgb in CAMVID.palette}
    assert tuple(tab.evaluate(COLUMN, 20)) in colors
    tab.keyboard.press("c")
    safe = {tuple(rgb) for rgb in page.about()["safe_palette"]}
    assert tuple(tab.evaluate(COLUMN, 20)) in safe
    assert tab.is_checked("#safe")
    tab.locator("h1").click()
    tab.keyboard.press(" ")
    wait_for_text(tab, "#pause", "Pause")
    wait_for_new_picture(tab, held)
    stop.set()
    tab.wait_for_selector("#picture.old", timeout=WAIT_MS)  # a picture that stands still says so
    assert troubles == []


def test_what_is_not_certified_is_hatched_if_asked(browser: Any) -> None:
    """The left half is certified; the labels are one class, so that black is the hatching's."""
    page, size, stop = fed(), (180, 320), threading.Event()
    certified = np.zeros(size, np.bool_)
    certified[:, : size[1] // 2] = True

    def feed() -> None:
        for number in count():
            page(replace(result(number, size), labels=np.ones(size, np.uint8), certified=certified))
            if stop.wait(1 / 15):
                return

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    with Server(page, port=0) as server:
        tab, troubles = opened(browser, server.url)
        tab.wait_for_selector("#hatch-choice:not([hidden])", timeout=WAIT_MS)
        assert not tab.is_checked("#hatch")
        assert tab.evaluate(BLACK) == [0, 0]
        tab.check("#hatch")
        left, right = tab.evaluate(BLACK)
        assert (left, right) == (0, pytest.approx(0.5, abs=0.02))
        tab.locator("h1").click()
        tab.keyboard.press("h")
        assert not tab.is_checked("#hatch")
        assert tab.evaluate(BLACK) == [0, 0]
        assert troubles == []
        stop.set()
        thread.join()


def test_without_certified_labels_there_is_nothing_to_hatch(
    browser: Any, live: tuple[LivePage, Server, threading.Event]
) -> None:
    tab, _ = opened(browser, live[1].url)
    assert tab.locator("#hatch-choice").is_hidden()


def test_a_token_in_the_address_is_put_away(browser: Any) -> None:
    page = fed()
    page(result(3))
    with Server(page, host="0.0.0.0", port=0) as server:
        tab, troubles = opened(browser, server.url.replace("0.0.0.0", "127.0.0.1"))
        assert "token" not in tab.url
        assert tab.inner_text("#frame-id") == "3"
    assert [trouble for trouble in troubles if "ERR_CONNECTION" not in trouble] == []


@pytest.fixture(scope="module")
def served(nano: Model, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """An artifact and a folder of frames."""
    folder = tmp_path_factory.mktemp("served")
    (made,) = export(nano, [(64, 96)], ["onnx"], out=folder)
    frames = folder / "frames"
    frames.mkdir()
    for number, scene in enumerate(scenes(4, (64, 96))):
        cv2.imwrite(str(frames / f"{number}.png"), scene)
    return [made.path, frames]


@contextmanager
def running(*arguments: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command in a process of its own, and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rtseg", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"},
        cwd=ROOT.parent,
    )
    try:
        assert process.stderr is not None
        yield (
            next(m[0] for line in process.stderr if (m := re.search(r"http://\S+", line))),
            process,
        )
    finally:
        process.kill()


def until_published(url: str, count: int) -> None:
    until = time.monotonic() + 60
    while json.loads(get(url, "status")[1])["published"] < count:
        assert time.monotonic() < until
        time.sleep(0.2)


def test_the_demo_serves_a_drive(served: list[Path]) -> None:
    artifact, frames = served
    options = ["--web", "--port", "0", "--fps", "10", "--backend", "onnxruntime"]
    with running("demo", frames, "--model", artifact, *options) as (url, process):
        until_published(url, 6)  # it plays again at the end
        assert get(url, "frame")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_drive_serves_a_page_beside_its_sinks(
    served: list[Path], browser: Any, tmp_path: Path
) -> None:
    artifact, frames = served
    options = ["--rate", "10", "--loop", "--backend", "onnxruntime", "--out", tmp_path / "labels"]
    page = ["--web", "--port", "0", "--host", "0.0.0.0", "--json"]
    with running("drive", frames, "--model", artifact, *options, *page) as (url, process):
        address = url.replace("0.0.0.0", "127.0.0.1")
        assert get(address, "status")[0] == 401  # beyond this machine a token is needed
        tab, troubles = opened(browser, address)
        published = int(tab.inner_text("#published"))
        wait_for_new_picture(tab, tab.evaluate(PIXELS))
        tab.wait_for_function(HIGHER, arg=["#published", published], timeout=WAIT_MS)
        assert tab.inner_text("#level") == artifact.name
        assert tab.inner_text("#misses") == "no deadline"
        assert troubles == []
        process.send_signal(signal.SIGTERM)
        stdout, _ = process.communicate(timeout=30)
    facts = json.loads(stdout)
    assert (facts["ended"], process.returncode) == ("SIGTERM", 0)
    assert facts["end_s"] < 1  # the viewer holds up nothing
    sinks = {sink["name"]: sink for sink in facts["sinks"]}
    assert sinks["live page"]["delivered"] > 0
    assert len(list((tmp_path / "labels").iterdir())) == facts["frames"]["published"]
