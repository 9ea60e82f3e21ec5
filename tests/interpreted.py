"""Runs the Triton kernels on the CPU, in Triton's interpreter, for `test_labels_gpu.py`.

    python interpreted.py CASES ANSWERS

CASES (.npz) holds, for case N, "N" (the logits, or a head's features) and "N.how", JSON of what
`BilinearLabels` or `ShuffledLabels` takes; ANSWERS gets the labels under "N".
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported

import numpy as np
import torch
from rtseg.runtime.argmax_triton import FUSED, BilinearLabels, ShuffledLabels


def labels(given: torch.Tensor, how: dict, arrays: dict) -> torch.Tensor:
    given = given.to(getattr(torch, how["dtype"]))
    if how["channels_last"]:
        given = given.to(memory_format=torch.channels_last)
    size = tuple(how["size"])
    if how["enlarge"] != "shuffle":
        return BilinearLabels(tuple(given.shape), size, how["enlarge"], given.device)(given)
    weight = torch.from_numpy(arrays[how["weight"]]).to(given.dtype)
    bias = torch.from_numpy(arrays[how["bias"]]).to(given.dtype) if how["bias"] else None
    return ShuffledLabels(weight, bias, tuple(given.shape), size)(given)


def main(source: str, target: str) -> None:
    assert not FUSED, "this is no interpreter"
    with np.load(source) as cases:
        arrays = dict(cases)
    answers = {}
    for name in [name.removesuffix(".how") for name in arrays if name.endswith(".how")]:
        how = json.loads(str(arrays[f"{name}.how"]))
        answers[name] = labels(torch.from_numpy(arrays[name]), how, arrays).numpy()
    np.savez(target, **answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
