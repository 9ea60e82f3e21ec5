"""Options with values that are none, disks that are full and signals at any moment."""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from attack_materials import Materials, generator
from attack_run import Case, Outcome

NUMBERS = (
    "nan", "inf", "-inf", "-1", "0", "1e308", "-1e-9", "9" * 30, "", "x", "0x10", "\uff11\uff12",
    "1_0", "true",
)  # fmt: skip
SIZES = (
    "0x0", "-64x128", "64x", "x128", "64", "64x128x3", "1e3x1e3", "nanxnan",
    "\uff16\uff14x128", "\u00b2x\u00b2",
    "9999999999x9999999999", "7x7", "64X128 ", "",
)  # fmt: skip


def command_cases(made: Materials) -> Iterator[Case]:
    yield from _options(made)
    yield from _full_disks(made)
    yield from _signals(made)


def nothing(folder: Path) -> None:
    """A case without an input."""


def _options(made: Materials) -> Iterator[Case]:
    frames, model = str(made.frames), str(made.onnx)
    drive = "drive", frames, "--model", model, "--rate", "0", "--json"
    for option, value in itertools.product(
        ("--duration", "--deadline", "--max-age", "--rate"), NUMBERS
    ):
        yield Case("options", f"drive {option} {value}", nothing, (*drive, f"{option}={value}"))
    ports = ("-1", "65536", "99999999999", "nan", "1.5", "", "0x50")
    for option, value in itertools.product(("--metrics", "--health", "--web --port"), ports):
        words = *option.split()[:-1], f"{option.split()[-1]}={value}"
        # A health that is no number is a file.
        yield Case(
            "options", f"drive {option} {value}", nothing, (*drive, *words),
            leaves="^(nan|1.5|-1|0x50)$",
        )  # fmt: skip
    demo = "demo", str(made.video), "--model", model, "-o", "out.mp4", "--json"
    for option, value in itertools.product(("--fps", "--limit", "--opacity", "--width"), NUMBERS):
        yield Case(
            "options", f"demo {option} {value}", nothing, (*demo, f"{option}={value}"),
            leaves=r"\.mp4\.partial$",
        )  # fmt: skip
    export = "export", "csfcn_nano:camvid", "--to", "onnx", "-o", "out"
    for value in SIZES:
        if value != "64X128 ":
            argv = *export, f"--size={value}"
            yield Case("options", f"export --size {value!r}", nothing, argv, may_pass=False)
    score = "eval", "csfcn_nano:camvid", "folder", "--root", frames
    for option, value in itertools.product(
        ("--scale", "--size", "--window"), dict.fromkeys(NUMBERS + SIZES)
    ):
        argv = *score, f"{option}={value}"
        yield Case("options", f"eval {option} {value!r}", nothing, argv, may_pass=False)
    soft = "pseudo-label", "none", frames, "-o", "out"
    for value in NUMBERS:
        argv = *soft, f"--stride={value}"
        yield Case("options", f"pseudo-label --stride {value}", nothing, argv, may_pass=False)
    for value in NUMBERS:
        for key in ("optimizer.learning_rate", "schedule.epochs", "batch", "optimizer.betas"):
            argv = "train", "csfcn_nano_camvid", f"{key}={value}", "data.root=nowhere"
            yield Case("options", f"train {key}={value}", nothing, argv, may_pass=False)
    for words in (
        ("drive", frames, "--model", model, "--backend", "none"),
        ("drive", frames, "--model", model, "--device", "cuda:-1"),
        ("drive", frames, "--model", model, "--device", "cuda:99"),
        ("drive", frames, "--model", model, "-o", "out.txt"),
        ("drive", frames, "--model", model, "--web", "--token", "short"),
        ("drive", frames, "--model", model, "--web", "--token", "\u00fc" * 9),
        ("drive", frames, "--model", model, "--web", "--host", "no.such.host.invalid"),
        ("drive", "0", "--model", model, "--loop"),
        ("drive", frames, "0", "--model", model, "--loop"),
        ("drive", frames, "none.mp4", "--model", model),
        ("drive", "0", "0", "--model", model),
        ("drive", f"a={frames}", f"a={frames}", "--model", model),
        ("drive", *[frames] * 17, "--model", model),
        ("drive", "rtsp://", "--model", model, "--rate", "0"),
        ("drive", frames, "--model", model, "--topic", "/x"),
        ("drive", frames, "--model", model, "--inject", "none.yaml"),
        ("drive", frames, "--model", model, "--fallback", "none.onnx"),
        ("predict", frames, "--model", "csfcn_nanoo"),
        ("predict", frames, "--model", "csfcn_nano:mars"),
        ("predict", frames, "--model", "../../../etc/passwd"),
        ("predict", frames, "--model", "\0"),
        ("predict", frames, "--model", model, "-o", "/proc/none"),
        ("predict", frames, "--model", model, "-o", "/dev/null"),
        ("fleet", "none", "--model", model, "-o", "out", "--workers", "0"),
        ("fleet", "@none.txt", "--model", model, "-o", "out"),
        ("inspect", "."),
        ("check", "/dev/zero"),
        ("inspect", "\udcff.onnx"),
        ("models", "none"),
        ("no-such-command",),
        ("--log-level", "loud", "doctor"),
    ):
        name = " ".join(words).replace(model, "net.onnx").replace(frames, "frames")
        yield Case("options", name, nothing, words, may_pass=False)


