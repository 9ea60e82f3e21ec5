"""Overlays, layouts, palettes, and the files that the demo writes."""

from __future__ import annotations

import base64
import json
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Run, as_json
from rtseg.data.classes import CAMVID, CITYSCAPES, ClassSet
from rtseg.data.frames import name_apart, open_source
from rtseg.data.images import blend, colorize, draw_legend
from rtseg.data.playback import open_recording
from rtseg.data.scenes import scenes
from rtseg.demo import quickstart
from rtseg.demo.layout import Seen, compose, plan
from rtseg.demo.palettes import color_blind_safe, nearest_pair
from rtseg.demo.predict import predict
from rtseg.demo.video import Look, demo, format_figures
from rtseg.demo.writers import has_display, open_writer
from rtseg.errors import UsageError
from rtseg.export import export
from rtseg.models.loading import Model, load_model

SIZE = (120, 160)
FRAMES = 3


class Fake:
    """A segmenter that sees one class everywhere."""

    def __init__(self, number: int = 3, classes: ClassSet = CAMVID):
        self.number, self.calls = number, 0
        self.card = SimpleNamespace(model="fake", size=SIZE, class_table=classes)
        self.info = SimpleNamespace(precision="fp32", name="none")

    def __call__(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.calls += 1
        return np.full(frame.shape[:2], self.number, np.uint8)

    def label_picture(self, picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self(picture)

    def stream_pictures(self, pictures: Iterable[Any]) -> Iterator[Any]:
        return map(self, pictures)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    folder = tmp_path / "clip"
    folder.mkdir()
    for number, scene in enumerate(scenes(FRAMES, SIZE)):
        cv2.imwrite(str(folder / f"{number}.png"), scene)
    return folder


def run(clip: Path, out: Path, *models: Any, **options: Any) -> Any:
    return demo(open_source(clip), models or [Fake()], out, **options)


def frames_of(video: Path) -> list[np.ndarray[Any, Any]]:
    capture, frames = cv2.VideoCapture(str(video)), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".avi"])
def test_a_video_has_every_frame_at_its_rate(clip: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"demo{ending}"
    summary = run(clip, out, fps=5)
    assert (summary.frames, summary.written) == (FRAMES, [str(out)])
    assert len(frames_of(out)) == FRAMES
    assert cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_images_play_at_cityscapes_rate(clip: Path, tmp_path: Path) -> None:
    run(clip, tmp_path / "demo.mp4")
    rate = cv2.VideoCapture(str(tmp_path / "demo.mp4")).get(cv2.CAP_PROP_FPS)
    assert rate == pytest.approx(17)


def test_a_gif_plays(clip: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="a GIF needs Pillow")
    run(clip, tmp_path / "demo.gif", fps=10)
    with image.open(tmp_path / "demo.gif") as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (FRAMES, 100, 0)


def test_a_png_is_one_frame_and_a_folder_has_all(clip: Path, tmp_path: Path) -> None:
    assert run(clip, tmp_path / "one.png").frames == 1
    summary = run(clip, tmp_path / "all")
    assert [Path(p).name for p in summary.written] == [f"{i}.png" for i in range(FRAMES)]
    assert run(clip, tmp_path / "few", limit=2).frames == 2


def test_unreadable_frames_are_counted(clip: Path, tmp_path: Path) -> None:
    (clip / "1.png").write_bytes(b"no picture")
    summary = run(clip, tmp_path / "demo.mp4")
    assert (summary.frames, len(summary.skipped)) == (FRAMES - 1, 1)


def test_a_model_that_fails_leaves_a_partial_video(clip: Path, tmp_path: Path) -> None:
    class Failing(Fake):
        def __call__(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            if self.calls == 2:
                raise RuntimeError("out of memory")
            return super().__call__(frame)

    with pytest.raises(RuntimeError, match="out of memory"):
        run(clip, tmp_path / "demo.mp4", Failing())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "demo.mp4.partial"]


def test_a_video_on_a_full_disk_keeps_its_partial_name(tmp_path: Path) -> None:
    noise, writer = np.random.default_rng(0), open_writer(tmp_path / "demo.mp4", 5)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        for number in range(20):
            writer.add(noise.integers(0, 255, (*SIZE, 3), np.uint8), str(number))
        with pytest.raises(
            OSError, match=r"demo\.mp4\.partial holds 0 of 20 .*rename it to end in \.mp4"
        ):
            writer.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.mp4.partial"]


def test_a_prediction_that_is_stopped_leaves_a_partial_video(tmp_path: Path) -> None:
    class Stopped(Fake):
        def __call__(self, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().__call__(frame)

    video = open_writer(tmp_path / "drive.mp4", 5)
    for scene in scenes(FRAMES, SIZE):
        video.add(scene, "")
    video.finish()
    segmenter: Any = Stopped()
    segmenter.card.palette = CAMVID.palette
    with pytest.raises(KeyboardInterrupt):
        predict(open_source(tmp_path / "drive.mp4"), segmenter, tmp_path / "out")
    names = [path.name for path in (tmp_path / "out").iterdir() if path.is_file()]
    assert names == ["drive.mp4.partial"]


def test_images_of_one_name_get_names_apart(tmp_path: Path) -> None:
    for name in ("left/000.png", "right/000.png"):
        (tmp_path / name).parent.mkdir()
        cv2.imwrite(str(tmp_path / name), np.zeros((*SIZE, 3), np.uint8))
    segmenter: Any = Fake()
    segmenter.card.palette = CAMVID.palette
    (tmp_path / "left" / "torn.png").write_bytes(b"no picture")
    summary = predict(open_source(tmp_path), segmenter, tmp_path / "out")
    assert len(summary.skipped) == 1
    assert summary.ms >= 0
    labels = sorted(path.name for path in (tmp_path / "out" / "labels").iterdir())
    assert (summary.frames, labels) == (2, ["left_000.png", "right_000.png"])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/1/a.png", "x/2/b.png"], ["a", "b"]),
        (["x/1/a.png", "x/2/a.png"], ["1_a", "2_a"]),
        (["x/a.png", "x/a.jpg"], ["a_png", "a_jpg"]),
    ],
)
def test_names_apart(paths: list[str], names: list[str]) -> None:
    assert name_apart([Path(path) for path in paths]) == names


