"""Self-test of a loaded model before it serves: a known frame must give the same labels as ever.

The digest of those labels is kept in the user's cache folder by artifact, backend and device. It is
recorded at the first load on a machine, so it shows that a replaced worker, or the next start,
computes what the first did. That the first was right is for the artifact's own proof to show.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ...data.scenes import scene
from ...errors import ArtifactError
from ..packages import cache_folder
from ..records import read_record, write_record
from ..segmenter import Segmenter

SEED = 11  # of the drawn street scene
SAME = 0.999  # share of pixels that two runs of one model must agree on at least


def prove(segmenter: Segmenter, name: str) -> str:
    """The digest of the known frame's labels, or "" where this backend's vary between runs.

    Raises ArtifactError if the labels are not those known, or are no labels at all.
    """
    frame = segmenter.card.encode(scene(segmenter.card.size, SEED))
    first, second = segmenter(frame), segmenter(frame)
    if first.max() >= len(segmenter.card.classes):
        raise ArtifactError(f"{name} gives class ids that its card does not have")
    if np.mean(first == second) < SAME:
        raise ArtifactError(f"{name} gives different labels each time for the same frame")
    # Threads that add up in another order move a tied pixel: no digest then, which would be chance.
    if not np.array_equal(first, second):
        return ""
    digest = hashlib.sha256(first.tobytes()).hexdigest()
    known, subject = _known(segmenter)
    record = read_record(known, of=subject)
    if record is None:
        write_record(known, {"of": subject, "labels": digest})
    elif record["labels"] != digest:
        raise ArtifactError(
            f"{name} gives other labels for the known frame than before on this machine: "
            f"check it with `rtseg check`; where that is expected, delete {known}"
        )
    return digest


def _known(segmenter: Segmenter) -> tuple[Path, str]:
    """The file with the digest, and what that is of: a digest of all that may change a label."""
    info, card = segmenter.info, segmenter.card
    files = sorted(card.files.items())
    facts = (card.weights, files, card.size, *asdict(info).values())
    subject = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return cache_folder() / "known-frames" / subject[:32], subject
