"""One way to write: files appear whole or not at all, and what was there before stays."""

from __future__ import annotations

import ast
import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from conftest import ROOT, mount_small_disk
from rtseg.data.files import (
    LineLog,
    RecordingFile,
    copy_file,
    explain_failure,
    find_reason,
    move_file,
    new_folder,
    replace_folder,
    stage_file,
    text_log,
    write_atomically,
)
from rtseg.errors import RtsegError, WriteError

FULL = "the disk is full: free some space there, or name another folder"
# Where files are written, and by what, outside the one writer; a reason beside each.
EXEMPT = {
    ("data/video_file.py", "VideoWriter"): "the one way to write a video; it uses RecordingFile",
    ("export/openvino.py", "save_model"): "into the scratch folder; move_file publishes it",
    ("export/tensorrt.py", "save"): "Reference.save, which uses write_atomically",
    ("train/submit.py", "ZipFile"): "into a staged file",
    ("speed/plain_exports.py", "export"): "into a staged file",
    ("train/log.py", "SummaryWriter"): "TensorBoard's own event files",
    ("usage.py", "write_text"): "/proc, which is no file",
    ("examples/own_onnx.py", "export"): "somebody's own program, which the example is about",
    ("runtime/sinks/shared_memory.py", "open"): "a mapping, of a staged file",
    ("cli/_help.py", "write_text"): "typer's, to the terminal",
}
WRITERS = {
    *("write_text", "write_bytes", "tofile", "savetxt", "imwrite", "imwritemulti", "VideoWriter"),
    *("save_file", "save_model", "mkstemp", "NamedTemporaryFile", "symlink_to", "hardlink_to"),
    *("touch", "copyfile", "copy2", "copytree", "copyfileobj", "rename", "renames"),
    *("SummaryWriter", "FileHandler", "fdopen", "mkfifo", "memmap", "to_csv", "to_parquet"),
}
INTO_BUFFERS = {"save", "savez", "savez_compressed", "savefig", "dump", "write_table"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mount_small_disk(tmp_path, "2m")


def test_content_is_on_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a loss of power may leave an empty file under the final name."""
    steps = []
    sync, replace = os.fsync, os.replace

    def note_sync(handle: int) -> None:
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        steps.append("folder" if folder else f"{os.fstat(handle).st_size} bytes")
        sync(handle)

    def note_rename(source: str, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    write_atomically(tmp_path / "record", b"12345")
    assert steps == ["5 bytes", "rename", "folder"]
    steps.clear()
    move_file(tmp_path / "record", tmp_path / "moved")
    assert steps == ["5 bytes", "rename", "folder"]
    steps.clear()
    copy_file(tmp_path / "moved", tmp_path / "copy")
    assert steps == ["5 bytes", "rename", "folder"]
    steps.clear()
    recording = RecordingFile(tmp_path / "drive.log", replaces=True)
    with recording.open() as file:
        file.write(b"123")
    recording.publish()
    assert steps == ["3 bytes", "rename", "folder"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "drive.log", "moved"]


def write_staged(path: Path) -> None:
    with stage_file(path) as temporary:
        temporary.write_bytes(bytes(3 << 20))


def write_log(path: Path) -> None:
    log = LineLog(path)
    while True:
        log.append("x" * 10_000)


WAYS: list[Callable[[Path], Any]] = [
    lambda path: write_atomically(path, bytes(3 << 20)),
    write_staged,
    lambda path: copy_file(ROOT / "setup.py", path),
]


@pytest.mark.parametrize("write", WAYS)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    write: Callable[[Path], Any], small_disk: Path
) -> None:
    (small_disk / "filler").write_bytes(bytes(2044 << 10))
    target = small_disk / "folder" / "report.json"
    with pytest.raises(WriteError) as raised:
        write(target)
    assert str(raised.value) == f"cannot write {target}: {FULL}"
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, RtsegError)
    assert raised.value.errno == errno.ENOSPC
    assert [path for path in small_disk.rglob("*") if path.is_file()] == [small_disk / "filler"]


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "name another folder"),
        (errno.EIO, "dmesg"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EACCES, "permissions"),
    ],
)
@pytest.mark.parametrize("failing", ["mkdir", "mkstemp", "fsync", "replace"])
def test_every_failure_of_a_disk_is_told_with_path_and_advice(
    code: int, advice: str, failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = {"mkdir": "pathlib.Path", "mkstemp": "tempfile"}.get(failing, "os")

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(f"{owner}.{failing}", fail)
    target = tmp_path / "report.json"
    with pytest.raises(WriteError, match=f"cannot write {target}: .*{advice}"):
        write_atomically(target, b"content")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_another_kind_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), explain_failure(tmp_path):
        (tmp_path / "absent").read_bytes()


def test_a_file_that_may_not_be_replaced_stays(tmp_path: Path, monkeypatch: Any) -> None:
    target = tmp_path / "key"
    write_atomically(target, b"first", mode=0o600, replaces=False)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600

    def no_links(*names: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    for links in (os.link, no_links):
        monkeypatch.setattr(os, "link", links)
        with pytest.raises(FileExistsError):
            write_atomically(target, b"second", replaces=False)
        write_atomically(tmp_path / links.__name__, b"new", replaces=False)
    assert target.read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 3


def test_recordings_of_one_name_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    recordings = [RecordingFile(path) for _ in range(3)]
    for number, recording in enumerate(recordings):
        with recording.open() as file:
            file.write(bytes([number]))
    path.write_bytes(b"came from elsewhere meanwhile")
    for recording in recordings:
        recording.publish()
    # The first one's name was taken while it recorded, so that it took the next free one.
    contents = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    assert contents.pop("drive.mcap") == b"came from elsewhere meanwhile"
    assert sorted(contents.values()) == [b"\0", b"\1", b"\2"]
    assert all(name.startswith("drive-") and "partial" not in name for name in contents)


def test_a_recording_without_content_leaves_no_file(tmp_path: Path) -> None:
    RecordingFile(tmp_path / "drive.mcap").abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_line_is_appended_whole_or_not_at_all(small_disk: Path) -> None:
    path = small_disk / "log.jsonl"
    with pytest.raises(WriteError, match=FULL):
        write_log(path)
    lines = path.read_text().splitlines()
    assert len(lines) > 10
    assert {len(line) for line in lines} == {10_000}


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError("the build failed"), "build.log"),
        (KeyboardInterrupt(), "build.log.partial"),
        (OSError(errno.ENOSPC, "full"), "build.log.partial"),
    ],
)
def test_a_log_cut_short_by_a_signal_or_a_disk_stays_partial(
    error: BaseException, name: str, tmp_path: Path
) -> None:
    def build() -> None:
        with text_log(tmp_path / "build.log") as file:
            file.write("a line\n")
            raise error

    with pytest.raises(type(error)):
        build()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_reason_that_a_library_hides_is_found(small_disk: Path) -> None:
    with pytest.raises(RuntimeError, match="iostream error"), find_reason(small_disk / "a.xml"):
        raise RuntimeError("iostream error")  # there is room, so it is another reason
    (small_disk / "filler").write_bytes(bytes(1500 << 10))
    with pytest.raises(WriteError, match=FULL), find_reason(small_disk / "a.xml"):
        raise RuntimeError("iostream error")


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    made, folder = tmp_path / "scratch" / "model", tmp_path / "repository" / "model"
    for each, content in ((made, b"new"), (folder, b"old")):
        (each / "1").mkdir(parents=True)
        (each / "1" / "model.onnx").write_bytes(content)
    replace_folder(made, folder)
    assert (folder / "1" / "model.onnx").read_bytes() == b"new"
    assert (tmp_path / "scratch" / "old" / "1" / "model.onnx").read_bytes() == b"old"
    assert new_folder(folder).name == "model-2"


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_partial_videos_and_nothing_half_written(
    kind: signal.Signals, tmp_path: Path
) -> None:
    # A shell's background jobs ignore Ctrl-C, and their children would too.
    code = """
import os, signal, sys
from pathlib import Path
import numpy as np
from rtseg.cli import app
from rtseg.data.files import stage_file
from rtseg.demo.writers import open_writer

signal.signal(signal.SIGINT, signal.default_int_handler)

def command(args, prog_name):
    folder = Path(args[0])
    video = open_writer(folder / "demo.mp4", 25)
    try:
        with stage_file(folder / "report.json") as temporary:
            temporary.write_bytes(b"half")
            video.add(np.zeros((64, 64, 3), np.uint8), "")
            os.kill(os.getpid(), int(args[1]))
            for _ in range(1000):
                pass
    except BaseException:
        video.abandon()
        raise

app.app = command
app.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(int(kind))], capture_output=True, text=True
    )
    assert done.returncode == 128 + kind, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["demo.mp4.partial"]


