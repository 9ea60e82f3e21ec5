"""What a drive runs on: layouts, rates, cameras, logs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from rtseg.data import camera
from rtseg.data import playback as pace
from rtseg.data.camera import Camera, is_camera
from rtseg.data.frames import Frame, Unreadable, open_source
from rtseg.data.playback import Paced, open_drive_source
from rtseg.data.scenes import scene
from rtseg.data.video_file import VideoFile
from rtseg.errors import UsageError

IMAGE = np.zeros((4, 6, 3), np.uint8)


class Hours:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 5 * 10**9
        self.slept: list[float] = []

    def monotonic_ns(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += round(seconds * 1e9)


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    clock = Hours()
    monkeypatch.setattr(pace, "time", clock)
    return clock


def write(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((4, 6, 3), value, np.uint8))


def test_cityscapes_sequences_come_in_order(tmp_path: Path) -> None:
    root = tmp_path / "leftImg8bit_sequence"
    for city, sequence, number in [
        ("ulm", 0, 10), ("ulm", 0, 9), ("aachen", 2, 1), ("aachen", 10, 0), ("aachen", 2, 11),
    ]:  # fmt: skip
        write(root / "train" / city / f"{city}_{sequence}_{number}_leftImg8bit.png")
    assert [path.stem.removesuffix("_leftImg8bit") for path in open_source(root).paths] == [
        "aachen_2_1", "aachen_2_11", "aachen_10_0", "ulm_0_9", "ulm_0_10",
    ]  # fmt: skip


def test_the_demo_video_s_folders_come_one_after_the_other(tmp_path: Path) -> None:
    root = tmp_path / "leftImg8bit" / "demoVideo"
    for folder, number in [("stuttgart_01", 1), ("stuttgart_00", 2), ("stuttgart_00", 1)]:
        write(root / folder / f"{folder}_000000_{number:06d}_leftImg8bit.png")
    names = [path.stem[:12] + path.stem[-17:-12] for path in open_source(root).paths]
    assert [path.parent.name for path in open_source(root).paths] == [
        "stuttgart_00", "stuttgart_00", "stuttgart_01",
    ]  # fmt: skip
    assert names == sorted(names)


def test_a_folder_s_own_images_come_before_those_inside(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "inside" / "b.png")
    assert [path.name for path in open_source(tmp_path).paths] == ["a.png"]


def test_images_play_at_17_hz(tmp_path: Path, hours: Hours) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.png", number)
    frames: Any = list(open_drive_source(str(tmp_path)))
    steps = np.diff([frame.captured_ns for frame in frames])
    assert steps == pytest.approx(1e9 / 17, abs=2)
    assert [frame.image[0, 0, 0] for frame in frames] == [0, 1, 2, 3]


def test_a_recording_may_go_round_and_round(hours: Hours) -> None:
    two = [Frame(IMAGE, 0, 0, "a"), Unreadable("b", "damaged"), Frame(IMAGE, 2, 0, "c")]
    source = Paced(two, 10, loops=True)
    seven = list(itertools.islice(source, 7))
    indices = [item.index if isinstance(item, Frame) else None for item in seven]
    assert indices == [0, None, 2, 3, None, 5, 6]
    times = [item.captured_ns for item in seven if isinstance(item, Frame)]
    assert np.diff(times).tolist() == pytest.approx([2e8, 1e8, 2e8, 1e8])


def test_a_late_reader_does_not_shift_the_rest(hours: Hours) -> None:
    times = []
    for frame in Paced([Frame(IMAGE, i, 0) for i in range(5)], 10):
        assert isinstance(frame, Frame)
        times.append(frame.captured_ns)
        hours.now += 130_000_000 if frame.index == 1 else 0
    assert (np.array(times) - times[0]).tolist() == pytest.approx([0, 1e8, 2.3e8, 3e8, 4e8])


def test_frames_are_read_just_before_they_are_due(hours: Hours) -> None:
    """Reading takes 10 ms; done at once after the last frame, it would compete with its labels."""
    asked: list[int] = []

    def slow() -> Iterator[Frame]:
        for index in range(6):
            asked.append(hours.now)
            hours.now += 10_000_000
            yield Frame(IMAGE, index, 0)

    recording: Any = slow()
    times = [f.captured_ns for f in Paced(recording, 10) if isinstance(f, Frame)]
    assert np.diff(times)[1:].tolist() == pytest.approx([1e8] * 4)  # the first pays for itself
    ahead = np.array(times) - np.array(asked)
    assert ahead[1:].tolist() == pytest.approx([2e7] * 5)


def test_a_log_plays_by_its_own_times(hours: Hours) -> None:
    frames = [Frame(IMAGE, i, 0, "", 10**18 + wall) for i, wall in enumerate([0, 50, 250])]
    times = [f.captured_ns for f in Paced(frames, None) if isinstance(f, Frame)]
    assert np.diff(times).tolist() == [50, 200]


def test_as_fast_as_possible_does_not_sleep(hours: Hours) -> None:
    assert len(list(Paced([Frame(IMAGE, i, 0) for i in range(9)], 0))) == 9
    assert hours.slept == []


def test_a_recording_without_frames_does_not_spin() -> None:
    with pytest.raises(OSError, match="no frame at all"):
        next(iter(Paced([], 10, loops=True)))


@pytest.mark.parametrize(
    "where",
    [
        "0",
        "/dev/video2",
        "/dev/no-such-camera",
        "0?format=mjpeg",
        "rtsp://cam/1?size=8",
        "v4l2src ! x",
    ],
)
def test_cameras(where: str) -> None:
    assert is_camera(where)
    assert isinstance(open_drive_source(where), Camera)


@pytest.mark.parametrize(
    "where", ["drive.mp4", "frames", "a/b/0.png", "log.mcap", "/dev/shm/a.mp4"]
)
def test_no_cameras(where: str) -> None:
    assert not is_camera(where)


class FakeCapture:
    """cv2.VideoCapture with two frames in it."""

    opened: ClassVar[list[Any]] = []

    def __init__(self, *arguments: Any):
        self.opened.append(arguments)
        self.left = 2
        self.released = False

    def isOpened(self) -> bool:
        return True

    def set(self, what: int, value: float) -> bool:
        return True

    def get(self, what: int) -> float:
        return 64.0  # a side of its frames

    def getBackendName(self) -> str:
        return "V4L2"

    def grab(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def retrieve(self) -> tuple[bool, Any]:
        return True, IMAGE

    def release(self) -> None:
        self.released = True


@pytest.mark.parametrize(
    ("where", "first", "api"),
    [
        ("3", 3, cv2.CAP_ANY),
        ("/dev/video1", 1, cv2.CAP_ANY),
        ("rtsp://cam/1", "rtsp://cam/1", cv2.CAP_FFMPEG),
        ("v4l2src ! appsink", "v4l2src ! appsink", cv2.CAP_GSTREAMER),
    ],
)
def test_a_camera_raises_when_it_ends(
    where: str, first: Any, api: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(camera, "find_spec", lambda name: None)  # as if PyAV were not installed
    frames = []
    with pytest.raises(OSError, match="gives no frames"):
        frames.extend(iter(Camera(where)))
    again = iter(Camera(where))
    assert next(again).index == 0
    assert FakeCapture.opened[-1][:2] == (first, api)


class FakeDriver(FakeCapture):
    """cv2.VideoCapture of a camera that has 640x480 in YUYV, and 1920x1080 in MJPEG too."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.has = {cv2.CAP_PROP_FRAME_HEIGHT: 480, cv2.CAP_PROP_FRAME_WIDTH: 640}
        self.has[cv2.CAP_PROP_FOURCC] = cv2.VideoWriter.fourcc(*"YUYV")
        self.asked: list[int] = []

    def set(self, what: int, value: float) -> bool:
        self.asked.append(what)
        large = what in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH) and value > 640
        if not large or self.has[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"MJPG"):
            self.has[what] = int(value)
        return True

    def get(self, what: int) -> float:
        return float(self.has.get(what, 64))


