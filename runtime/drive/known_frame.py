"""A loaded model proves itself before it serves: a known frame must give the labels it always gave.

The digest of those labels is kept in the user's cache folder by artifact, backend and device. It is
recorded at the first load on a machine, so it tells that a replaced worker, or the next start,
computes what the first did; that the first was right is what the artifact's own proof is for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ...data.files import write_atomically
from ...data.scenes import scene
from ...errors import ArtifactError
from ..packages import cache_folder
from ..segmenter import Segmenter

SEED = 11  # of the drawn street scene
SAME = 0.999  # share of pixels that two runs of one model must agree on at least


def prove(segmenter: Segmenter, name: str) -> str:
    """The digest of the known frame's labels, or "" where this backend's vary between runs.

    Raises ArtifactError if the labels are not those known, or are no labels at all.
    """
    frame = scene(segmenter.card.size, SEED)
    first, second = segmenter(frame), segmenter(frame)
    if first.max() >= len(segmenter.card.classes):
        raise ArtifactError(f"{name} gives class ids that its card does not have")
    if np.mean(first == second) < SAME:
        raise ArtifactError(f"{name} gives other labels each time for the same frame")
    # Threads that add up in another order move a tied pixel: no digest then, which would be chance.
    if not np.array_equal(first, second):
        return ""
    digest = hashlib.sha256(first.tobytes()).hexdigest()
    known = _known(segmenter)
    expected = _read_digest(known)
    if expected is None:
        with contextlib.suppress(OSError):  # a vehicle's home may be read-only
            write_atomically(known, digest.encode())
    elif expected != digest:
        raise ArtifactError(
            f"{name} gives other labels for the known frame than before on this machine: "
            f"check it with `rtseg check`; where that is expected, delete {known}"
        )
    return digest


def _read_digest(path: Path) -> str | None:
    """None for a record that is absent, unreadable or malformed: a crash or a full disk may leave
    an empty one, which must not stop every start from then on."""
    try:
        text = path.read_text()
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _known(segmenter: Segmenter) -> Path:
    """The file with the digest: its name changes with all that may change a label."""
    info, card = segmenter.info, segmenter.card
    files = sorted(card.files.items())
    facts = (card.weights, files, card.size, *asdict(info).values())
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    return cache_folder() / "known-frames" / key
