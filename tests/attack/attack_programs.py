"""Programs of other people: calls of the Python API, fleets, ROS bags, disks that are full."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from attack_calls import CALLS
from attack_materials import NOT_AT_ALL, Materials, spoil
from attack_media import frames_or_told, put
from attack_run import Case
from rtseg.data.scenes import scene

BAG_FRAMES = 12


def program_cases(made: Materials) -> Iterator[Case]:
    yield from _calls(made)
    yield from _fleets(made)
    yield from _bags(made)
    yield from _small_disks(made)


def _calls(made: Materials) -> Iterator[Case]:
    for name, (_, may_pass) in CALLS.items():
        yield Case(
            "Python API", name, partial(_write_call, made, name), probe="attack_calls:call",
            may_pass=may_pass,
        )  # fmt: skip


def _write_call(made: Materials, name: str, folder: Path) -> None:
    put("call.json", json.dumps({"call": name, "onnx": str(made.onnx)}).encode(), folder)
    shutil.copy(made.frame, folder / "in" / "frame.png")


def _fleets(made: Materials) -> Iterator[Case]:
    """A sound log beside a bad one, a bad artifact, and what an earlier run left."""
    probe = "attack_probes:label_fleet"
    content = {
        ".mp4": made.video.read_bytes(),
        ".mcap": made.log.read_bytes(),
        ".png": made.frame.read_bytes(),
    }
    for ending, sound in content.items():
        for name, spoiled in spoil(sound, 6, "fleet", ending):
            build = partial(_fleet, made, {f"logs/bad{ending}": spoiled})
            yield Case("fleets", f"a log, {ending}, {name}", build, probe=probe)
        for name in ("empty", "text"):
            build = partial(_fleet, made, {f"logs/bad{ending}": NOT_AT_ALL[name]})
            yield Case("fleets", f"a log, {ending}, {name}", build, probe=probe)
    for name, spoiled in spoil(made.onnx.read_bytes(), 8, "fleet artifact"):
        build = partial(_fleet, made, {"net.onnx": spoiled})
        yield Case("fleets", f"the artifact, {name}", build, probe=probe)
    report = json.dumps({"job": {"model": "x"}, "input": "x", "frames": 3}).encode()
    for name, spoiled in (*spoil(report, 8, "fleet report"), *NOT_AT_ALL.items()):
        build = partial(_fleet, made, {"before.json": spoiled})
        yield Case("fleets", f"an earlier report, {name}", build, probe=probe)
    for name, text in {
        "an empty list": b"", "a list of nothing": b"\n\n\n", "a list not in UTF-8": b"\xff\xfe",
        "a list of itself": b"in/list.txt", "a list of what is not there": b"none.mp4\n/none\n",
        "a list with a NUL": b"a\0b.png", "a list of /dev/zero": b"/dev/zero",
    }.items():  # fmt: skip
        build = partial(_fleet, made, {"list.txt": text})
        yield Case("fleets", name, build, probe=probe)


def _fleet(made: Materials, files: dict[str, bytes], folder: Path) -> None:
    put("logs/sound.png", made.frame.read_bytes(), folder)
    put("net.onnx", made.onnx.read_bytes(), folder)
    for name, content in files.items():
        put(name, content, folder)


def _bags(made: Materials) -> Iterator[Case]:
    probe, judge = "attack_probes:read_recording", frames_or_told(BAG_FRAMES)
    for storage in ("SQLITE3", "MCAP"):
        bag = made.folder / f"bag_{storage}"
        if not bag.exists():
            write_bag(bag, storage)
        files = {path.name: path.read_bytes() for path in sorted(bag.iterdir())}
        for file, sound in files.items():
            for name, content in spoil(sound, 12, "bag", storage, file):
                build = partial(_put_bag, files | {file: content})
                label = f"{storage}, {Path(file).suffix}, {name}"
                yield Case("ROS bags", label, build, probe=probe, judge=judge)
            for name in ("empty", "text", "0xFF", "zeros"):
                build = partial(_put_bag, files | {file: NOT_AT_ALL[name]})
                label = f"{storage}, {Path(file).suffix}, {name}"
                yield Case("ROS bags", label, build, probe=probe, may_pass=False)
            rest = {other: content for other, content in files.items() if other != file}
            label = f"{storage}, no {Path(file).suffix}"
            build = partial(_put_bag, rest)
            yield Case("ROS bags", label, build, probe=probe, may_pass=False)


def _put_bag(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        put(f"bag/{name}", content, folder)


def write_bag(path: Path, storage: str) -> None:
    """A ROS 2 bag of raw images."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore
    from rtseg.data.ros.ros_messages import Header, Image

    with Writer(path, version=9, storage_plugin=StoragePlugin[storage]) as writer:
        store = get_typestore(Stores.ROS2_JAZZY)
        connection = writer.add_connection("/image", Image.TYPE.name, typestore=store)
        for index in range(BAG_FRAMES):
            at_ns, picture = 10**18 + index * 10**8, scene((32, 64), index)
            message = Image(Header(at_ns, "front"), 32, 64, "bgr8", 192, picture.tobytes())
            writer.write(connection, at_ns, message.encode())


def _small_disks(made: Materials) -> Iterator[Case]:
    """A real file system that is full, where this user may mount one."""
    if not can_mount(made.folder):
        return
    from attack_commands import list_jobs

    for (name, argv), kilobytes in (
        (job, size) for job in list_jobs(made).items() for size in (4, 24, 64)
    ):
        build = partial(_write_job, made, argv, kilobytes)
        yield Case(
            "full disks", f"{name}, a disk of {kilobytes} KB", build,
            probe="attack_probes:run_on_small_disk",
        )  # fmt: skip


def can_mount(folder: Path) -> bool:
    """Whether a process may have file systems of its own here."""
    place = folder / "mount"
    place.mkdir(exist_ok=True)
    words = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(place)]
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(words, capture_output=True).returncode
    )


def _write_job(made: Materials, argv: tuple[str, ...], kilobytes: int, folder: Path) -> None:
    shutil.copy(made.video, folder / "in" / "clip.mp4")
    put("job.json", json.dumps({"argv": argv, "kilobytes": kilobytes}).encode(), folder)
