"""Networks from outside the zoo, from export to a drive, by scripts/own_end_to_end.py."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import rtseg
import torch
from conftest import ROOT, Run, load_script
from rtseg.data.classes import CAMVID
from rtseg.data.frames import open_source
from rtseg.data.scenes import scenes
from rtseg.models.loading import Model

SIZE = (64, 96)


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("own_end_to_end")


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


@pytest.mark.slow  # a minute of one core, most of it the race
def test_the_script_writes_its_page(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """As its command is typed, on small frames; what is absent is left out, with the reason."""
    script, page = load_script("own_end_to_end"), tmp_path / "page.md"
    for path in open_source(shared_data / "camvid/val").paths[:48:2]:
        (tmp_path / "frames").mkdir(exist_ok=True)
        small = script.cv2.resize(script.read_image(path), SIZE[::-1])
        script.cv2.imwrite(str(tmp_path / "frames" / path.name), small)
    words = f"{tmp_path}/frames --size 64x96 --networks unet segformer --steps 30"
    words += f" --drive-frames 3 --seconds 0.05 -o {page}"
    monkeypatch.setattr(sys, "argv", ["own_end_to_end.py", *words.split()])
    monkeypatch.setattr(script, "find_spec", lambda name: False)  # neither engine nor transformers
    script.main()
    text = page.read_text()
    # Processors with bfloat16 have rows more.
    assert {"unet_64x96_fp32.onnx", "unet_64x96_int8.xml"} <= set(text.replace("|", " ").split())
    assert "SegFormer-B0 of transformers: left out, transformers is not installed" in text
    assert "3 of 3" in text
    assert "64x96, 30 steps of teaching" in text


@pytest.mark.slow  # eight processes, one of which starts Ray
@pytest.mark.skipif(not find_spec("tensorrt_rtx"), reason="needs tensorrt_rtx for the engine")
@pytest.mark.skipif(not find_spec("ray"), reason='needs Ray: pip install "rtseg[fleet]"')
def test_the_end_of_the_how_to_does_what_it_says(
    rtseg: Run, script: Any, lesson: Any, shared_data: Path, tmp_path: Path
) -> None:
    """Its commands, on files that a stranger would have, and its program."""
    (tmp_path / "mypackage").mkdir()
    nets = (ROOT / "examples/own_network.py").read_text()
    nets += f"\ndef make_net():\n    return UNet({script.CLASSES})\n"
    (tmp_path / "mypackage" / "nets.py").write_text(nets)
    torch.manual_seed(0)
    net = script.teach(script.import_module("own_network").UNet(script.CLASSES), *lesson, 60)
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    names = tmp_path / "classes.yaml"
    names.write_text(f"[{', '.join(CAMVID.names)}]")
    for place, path in enumerate(open_source(shared_data / "camvid/val").paths[:48:2]):
        small = script.cv2.resize(script.read_image(path), SIZE[::-1])
        places = [tmp_path / "frames", tmp_path / "logs/monday", tmp_path / "mine/images/val"]
        for folder in places[: 3 if place < 2 else 2]:
            folder.mkdir(parents=True, exist_ok=True)
            script.cv2.imwrite(str(folder / path.name), small)
        if place < 2:
            (tmp_path / "mine/labels/val").mkdir(parents=True, exist_ok=True)
            script.cv2.imwrite(str(tmp_path / "mine/labels/val" / path.name), small[..., 0] % 11)
    (tmp_path / "mine/classes.yaml").write_text(names.read_text())
    page = (ROOT / "docs/howto/own-network.md").read_text().partition("## Afterwards")[2]
    page = page.replace("512x1024", "64x96").replace("(512, 1024)", "(64, 96)")
    commands = re.findall(r"^\$ rtseg (.+)$", page, re.MULTILINE)
    assert [command.split()[0] for command in commands] == [
        *("export", "export", "bench", "eval", "drive", "fleet")
    ]
    for command in commands:
        quick = ["--seconds", "0.1"] if command.startswith("bench") else []
        done = rtseg(*shlex.split(command), *quick, cwd=tmp_path)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert len(list((tmp_path / "drive/labels").glob("*.png"))) == 24
    assert len(list((tmp_path / "labels").rglob("*.png"))) == 24
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    program = program.replace('int8.xml"]', 'int8.xml"], seconds=0.1, camera_hz=None')
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("openvino int8")]
    assert "Speedup" in line


def test_the_page_says_what_the_run_found(script: Any, tmp_path: Path) -> None:
    """A row for each way that a file was run; what is absent says why."""
    torch.manual_seed(0)
    model = script.open_network(torch.nn.Conv2d(3, 11, 3, 8, 1), False, SIZE, "tiny", tmp_path)
    made = rtseg.export(model, to="onnx", precision="fp32", out=tmp_path)
    for place, scene in enumerate(scenes(3, SIZE)):
        (tmp_path / "clip").mkdir(exist_ok=True)
        script.cv2.imwrite(str(tmp_path / "clip" / f"{place}.png"), scene)
    race = rtseg.bench(model, backend="onnxruntime", seconds=0.05, runs=5, camera_hz=None)
    report = script.drive_over(tmp_path / "clip", made[0], 2)
    outcome = script.Outcome("tiny", made, race, {made[0].path.name: report}, 1.0)
    page = script.write_page([outcome], ["another: left out, x is not installed"], "64x96")
    (row,) = [line for line in page.splitlines() if "tiny_64x96_fp32.onnx" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["tiny", "tiny_64x96_fp32.onnx", "onnxruntime fp32", "passed"]
    assert float(cells[4]) > 99.9
    low, high = (float(each) for each in cells[5].split("(")[1].strip(")").split("-"))
    assert low <= float(cells[5].split()[0]) <= high
    assert cells[6] == "2 of 2"
    assert "- another: left out, x is not installed" in page
