"""The real command: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import logging
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from conftest import Run, as_json
from rtseg.cli.app import app as front_door
from rtseg.errors import ProofError, UsageError
from rtseg.install import localize
from rtseg.models import build, save_checkpoint
from typer.main import get_command
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """What `main` does to the log and the warnings of its process is undone."""
    logger, show = logging.getLogger("rtseg"), warnings.showwarning
    before = (logger.handlers, logger.level, logger.propagate)
    yield
    logger.handlers, logger.level, logger.propagate = before
    warnings.showwarning = show


COMMANDS = ("quickstart", "doctor", "models", "export", "inspect", "check", "predict", "bench")


@pytest.fixture(scope="module")
def folder(rtseg: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of csfcn_nano, made by the command itself."""
    out = tmp_path_factory.mktemp("export")
    done = rtseg(
        "export",
        "csfcn_nano:camvid",
        "--size",
        "64x128",
        "--to",
        "onnx",
        "--to",
        "openvino",
        "-o",
        out,
    )
    assert done.returncode == 0, done.stderr
    assert "csfcn_nano_64x128_fp32.onnx" in done.stdout
    assert "passed" in done.stdout
    return out


@pytest.fixture(scope="module")
def onnx(folder: Path) -> Path:
    return folder / "csfcn_nano_64x128_fp32.onnx"


def test_help_lists_every_command_in_a_line(rtseg: Run) -> None:
    help_text = rtseg("--help").stdout
    for command in COMMANDS:
        assert re.search(rf"^\s+{command}\s+\w", help_text, re.MULTILINE), command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_s_help_has_an_example(command: str, rtseg: Run) -> None:
    assert (
        f"rtseg {command}"
        in rtseg(command, "--help").stdout.split("Options:")[0].partition("\n\n")[2]
    )


def test_models_as_json(rtseg: Run) -> None:
    zoo = {row["model"]: row for row in as_json(rtseg("models", "--json"))}
    assert zoo["csfcn"]["params"] == 13_516_992
    assert zoo["csfcn_nano"]["macs_512x1024"] <= 3e9


def test_inspect_says_what_a_file_is(rtseg: Run, onnx: Path) -> None:
    facts = as_json(rtseg("inspect", onnx, "--json"))
    assert facts["model"] == "csfcn_nano"
    assert facts["size"] == "64x128"
    assert facts["inputs"] == {"frame": "uint8 (1, 64, 128, 3), BGR"}
    assert facts["proof"]["passed"] is True
    assert "weights" in facts["digests"]
    assert "csfcn_nano" in rtseg("inspect", onnx).stdout


def test_check_says_whether_it_runs_here(rtseg: Run, onnx: Path, tmp_path: Path) -> None:
    assert as_json(rtseg("check", onnx, "--json"))["ok"] is True
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(onnx.read_bytes()[:-9])
    done = rtseg("check", broken)
    assert done.returncode == 1
    assert "truncated" in done.stdout


