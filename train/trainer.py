"""Training: `train(recipe, folder)` does everything, from data to the best weights."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..data.classes import CLASS_SETS, IGNORE, ClassSet, load_class_set
from ..data.datasets import Cached, SegmentationData, open_data
from ..errors import DataError, TrainingError, UsageError
from ..models import Network, build, save_checkpoint
from .distill import SoftSource, soft_loss
from .evaluate import Evaluation, evaluate_frames
from .loader import Batch, Positions, Stream, epoch_frames, make_loader
from .log import TrainingBar, TrainingLog, draw_curves, read_log
from .loss import Criterion, balance_classes
from .optimizer import (
    Average,
    factor,
    load_state_by_name,
    make_optimizer,
    set_learning_rate,
    state_by_name,
)
from .parallel import (
    Place,
    any_process,
    average_over_processes,
    distribute,
    join_processes,
    sum_over_processes,
)
from .predictor import Predictor, autocast, channels_last, normalize
from .qat import get_ranges, round_layers, set_ranges
from .recipe import Recipe
from .state import SaveError, git_revision, read_state, save_state, start_network

STATE, BEST, LOG, CURVES = "last.pt", "best.safetensors", "log.jsonl", "curves.png"


@dataclass(frozen=True)
class Outcome:
    """`finished` is False where a signal stopped the run; `miou` is the best so far, a fraction."""

    folder: Path
    iteration: int
    finished: bool
    miou: float
    first: bool  # of all processes: the one that prints


def train(recipe: Recipe, folder: Path, resume: bool = False, show: bool = True) -> Outcome:
    """Train as `recipe` says; the run's files are in `folder`.

    `last.pt` is the state to resume from, `best.safetensors` the weights with the best mIoU on the
    validation split, `log.jsonl` the log, drawn in `curves.png`. SIGTERM and
    SIGINT save the state and stop.

    Args:
        recipe: What to train, on what and how.
        folder: New, or with `resume` that of the run.
        resume: Continue from `last.pt`.
        show: A bar on stderr.

    Raises:
        TrainingError: if the loss is not finite (with the batch's file names), or a worker died.
        SaveError: if the disk is full.
        DataError: if a file cannot be read.
    """
    with join_processes() as place:
        run = Run(recipe, Path(folder), place)
        if resume:
            run.restore()
        elif run.path(STATE).exists():
            raise UsageError(f"{folder} holds a run already: --resume it or name another folder")
        try:
            with stop_signals() as stop:
                return run.go(stop, show and place.first)
        except (RuntimeError, ConnectionError, EOFError) as error:
            # PyTorch raises the first from a signal handler, so wherever the loop just was; a batch
            # whose memory the dead worker had yet to hand over ends in one of the others.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                f"a data worker died at iteration {run.iteration} (out of memory?): continue with "
                "--resume, perhaps with data.workers=1"
            ) from error


@contextmanager
def _end_workers(batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    """Ends the data workers with the block, after an error too: as long as PyTorch knows of one
    that died, it may raise wherever a signal finds this process."""
    try:
        yield batches
    finally:
        end = getattr(batches, "_shutdown_workers", None)  # none where data.workers is 0
        if end is not None:
            with suppress(RuntimeError):
                end()


class Run:
    """A recipe instantiated on this process's device, and its progress."""

    def __init__(self, recipe: Recipe, folder: Path, place: Place):
        self.recipe, self.folder, self.place = recipe, folder, place
        torch.manual_seed(recipe.seed)
        self.data = open_split(
            recipe, recipe.data.train, labels_optional=recipe.teacher is not None
        )
        self.val = open_split(recipe, recipe.data.val)
        self.network = build(recipe.model, len(self.data.classes), **recipe.options).train()
        self.network.info.check_size(*recipe.augment.crop)
        self.started = start_network(self.network, recipe)
        # After the start: a checkpoint is of plain layers.
        self.rounded = round_layers(self.network, recipe.augment.crop) if recipe.quantize else []
        channels_last(self.network.to(place.device))
        self.average = Average(self.network, recipe.ema) if recipe.ema else None
        self.optimizer = make_optimizer(self.network, recipe.optimizer)
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=recipe.precision == "fp16")
        criterion = Criterion(recipe.loss, self._class_weights(), self.network.info.align_corners)
        self.criterion: Callable[..., Tensor] = criterion.to(place.device)
        self.parallel = distribute(self.network, place, recipe.sync_norm)
        self.step_model: Any = self.parallel
        if recipe.compile:  # crops are of one size
            self.step_model = torch.compile(self.parallel, dynamic=False)
        self.teacher: SoftSource | None = None
        if recipe.teacher:
            self.teacher = SoftSource.open(recipe, self.data, self.folder, place)
        self.epoch_images = len(epoch_frames(self.data, recipe.data.repeat))
        self.iteration, self.best = 0, 0.0
        self.length = self._iterations()
        self.total = max(1, round(self.length * recipe.schedule.stop))

    def path(self, name: str) -> Path:
        return self.folder / name

    def _iterations(self) -> int:
        """Of the whole schedule, which may end before."""
        schedule = self.recipe.schedule
        if schedule.iterations is not None:
            return schedule.iterations
        assert schedule.epochs is not None
        return max(1, round(schedule.epochs * self.epoch_images / self._images))

    def _class_weights(self) -> Tensor | None:
        power = self.recipe.loss.class_balance
        return balance_classes(class_counts(self.data), power) if power else None

    def restore(self) -> None:
        """Continue from the folder's state, bit for bit."""
        state = read_state(self.path(STATE))
        self.network.load_state_dict(state["network"])
        set_ranges(self.network, state.get("ranges", {}))
        load_state_by_name(self.optimizer, self.network, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])
            self.average.updates = state["updates"]
        self.iteration, self.best = state["iteration"], state["best"]

    def save(self) -> None:
        if not self.place.first:
            return
        average = self.average
        state = {
            "iteration": self.iteration,
            "best": self.best,
            "network": self.network.state_dict(),
            "ranges": get_ranges(self.network),
            "optimizer": state_by_name(self.optimizer, self.network),
            "scaler": self.scaler.state_dict(),
            "average": average.model.state_dict() if average else {},
            "updates": average.updates if average else 0,
            "recipe": self.recipe.model_dump_json(),
        }
        save_state(self.path(STATE), state)

    def go(self, stop: Stop, show: bool) -> Outcome:
        recipe, log = self.recipe, None
        if self.place.first:
            log = TrainingLog(self.path(LOG), self.iteration, recipe.tensorboard)
            log.write(self.iteration, **self._facts())
        seconds, losses = time.perf_counter(), []
        with (
            _end_workers(iter(self._loader())) as batches,
            TrainingBar(self.total, self.iteration, show) as bar,
        ):
            while self.iteration < self.total:
                losses.append(average_over_processes(self.step(batches), self.place))
                self.iteration += 1
                if self.iteration % recipe.log_every == 0 and log:
                    speed = self._images * len(losses) / (time.perf_counter() - seconds)
                    mean = sum(losses) / len(losses)
                    log.write(self.iteration, loss=mean, images_per_s=speed, rate=self.rate)
                    bar.show(self.iteration, loss=f"{mean:.3f}", speed=f"{speed:.1f}")
                    seconds, losses = time.perf_counter(), []
                if self.iteration % recipe.val_every == 0 or self.iteration == self.total:
                    result = self.validate()
                    bar.show(self.iteration, miou=f"{result.confusion.miou():.3f}")
                    if log:
                        log.write(self.iteration, val=result.as_dict())
                    seconds, losses = time.perf_counter(), []
                # Together: a signal may have reached one process alone, and the others would wait
                # for it.
                stopping = any_process(stop.wanted, self.place)
                if stopping or self.iteration % recipe.save_every == 0:
                    self.save()
                if stopping:
                    break
        self.save()
        if log:
            log.close()
            draw_curves(read_log(self.path(LOG)), self.path(CURVES))
        return Outcome(
            self.folder, self.iteration, self.iteration == self.total, self.best, self.place.first
        )

    def _facts(self) -> dict[str, object]:
        """What the log begins with, after every start."""
        facts = {"recipe": json.loads(self.recipe.model_dump_json()), "revision": git_revision()}
        facts |= {"rounded": self.rounded} if self.rounded else {}
        return facts | ({"started": asdict(self.started)} if self.started else {})

    @property
    def _images(self) -> int:
        return self.recipe.batch * self.recipe.accumulate * self.place.processes

    @property
    def rate(self) -> float:
        epoch = max(1, round(self.epoch_images / self._images))
        iteration = min(self.iteration, self.length - 1)
        scale = factor(self.recipe.schedule, iteration, self.length, epoch)
        return self.recipe.optimizer.learning_rate * scale

    def _loader(self) -> Any:
        recipe, place = self.recipe, self.place
        steps = (self.iteration * recipe.accumulate, self.total * recipe.accumulate)
        positions = Positions(recipe.batch, *steps, place.process, place.processes)
        margin = recipe.data.edge_margin
        stream = Stream(
            self.data,
            recipe.augment,
            recipe.seed,
            recipe.loss.maps,
            margin,
            self.teacher,
            recipe.data.repeat,
        )
        return make_loader(stream, positions, recipe.data.workers, place.device.type == "cuda")

    def step(self, batches: Iterator[Batch]) -> float:
        """One update from `accumulate` batches; returns their mean loss."""
        # Anew for every iteration: dropout then needs no state to resume from.
        torch.manual_seed(self._seed())
        set_learning_rate(self.optimizer, self.rate)
        total, count = 0.0, self.recipe.accumulate
        for number in range(1, count + 1):
            with self._gradients_shared(last=number == count):
                total += self._backward(self._next(batches)) / count
        if self.recipe.optimizer.clip is not None:
            # The bound is on true gradients, not on those scaled for float16.
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.optimizer.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.network)
        return total

    def _seed(self) -> int:
        """Of this iteration in this process."""
        place = self.place
        # A prime factor, so that neighboring seeds do not share iterations.
        return self.recipe.seed * 1_000_003 + self.iteration * place.processes + place.process

    def _next(self, batches: Iterator[Batch]) -> Batch:
        try:
            return next(batches)
        except DataError as error:  # from a worker, it brings a traceback before its own line
            raise DataError(str(error).strip().splitlines()[-1].split("DataError: ")[-1]) from error

    def _gradients_shared(self, last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once an update, with its last batch."""
        if last or not isinstance(self.parallel, DistributedDataParallel):
            return nullcontext()
        return self.parallel.no_sync()

    def _backward(self, batch: Batch) -> float:
        device = self.place.device
        image = normalize(batch.images.to(device, non_blocking=True), self.network.info)
        label = batch.labels.to(device, non_blocking=True).long()
        with autocast(device, self.recipe.precision):
            outputs = self.step_model(image)
        maps = {name: m.to(device, non_blocking=True) for name, m in batch.maps.items()}
        loss = self.criterion(outputs, label, maps)
        if (teacher := self.recipe.teacher) is not None:
            soft = soft_loss(outputs["logits"], maps["soft"], label, teacher)
            loss = teacher.true_weight * loss + teacher.weight * soft
        value = float(loss.detach())
        if not math.isfinite(value):
            names = ", ".join(self.data.name(index) for index in batch.indices)
            raise TrainingError(
                f"the loss is {value} at iteration {self.iteration}, batch of {names}: lower "
                "optimizer.learning_rate or set optimizer.clip, and continue with --resume"
            )
        torch.autograd.backward(self.scaler.scale(loss / self.recipe.accumulate))
        return value

    def validate(self) -> Evaluation:
        """mIoU on the validation split; better weights than ever are kept."""
        recipe, network = self.recipe, self.network
        if self.average:
            network = self.average.model
            # The average copies weights; ranges are buffers outside of the state dict.
            set_ranges(network, get_ranges(self.network))
        segment = Predictor(
            network,
            recipe.val_size,
            window=recipe.val_window,
            precision=recipe.precision,
            fit=recipe.val_fit,
        )
        # Interleaved, so that each process gets every kind of frame.
        mine = range(self.place.process, len(self.val), self.place.processes)
        result = evaluate_frames(segment, self.val, mine)
        self.network.train()
        result.confusion.matrix = sum_over_processes(result.confusion.matrix, self.place)
        result.images = int(sum_over_processes(np.array([result.images]), self.place)[0])
        miou = result.confusion.miou()
        better = miou > self.best
        if better:
            self.best = miou
        # A first mIoU of 0 is no better than none, but a run must not end without weights.
        if self.place.first and (better or not self.path(BEST).exists()):
            self._keep(network, result)
        return result

    def _keep(self, network: Network, result: Evaluation) -> None:
        facts = {
            "classes": describe_classes(self.data.classes),
            "metrics": {"split": self.recipe.data.val, "iteration": self.iteration}
            | {key: result.as_dict()[key] for key in ("miou", "iou", "pixel_accuracy", "images")},
            "recipe": json.loads(self.recipe.model_dump_json()),
            "revision": git_revision(),
        }
        try:
            save_checkpoint(network, self.path(BEST), metadata=facts)
        except OSError as error:
            raise SaveError(f"cannot write {self.path(BEST)}: {error.strerror or error}") from error


def open_split(
    recipe: Recipe, split: str, labels_optional: bool = False
) -> SegmentationData | Cached:
    """The data set of a recipe, its frames kept in memory where it says so."""
    options = recipe.data
    classes = load_class_set(options.classes) if options.classes else None
    data = open_data(options.name, options.root, split, classes)
    data.labels_optional = labels_optional
    return Cached(data) if options.cache else data


def describe_classes(classes: ClassSet) -> str | dict[str, object]:
    """For a checkpoint's header: the name of a known set, another one in full."""
    if CLASS_SETS.get(classes.name) == classes:
        return classes.name
    return {"name": classes.name, "names": classes.names, "palette": classes.palette}


def class_counts(data: SegmentationData | Cached) -> np.ndarray:
    """(K,) int64: the pixels of each class in the whole split."""
    counts = np.zeros(256, np.int64)
    for index in range(len(data)):
        label = data[index].label
        if label is not None:
            counts += np.bincount(label.ravel(), minlength=256)
    return counts[: min(IGNORE, len(data.classes))]


class Stop:
    """Set by a signal, read between iterations."""

    wanted = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGTERM and SIGINT ask for a stop; the handlers of before come back at the end."""
    stop = Stop()

    def handle(number: int, frame: object) -> None:
        stop.wanted = True

    kinds = (signal.SIGTERM, signal.SIGINT)
    try:
        before = {kind: signal.signal(kind, handle) for kind in kinds}
    except ValueError:  # only the main thread may set handlers
        yield stop
        return
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
