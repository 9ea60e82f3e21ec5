"""The public API: what `import rtseg` gives, how fast, and in whatever order."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import rtseg
from rtseg.data.classes import CAMVID, CITYSCAPES
from rtseg.errors import CheckpointError, RtsegError, UsageError
from rtseg.models import build, save_checkpoint


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_reads_nothing_heavy() -> None:
    """What makes it instant: none of these, each of which takes longer than a tenth of a second."""
    code = "import sys, rtseg; print(*{n.split('.')[0] for n in sys.modules})"
    assert not {"torch", "numpy", "cv2", "onnxruntime", "pydantic"} & set(python(code).split())


def test_running_artifacts_needs_no_pytorch() -> None:
    assert python("import sys, rtseg; rtseg.load, rtseg.Drive; print('torch' in sys.modules)") == (
        "False"
    )


def test_every_public_name_is_there_and_listed() -> None:
    assert sorted(rtseg.__all__) == rtseg.__all__
    for name in rtseg.__all__:
        assert getattr(rtseg, name) is not None
        assert name in dir(rtseg)
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        _ = rtseg.exprot  # type: ignore[attr-defined]


def test_errors_are_one_tree() -> None:
    errors = [value for name in rtseg.__all__ if inspect.isclass(value := getattr(rtseg, name))]
    errors = [error for error in errors if issubclass(error, Exception)]
    assert len(errors) >= 10
    assert all(issubclass(error, RtsegError) for error in errors)
    assert issubclass(UsageError, ValueError)


@pytest.mark.parametrize("name", ["export", "train"])
@pytest.mark.parametrize(
    "order",
    [
        "import rtseg; f = rtseg.{name}",
        "import rtseg.{name}; f = rtseg.{name}",
        "from rtseg.{name} import {name}; import rtseg; f = rtseg.{name}",
        "import rtseg.{name}.{module}, rtseg; f = rtseg.{name}",
        "import rtseg; f = rtseg.{name}; import rtseg.{name}.{module}",
        "from rtseg import {name} as f",
    ],
)
def test_a_package_and_its_function_share_a_name(name: str, order: str) -> None:
    module = {"export": "parity", "train": "recipe"}[name]
    check = (
        "import sys, inspect; assert callable(f), f\n"
        "assert f is sys.modules['rtseg.{name}']\n"
        "assert f is not f.{name} and inspect.signature(f) == inspect.signature(f.{name})\n"
        "import rtseg; assert rtseg.{name} is f"
    )
    python(f"{order}\n{check}".format(name=name, module=module))


def test_load_model_takes_what_a_user_has(tmp_path: Path) -> None:
    shipped = rtseg.load_model("csfcn_nano:camvid")
    assert (shipped.classes, shipped.trained) == (CAMVID, True)
    path = tmp_path / "mine.safetensors"
    save_checkpoint(shipped.network, path, metadata={"classes": "camvid"})
    for model in (
        rtseg.load_model("csfcn_nano", weights=path),
        rtseg.load_model("csfcn_nano", str(path), "camvid"),
        rtseg.load_model(f"csfcn_nano:{path}"),
        rtseg.load_model(path),
        rtseg.load_model(os.fspath(path), classes=CAMVID),
    ):
        assert (model.classes, model.weights_from, model.trained) == (CAMVID, path.name, True)
    assert rtseg.load_model(shipped) is shipped
    own = rtseg.load_model(build("csfcn_nano", 19))
    assert (own.classes, own.weights_from) == (CITYSCAPES, "memory")
    assert rtseg.load_model(build("csfcn_nano", 3)).classes.names == (
        "class 0",
        "class 1",
        "class 2",
    )


def test_load_model_says_what_is_wrong(tmp_path: Path) -> None:
    for what, options, message in (
        ("csfcn_nanno", {}, "did you mean 'csfcn_nano'"),
        ("csfcn_nano", {"classes": "camvit"}, "did you mean 'camvid'"),
        ("csfcn_nano:a.pth", {"weights": "b.pth"}, "names its weights already"),
        (build("csfcn_nano"), {"weights": "b.pth"}, "has its weights already"),
        (build("csfcn_nano"), {"classes": "camvid"}, "has 11 classes, the network 19"),
    ):
        with pytest.raises(UsageError, match=message):
            rtseg.load_model(what, **options)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        rtseg.load_model("csfcn_nano", tmp_path / "absent.pth")


def test_old_spellings_are_understood_and_told(tmp_path: Path) -> None:
    from rtseg.data.classes import load_class_set
    from rtseg.train.recipe import load_recipe

    with pytest.warns(FutureWarning, match="'optimiser' is called 'optimizer' now"):
        recipe = load_recipe("csfcn_camvid", ["optimiser.clip=2"])
    assert recipe.optimizer.clip == 2
    with pytest.warns(FutureWarning, match="'quantise' is called 'quantize' now"):
        assert load_recipe("csfcn_camvid", ["quantise=int8"]).quantize == "int8"
    classes = tmp_path / "two.yaml"
    classes.write_text("- {name: road, colour: [1, 2, 3]}\n- sky\n")
    with pytest.warns(FutureWarning, match="'colour' is called 'color' now"):
        assert load_class_set(classes).palette[0] == (1, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_recipe("csfcn_camvid", ["optimizer.clip=2"])


def test_train_takes_a_name_or_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from rtseg.train import trainer
    from rtseg.train.recipe import load_recipe

    seen: list[object] = []
    monkeypatch.setattr(trainer, "train", lambda *arguments: seen.append(arguments))
    rtseg.train("csfcn_camvid", {"optimizer.clip": 3}, resume=True)
    rtseg.train(load_recipe("csfcn_camvid"), out="here")
    (named, folder, resume, _), (given, here, *_) = seen  # type: ignore[misc]
    assert (named.optimizer.clip, folder, resume) == (3, Path("runs/csfcn_camvid"), True)
    assert (given.model, here) == ("csfcn", Path("here"))


def test_evaluate_takes_what_load_model_and_load_take(tmp_path: Path) -> None:
    from rtseg.data.datasets import open_data
    from tiny_camvid import write_camvid

    root = write_camvid(tmp_path / "camvid", frames=1)
    model = rtseg.load_model("csfcn_nano:camvid")
    size = open_data("camvid", root, "val")[0].image.shape[:2]
    of_network = rtseg.evaluate(model, "camvid", root=root, worst=tmp_path / "worst.png")
    assert (tmp_path / "worst.png").stat().st_size > 0
    (artifact,) = rtseg.export(model, size=size, out=tmp_path / "out")
    of_artifact = rtseg.evaluate(artifact.path, "camvid", root=root)
    with rtseg.load(artifact.path) as segment:
        assert rtseg.evaluate(segment, "camvid", root).to_json() == of_artifact.to_json()
    miou = of_network.as_dict()["miou"]
    assert of_artifact.as_dict()["miou"] == pytest.approx(miou, abs=0.01)
    with pytest.raises(UsageError, match="an artifact runs as exported"):
        rtseg.evaluate(artifact.path, "camvid", root, flip=True)
    with pytest.raises(UsageError, match="the model has 19 classes"):
        rtseg.evaluate("sfnet_r18", "camvid", root)
    with pytest.raises(UsageError, match=r"add root \(--root DIR\)"):
        rtseg.evaluate(model, "camvid")
