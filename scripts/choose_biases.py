"""Chooses a bias for each class of a trained network, for the best mean IoU.

Cross-entropy, weighed by class or not, makes probabilities; their argmax is not what makes the most
of mean IoU, least of all for thin and rare classes. A constant added to each class's logits moves
the borders between them (Menon et al., "Long-tail learning via logit adjustment", 2021). It costs
nothing: the classifier has a bias already.

These are as many numbers as there are classes, chosen on the pictures that then measure them, so
the gain is also told for pictures that did not choose: each split is cut in parts of consecutive
frames, and the others' biases measure each.

python scripts/choose_biases.py runs/csfcn_tiny_camvid/best.safetensors camvid --root data/camvid \\
    --split val --split train -o csfcn_tiny_camvid.safetensors
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rtseg.data.classes import IGNORE
from rtseg.data.datasets import open_data
from rtseg.models.checkpoints import read_metadata
from rtseg.models.loading import Model, load_model
from rtseg.scripts.mix_weights import ship
from rtseg.train.evaluate import Confusion
from rtseg.train.predictor import Predictor

STEPS = 0.8, 0.4, 0.2, 0.1  # of a bias, in units of logits
EVERY = 4  # pixels in both directions; neighbors tell the same
PARTS = 2  # of a split, for the gain on pictures that did not choose
MOST = 2.0  # of a bias


class Pixels(NamedTuple):
    """Of one part of a split: logits (K, pixels) float32 and labels (pixels,) int64 where biases
    can change the class; sure (K, K) int64 counts the others, rows the truth."""

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    sure: NDArray[np.int64]

    def miou(self, bias: NDArray[np.float32]) -> float:
        confusion = Confusion(len(bias), self.sure.copy())
        guess = (self.logits + bias[:, None]).argmax(axis=0)
        confusion.update(self.labels.astype(np.uint8), guess.astype(np.uint8))
        return confusion.miou()


def sift(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Pixels:
    """logits (K, pixels) and labels (pixels,), most of which no bias up to MOST can change."""
    count = len(logits)
    second, first = np.partition(logits, (count - 2, count - 1), axis=0)[-2:]
    sure = first - second > 2 * MOST
    pairs = labels[sure] * count + logits[:, sure].argmax(axis=0)
    counted = np.bincount(pairs, minlength=count**2).reshape(count, count)
    return Pixels(logits[:, ~sure], labels[~sure], counted)


def read_pixels(model: Model, data: str, root: Path, split: str) -> list[Pixels]:
    """Every fourth pixel of a split's frames in both directions, in PARTS of consecutive frames."""
    frames = open_data(data, root, split)
    predictor = Predictor(model.network.eval(), size=model.trained_size)
    parts = []
    for part in np.array_split(np.arange(len(frames)), PARTS):
        found = []
        for index in part:
            sample = frames[int(index)]
            assert sample.label is not None  # of a split with labels
            label = sample.label[EVERY // 2 :: EVERY, EVERY // 2 :: EVERY]
            with torch.inference_mode():
                scores = predictor.scores(sample.image)[0].float().numpy()
            chosen = scores[:, EVERY // 2 :: EVERY, EVERY // 2 :: EVERY]
            counts = label != IGNORE
            found.append(sift(chosen[:, counts], label[counts].astype(np.int64)))
        parts.append(join(found))
    return parts


def join(parts: Sequence[Pixels]) -> Pixels:
    """The pixels of several parts."""
    return Pixels(
        np.concatenate([part.logits for part in parts], axis=1),
        np.concatenate([part.labels for part in parts]),
        np.sum([part.sure for part in parts], axis=0),
    )


def choose(splits: Sequence[Sequence[Pixels]], classes: int) -> NDArray[np.float32]:
    """The biases, one class after the other by steps that become smaller, with the best mean of the
    splits' mean IoU."""
    joined = [join(split) for split in splits]

    def reach(bias: NDArray[np.float32]) -> float:
        return float(np.mean([pixels.miou(bias) for pixels in joined]))

    bias = np.zeros(classes, np.float32)
    best = reach(bias)
    for step in STEPS:
        moved = True
        while moved:
            moved = False
            for index in range(classes):
                for sign in (1, -1):
                    tried = bias.copy()
                    tried[index] = np.clip(tried[index] + sign * step, -MOST, MOST)
                    if (found := reach(tried)) > best:
                        best, bias, moved = found, tried, True
    return bias


def cross_check(splits: Sequence[list[Pixels]], classes: int) -> list[tuple[float, float]]:
    """(before, after) of the first split's parts, each with the biases that the others chose."""
    zero, found = np.zeros(classes, np.float32), []
    for index, part in enumerate(splits[0]):
        others = [[p for i, p in enumerate(split) if i != index] for split in splits]
        found.append((part.miou(zero), part.miou(choose(others, classes))))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Choose, cross-check, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="as `rtseg eval` takes it")
    parser.add_argument("data")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", action="append", help="val; several count alike")
    parser.add_argument("--share", type=float, default=1.0, help="of the biases that is taken")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    model = load_model(options.model)
    count, names = len(model.classes), model.classes.names
    splits = [
        read_pixels(model, options.data, options.root, split) for split in options.split or ["val"]
    ]
    state = model.network.state_dict()
    biases = [n for n, v in state.items() if n.startswith("classifier") and v.shape == (count,)]
    if len(biases) != 1:
        parser.error(f"{options.model} has no classifier with one bias a class")
    for before, after in cross_check(splits, count):
        print(f"chosen by the other part: {before:.2%} -> {after:.2%}")
    bias = choose(splits, count) * options.share
    bias -= bias.mean()  # which no argmax sees
    print(", ".join(f"{name} {value:+.2f}" for name, value in zip(names, bias, strict=True)))
    state[biases[0]] += torch.from_numpy(bias)
    told = read_metadata(Path(options.model)) if Path(options.model).is_file() else {}
    chosen = dict(zip(names, np.round(bias, 4).tolist(), strict=True))
    data = options.data, options.root
    found = ship(model, state, data, options.out, told, {"biases": chosen})
    print(json.dumps(found["corruptions"] | {"clean": found["miou"]}, indent=1))


if __name__ == "__main__":
    main()