def test_names_that_cannot_be_told_apart() -> None:
    with pytest.raises(UsageError, match="would be called 1_a_png: rename one"):
        name_apart([Path("1/a.png"), Path("1_a.png"), Path("a.png"), Path("a.jpg")])


def test_panels_show_the_frame_and_every_model(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.png"
    run(clip, out, Fake(3), Fake(8), look=Look(opacity=1.0))
    picture = cv2.imread(str(out))
    height, width = SIZE
    middle = height // 2 + 20
    at = [picture[middle, width // 2 + i * (width + 4)].tolist() for i in range(3)]
    assert at[0] == cv2.imread(str(clip / "0.png"))[middle, width // 2].tolist()
    assert at[1:] == [list(CAMVID.palette[number][::-1]) for number in (3, 8)]


@pytest.mark.parametrize("models", [1, 2, 3, 5])
@pytest.mark.parametrize("camera", [True, False])
@pytest.mark.parametrize("size", [(1024, 2048), (361, 481), (90, 50)])
def test_every_layout_is_even_and_fits(models: int, camera: bool, size: tuple[int, int]) -> None:
    layout = plan(size, models, camera, 0.5, 1920)
    frame = np.zeros((*size, 3), np.uint8)
    seen = [Seen("title", "1 ms", CITYSCAPES, np.zeros(size, np.uint8))] * models
    picture = compose(frame, seen, layout)
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    assert picture.shape[1] <= 1920
    rows = -(-(models + camera) // layout.columns)
    assert picture.shape[0] > rows * layout.panel[0]  # and the legend below


def test_a_frame_of_another_shape_is_not_stretched(tmp_path: Path) -> None:
    layout = plan((100, 200), 1, False, 0.5, 1920)
    seen = [Seen("", "", CAMVID, np.zeros((100, 100), np.uint8))]
    picture = compose(np.full((100, 100, 3), 255, np.uint8), seen, layout)
    assert picture[60, 20].tolist() == [0, 0, 0]
    assert picture[60, 100].any()


def test_the_first_frame_pays_for_the_warm_up(clip: Path, tmp_path: Path) -> None:
    fake = Fake()
    (facts,) = run(clip, tmp_path / "all", fake).models
    assert fake.calls == FRAMES + 1
    assert 0 < facts["median_ms"] <= facts["p99_ms"]


def test_colors_and_blending_are_the_palette_s() -> None:
    labels = np.array([[0, 10], [255, 3]], np.uint8)
    colored = colorize(labels, CAMVID.palette)
    assert colored[0, 1].tolist() == list(CAMVID.palette[10][::-1])
    assert colored[1, 0].tolist() == [0, 0, 0]
    frame = np.full((2, 2, 3), 100, np.uint8)
    np.testing.assert_array_equal(blend(frame, labels, CAMVID.palette, 0.0), frame)
    colored[1, 0] = 100  # what counts for nothing shows the frame
    np.testing.assert_array_equal(blend(frame, labels, CAMVID.palette, 1.0), colored)


@pytest.mark.parametrize("classes", [CITYSCAPES, CAMVID], ids=lambda c: c.name)
def test_legends_have_every_color(classes: ClassSet) -> None:
    for picture in (draw_legend(classes, 900), draw_legend(classes, 90)):
        colors = set(map(tuple, picture.reshape(-1, 3).tolist()))
        assert {rgb[::-1] for rgb in classes.palette} <= colors


@pytest.mark.parametrize("classes", [CITYSCAPES, CAMVID], ids=lambda c: c.name)
def test_safe_colors_stay_apart_in_every_vision(classes: ClassSet) -> None:
    safe = color_blind_safe(classes)
    assert (safe.names, safe.label_ids) == (classes.names, classes.label_ids)
    assert nearest_pair(classes.palette) < 5  # CIE Lab; about 2 can just be told apart
    assert nearest_pair(safe.palette) > 15


def test_a_wrong_ending_and_a_missing_display_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"\.xyz has an ending .* \.mp4"):
        open_writer(tmp_path / "demo.xyz", 17)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert not has_display()
    with pytest.raises(ValueError, match="name a file with -o"):
        open_writer(None, 17)


def test_a_log_plays_at_its_own_rate(clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("mcap", reason='needs the mcap packages: pip install "rtseg[drive]"')
    from mcap.writer import Writer

    log, out = tmp_path / "drive.mcap", tmp_path / "demo.mp4"
    with log.open("wb") as file:
        writer = Writer(file)
        writer.start()
        known = writer.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
        channel = writer.register_channel("/camera", "json", known)
        for number, path in enumerate(sorted(clip.iterdir())):
            data = json.dumps({"data": base64.b64encode(path.read_bytes()).decode()}).encode()
            writer.add_message(channel, number * 125_000_000, data, number * 125_000_000)
        writer.finish()
    summary = demo(open_recording(str(log)), [Fake()], out)
    assert (summary.frames, summary.written) == (FRAMES, [str(out)])
    assert cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FPS) == pytest.approx(8)


@pytest.mark.parametrize(("value", "text"), [(394.07, "394"), (25.41, "25.4"), (100.0, "100")])
def test_figures_in_the_corner_are_short(value: float, text: str) -> None:
    assert format_figures(value) == text


def test_the_command_lays_models_side_by_side(
    nano: Model, clip: Path, tmp_path: Path, rtseg: Run
) -> None:
    sizes = [(64, 96), (96, 128)]
    made = export(nano, sizes, ["onnx"], out=tmp_path)
    models = [word for artifact in made for word in ("--model", artifact.path)]
    out, ort = tmp_path / "demo.mp4", ("--backend", "onnxruntime")
    facts = as_json(rtseg("demo", clip, *models, "-o", out, "--color-blind", *ort, "--json"))
    assert (facts["frames"], facts["written"]) == (FRAMES, [str(out)])
    assert [model["size"] for model in facts["models"]] == ["64x96", "96x128"]
    assert frames_of(out)[0].shape[1] == 3 * SIZE[1] + 2 * 4


@pytest.mark.parametrize(("weights", "seen"), [("streets", True), ("camvid", False)])
def test_the_quick_start_says_if_its_frames_were_trained_on(tmp_path, weights, seen):
    notes = quickstart._notes(load_model(f"csfcn_nano:{weights}"), None, [], tmp_path)
    assert any("trained on: see" in note for note in notes) is seen
