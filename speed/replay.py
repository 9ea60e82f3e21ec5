"""Replay of a log through an update: masks, times and memory beside the old artifact's."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from ..data.classes import Color
from ..data.files import replace_folder, scratch_folder
from ..data.frames import Frame, Recording, Unreadable
from ..data.playback import open_recording
from ..errors import UsageError
from ..resolve import resolve_artifact
from ..runtime import Segmenter, load
from .replay_bars import BarCheck, ReplayBars, at_least, at_most
from .replay_figures import MaskComparison, compare_latency, find_p99, find_slope, pair_turns
from .replay_side import (
    RECORD,
    LabelMap,
    RecordedSide,
    ReplayPlayer,
    ReplayRecorder,
    ReplaySide,
    describe_side,
    digest_frame,
    read_recorded,
    read_resident,
)
from .timing import Now, Ratio

BLOCK = 8  # frames of a turn, held in memory; the last of a log has up to 15
RUNS = 200  # timed frames a side
LONGER = 5  # times as many at most, where the ratio of the times is not decided by then
STEP = 5  # blocks between two looks at it
Seen = Callable[[int, Frame, Sequence[LabelMap]], None]
Advance = Callable[[], None]
Turn = Callable[[ReplaySide], bool]  # of the last side so far: whether to read another block
More = Callable[[ReplaySide], bool]  # likewise, and to play it, after the first pass


@dataclass(frozen=True)
class ReplayConfig:
    """How a log is played.

    Attributes:
        topic: of an MCAP log or ROS bag.
        runs: least timed frames a side; a shorter log is played again.
        backend, device: of both sides.
    """

    topic: str | None = None
    runs: int = RUNS
    backend: str | None = None
    device: str | None = None


@dataclass
class ReplayResult:
    """An update held against what it replaces.

    Attributes:
        log: that was played.
        old, new: the two sides.
        interleaved: whether both ran here in turns.
        masks: compared.
        skipped: frames that could not be read.
        palette: (red, green, blue) by class id.
        checks: the bars, judged.
    """

    log: str
    old: ReplaySide
    new: ReplaySide
    interleaved: bool
    masks: MaskComparison
    skipped: int
    palette: Sequence[Color]
    checks: Sequence[BarCheck] = ()

    @property
    def refusals(self) -> list[BarCheck]:
        return [each for each in self.checks if each.passed is False]

    @property
    def undecided(self) -> list[BarCheck]:
        return [each for each in self.checks if each.undecided]

    def failure(self) -> str:
        """The bars that were missed, by name; "" if the update may go out."""
        return "; ".join(f"{each.bar}: {each.text}" for each in self.refusals)


def replay(
    log: str,
    model: str,
    against: str,
    config: ReplayConfig | None = None,
    bars: ReplayBars | None = None,
    advance: Advance = lambda: None,
) -> ReplayResult:
    """Play a log through a new artifact and an old one, in turns, or a recorded baseline.

    Args:
        log: what `open_recording` takes.
        model: the update: an artifact, or what `resolve_artifact` takes.
        against: likewise, or a folder that `record` wrote.
        config: how it is played.
        bars: that the update is held to.
        advance: called at each frame of the first pass.

    Raises:
        UsageError: classes or frames are others, or the baseline is none.
    """
    config, bars = config or ReplayConfig(), bars or ReplayBars()
    recording = open_recording(log, config.topic)
    recorded = read_recorded(Path(against)) if Path(against).is_dir() else None
    with ExitStack() as stack:
        new, made = _open(model, config, stack)
        if recorded is not None:
            done = compare_recorded(recording, recorded, new, made, config.runs, advance=advance)
        else:
            old, old_side = _open(against, config, stack)
            done = compare_here(
                *(recording, (old, old_side), (new, made), config.runs),
                advance=advance,
                limit=bars.latency_ratio,
            )
    done.log = log
    done.checks = judge(done, bars)
    return done


def record(
    log: str,
    model: str,
    folder: Path,
    config: ReplayConfig | None = None,
    advance: Advance = lambda: None,
    turn: Turn = lambda side: True,
    more: More | None = None,
) -> ReplaySide:
    """Play a log through one artifact, and write its masks and figures as a baseline.

    Args:
        log: what `open_recording` takes.
        model: an artifact, or what `resolve_artifact` takes.
        folder: to write; a baseline that is there gives way.
        config: how it is played.
        advance: called at each frame of the first pass.
        turn: as `play_turns` calls it.
        more: likewise; None: until `runs` of the config are timed.

    Raises:
        UsageError: the folder holds something else, or the log no frame.
    """
    config = config or ReplayConfig()
    if folder.exists() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise UsageError(f"{folder} holds something else: name a new folder for the baseline")
    recording = open_recording(log, config.topic)
    with ExitStack() as stack:
        segmenter, side = _open(model, config, stack)
        scratch = stack.enter_context(scratch_folder(folder.resolve().parent, "replay"))
        recorder = ReplayRecorder(scratch / "new")

        def seen(number: int, frame: Frame, maps: Sequence[LabelMap]) -> None:
            recorder.add(frame.name, frame.image, maps[0])
            player.certify(frame.image)
            advance()

        player = ReplayPlayer(segmenter, side, time.perf_counter_ns)
        play_turns(recording, [player], more or until(config.runs), seen, turn)
        recorder.finish(side)
        replace_folder(scratch / "new", folder)
    return side


def _open(what: str, config: ReplayConfig, stack: ExitStack) -> tuple[Segmenter, ReplaySide]:
    path = resolve_artifact(what, backend=config.backend, device=config.device)
    segmenter = stack.enter_context(load(path, config.backend, config.device))
    segmenter.picks_size = False  # as a drive has it
    return segmenter, describe_side(path, segmenter)


def compare_here(
    recording: Recording,
    old: tuple[Segmenter, ReplaySide],
    new: tuple[Segmenter, ReplaySide],
    runs: int = RUNS,
    now: Now = time.perf_counter_ns,
    resident: Callable[[], int] = read_resident,
    advance: Advance = lambda: None,
    limit: float | None = None,
) -> ReplayResult:
    """Both sides in turns on the same frames; nothing is judged yet.

    Args:
        recording: frames; played again until there are `runs` timed ones a side.
        old: what is replaced, loaded, with its side.
        new: the update.
        runs: least timed frames a side.
        now: nanoseconds, never going back.
        resident: bytes of this process in memory.
        advance: called at each frame of the first pass.
        limit: of the times' ratio; up to LONGER times the runs are taken until it is decided.

    Raises:
        UsageError: the classes are others, or there is no frame.
    """
    masks = start_masks(old[1], new[1])
    players = [ReplayPlayer(*side, now, resident) for side in (old, new)]

    def seen(number: int, frame: Frame, maps: Sequence[LabelMap]) -> None:
        masks.add(frame.name or str(number), frame.image, maps[0], maps[1])
        for player in players:
            player.certify(frame.image)
        advance()

    more = until_decided(runs, limit, old[1].rounds)
    skipped = play_turns(recording, players, more, seen)
    return ReplayResult("", old[1], new[1], True, masks, skipped, new[0].card.palette)


def compare_recorded(
    recording: Recording,
    old: RecordedSide,
    segmenter: Segmenter,
    side: ReplaySide,
    runs: int = RUNS,
    now: Now = time.perf_counter_ns,
    resident: Callable[[], int] = read_resident,
    advance: Advance = lambda: None,
) -> ReplayResult:
    """An update beside a baseline that was recorded; else as `compare_here`."""
    masks = start_masks(old.side, side)
    player = ReplayPlayer(segmenter, side, now, resident)

    def seen(number: int, frame: Frame, maps: Sequence[LabelMap]) -> None:
        before, name = old.labels(number), frame.name or str(number)
        if before.shape != maps[0].shape:
            raise UsageError(f"frame {name} had another size when {old.folder} was recorded")
        if old.frames[number]["pixels"] != digest_frame(frame.image):
            masks.other_pixels.append(name)
        masks.add(name, frame.image, before, maps[0])
        player.certify(frame.image)
        advance()

    skipped = play_turns(recording, [player], until(runs), seen)
    if len(masks.frames) != len(old.frames):
        raise UsageError(
            f"the log has {len(masks.frames)} frames, {old.folder} {len(old.frames)}: record the "
            "baseline again on this log"
        )
    return ReplayResult("", old.side, side, False, masks, skipped, segmenter.card.palette)


def start_masks(old: ReplaySide, new: ReplaySide) -> MaskComparison:
    """No frame yet, of two sides of the same classes.

    Raises:
        UsageError: the classes are others.
    """
    if old.classes != new.classes:
        several = zip_longest(old.classes, new.classes, fillvalue="none")
        place, was, now = next((i, a, b) for i, (a, b) in enumerate(several) if a != b)
        raise UsageError(
            f"class {place} is {was} in {old.file} and {now} in {new.file}: that is no update, "
            "score both with rtseg eval"
        )
    return MaskComparison(new.classes)


def until(runs: int) -> More:
    """Play until a side has timed so many frames."""
    return lambda side: side.runs < runs


def until_decided(runs: int, limit: float | None, old: Sequence[Sequence[float]]) -> More:
    """Play until each side has timed `runs` frames, and then up to LONGER times as many, while the
    interval of the times' ratio holds the limit. old: that side's turns, as they come."""

    def more(new: ReplaySide) -> bool:
        if new.runs < runs or limit is None or new.runs >= LONGER * runs:
            return new.runs < runs
        if len(new.rounds) % STEP:
            return True
        found = pair_turns(old, new.rounds)
        return found.low <= limit < found.high

    return more


def play_turns(
    recording: Recording,
    players: Sequence[ReplayPlayer],
    more: More,
    seen: Seen,
    turn: Turn = lambda side: True,
) -> int:
    """Play a log in blocks, each side a turn a block, in shuffled order, once and then again.

    Args:
        recording: frames.
        players: the sides.
        more: asked after the first pass, before a block is played.
        seen: takes number, frame and each side's label map, in the first pass.
        turn: asked before each block is read, and may wait; False ends it all.

    Returns:
        How many frames could not be read.

    Raises:
        UsageError: not one could.
    """
    shuffle, order = random.Random(0).shuffle, list(players)
    skipped, number = [0], 0
    passes = _passes(recording, skipped)
    while turn(players[-1].side):
        block, first = next(passes)
        if not first and not more(players[-1].side):
            break
        shuffle(order)
        images = [frame.image for frame in block]
        maps = {id(player): player.take_turn(images) for player in order}
        for place, frame in enumerate(block if first else ()):
            seen(number, frame, [maps[id(player)][place] for player in players])
            number += 1
    return skipped[0]


def _passes(recording: Recording, skipped: list[int]) -> Iterator[tuple[list[Frame], bool]]:
    """Blocks of a log without an end, and whether they are of the first pass."""
    first = True
    while True:
        blocks = 0
        for block in _blocks(recording, skipped if first else [0]):
            blocks += 1
            yield block, first
        if not blocks:
            raise UsageError("the log has no frame that can be read")
        first = False


def _blocks(recording: Recording, skipped: list[int]) -> Iterator[list[Frame]]:
    """Of BLOCK frames, the last one of up to twice as many: what slows the first calls of a turn
    slows both sides alike, so that short turns would make a slower update look less so."""
    block: list[Frame] = []
    following: list[Frame] = []
    for item in recording:
        if isinstance(item, Unreadable):
            skipped[0] += 1
            continue
        (following if len(block) == BLOCK else block).append(item)
        if len(following) == BLOCK:
            yield block
            block, following = following, []
    if block:
        yield block + following


def judge(done: ReplayResult, bars: ReplayBars) -> list[BarCheck]:
    """Hold the figures of an update to the bars."""
    masks, count = done.masks, len(done.masks.other_pixels)
    checks = [
        at_least("agreement", bars.agreement, masks.agreement, "pixels with the old label"),
        at_least(
            "frame_agreement", bars.frame_agreement, masks.frame_agreement, "of the worst frame"
        ),
        at_least("border_agreement", bars.border_agreement, masks.border_agreement, "near borders"),
        _judge_classes(masks, bars),
        _judge_certified(done, bars),
        *_judge_latency(done, bars),
        _judge_memory(done, bars),
    ]
    if count:
        text = f"{count} frames of the log have other pixels than when the old masks were made"
        checks.insert(0, BarCheck("input_frames", 0, count, False, text))
    return checks


def _judge_classes(masks: MaskComparison, bars: ReplayBars) -> BarCheck:
    worst = masks.worst_class(bars.class_share)
    what = f"worst class {worst[0]}, 1 - IoU" if worst else ""
    value = 1 - worst[1] if worst else None
    why = "" if worst else "no class is large enough"
    return at_most("class_iou_drop", bars.class_iou_drop, value, what, why)


def _judge_certified(done: ReplayResult, bars: ReplayBars) -> BarCheck:
    name, shares = "certified_drop", (done.old.certified, done.new.certified)
    if not shares[0] or not shares[1]:
        why = "; ".join(dict.fromkeys(s.uncertified for s in (done.old, done.new) if s.uncertified))
        return at_most(name, bars.certified_drop, None, "", why or "a side certifies no pixel")
    old, new = (sum(each) / len(each) for each in shares if each)
    what = f"certified share fell from {old:.2%} to {new:.2%}, by"
    return at_most(name, bars.certified_drop, old - new, what)


def _judge_latency(done: ReplayResult, bars: ReplayBars) -> Iterator[BarCheck]:
    old, new = done.old, done.new
    if old.machine != new.machine:
        why = f"the old side ran on another machine ({old.machine})"
        for name in ("latency_ratio", "p99_ratio"):
            yield at_most(name, None, None, "", why)
        return
    found = compare_latency(old, new, done.interleaved)
    yield _judge_ratio(found, bars.latency_ratio, done.interleaved)
    before, after = find_p99(old), find_p99(new)
    of = after / before if before and after else None
    yield at_most(
        "p99_ratio", bars.p99_ratio, of, "p99, new over old", "" if of else "fewer than 100 runs"
    )


def _judge_ratio(found: Ratio, limit: float | None, interleaved: bool) -> BarCheck:
    """Refused or passed where the whole interval is beyond the bar or within it."""
    how = "" if interleaved else ", the sides ran apart"
    why = f"95 % {found.low:.3f} to {found.high:.3f}{how}"
    if limit is not None and found.low <= limit < found.high:
        wide = found.high - found.low > limit - 1
        cause = "the machine was busy" if wide else "the update is too near the bar"
        text = f"not decided: {cause}: {found.value:.3f} ({why}) may be either side of {limit:g}"
        return BarCheck("latency_ratio", limit, found.value, None, text, undecided=True)
    return at_most("latency_ratio", limit, found.value, "times, new over old", why)


def _judge_memory(done: ReplayResult, bars: ReplayBars) -> BarCheck:
    old, new = find_slope(done.old.memory_mib), find_slope(done.new.memory_mib)
    grown = None if new is None else new - max(0.0, old or 0.0)
    why = "too few frames for a slope" if grown is None else ""
    what = "memory grows a frame by"
    return at_most("memory_growth_mb", bars.memory_growth_mb, grown, what, why, " MB")
