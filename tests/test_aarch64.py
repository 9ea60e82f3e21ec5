"""On aarch64: labels of coarse logits byte for byte those of this machine, and int8 networks.

`RTSEG_AARCH64_PYTHON` is the command of an aarch64 Python with numpy and onnxruntime, of a board or
of an emulator: `scripts/aarch64_root.sh FOLDER` makes one and prints the command.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from rtseg.data.letterbox import fit_frame
from rtseg.export.graph import find_layers, to_onnx
from rtseg.export.integer_form import IntegerForm
from rtseg.export.quantize import infer_shapes
from rtseg.export.reference import read_shipped_frames
from rtseg.export.stored_ranges import find_stored_ranges
from rtseg.models.loading import load_model

COMMAND = os.environ.get("RTSEG_AARCH64_PYTHON", "")
# Made by whole numbers alone, so that only the labels can differ.
CODE = """
import hashlib, itertools, platform, numpy as np, rtseg.labels
rtseg.labels._compiled_available = lambda: False
summary = hashlib.sha256()
numbers = np.arange(5 * 9 * 11, dtype=np.int64)
for kind, corners, factor in itertools.product(
    ("int8", "uint8", "int16", "float16", "float32"), (False, True), (3, 8)
):
    numbers = (numbers * 1103515245 + 12345) % 2**31
    logits = (numbers // 256 % 100).reshape(5, 9, 11).astype(kind)
    labels = rtseg.labels.exact_labels(logits, factor, align_corners=corners)
    assert len(np.unique(labels)) > 1
    summary.update(labels.tobytes())
print(platform.machine(), summary.hexdigest())
"""


INFER = """
import platform, sys, numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level, options.intra_op_num_threads = 3, 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
frames = np.load(sys.argv[2])
found = [session.run(["labels", "logits"], {"frame": frame[None]}) for frame in frames]
labels, logits = map(np.stack, zip(*found))
np.savez(sys.argv[3], labels=labels, logits=logits)
print(platform.machine())
"""
NEEDED = "RTSEG_AARCH64_PYTHON names no aarch64 Python: scripts/aarch64_root.sh FOLDER makes one"
CRASHED = (139, -11)


def run(command: list[str], code: str, *arguments: object) -> list[str]:
    given = [*command, "-c", code, *map(str, arguments)]
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    if done.returncode in CRASHED and "qemu" in command[0]:
        told = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=True)
        pytest.skip(f"ONNX Runtime needs qemu 10, and here is {told.stdout.splitlines()[0]}")
    if "No module named 'onnxruntime'" in done.stderr:
        pytest.skip("the aarch64 Python has no onnxruntime: scripts/aarch64_root.sh FOLDER")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not COMMAND, reason=NEEDED)
def test_labels_are_the_same_bytes() -> None:
    machine, theirs = run(shlex.split(COMMAND), CODE)
    assert machine == "aarch64"
    assert theirs == run([sys.executable], CODE)[1]


@pytest.mark.skipif(not COMMAND, reason=NEEDED)
@pytest.mark.parametrize("kind", ["int8", "fp32"])
def test_networks_label_as_they_do_here(kind: str, tmp_path: Path) -> None:
    size = (96, 160)
    model = load_model("csfcn_nano:streets")
    graph = infer_shapes(to_onnx(model.network.eval(), size, "fp32", ("labels", "logits")))
    if kind == "int8":
        stored = find_stored_ranges(model)
        assert stored is not None
        layers = {layer.node for layer in find_layers(graph)}
        graph, done = IntegerForm(graph, layers, stored.ranges).build()
        assert len(done) > 15
    onnx.save(graph, tmp_path / "net.onnx")
    frames = [fit_frame(each, size, "letterbox") for _, each in read_shipped_frames().frames]
    np.save(tmp_path / "frames.npy", np.stack(frames))
    found = {}
    for command in ([sys.executable], shlex.split(COMMAND)):
        path = tmp_path / f"{len(found)}.npz"
        (machine,) = run(command, INFER, tmp_path / "net.onnx", tmp_path / "frames.npy", path)
        found[machine] = np.load(path)
    there, here = found.pop("aarch64"), found.popitem()[1]
    assert len(np.unique(here["labels"])) > 3
    # Integers are the same; what stays in float rounds in each machine's order.
    assert (there["labels"] == here["labels"]).mean() > 0.9999
    assert np.abs(there["logits"] - here["logits"]).max() < 1e-4 * np.abs(here["logits"]).max()
