"""Checkpoints as people save them, and as they break."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import read_golden
from rtseg.errors import CheckpointError
from rtseg.models import build, digest, load_checkpoint, save_checkpoint
from rtseg.models.checkpoints import official_names
from rtseg.models.families.senformer import rename_older_keys
from rtseg.models.identify import class_entries, identify_checkpoint
from rtseg.models.loading import load_model


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return build("csfcn_nano").state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 7},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["bare", "state_dict", "model and module.", "compiled", "without counters"],
)
def test_wrappers_and_prefixes(wrap: Any, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(wrap(state), path)
    model = load_checkpoint(build("csfcn_nano"), path)
    torch.testing.assert_close(model.state_dict()["classifier.weight"], state["classifier.weight"])


@pytest.mark.parametrize("naming", ["ours", "official"])
@pytest.mark.parametrize("name", ["csfcn", "csfcn_nano"])
def test_saved_weights_come_back(name: str, naming: Any, tmp_path: Path) -> None:
    model = build(name, 11)
    path = save_checkpoint(model, tmp_path / "w.safetensors", naming=naming)
    again = load_checkpoint(build(name, 11), path)
    assert digest(again) == digest(model)
    assert identify_checkpoint(path) == name


def test_official_names_are_the_reference_s() -> None:
    names = official_names(build("csfcn"))
    assert names["backbone.layer1.0.shortcut.norm.weight"] == "resnet.layer1.0.downsample.1.weight"
    assert names["context.key.bias"] == "cfc.key_conv.bias"


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "whole_model.pth"
    torch.save(build("csfcn_nano"), path)
    with pytest.raises(CheckpointError, match="only tensors are read"):
        load_checkpoint(build("csfcn_nano"), path)


def test_what_trainers_save_beside_the_weights_is_read(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "trainer.pth"
    beside = {
        "best_mIoU": np.float64(0.788),
        "epoch": np.int64(7),
        "history": np.arange(3, dtype=np.float32),
        "args": argparse.Namespace(lr=0.01, crop=(512, 1024)),
    }
    torch.save({"state_dict": state, **beside}, path)
    load_checkpoint(build("csfcn_nano"), path)


class Config:
    """A trainer's own class, which a file must not be able to make."""


