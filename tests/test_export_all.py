"""The whole zoo's export: one row a job, failures that stop nothing, runs that go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rtseg.export import export_zoo as zoo
from rtseg.export.export_zoo import (
    ZooJob,
    ZooRow,
    build_table,
    export_all,
    read_rows,
    run_job,
    select_variants,
    write_markdown,
    write_rows,
)
from typer.testing import CliRunner

SIZE = (64, 128)


@pytest.fixture(scope="module")
def nano_row(tmp_path_factory: pytest.TempPathFactory) -> ZooRow:
    folder = tmp_path_factory.mktemp("zoo")
    row = run_job(ZooJob("csfcn_nano", SIZE, "fp16", ("onnx",), 1), folder, keep=False)
    assert not list(folder.iterdir())
    return row


def test_a_row_tells_what_was_made_and_how_it_was_proven(nano_row: ZooRow) -> None:
    assert nano_row.params == pytest.approx(1.61e6, rel=0.01)
    # Pooled cells do not shrink with the map.
    assert nano_row.macs == pytest.approx(2.907e9 * 64 * 128 / (512 * 1024), rel=0.05)
    assert 2 * nano_row.params < nano_row.bytes["onnx"] < 2.5 * nano_row.params
    (run,) = nano_row.runs
    assert run["backend"] == "onnxruntime"
    assert 0 < run["logits_error"] < 0.02
    assert nano_row.faults == []


def test_the_table_names_figures_and_faults(nano_row: ZooRow) -> None:
    failed = ZooRow("icnet", "64x128", "fp16", ("onnx",), 1, faults=["onnxruntime fp16: far off"])
    text = write_markdown([nano_row, failed])
    assert "| `csfcn_nano` (trained) | 1.61 |" in text
    assert "| **failed** |" in text
    assert "- icnet_64x128_fp16: onnxruntime fp16: far off" in text
    assert "2 exported to onnx, 1 failed; each proven on 1 drawn scene." in text
    assert len(build_table([nano_row, failed]).rows) == 2


def test_what_failed_is_told_and_made_again_and_what_passed_is_not(
    nano_row: ZooRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def run_in_process(job: ZooJob, out: Path, keep: bool) -> ZooRow:
        made.append(job.name)
        faults = ["too slow"] if len(made) == 1 else []
        return ZooRow(job.model, "64x128", job.precision, job.targets, job.scenes, faults=faults)

    monkeypatch.setattr(zoo, "run_in_process", run_in_process)
    names = ["csfcn", "csfcn_nano"]

    def go(**options: object) -> list[bool]:
        rows = export_all(names, SIZE, tmp_path, precisions=["fp16"], targets=["onnx"], **options)
        return [bool(row.faults) for row in rows]

    assert go() == [True, False]
    assert made == ["csfcn_nano_64x128_fp16", "csfcn_64x128_fp16"]  # the smaller one first
    assert "too slow" in (tmp_path / "zoo.md").read_text()
    assert go() == [False, False]
    assert made[2:] == ["csfcn_nano_64x128_fp16"]
    assert go(frames=2) == [False, False]  # more than the rows hold: both again
    assert len(made) == 5


def test_a_job_that_breaks_is_a_failed_row_with_its_traceback(tmp_path: Path) -> None:
    row = zoo.run_in_process(
        ZooJob("crossformer_s_fpn", (60, 128), "fp16", ("onnx",), 1), tmp_path, False
    )
    (fault,) = row.faults
    assert "multiples of 32" in fault
    assert "Traceback" in (tmp_path / "crossformer_s_fpn_60x128_fp16.error.txt").read_text()


def test_a_table_of_another_format_is_not_overwritten(nano_row: ZooRow, tmp_path: Path) -> None:
    write_rows(tmp_path / "zoo.json", [nano_row])
    assert read_rows(tmp_path / "zoo.json")[nano_row.key].runs == nano_row.runs
    (tmp_path / "zoo.json").write_text(json.dumps([{"model": "csfcn"}]))
    with pytest.raises(ValueError, match="move it away"):
        export_all(["csfcn"], SIZE, tmp_path)


def test_patterns_choose_variants() -> None:
    assert select_variants(["sfnet_r5*", "icnet"]) == ["sfnet_r50", "icnet"]
    assert len(select_variants([])) > 60
    with pytest.raises(ValueError, match="no variant fits 'resnet'"):
        select_variants(["resnet"])
    with pytest.raises(ValueError, match="did you mean"):
        export_all(["csfcnn"], SIZE, Path())


def test_the_command_fails_when_a_row_does(
    nano_row: ZooRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rtseg.cli._console import JobFailed
    from rtseg.cli.app import app

    monkeypatch.setattr(zoo, "run_in_process", lambda job, out, keep: nano_row)
    asked = ["export", "--all", "--only", "csfcn_nano", "--precision", "fp16", "--size", "64x128"]
    result = CliRunner().invoke(app, [*asked, "--json", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(result.stdout)
    assert entry["model"] == "csfcn_nano"
    nano_row.faults = ["below the bar"]
    monkeypatch.setattr(zoo, "read_rows", lambda table: {})
    result = CliRunner().invoke(app, [*asked, "-o", str(tmp_path)])
    assert isinstance(result.exception, JobFailed)
    assert "1 of 1 failed: csfcn_nano_64x128_fp16" in str(result.exception)
    result = CliRunner().invoke(app, ["export", "csfcn", "--all"])
    assert "one of the two" in str(result.exception)
