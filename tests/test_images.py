"""Pictures are read in one place, which bounds what a small file may claim to be."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from rtseg.data.frames import Frame, Unreadable, open_source
from rtseg.data.images import add_title, arrange, encode_png, read_image, read_png
from rtseg.errors import DataError


def write_bomb(path: Path, side: int) -> None:
    """A PNG of a few bytes whose header claims side x side pixels."""
    content = encode_png(np.zeros((4, 4, 3), np.uint8))
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + content[24:29]
    path.write_bytes(content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:])


@pytest.mark.parametrize("read", [read_image, read_png])
def test_a_picture_that_claims_too_many_pixels(read, tmp_path):
    write_bomb(tmp_path / "bomb.png", 40_000)
    with pytest.raises(DataError, match=r"bomb\.png has more pixels .*IMAGE_PIXELS higher"):
        read(tmp_path / "bomb.png")


def test_the_others_of_a_folder_are_read(tmp_path):
    write_bomb(tmp_path / "a.png", 40_000)
    (tmp_path / "b.png").write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8)))
    assert [type(item) for item in open_source(tmp_path)] == [Unreadable, Frame]


@pytest.mark.parametrize(("limit", "found"), [(None, "has more"), (str(2**29), "damaged")])
def test_the_limit_is_2_to_the_28_and_may_be_set(limit, found, tmp_path):
    write_bomb(tmp_path / "bomb.png", 20_000)
    environment = {k: v for k, v in os.environ.items() if k != "OPENCV_IO_MAX_IMAGE_PIXELS"}
    environment |= {"OPENCV_IO_MAX_IMAGE_PIXELS": limit} if limit else {}
    code = "import sys, rtseg.data.images as i, pathlib\ni.read_image(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "bomb.png")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("rtseg.errors.DataError")
    assert found in done.stderr.splitlines()[-1]


def test_a_sheet_holds_titled_pictures():
    picture = add_title(np.zeros((40, 80, 3), np.uint8), "title", 40)
    assert picture.shape == (40, 40, 3)
    assert arrange([picture] * 3, 2).shape == (80, 80, 3)
