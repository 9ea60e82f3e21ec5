"""A process that imports the package once and runs every case in a fork of its own, bounded.

Cases come as JSON lines on stdin, outcomes go back as JSON lines on stdout. A fork has limits for
its time, memory and file sizes, and a session of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

GIB = 1 << 30
MOST_OUTPUT = 1 << 16  # bytes of stdout and of stderr that are read back
GRACE_S = 2.0  # for processes that end with their parent
BECOME_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
IMPORTS = (
    "rtseg.cli.app", "rtseg.demo.predict", "rtseg.demo.video", "rtseg.runtime.preflight",
    "rtseg.runtime.sinks.shared_memory", "rtseg.data.mcap_reader", "rtseg.models.loading",
    "rtseg.models.checkpoints", "rtseg.train.recipe", "rtseg.data.soft_labels", "rtseg.resolve",
    "rtseg.api", "rtseg.data.check", "rtseg.demo.web", "mcap_ros2.decoder", "mcap_protobuf.decoder",
    "mcap.reader", "yaml", "onnxruntime", "openvino", "safetensors.torch", "uvicorn", "numba",
)  # fmt: skip


def main() -> None:
    # Orphans of a case become this process's children, where they are seen.
    ctypes.CDLL(None).prctl(BECOME_SUBREAPER, 1)
    for name in IMPORTS:
        importlib.import_module(name)
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()


def run(case: dict[str, Any]) -> dict[str, Any]:
    """One case in a fork.

    Args:
        case: `folder` (where it runs), `argv` of the command or `probe` (module:function, which
            gets the folder), `limit_s`, `memory` and `file_size` in bytes, `signal` (number, and
            seconds after which it is sent), or None.
    """
    began = time.monotonic()
    sys.stdout.flush()
    # Pipes, since a limit on the size of files would be one on the messages, too.
    out, err = Output(), Output()
    child = os.fork()
    if not child:
        _be_the_case(case, out, err)
    code, peak, timed_out = _wait(child, case, began, (out, err))
    seconds = time.monotonic() - began
    survivors = _survivors()
    return {
        "code": code,
        "seconds": round(seconds, 2),
        "peak_mb": peak // 1024,
        "timed_out": timed_out,
        "survivors": survivors,
        "stdout": out.finish(),
        "stderr": err.finish(),
    }


class Output:
    """A pipe whose beginning is kept."""

    def __init__(self) -> None:
        self.ours, self.theirs = os.pipe()
        os.set_blocking(self.ours, False)
        self.content = b""

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self.ours, 1 << 16):
                self.content = (self.content + more)[:MOST_OUTPUT]

    def finish(self) -> str:
        os.close(self.theirs)
        self.drain()
        os.close(self.ours)
        return self.content.decode(errors="replace")


def _wait(
    child: int, case: dict[str, Any], began: float, outputs: tuple[Output, Output]
) -> tuple[int, int, bool]:
    """(exit code, negative for a signal; peak KiB, timed out)."""
    pause, timed_out, shot = 0.002, False, False
    while True:
        for output in outputs:
            output.drain()
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss, timed_out
        spent = time.monotonic() - began
        if case.get("signal") and not shot and spent > case["signal"][1]:
            shot = True
            os.kill(child, case["signal"][0])
        if spent > case["limit_s"] and not timed_out:
            timed_out = True
            os.kill(child, signal.SIGKILL)
        time.sleep(pause)
        pause = min(0.02, pause * 1.5)


def _survivors() -> list[str]:
    """Processes that outlived their case; they are ended."""
    end = time.monotonic() + GRACE_S
    while (left := _children()) and time.monotonic() < end:
        time.sleep(0.02)
        _reap()
    names = []
    for process in left:
        try:
            names.append(Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")[:200])
            os.kill(process, signal.SIGKILL)
        except OSError:
            continue
    _reap()
    return names


def _children() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(each) for each in text.split()]


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _be_the_case(case: dict[str, Any], out: Output, err: Output) -> None:
    """Never returns."""
    code = 70
    try:
        os.setsid()
        os.chdir(case["folder"])
        for number, handle in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out.theirs)):
            os.dup2(handle, number)
        os.dup2(err.theirs, 2)
        os.closerange(3, 256)
        os.environ.update(TMPDIR=str(Path(case["folder"], "tmp")), COLUMNS="200", NO_COLOR="1")
        os.environ.update(case.get("environment", {}))
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + case["memory"], size + case["memory"]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit = case["file_size"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing on is an OSError then
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = _run_inside(case)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _run_inside(case: dict[str, Any]) -> int:
    from rtseg.cli import app
    from rtseg.errors import RtsegError

    if case.get("argv") is not None:
        sys.argv = ["rtseg", *case["argv"]]
        app.main()
        return 0
    module, _, function = case["probe"].partition(":")
    try:
        getattr(importlib.import_module(module), function)(Path(case["folder"]))
    except RtsegError as error:
        app.fail(error, error.exit_code, False)
    except OSError as error:
        app.fail(error, 1, False)
    return 0


if __name__ == "__main__":
    main()