def _copy_video(made: Materials, folder: Path) -> None:
    shutil.copy(made.video, folder / "in" / "clip.mp4")


def list_jobs(made: Materials) -> dict[str, tuple[str, ...]]:
    """Commands that write, into `out`."""
    model = str(made.onnx)
    source = "in/clip.mp4"
    run = "drive", source, "--model", model, "--rate", "0", "--json"
    return {
        "predict": ("predict", source, "--model", model, "-o", "out", "--json"),
        "demo": ("demo", source, "--model", model, "-o", "out/demo.mp4", "--json"),
        "drive": (*run, "-o", "out/labels", "--report", "out/report.json"),
        "drive to a video": (*run, "-o", "out/drive.mp4"),
        "drive to a log": (*run, "-o", "out/drive.mcap"),
        "drive to a ring": (*run, "-o", "out/drive.ring", "--health", "out/health.json"),
    }


def _full_disks(made: Materials) -> Iterator[Case]:
    """A limit on the size of files, which every write beyond meets, as it would a full disk."""
    for (name, argv), size in itertools.product(
        list_jobs(made).items(), (100, 700, 4_000, 20_000, 60_000)
    ):
        yield Case(
            "full disks", f"{name}, {size} bytes", partial(_copy_video, made), argv,
            judge=_all_there, leaves=r"(\.partial|/labels[^/]*/[^/]+\.png)$", file_size=size,
        )  # fmt: skip


def _all_there(folder: Path, outcome: Outcome) -> str:
    """Judges a command that says that it could write all."""
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    return "" if files or "ring" in outcome.stdout else "said to be done, and nothing is there"


def _signals(made: Materials) -> Iterator[Case]:
    rng = generator("signals")
    for (name, argv), number in itertools.product(
        list_jobs(made).items(), (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
    ):
        for _ in range(3):
            after_s = round(float(rng.uniform(0.05, 4)), 2)
            if number == signal.SIGKILL and "ring" in name:
                continue  # its last file stays for its readers, who see that it is not renewed
            kill = number == signal.SIGKILL
            stays = r"(\.partial|/labels[^/]*/[^/]+\.png|overlays/.*\.png|health.json)$"
            # Nobody cleans up after SIGKILL; what is left then has no final name.
            leaves = stays + (r"|/\.[^/]+$|^tmp/" if kill else "")
            yield Case(
                "signals", f"{name}, {number.name} after {after_s} s", partial(_copy_video, made),
                argv, leaves=leaves, shoot=(int(number), after_s),
            )  # fmt: skip
