"""Evidence of a disagreement: the frame, both label maps and what made them, bounded on disk."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...data.files import digest_of, keep_newest, new_folder, write_atomically
from ...system import read_system
from ..artifact import Card
from ..sinks.label_files import encode_picture
from .agreement import FrameAgreement, LabelMap
from .messages import Result

log = logging.getLogger("rtseg")
MOST = 20  # folders; the oldest goes first


class Evidence:
    """Keeps a folder of each alarm: `frame.png`, the class ids in `engine.png` and `reference.png`,
    the coarse logits of those that give them in `logits.npz`, and `facts.json`.

    Args:
        parent: of the folders, `alarm`, `alarm-2`, ...; at most `most` of them stay.
    """

    def __init__(self, parent: Path, most: int = MOST):
        self.parent, self.most = parent, most
        self.folders: list[Path] = []

    def keep(
        self,
        result: Result,
        reference: LabelMap,
        seen: FrameAgreement,
        why: str,
        cards: Mapping[str, Card | None],
        facts: Mapping[str, object],
        logits: NDArray[np.float32] | None = None,
    ) -> None:
        """Write what is known of an alarm; a disk that does not take it is only logged. logits:
        the reference's, (channels, h, w)."""
        both = {"engine": result.logits, "reference": logits}
        known = {name: each for name, each in both.items() if each is not None}
        about = {
            "why": why,
            "seen": asdict(seen),
            "result": result.facts(),
            "cards": {level: json.loads(card.to_json()) if card else None
                      for level, card in cards.items()},
            "logits": {name: each.shape for name, each in known.items()},
            "system": asdict(read_system()),
            **facts,
        }  # fmt: skip
        pictures = {"frame": result.image, "engine": result.labels, "reference": reference}
        try:
            folder = new_folder(self.parent / "alarm")
            for name, picture in pictures.items():
                write_atomically(folder / f"{name}.png", encode_picture(".png", picture))
            if known:
                packed = io.BytesIO()
                np.savez_compressed(packed, **known)  # type: ignore[arg-type]
                write_atomically(folder / "logits.npz", packed.getvalue())
            write_atomically(folder / "facts.json", (json.dumps(about, indent=2) + "\n").encode())
            self.folders = keep_newest(self.parent, "alarm*", self.most)
        except OSError as error:
            log.warning("the evidence of an alarm could not be kept: %s", error)


class FileWatch:
    """Notices that a file is no longer the one that was loaded.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._stamp, self._digest = _read_stamp(path), digest_of(path)
        self._change = ""

    def find_change(self) -> str:
        """What became of the file, in words; "" while its content is the same. It is read only
        where its size, time or inode are others than before."""
        try:
            stamp = _read_stamp(self.path)
            if stamp != self._stamp:
                same = digest_of(self.path) == self._digest
                self._change = "" if same else f"{self.path.name} was changed while it serves"
                self._stamp = stamp
        except OSError:
            self._stamp = None
            self._change = f"{self.path.name} was removed while it serves"
        return self._change


def _read_stamp(path: Path) -> tuple[int, int, int] | None:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ino
