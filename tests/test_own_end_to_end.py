"""Networks from outside the zoo, from export to a drive, by scripts/own_end_to_end.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import rtseg
import torch
from conftest import load_script
from rtseg.data.frames import open_source
from rtseg.data.scenes import scenes
from rtseg.models.loading import Model

SIZE = (64, 96)


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))  # it imports its neighbor
        yield load_script("own_end_to_end")


@pytest.fixture(scope="module")
def lesson(script: Any, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return script.read_lesson(shared_data / "camvid/val", SIZE, tmp_path_factory.mktemp("teacher"))


@pytest.mark.parametrize("name", ["unet", "file"])
def test_everything_is_made_of_it_and_answers(
    name: str, script: Any, lesson: Any, shared_data: Path, tmp_path: Path
) -> None:
    """In float32 and int8, proven on real frames and driven by a worker process; and an engine."""
    frames = shared_data / "camvid/val"
    entry = script.NETWORKS[name]
    torch.manual_seed(0)
    net = script.teach(entry.build(), *lesson, 30)
    model: Model = script.open_network(net, entry.as_file, SIZE, name, tmp_path)
    assert model.weights_from.endswith(".onnx") == entry.as_file
    made = rtseg.export(model, to="onnx", precision="fp32", out=tmp_path, frames=frames)
    made += rtseg.export(model, to="onnxruntime", precision="int8", out=tmp_path, calib=frames)
    assert [each.status for each in made] == ["proven", "proven"]
    exact, rounded = (each.results[0].agreement for each in made)
    assert exact > 0.999
    assert rounded > 0.97
    facts = made[1].card.int8
    assert facts is not None
    assert facts.share > 0.5
    for artifact in made:
        seen: list[Any] = []
        clip = open_source(frames)
        report = rtseg.Drive(
            replace(clip, paths=clip.paths[:6]), artifact.path, [seen.append], every_frame=True
        ).run(300)
        assert (report.frames.captured, report.frames.published) == (6, 6)
        with rtseg.load(artifact.path) as segment:
            for result in seen:
                assert (result.labels == segment(result.image)).mean() > 0.999
    if not find_spec("tensorrt_rtx"):
        pytest.skip("all but the engine passed, which needs tensorrt_rtx to be built")
    (engine,) = rtseg.export(model, to="tensorrt", precision="fp16", out=tmp_path)
    assert engine.status in ("built, not proven", "proven")
    assert engine.card.engine is not None
    assert engine.card.engine.layers > 20


def test_the_page_says_what_the_run_found(script: Any, tmp_path: Path) -> None:
    """A row for each way that a file was run; what is absent says why."""
    torch.manual_seed(0)
    model = script.open_network(torch.nn.Conv2d(3, 11, 3, 8, 1), False, SIZE, "tiny", tmp_path)
    made = rtseg.export(model, to="onnx", precision="fp32", out=tmp_path)
    for place, scene in enumerate(scenes(3, SIZE)):
        (tmp_path / "clip").mkdir(exist_ok=True)
        script.cv2.imwrite(str(tmp_path / "clip" / f"{place}.png"), scene)
    rows = rtseg.bench(model, backend="onnxruntime", seconds=0.05, runs=5, camera_hz=None).rows
    report = script.drive_over(tmp_path / "clip", made[0], 2)
    outcome = script.Outcome("tiny", made, rows, {made[0].path.name: report}, 1.0)
    page = script.write_page([outcome], ["another: left out, x is not installed"], "64x96")
    (row,) = [line for line in page.splitlines() if "tiny_64x96_fp32.onnx" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["tiny", "tiny_64x96_fp32.onnx", "onnxruntime fp32", "passed"]
    assert float(cells[4]) > 99.9
    low, high = (float(each) for each in cells[5].split("(")[1].strip(")").split("-"))
    assert low <= float(cells[5].split()[0]) <= high
    assert cells[6] == "2 of 2"
    assert "- another: left out, x is not installed" in page