@pytest.mark.parametrize("name", ["drive.avi", "drive.mp4"])
def test_a_killed_video_is_partial_and_reads_once_renamed(name: str, tmp_path: Path) -> None:
    """Though OpenCV goes by a file's ending, and nobody cleans up."""
    code = """
import os, sys
from pathlib import Path
import numpy as np
from rtseg.data.video_file import VideoFile
video, noise = VideoFile(Path(sys.argv[1]), (128, 64), 20), np.random.default_rng(0)
for _ in range(100):
    video.write(noise.integers(0, 256, (64, 128, 3), np.uint8))
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)])
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.partial"]
    (tmp_path / f"{name}.partial").rename(tmp_path / name)
    if name != "drive.mp4":  # which lacks its index
        assert cv2.VideoCapture(str(tmp_path / name)).read()[0]


def sources() -> list[Path]:
    own = {"tests", "build", "docs", "scripts"}  # of the package, and examples of its use
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return sorted(path for path in found if path.parts[0] not in own and path.parts[0][0] != ".")


def find_writes(source: str) -> set[str]:
    """Names of the calls in a module that write a file, or may."""
    found = set()
    for scope in ast.walk(ast.parse(source)):
        if not isinstance(scope, (ast.FunctionDef, ast.Module)):
            continue
        buffers = {
            target.id
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign) and "io.BytesIO" in ast.unparse(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        calls = [node for node in ast.walk(scope) if isinstance(node, ast.Call)]
        if isinstance(scope, ast.Module):  # a function's are looked at with its own buffers
            inside = {
                id(node)
                for function in ast.walk(scope)
                if isinstance(function, ast.FunctionDef)
                for node in ast.walk(function)
            }
            calls = [call for call in calls if id(call) not in inside]
        found |= {name for call in calls if (name := name_write(call, buffers))}
    return found


def name_write(call: ast.Call, buffers: set[str]) -> str | None:
    function = call.func
    name = getattr(function, "attr", getattr(function, "id", ""))
    words = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    words += [word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)]
    if name in WRITERS and (isinstance(function, ast.Attribute) or name[0].isupper()):
        return name
    if name in ("open", "ZipFile"):
        modes = [word for word in words if isinstance(word, str) and len(word) <= 3]
        flags = ast.unparse(call).replace("os.devnull, os.O_WRONLY", "")  # it keeps nothing
        wrong = any(set(mode) & set("wax+") for mode in modes)
        return (
            name if wrong or any(f"O_{flag}" in flags for flag in ("CREAT", "WR", "RDWR")) else None
        )
    if name == "replace" and isinstance(function, ast.Attribute):  # `os.replace`, `Path.replace`
        of_module = ast.unparse(function.value) == "os"
        return name if of_module or (len(call.args) == 1 and not call.keywords) else None
    if ast.unparse(function) == "torch.onnx.export":
        return name if len(call.args) > 2 else None  # it gives the program where no file is named
    if name in INTO_BUFFERS and call.args:
        used = {argument.id for argument in call.args if isinstance(argument, ast.Name)}
        return None if used & buffers else name
    return None


def test_nothing_is_written_but_by_the_one_writer() -> None:
    """Whoever needs another way adds it to `data/files.py`, where it is tested on a full disk."""
    found = {
        (path.as_posix(), name)
        for path in sources()
        if path != Path("data/files.py")
        for name in find_writes((ROOT / path).read_text())
    }
    assert found - EXEMPT.keys() == set()
    assert EXEMPT.keys() - found == set(), "no longer needed"


@pytest.mark.parametrize(
    "code",
    [
        'open(path, "w")',
        'path.open("ab")',
        'path.open(mode="x")',
        "path.write_text(text)",
        "np.savez(path, a=1)",
        "torch.save(state, path)",
        "def f():\n    json.dump(value, file)",
        "cv2.imwrite(str(path), picture)",
        "os.replace(a, b)",
        "a.replace(b)",
        "os.open(path, os.O_CREAT | os.O_RDWR)",
        "figure.savefig(path)",
    ],
)
def test_every_way_of_writing_is_seen(code: str) -> None:
    assert find_writes(code)


@pytest.mark.parametrize(
    "code",
    [
        "path.open('rb')",
        "text.replace('a', 'b')",
        "replace(card, size=1)",
        "def f():\n    held = io.BytesIO()\n    np.savez(held, a=1)",
        "json.dumps(value)",
    ],
)
def test_reading_is_no_writing(code: str) -> None:
    assert not find_writes(code)
