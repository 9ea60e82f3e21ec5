"""Signed artifacts: what a key did not sign is refused before anything in it is read."""

from __future__ import annotations

import json
import pickle
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from rtseg.cli.app import app
from rtseg.data.classes import CAMVID
from rtseg.data.files import digest_of, write_atomically
from rtseg.data.images import write_png
from rtseg.data.signature import (
    PASSWORD,
    VARIABLE,
    read_private_key,
    read_public_key,
    require,
    signature_path,
    verify_signature,
    write_keys,
)
from rtseg.errors import ArtifactError, MissingPackage, RtsegError, SignatureError, UsageError
from rtseg.models.checkpoints import read_checkpoint
from rtseg.resolve import is_artifact, load_source
from rtseg.runtime import load
from rtseg.runtime.artifact import Card, append_card, read_card, sidecar
from rtseg.runtime.drive.worker_process import load_artifacts
from rtseg.runtime.preflight import check
from rtseg.runtime.signing import sign_artifact
from speed_parts import CARD
from typer.testing import CliRunner

pytest.importorskip("cryptography")
SIZE = (8, 16)


@pytest.fixture(autouse=True)
def nothing_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv(PASSWORD, "")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    folder = tmp_path / "keys"
    write_keys(folder / "release.key")
    return folder / "release.key", folder / "release.key.pub"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An artifact that gives the blue channel as labels."""
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, (1, *SIZE, 3))
    labels = helper.make_tensor_value_info("labels", TensorProto.UINT8, (1, *SIZE))
    zero = helper.make_tensor("zero", TensorProto.INT64, (), [0])
    node = helper.make_node("Gather", ["frame", "zero"], ["labels"], axis=3)
    graph = helper.make_graph([node], "blue", [frame], [labels], [zero])
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    card = CARD.model_copy(
        update={
            "size": SIZE,
            "classes": CAMVID.names,
            "palette": CAMVID.palette,
            "precision": "fp32",
            "outputs": ("labels",),
            "coarse": None,
            "engine": None,
        }
    )
    path = tmp_path / "net.onnx"
    write_atomically(path, append_card(network.SerializeToString(), card))
    return path


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An artifact of several files."""
    folder = tmp_path / "engine"
    path = folder / "net.xml"
    write_atomically(path, b"<net/>")
    write_atomically(path.with_suffix(".bin"), b"weights")
    files = {each.name: digest_of(each) for each in sorted(folder.iterdir())}
    card = CARD.model_copy(update={"files": files, "engine": None})
    write_atomically(sidecar(path), card.to_json().encode())
    return path


def test_a_signed_artifact_serves(model: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    assert sign_artifact(model, read_private_key(private)) == signature_path(model)
    frame = np.zeros((*SIZE, 3), np.uint8)
    frame[..., 0] = 3
    for key in (public, str(public), public_text(public)):
        with load(model, require_signature=key) as segment:
            assert (segment(frame) == 3).all()


def public_text(public: Path) -> str:
    from rtseg.data.signature import inline_key

    return inline_key(read_public_key(public))


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: object, **options: object) -> Any:
        raise AssertionError("it was read before its signature was checked")

    monkeypatch.setattr(Card, "model_validate_json", read)
    monkeypatch.setattr(json, "loads", read)
    monkeypatch.setattr(np, "load", read)
    monkeypatch.setattr(pickle, "loads", read)
    monkeypatch.setattr("rtseg.runtime.artifact.split_card", read)
    monkeypatch.setattr("rtseg.runtime.safetensors_card._read_header", read)
    monkeypatch.setattr("rtseg.runtime.open_artifact.open_backend", read)