def test_the_class_that_is_refused_is_named_with_the_line_that_converts(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "trainer.pth"
    torch.save({"model": state, "config": Config()}, path)
    with pytest.raises(CheckpointError, match=r"an object of test_weights\.Config") as caught:
        load_checkpoint(build("csfcn_nano"), path)
    command = str(caught.value).splitlines()[-1]
    assert command.startswith("python -c ")
    code = command.removeprefix('python -c "').removesuffix('"')
    exec(code, {})  # in this process, which knows the class
    model = load_checkpoint(build("csfcn_nano"), tmp_path / "trainer_weights.pth")
    torch.testing.assert_close(model.state_dict()["classifier.bias"], state["classifier.bias"])


def test_a_loss_hides_behind_a_prefix_and_a_prefix_behind_a_loss(
    state: dict[str, torch.Tensor],
) -> None:
    wrapped = {f"module.model.{k}": v for k, v in state.items()}
    wrapped["module.sem_loss.criterion.weight"] = torch.ones(19)
    model = load_checkpoint(build("csfcn_nano"), wrapped)
    torch.testing.assert_close(model.state_dict()["classifier.bias"], state["classifier.bias"])


def test_keys_are_named_as_the_file_names_them(state: dict[str, torch.Tensor]) -> None:
    names = official_names(build("csfcn_nano"))
    theirs = {f"module.{names[k]}": v for k, v in state.items()}
    del theirs["module.cfc.key_conv.bias"]
    theirs["module.cfc.query_conv.weight"] = torch.zeros(3)
    theirs["module.my_head.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(build("csfcn_nano"), theirs)
    assert caught.value.missing == ["cfc.key_conv.bias"]
    assert caught.value.unexpected == ["my_head.weight"]
    assert caught.value.misshaped == ["cfc.query_conv.weight: found (3,), expected (16, 128, 1, 1)"]


def test_keys_can_be_let_go_on_purpose(
    state: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    names = official_names(build("csfcn_nano"))
    theirs = {names[k]: v for k, v in state.items() if k != "context.key.bias"}
    theirs["my_head.weight"] = torch.zeros(3)
    model = build("csfcn_nano")
    before = model.state_dict()["context.key.bias"].clone()
    for ignore in ((), ("my_head.*",), ("cfc.key_conv.bias",)):
        with pytest.raises(CheckpointError, match=r"can be let go: --ignore-keys"):
            load_checkpoint(model, theirs, ignore=ignore)
    load_checkpoint(model, theirs, ignore=("cfc.key*", "my_head.*"))
    assert torch.equal(model.state_dict()["context.key.bias"], before)
    assert torch.equal(model.state_dict()["head.conv.weight"], state["head.conv.weight"])
    assert "1 entries keep the network's own values, as asked" in caplog.text


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(
    suffix: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"half{suffix}"
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        torch.save(state, whole)
    else:
        save_checkpoint(build("csfcn_nano"), whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"half.*damaged"):
        load_checkpoint(build("csfcn_nano"), path)


@pytest.mark.parametrize(
    "content", [b"", b"hello world" * 99, b"\x80\x02q", b"(dp0\nS'a'\np9\nss."]
)
def test_a_file_of_something_else_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"odd\.pth (is|holds) .*fetch it again$"):
        load_checkpoint(build("csfcn_nano"), path)


def test_another_class_count_says_the_count_found(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(
        CheckpointError, match=r"it has 19 classes; name them with --classes .*num_classes=19"
    ):
        load_checkpoint(build("csfcn_nano", 11), state)


def test_every_key_that_does_not_fit_is_told(state: dict[str, torch.Tensor]) -> None:
    broken = {k: v for k, v in state.items() if not k.startswith("head.")} | {
        "extra": torch.ones(2)
    }
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(build("csfcn_nano"), broken)
    assert "head.conv.weight" in caught.value.missing
    assert caught.value.unexpected == ["extra"]


def test_nothing_is_half_loaded(state: dict[str, torch.Tensor]) -> None:
    model = build("csfcn_nano")
    before = digest(model)
    poisoned = dict(state) | {
        "head.conv.weight": torch.full_like(state["head.conv.weight"], torch.nan)
    }
    with pytest.raises(
        CheckpointError, match=r"NaN or infinite values, first in head\.conv\.weight"
    ):
        load_checkpoint(model, poisoned)
    with pytest.raises(CheckpointError):
        load_checkpoint(model, {k: v for k, v in state.items() if "classifier" not in k})
    assert digest(model) == before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(build("csfcn_nano"), tmp_path / "absent.pth")


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = load_model("csfcn")
    assert torch.rand(1) == expected
    assert not first.trained
    assert first.weights_from == "random, seed 0"
    assert digest(first.network) == digest(load_model("csfcn").network)


def test_another_family_is_named_with_what_differs(tmp_path: Path) -> None:
    path = save_checkpoint(build("pidnet_s", 11), tmp_path / "w.safetensors", naming="official")
    with pytest.raises(CheckpointError, match="looks like pidnet_s with 11 classes") as caught:
        load_checkpoint(build("csfcn_nano"), path)
    assert "classifier.weight" in caught.value.missing
    assert "pag3.detail.conv.weight" in str(caught.value.unexpected) or caught.value.unexpected


def test_another_size_of_the_family_is_named() -> None:
    state = build("csfcn_tiny").state_dict()
    with pytest.raises(CheckpointError, match="looks like csfcn_tiny with 19 classes") as caught:
        load_checkpoint(build("csfcn_nano"), state)
    assert any("found (" in line for line in caught.value.misshaped)


def test_a_checkpoint_of_nothing_we_have_says_so() -> None:
    with pytest.raises(CheckpointError, match="it fits no variant"):
        load_checkpoint(build("csfcn_nano"), {"features.0.weight": torch.zeros(64, 3, 3, 3)})


FIRST = {
    "csfcn": "backbone.stem.0.conv.weight",
    "pidnet_s": "stem.0.conv.weight",
    "bisenetv2": "detail.0.0.conv.weight",
}


@pytest.mark.parametrize("name", FIRST)
def test_a_new_classifier_keeps_all_else(name: str) -> None:
    torch.manual_seed(1)
    trained, fresh = build(name, 19), build(name, 5)
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"it has 19 classes.*classifier='new'"):
        load_checkpoint(fresh, trained.state_dict())
    load_checkpoint(fresh, trained.state_dict(), classifier="new")
    new = class_entries(name)
    assert new
    assert not torch.equal(before[FIRST[name]], trained.state_dict()[FIRST[name]])
    for key, value in fresh.state_dict().items():
        expected = before if key in new else trained.state_dict()
        assert torch.equal(value, expected[key]), key


def test_a_new_classifier_is_new_even_where_the_old_one_fits() -> None:
    torch.manual_seed(1)
    trained, fresh = build("csfcn_nano"), build("csfcn_nano")
    before = fresh.state_dict()["classifier.weight"].clone()
    load_checkpoint(fresh, trained.state_dict(), classifier="new")
    assert torch.equal(fresh.state_dict()["classifier.weight"], before)


def test_a_new_classifier_excuses_nothing_else() -> None:
    state = {k: v for k, v in build("csfcn_nano").state_dict().items() if "head.conv" not in k}
    with pytest.raises(CheckpointError, match=r"missing: head\.conv"):
        load_checkpoint(build("csfcn_nano", 5), state, classifier="new")


def test_class_entries_are_the_classifiers() -> None:
    assert class_entries("csfcn_nano") == {"classifier.weight", "classifier.bias"}
    assert "head.learners.0.queries" in class_entries("senformer_r50")
    assert {k.split(".")[1] for k in class_entries("pidnet_s")} == {"classifier", "detail"}


def older(name):
    """A released SenFormer name as its author wrote it before."""
    for released, before in (
        ("decode_head.learners.", "decode_head.scale_heads."),
        (".norm_embs.", ".norm_queriesPost."),
        ("backbone.patch_embed.projection.", "backbone.patch_embed.proj."),
        ("backbone.stages.", "backbone.layers."),
        (".attn.w_msa.", ".attn."),
        (".ffn.layers.0.0.", ".mlp.fc1."),
        (".ffn.layers.1.", ".mlp.fc2."),
    ):
        name = name.replace(released, before)
    return name


@pytest.mark.parametrize("golden", ["senformer_nws_swin_t", "senformer_r50"])
def test_senformer_s_older_names(golden):
    released = [name for name, _ in read_golden(golden).meta["entries"]]
    state = {older(name): torch.zeros(2, 8) for name in released}
    assert state.keys() != set(released)
    state["decode_head.scale_heads.0.norm_queriesPre.weight"] = torch.zeros(8)
    assert list(rename_older_keys(state)) == released
    assert list(rename_older_keys({name: torch.zeros(2, 8) for name in released})) == released
