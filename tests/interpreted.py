"""Runs the Triton kernels on the CPU, in Triton's interpreter, for `test_labels_gpu.py`.

python interpreted.py ANSWERS    labels of every case, by its name, as .npz
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported

import numpy as np
from label_cases import NAMES, case_of, labels_on
from rtseg.runtime.argmax_triton import FUSED


def main(target: str) -> None:
    assert not FUSED, "this is no interpreter"
    np.savez(target, **{name: labels_on(case_of(name), "cpu") for name in NAMES})


if __name__ == "__main__":
    main(*sys.argv[1:])
