"""Two recordings in one drive of an artifact, in its worker process, while one of them breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from rtseg.data.scenes import scenes
from rtseg.export import export
from rtseg.models.loading import load_model
from rtseg.runtime import Drive, Result, Status, load
from rtseg.runtime.drive.named_sources import open_cameras
from torch import nn


@pytest.mark.parametrize("trouble", ["unreadable", "disappears"])
def test_a_folder_that_breaks_costs_the_other_camera_nothing(trouble: str, tmp_path: Path) -> None:
    """An artifact in its worker process, and two folders as the command opens them; the rear one's
    last frames are no pictures, or are deleted while it is played."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))
    model = load_model(net, size=(64, 96), classes="numbered", normalize="unit")
    (made,) = export(model, to=["onnx"], out=tmp_path)
    for seed, name in enumerate(("front", "rear")):
        (tmp_path / name).mkdir()
        for index, image in enumerate(scenes(12, (64, 96), seed=seed)):
            cv2.imwrite(str(tmp_path / name / f"{index:02}.png"), image)
    last = sorted((tmp_path / "rear").iterdir())[4:]
    got: list[Any] = []

    def keep(message: Any) -> None:
        got.append(message)
        seen = isinstance(message, Result) and message.camera == "rear"
        if trouble == "disappears" and seen:
            for path in last:
                path.unlink(missing_ok=True)

    if trouble == "unreadable":
        for path in last:
            path.write_bytes(path.read_bytes()[:40])
    sources = open_cameras(
        [f"{each}={tmp_path / each}" for each in ("front", "rear")], 5, False, None
    )
    report = Drive(sources, made.path, [keep], every_frame=True).run(300)
    front, rear = (report.cameras[name] for name in ("front", "rear"))
    assert (front.frames.captured, front.frames.published) == (12, 12)
    lost = rear.frames.dropped["corrupt"]
    assert rear.frames.published == 12 - lost
    assert lost == 8 if trouble == "unreadable" else 0 < lost <= 8
    told = [m for m in got if isinstance(m, Status) and m.cause == "corrupt"]
    assert {status.camera for status in told} == {"rear"}
    assert report.ended == "source ended"
    with load(made.path) as segment:
        for result in got:
            if isinstance(result, Result):
                assert (result.labels == segment(result.image)).mean() > 0.999
