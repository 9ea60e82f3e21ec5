"""Several frames in flight: `segmenter.stream` on a pretended GPU, and where there are no lanes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import CLASSES, SIZE, World, picture, pretend, write_engine
from rtseg.errors import BackendError, UsageError
from rtseg.runtime import Segmenter
from rtseg.runtime.backends import tensorrt_engine
from rtseg.runtime.backends.tensorrt import TensorRT

TO_DEVICE, TO_HOST = 1, 2


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return pretend(monkeypatch, tmp_path)


def open_engine(folder: Path, batch: int = 1, **options: Any) -> Segmenter:
    return Segmenter(TensorRT(write_engine(folder, batch=batch), **options))


def frames(count: int) -> list[Any]:
    """Of two sizes, in turns."""
    sizes = (SIZE, (2 * SIZE[0], 2 * SIZE[1]))
    return [picture(seed, sizes[seed % 2])[0] for seed in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("in_flight", [1, 2, 3])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_labels_come_in_order_as_one_at_a_time(
    world: World, tmp_path: Path, count: int, in_flight: int, cuda_graph: bool
) -> None:
    with open_engine(tmp_path, cuda_graph=cuda_graph) as segment:
        expected = [segment(frame) for frame in frames(count)]
        found = list(segment.stream(iter(frames(count)), in_flight))
    assert [each.shape for each in found] == [frame.shape[:2] for frame in frames(count)]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    del found, expected
    assert world.cuda.alive == 0


def test_the_next_frame_is_copied_before_labels_are_waited_for(
    world: World, tmp_path: Path
) -> None:
    done: list[tuple[str, int]] = []
    with open_engine(tmp_path) as segment:
        stream = segment.stream(frames(3))

        def watch(name: str, what: Any) -> None:
            call = getattr(world.cuda, name)
            setattr(world.cuda, name, lambda *given: done.append(what(given)) or call(*given))  # type: ignore[func-returns-value]

        ways = {TO_DEVICE: "up", TO_HOST: "down"}
        watch("cudaMemcpyAsync", lambda given: (ways[given[3]], given[4]))
        watch("cudaGraphLaunch", lambda given: ("run", given[1]))
        watch("cudaStreamSynchronize", lambda given: ("wait", given[0]))
        segment._lanes = [segment.backend.open_lanes(2)]
        one, other = (lane._stream for lane in segment._lanes[0])
        done.clear()
        next(stream)
        frame = ["up", "run", "down"]
        assert done == [*((step, one) for step in frame), *((step, other) for step in frame),
                        ("wait", one)]  # fmt: skip
        done.clear()
        next(stream)
        assert done == [*((step, one) for step in frame), ("wait", other)]
        stream.close()  # type: ignore[attr-defined]


def test_buffers_are_made_once_and_given_back(world: World, tmp_path: Path) -> None:
    with open_engine(tmp_path) as segment:
        list(segment.stream(frames(2)))
        before, alive = world.cuda.allocations, world.cuda.alive
        list(segment.stream(frames(9)))
        assert (world.cuda.allocations, world.cuda.alive) == (before, alive)
    assert world.cuda.alive == 0


def test_a_caller_that_takes_no_more_leaves_nothing_behind(world: World, tmp_path: Path) -> None:
    with open_engine(tmp_path) as segment:
        alive = world.cuda.alive
        stream = segment.stream(frames(5))
        next(stream)
        assert world.cuda.alive > alive
        stream.close()  # type: ignore[attr-defined]
        assert world.cuda.alive == alive
        stream = segment.stream(frames(5))
        next(stream)
        segment.close()
        assert len(list(stream)) == 4  # the lanes outlive the segmenter, and go with the stream
    assert world.cuda.alive == 0


def test_calls_between_do_not_disturb_a_stream(world: World, tmp_path: Path) -> None:
    with open_engine(tmp_path) as segment:
        other = picture(99)[0]
        for ours, frame in zip(segment.stream(frames(5)), frames(5), strict=True):
            np.testing.assert_array_equal(segment(other), other[..., 0] % CLASSES)
            np.testing.assert_array_equal(ours, segment(frame))


def failing() -> Iterator[Any]:
    yield from frames(3)
    raise OSError("the disk is gone")


@pytest.mark.parametrize("in_flight", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_errors_come_behind_the_labels_of_the_frames_before(
    world: World, tmp_path: Path, in_flight: int, batch: int
) -> None:
    with open_engine(tmp_path, batch) as segment:
        alive, found = world.cuda.alive, []
        stream = segment.stream(failing(), in_flight)
        with pytest.raises(OSError, match="the disk is gone"):
            found.extend(stream)
        assert len(found) == 3
        with pytest.raises(UsageError, match=r"a frame has shape"):
            list(segment.stream([*frames(2), np.zeros((4, 4, 7))], in_flight))
        assert world.cuda.alive == alive


def test_a_run_that_fails_is_told_in_its_place(world: World, tmp_path: Path) -> None:
    with open_engine(tmp_path) as segment:
        list(segment.stream(frames(2)))  # makes the lanes
        alive = world.cuda.alive

        def fail(stream: int) -> None:
            raise BackendError("TensorRT could not run the engine")

        segment._lanes[0][1]._plan.run = fail  # type: ignore[attr-defined]
        stream = segment.stream(frames(5))
        np.testing.assert_array_equal(next(stream), segment(frames(1)[0]))
        with pytest.raises(BackendError, match="could not run"):
            next(stream)
        assert world.cuda.alive < alive  # its lanes are given up
        assert len(list(segment.stream(frames(5)))) == 5


def test_a_batch_is_filled_by_the_frames_that_come(world: World, tmp_path: Path) -> None:
    with open_engine(tmp_path, batch=2) as segment:
        expected = [
            labels for at in (0, 2, 4) for labels in segment.label_each(frames(5)[at : at + 2])
        ]
        for in_flight in (1, 2):
            list(segment.stream(frames(2), in_flight))  # makes the lanes
            before = world.cuda.launches
            found = list(segment.stream(frames(5), in_flight))
            assert world.cuda.launches - before == 3
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_no_memory_for_lanes_is_told_and_costs_no_frame(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_engine(tmp_path) as segment:
        alive = world.cuda.alive
        world.cuda.cudaMalloc = lambda size: (2, 0)  # type: ignore[method-assign]
        assert len(list(segment.stream(frames(3)))) == 3
        assert world.cuda.alive == alive
    assert "csfcn_nano takes one frame at a time: cudaMalloc: pretended error" in caplog.text


def test_a_context_that_labels_otherwise_is_not_used(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = tensorrt_engine.Plan.open_another

    def wrong(self: Any, trt: Any) -> Any:
        plan = opened(self, trt)
        plan._context.engine = copy.copy(plan._context.engine)
        plan._context.engine.world = copy.copy(world)
        plan._context.engine.world.shift = 1
        return plan

    monkeypatch.setattr(tensorrt_engine.Plan, "open_another", wrong)
    with open_engine(tmp_path) as segment:
        found = list(segment.stream(frames(3)))
        for ours, frame in zip(found, frames(3), strict=True):
            np.testing.assert_array_equal(ours, segment(frame))
    assert "takes one frame at a time: another labels noise otherwise" in caplog.text


def test_no_frame_in_flight_is_refused(world: World, tmp_path: Path) -> None:
    with open_engine(tmp_path) as segment, pytest.raises(UsageError, match="give 1, or 2"):
        segment.stream(frames(1), 0)
