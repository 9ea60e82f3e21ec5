"""The Triton kernels' labels are those of PyTorch in float32 on the CPU: in Triton's interpreter
everywhere, on a GPU where there is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from label_cases import NAMES, case_of, count_wrong, labels_on

pytest.importorskip("triton", reason="needs Triton, which there is for Linux only")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The labels of all cases, from one process in which Triton interprets."""
    answers = tmp_path_factory.mktemp("interpreted") / "answers.npz"
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("interpreted.py"), answers],
        capture_output=True, text=True, check=False, cwd=ROOT.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(answers) as found:
        return dict(found)


@pytest.mark.parametrize("name", NAMES)
def test_labels_in_the_interpreter(name: str, interpreted: dict[str, Any]) -> None:
    assert_same(interpreted[name], name)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_labels_on_the_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this torch was built without CUDA")
    assert_same(labels_on(case_of(name), "cuda"), name)


def assert_same(labels: Any, name: str) -> None:
    wrong, allowed = count_wrong(labels, case_of(name), name)
    assert wrong <= allowed, f"{wrong} of {labels.size} pixels"
