"""Labels of coarse logits on aarch64, byte for byte those of this machine.

`RTSEG_AARCH64_PYTHON` is the command of an aarch64 Python with numpy, of a board over ssh or of an
emulator: "qemu-aarch64-static -L ROOT ROOT/usr/bin/python3.11", with numpy's wheel in PYTHONPATH.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

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


def digest(command: list[str]) -> list[str]:
    done = subprocess.run([*command, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not COMMAND, reason="RTSEG_AARCH64_PYTHON names no aarch64 Python")
def test_labels_are_the_same_bytes() -> None:
    machine, theirs = digest(shlex.split(COMMAND))
    assert machine == "aarch64"
    assert theirs == digest([sys.executable])[1]