def test_a_driver_is_asked_for_size_format_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FakeDriver] = []
    monkeypatch.setattr(
        cv2, "VideoCapture", lambda *given: made.append(FakeDriver(*given)) or made[-1]
    )
    frame = next(iter(Camera("0?size=1080x1920&format=mjpeg&rate=60")))
    assert frame.image is IMAGE
    has, (what, *_) = made[0].has, [w for w in made[0].asked if w != cv2.CAP_PROP_BUFFERSIZE]
    assert (has[cv2.CAP_PROP_FRAME_HEIGHT], has[cv2.CAP_PROP_FRAME_WIDTH]) == (1080, 1920)
    assert has[cv2.CAP_PROP_FPS] == 60
    assert what == cv2.CAP_PROP_FOURCC  # before the size, which YUYV does not have
    with pytest.raises(OSError, match=r"gives 480x640 in YUYV: `v4l2-ctl -d /dev/video0 --list"):
        next(iter(Camera("/dev/video0?size=1080x1920")))


@pytest.mark.parametrize("wish", ["size=1080", "size=axb", "format=h264", "rate=fast", "fps=30"])
def test_what_no_driver_can_be_asked_for_is_refused(wish: str) -> None:
    with pytest.raises(UsageError, match=f"format=mjpeg.* not for '{wish}'"):
        Camera(f"0?{wish}")
    with pytest.raises(UsageError, match="of its own size: leave size=64x96 out"):
        Camera("0?size=64x96", "nv12", (64, 96))


