"""The stream of training pairs depends on seed and position, and on nothing else."""

from __future__ import annotations

import pytest
import torch
from rtseg.data.datasets import Cached, open_data
from rtseg.train.loader import Positions, Stream, make_loader
from tiny_camvid import tiny_recipe, write_camvid


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    root = write_camvid(tmp_path_factory.mktemp("camvid"))
    recipe = tiny_recipe(root)
    return Stream(Cached(open_data("camvid", root, "train")), recipe.augment, seed=5)


def batches(stream, first, last, workers=0, batch=2, process=0, processes=1):
    positions = Positions(batch, first, last, process, processes)
    return list(make_loader(stream, positions, workers))


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        for a, b in zip(ours, theirs, strict=True)
    )


def test_every_epoch_takes_each_image_once_in_another_order(stream):
    epochs = [[stream.index(6 * epoch + i) for i in range(6)] for epoch in range(4)]
    assert all(sorted(order) == list(range(6)) for order in epochs)
    assert len({tuple(order) for order in epochs}) > 1


def test_augmentation_differs_from_epoch_to_epoch(stream):
    first = {stream.index(position): stream[position][0] for position in range(6)}
    again = {stream.index(position): stream[position][0] for position in range(6, 12)}
    assert any((first[index] != again[index]).any() for index in first)


def test_resumed_in_the_middle_it_is_the_same_stream(stream):
    assert same(batches(stream, 0, 8)[5:], batches(stream, 5, 8))


def test_workers_do_not_matter(stream):
    assert same(batches(stream, 3, 9), batches(stream, 3, 9, workers=2))


def test_two_processes_share_the_double_batch(stream):
    whole = batches(stream, 0, 4, batch=4)
    halves = [batches(stream, 0, 4, process=i, processes=2) for i in range(2)]
    for both, left, right in zip(whole, *halves, strict=True):
        assert torch.equal(both.images, torch.cat([left.images, right.images]))
        assert both.indices == left.indices + right.indices


def test_another_seed_is_another_stream(stream):
    other = Stream(stream.data, stream.augment, seed=6)
    assert not same(batches(stream, 0, 3), batches(other, 0, 3))
