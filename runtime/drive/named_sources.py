"""Sources as `rtseg drive` names them: one, or several cameras."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ...data.frames import Frame, Unreadable
from ...data.playback import open_drive_source
from ...errors import UsageError
from .cameras import MOST_CAMERAS, NAME, name_cameras


def open_cameras(
    given: Sequence[str], rate: float | None = None, loop: bool = False, topic: str | None = None
) -> dict[str, Iterable[Frame | Unreadable]]:
    """The sources by the names of their cameras; a single one without a name by "".

    Args:
        given: `SOURCE` or `NAME=SOURCE`.
        rate: Hz of recordings.
        loop: play those again and again.
        topic: of logs.

    Raises:
        UsageError: a source is not there, an option does not go with it, or there are too many.
    """
    if len(given) > MOST_CAMERAS:
        raise UsageError(f"a drive takes 1 to {MOST_CAMERAS} cameras, not {len(given)}")
    named = [_split_name(each) for each in given]
    places = [where for _, where in named]
    names = [""] if named == [("", given[0])] else name_cameras(places, [name for name, _ in named])
    if twice := [each for each in places if places.count(each) > 1 and not Path(each).exists()]:
        raise UsageError(f"a camera can be opened once: {twice[0]} is given twice")
    return {
        name: open_drive_source(where, rate, loop, topic)
        for name, where in zip(names, places, strict=True)
    }


def _split_name(text: str) -> tuple[str, str]:
    name, equals, where = text.partition("=")
    if not equals or Path(text).exists() or not NAME.fullmatch(name):
        return "", text
    return name, where