CHANGES: dict[str, Callable[[Path], object]] = {
    "unsigned": lambda path: signature_path(path).unlink(),
    "model": lambda path: path.write_bytes(b"<NET/>"),
    "weights": lambda path: path.with_suffix(".bin").write_bytes(b"others"),
    "card": lambda path: sidecar(path).write_text(
        sidecar(path).read_text().replace('"road"', '"Road"')
    ),
    "missing": lambda path: path.with_suffix(".bin").unlink(),
    "added": lambda path: path.with_name("net.xml.reference.npz").write_bytes(b"reference"),
    "empty": lambda path: signature_path(path).write_bytes(b""),
    "text": lambda path: signature_path(path).write_bytes(b"rtseg signature 1 ????\n"),
    "lines": lambda path: signature_path(path).write_bytes(
        signature_path(path).read_bytes() + f"{'0' * 64}  other.bin\n".encode()
    ),
    "dropped": lambda path: signature_path(path).write_bytes(
        b"\n".join(signature_path(path).read_bytes().splitlines()[:-1])
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_refused_before_it_is_read(
    change: str, engine: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = keys
    sign_artifact(engine, read_private_key(private))
    verify_signature(engine, public)
    CHANGES[change](engine)
    forbid_reading(monkeypatch)
    with pytest.raises(SignatureError) as refused:
        load(engine, require_signature=public)
    assert len(str(refused.value).splitlines()) == 1
    monkeypatch.setenv(VARIABLE, public_text(public))
    with pytest.raises(SignatureError):
        read_card(engine)
    with pytest.raises(SignatureError):
        load_artifacts([str(engine)], None, None)  # as a drive's worker does
    verdict = check(engine)
    assert (verdict.ok, verdict.code) == (False, "signature")


def test_every_flipped_bit_of_a_signature_is_refused(engine: Path, keys: Any) -> None:
    sign_artifact(engine, read_private_key(keys[0]))
    content = signature_path(engine).read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        signature_path(engine).write_bytes(changed)
        with pytest.raises(SignatureError):
            verify_signature(engine, keys[1])


def test_another_key_and_another_name_are_refused(model: Path, keys: Any, tmp_path: Path) -> None:
    other = write_keys(tmp_path / "other.key")
    sign_artifact(model, read_private_key(keys[0]))
    with pytest.raises(SignatureError, match="not a signature by the required key"):
        load(model, require_signature=other)
    renamed = model.with_name("renamed.onnx")
    shutil.copy(model, renamed)
    shutil.copy(signature_path(model), signature_path(renamed))
    with pytest.raises(SignatureError, match=r"is of net\.onnx: give the file that name again"):
        load(renamed, require_signature=keys[1])


def test_what_is_unsound_is_not_signed(engine: Path, keys: Any, tmp_path: Path) -> None:
    private = read_private_key(keys[0])
    engine.with_suffix(".bin").write_bytes(b"changed")
    with pytest.raises(ArtifactError, match="changed or damaged"):
        sign_artifact(engine, private)
    for name in ("absent.onnx", "text.txt"):
        write_atomically(tmp_path / "text.txt", b"")
        with pytest.raises(UsageError):
            sign_artifact(tmp_path / name, private)
    assert not signature_path(engine).exists()


def test_checkpoints_and_networks_need_a_signature_too(
    keys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    path = tmp_path / "mine.pth"
    torch.save({"weight": torch.zeros(1)}, path)
    require(keys[1])
    monkeypatch.setattr("torch.load", lambda *a, **o: pytest.fail("it was read"))
    with pytest.raises(SignatureError, match="is not signed"):
        read_checkpoint(path)
    with pytest.raises(UsageError, match="only signed artifacts are wanted"):
        load_source("csfcn_nano")
    with pytest.raises(SignatureError):
        is_artifact(tmp_path / "absent.safetensors")
    monkeypatch.undo()
    sign_artifact(path, read_private_key(keys[0]))
    assert list(read_checkpoint(path)) == ["weight"]


def test_keys_are_the_owners_and_never_overwritten(tmp_path: Path) -> None:
    key = tmp_path / "a.key"
    text = write_keys(key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert text == public_text(tmp_path / "a.key.pub")
    before = key.read_bytes()
    with pytest.raises(UsageError, match=r"a\.key\.pub is there already"):
        write_keys(key)
    (tmp_path / "a.key.pub").unlink()
    with pytest.raises(UsageError, match=r"a\.key is there already"):
        write_keys(key)
    assert key.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"", b"no key", bytes(200), b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----"],
)
def test_what_is_no_key_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no public Ed25519 key"):
        read_public_key(path)
    with pytest.raises(UsageError, match="no private Ed25519 key"):
        read_private_key(path)
    for text in ("ed25519:", "ed25519:AAAA", "ed25519:????"):
        with pytest.raises(UsageError, match="no public Ed25519 key"):
            read_public_key(text)


def test_openssl_reads_the_keys_and_verifies(model: Path, keys: Any, tmp_path: Path) -> None:
    """The format is nobody's own: a signature can be checked, or made, without rtseg."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    sign_artifact(model, read_private_key(keys[0]))
    first, _, lines = signature_path(model).read_bytes().partition(b"\n")
    title, _, encoded = first.rpartition(b" ")
    import base64

    (tmp_path / "message").write_bytes(title + b" " + lines)
    (tmp_path / "raw").write_bytes(base64.b64decode(encoded))
    command = f"openssl pkeyutl -verify -rawin -pubin -inkey {keys[1]} -in message -sigfile raw"
    done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, text=True)
    assert "Verified Successfully" in done.stdout, done.stderr


def test_an_encrypted_key_asks_for_its_password(
    keys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives import serialization

    private = read_private_key(keys[0])
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(UsageError, match=f"is encrypted: set {PASSWORD}"):
        read_private_key(locked)
    monkeypatch.setenv(PASSWORD, "wrong")
    with pytest.raises(UsageError, match="is not its password"):
        read_private_key(locked)
    monkeypatch.setenv(PASSWORD, "secret")
    assert read_private_key(locked).private_bytes_raw() == private.private_bytes_raw()


@pytest.mark.parametrize(
    "words",
    [
        ["drive", "{frames}", "--model", "{model}"],
        ["predict", "{frames}", "--model", "{model}", "-o", "{out}"],
        ["demo", "{frames}", "--model", "{model}", "-o", "{out}.mp4"],
        ["bench", "latency", "{model}"],
        ["bench", "throughput", "{model}"],
        ["eval", "{model}", "folder", "--root", "{data}"],
        ["fleet", "{frames}", "--model", "{model}", "-o", "{out}"],
        ["check", "{model}"],
        ["predict", "{frames}", "--model", "csfcn_nano", "-o", "{out}"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_every_command_that_runs_a_model_can_require_a_signature(
    words: list[str], model: Path, keys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_png(tmp_path / "frames" / "a.png", np.zeros((*SIZE, 3), np.uint8))
    for kind in ("images", "labels"):
        write_png(tmp_path / "data" / kind / "val" / "a.png", np.zeros(SIZE, np.uint8))
    (tmp_path / "data" / "classes.yaml").write_text(
        "- {name: road, color: [1, 2, 3]}\n- {name: sky, color: [4, 5, 6]}\n"
    )
    places = {name: tmp_path / name for name in ("frames", "data", "out")} | {"model": model}
    forbid_reading(monkeypatch)
    arguments = [word.format(**places) for word in words]
    done = CliRunner().invoke(app, [*arguments, "--require-signature", str(keys[1])])
    assert isinstance(done.exception, RtsegError), (done.exception, done.output)
    text = f"{done.exception} {done.output}"
    assert "is not signed" in text or "only signed artifacts" in text
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("out.*"))


def test_the_command_signs_and_a_prediction_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, run = tmp_path / "release.key", CliRunner().invoke
    made = run(app, ["sign", "--new-key", str(key), "--json"], catch_exceptions=False)
    public = json.loads(made.stdout)["key"]
    done = run(app, ["sign", str(model), "--key", str(key)], catch_exceptions=False)
    assert done.stdout.strip() == f"{model}.sig"
    write_png(tmp_path / "frames" / "a.png", np.zeros((*SIZE, 3), np.uint8))
    words = ["predict", str(tmp_path / "frames"), "--model", str(model), "-o", str(tmp_path / "o")]
    run(app, [*words, "--require-signature", public], catch_exceptions=False)
    assert (tmp_path / "o" / "labels" / "a.png").is_file()
    for wrong in ([], [str(model)], ["--key", str(key)], [str(model), "--new-key", str(key)]):
        assert isinstance(run(app, ["sign", *wrong]).exception, UsageError)


def test_without_the_package_nothing_is_accepted(
    model: Path, keys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> Any:
        raise ImportError("no cryptography")

    sign_artifact(model, read_private_key(keys[0]))
    monkeypatch.setattr("rtseg.data.signature._Tools", absent)
    with pytest.raises(MissingPackage, match=r"pip install .*\[sign\]"):
        load(model, require_signature=keys[1])