def test_a_link_to_a_camera_is_followed_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "front"
    real = os.path.realpath
    monkeypatch.setattr(
        camera.os.path, "realpath", lambda path: real(path.replace("/dev/by-id", str(tmp_path)))
    )
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    for number in (3, 5):  # it was unplugged meanwhile
        link.unlink(missing_ok=True)
        link.symlink_to(f"/dev/video{number}")
        next(iter(Camera("/dev/by-id/front")))
        assert FakeCapture.opened[-1][0] == number
    link.unlink()
    with pytest.raises(OSError, match="there is no /dev/by-id/front"):
        next(iter(Camera("/dev/by-id/front")))


@pytest.mark.parametrize("wish", ["", "?size=480x640", "?format=mjpeg&rate=30"])
def test_an_absent_camera_says_what_is_missing(wish: str) -> None:
    with pytest.raises(OSError, match="there is no /dev/video97"):
        next(iter(Camera(f"97{wish}")))


@pytest.mark.parametrize(
    ("where", "options", "message"),
    [
        ("absent.mcap", {}, "no log at absent.mcap"),
        ("frames", {"topic": "/camera"}, "MCAP logs and ROS 2 bags only"),
        ("0", {"topic": "/camera"}, "MCAP logs and ROS 2 bags only"),
        ("0", {"loops": True}, "a rate of its own and no end"),
    ],
)
def test_options_that_do_not_go_with_the_source(
    where: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_drive_source(where, **options)


def test_a_video_that_was_cut_off_says_so(tmp_path: Path) -> None:
    """Its index is whole, its pictures are not: OpenCV ends it as it does a whole one."""
    whole = tmp_path / "whole.avi"
    writer = cv2.VideoWriter(str(whole), cv2.VideoWriter.fourcc(*"MJPG"), 20, (128, 64))
    for index in range(20):
        writer.write(scene((64, 128), index))
    writer.release()
    assert not [each for each in open_source(whole) if isinstance(each, Unreadable)]
    content = bytearray(whole.read_bytes())
    middle = len(content) // 3
    content[middle : 2 * middle] = bytes(middle)
    damaged = tmp_path / "damaged.avi"
    damaged.write_bytes(content)
    items = list(open_source(damaged))
    lost = [each for each in items if isinstance(each, Unreadable)]
    assert len(items) - len(lost) < 20
    assert len(lost) == 1
    assert "of 20 frames: damaged, or cut off" in lost[0].reason


def test_a_name_that_is_no_utf_8_is_told(tmp_path: Path) -> None:
    """OpenCV ends the process at one."""
    path = tmp_path / os.fsdecode(b"\xff.mp4")
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="is not UTF-8"):
        open_source(path)
    with pytest.raises(UsageError, match="is not UTF-8"):
        VideoFile(path, (64, 64), 20)
    assert sorted(tmp_path.iterdir()) == [path]