def test_predict_writes_labels_and_overlays(rtseg: Run, onnx: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for name in ("a", "b"):
        cv2.imwrite(str(frames / f"{name}.png"), np.full((50, 70, 3), 90, np.uint8))
    (frames / "c.png").write_bytes(b"not a picture")
    done = rtseg("predict", frames, "--model", onnx, "-o", tmp_path / "out", "--json")
    facts = as_json(done)
    assert facts["frames"] == 2
    assert len(facts["skipped"]) == 1
    assert "c.png is damaged or not an image" in done.stderr
    labels = cv2.imread(str(tmp_path / "out" / "labels" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert labels is not None
    assert labels.shape == (50, 70)
    assert labels.max() < 11
    assert (tmp_path / "out" / "overlays" / "b.png").is_file()


def test_predict_fails_if_nothing_could_be_read(rtseg: Run, onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "only.png").write_bytes(b"")
    done = rtseg("predict", tmp_path / "only.png", "--model", onnx, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "no frame could be read" in done.stderr


def test_predict_a_video(rtseg: Run, onnx: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for shade in range(5):
        writer.write(np.full((48, 64, 3), shade * 40, np.uint8))
    writer.release()
    facts = as_json(rtseg("predict", clip, "--model", onnx, "-o", tmp_path / "out", "--json"))
    assert facts["frames"] == 5
    assert (tmp_path / "out" / "clip.mp4").stat().st_size > 0
    assert len(list((tmp_path / "out" / "labels").glob("*.png"))) == 5


def test_label_ids_need_a_class_set_that_has_them(rtseg: Run, onnx: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    done = rtseg(
        "predict", tmp_path / "a.png", "--model", onnx, "-o", tmp_path / "out", "--label-ids"
    )
    assert done.returncode == 2
    assert "has no label ids" in done.stderr


def test_an_official_checkpoint_is_exported(rtseg: Run, tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = tmp_path / "mine.safetensors"
    save_checkpoint(build("csfcn_nano", 11), path, naming="official")
    done = rtseg(
        "export", "csfcn_nano", "--weights", path, "--classes", "camvid", "--size", "64x64",
        "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    (entry,) = as_json(done)
    assert entry["weights_from"] == "mine.safetensors"
    assert json.loads((tmp_path / "out" / "report.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "csfcn_tinny"], 2, "did you mean 'csfcn_tiny'?"),
        (["export", "csfcn_nano", "--size", "500x1000"], 2, "multiples of 8"),
        (["export", "csfcn_nano", "--size", "big"], 2, "a size is HEIGHTxWIDTH"),
        (["export", "csfcn_nano", "--weights", "absent.pth"], 2, "no checkpoint at absent.pth"),
        (["export", "csfcn_nano", "--classes", "absent.yaml"], 2, "absent.yaml"),
        (["export", "csfcn_nano", "--frames", "absent"], 2, "no such file or folder: absent"),
        (["export", "csfcn_nano", "--to", "tflite"], 2, "tflite"),
        (["inspect", "absent.onnx"], 2, "no file at absent.onnx"),
        (["predict", "absent.png", "--model", "x.onnx"], 2, "no such file or folder: absent.png"),
        (["bench", "absent.onnx"], 2, "absent.onnx"),
        (["bench", "csfcn_nano", "--backend", "mxnet"], 2, "no backend is called 'mxnet'"),
        (["frobnicate"], 2, "No such command"),
        (["bench-labels", "csfcn_nano"], 2, "now: python scripts/label_cost.py"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_user_mistakes_are_one_clear_line(
    arguments: list[str], code: int, message: str, rtseg: Run, tmp_path: Path
) -> None:
    done = rtseg(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 8
    assert not (tmp_path / "artifacts").exists()


def test_debug_shows_the_traceback(rtseg: Run, tmp_path: Path) -> None:
    done = rtseg("--debug", "inspect", "absent.onnx", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("torch.nn", r'networks need the package torch: pip install "rtseg[export]"'),
        ("ray", r'fleets need the package ray: pip install "rtseg[fleet]"'),
    ],
)
def test_an_absent_extra_is_named(
    module: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rtseg.cli import app

    monkeypatch.setattr(app, "app", Mock(side_effect=ModuleNotFoundError(name=module)))
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == 1
    assert capsys.readouterr().err == localize(f"rtseg: {line}\n")
    monkeypatch.setattr(app, "app", Mock(side_effect=ModuleNotFoundError(name="rtseg.gone")))
    with pytest.raises(ModuleNotFoundError):
        app.main()


def test_the_log_is_lines_or_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rtseg.cli import app

    make_record = logging.getLogRecordFactory()

    def make_marked(*args: Any, **keywords: Any) -> logging.LogRecord:
        record = make_record(*args, **keywords)
        vars(record)["_ray_timestamp_ns"] = 1  # as Ray does from its import on
        return record

    monkeypatch.setattr(logging, "_logRecordFactory", make_marked)
    monkeypatch.setattr(app, "app", Mock())
    for command, options in (("bench", ["--log-level", "info"]), ("drive", [])):
        monkeypatch.setattr("sys.argv", ["rtseg", command, *options, "x"])
        app.main()
        assert app.app.call_args.kwargs["args"] == [command, "x"]
        logging.getLogger("rtseg").info("state %s", "running", extra={"frames": 3})
    # Threads of other tests may log too.
    said = [line for line in capsys.readouterr().err.splitlines() if "state running" in line]
    line, as_json = said
    assert re.fullmatch(r"\d\d:\d\d:\d\d state running  frames=3", line)
    facts = json.loads(as_json)
    assert (facts["level"], facts["message"], facts["frames"]) == ("info", "state running", 3)
    monkeypatch.setattr("sys.argv", ["rtseg", "--log-level=loud", "bench"])
    with pytest.raises(SystemExit):
        app.main()
    assert "--log-level is debug, info, warning, error, not 'loud'" in capsys.readouterr().err


def test_an_old_option_is_understood_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rtseg.cli import app

    monkeypatch.setattr(app, "app", Mock())
    monkeypatch.setattr("sys.argv", ["rtseg", "demo", "a.mp4", "--colour-blind"])
    app.main()
    assert app.app.call_args.kwargs["args"] == ["demo", "a.mp4", "--color-blind"]
    assert "--colour-blind is called --color-blind now" in capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    """What makes it quick: none of these is imported at the start."""
    code = (
        "import sys\nfrom rtseg.cli import main\nsys.argv = ['rtseg', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "quickstart" in done.stdout
    assert not {"torch", "numpy", "cv2", "pydantic", "openvino", "yaml"} & set(done.stderr.split())


def test_help_is_grouped_and_as_wide_as_the_terminal(rtseg: Run) -> None:
    page = rtseg("--help").stdout
    for command in COMMANDS:
        assert re.search(rf"^  {command}  ", page, flags=re.MULTILINE), command
    page = rtseg("demo", "--help").stdout
    assert "Examples:\n  rtseg demo drive.mp4 -o labeled.mp4\n  rtseg demo" in page
    assert page.index("Options:") < page.index("Look:") < page.index("Live page:")


def pages(command: object, *names: str) -> Iterator[tuple[str, ...]]:
    """The words of every command and group below this one, itself first."""
    yield names
    for name, below in getattr(command, "commands", {}).items():
        yield from pages(below, *names, name)


@pytest.mark.parametrize("words", list(pages(get_command(front_door))), ids=" ".join)
def test_help_fits_eighty_columns(words: tuple[str, ...]) -> None:
    def page(columns: int) -> str:
        return (
            CliRunner().invoke(front_door, [*words, "--help"], env={"COLUMNS": str(columns)}).stdout
        )

    def examples(text: str) -> list[list[str]]:
        below = text.partition("\nExamples:\n")[2].partition("\n\n")[0]
        return [shlex.split(line) for line in below.replace("\\\n", "").splitlines()]

    narrow = page(80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert not re.search(r"^  \w.*\.\.\.$", narrow, flags=re.MULTILINE)
    # What is folded can be pasted into a shell as it stands.
    assert examples(narrow) == examples(page(160))


def test_names_are_completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from rtseg.cli import _options as options

    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "a.onnx").touch()
    (tmp_path / "artifacts" / "a.txt").touch()
    assert {"csfcn_tiny", "csfcn_nano"} <= set(options.complete_models("csfcn_"))
    assert options.complete_models("csfcn_t") == ["csfcn_tiny"]
    assert options.complete_models("art") == ["artifacts/"]
    assert options.complete_models("artifacts/") == ["artifacts/a.onnx"]
    assert {"csfcn_nano_camvid"} <= set(options.complete_recipes("csfcn_nano"))
    assert "camvid" in options.complete_data("cam")
    assert "camvid" in options.complete_classes("camv")
    assert options.complete_backends("open") == ["openvino"]


def test_bench_prints_ours_beside_eager(rtseg: Run, onnx: Path) -> None:
    report = as_json(rtseg("bench", onnx, "--runs", 5, "--seconds", 0.5, "--json"))
    backends = [row["backend"] for row in report["rows"]]
    assert "eager" in backends
    assert len(backends) >= 2
    ours = next(row for row in report["rows"] if row["backend"] != "eager")
    assert ours["against_eager"]["frame_to_labels"]["ratio"] > 0
    assert ours["frame_to_labels"]["p99_ms"] >= ours["frame_to_labels"]["p50_ms"]


def test_quickstart_makes_a_report(rtseg: Run, tmp_path: Path) -> None:
    done = rtseg("quickstart", "-o", tmp_path / "qs", "--seconds", 0.2)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "qs" / "report.html").read_text()
    pictures = re.findall(r'<img src="([^"]+)"', page)
    assert pictures
    for picture in pictures:
        assert (tmp_path / "qs" / picture).stat().st_size > 10_000
    sizes = {p.name.split("_")[2] for p in (tmp_path / "qs" / "artifacts").glob("*.onnx")}
    assert sizes == {"344x608", "512x912", "680x1216"}
    assert json.loads((tmp_path / "qs" / "bench.json").read_text())["rows"]


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("a wish"), 2), (ProofError("fell"), 1), (OSError("full"), 1)]
)
def test_errors_on_purpose_become_a_line(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rtseg.cli import app

    monkeypatch.setattr(app, "app", Mock(side_effect=error))
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == code
    assert capsys.readouterr().err == f"rtseg: {error}\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from rtseg.cli import app

    monkeypatch.setattr(app, "app", Mock(side_effect=ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        app.main()


def test_entries_of_a_checkpoint_can_be_let_go(rtseg: Run, tmp_path: Path) -> None:
    state = build("csfcn_nano").state_dict() | {"my_head.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "w.pth")
    arguments = ("csfcn_nano", "--weights", tmp_path / "w.pth", "--size", "64x128", "-o", tmp_path)
    refused = rtseg("export", *arguments)
    assert refused.returncode == 2
    assert "1 unexpected: my_head.weight" in refused.stderr
    assert "--ignore-keys" in refused.stderr
    assert rtseg("export", *arguments, "--ignore-keys", "my_head.*").returncode == 0
