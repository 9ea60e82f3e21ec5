"""Limits on what is read: bytes, pixels, depth and numbers are checked before they are decoded.

The one table of them is LIMITS, and `docs/limits.md` says the same. An environment variable sets
each one: `RTSEG_LIMIT_` and its name in capitals.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = type[UsageError]  # of the error that a caller's own callers expect


@dataclass(frozen=True)
class Limit:
    """The most of something that is read. unit: for messages; variable: of the environment."""

    most: int
    unit: str
    what: str
    variable: str = ""


LIMITS = {
    "image_bytes": Limit(1 << 29, "bytes", "an image file, or a picture in a log"),
    # OpenCV reads this one itself, as it is loaded, from the header of each picture.
    "image_pixels": Limit(
        1 << 28, "pixels", "a picture that is decoded", "OPENCV_IO_MAX_IMAGE_PIXELS"
    ),
    "video_pixels": Limit(1 << 26, "pixels", "a frame of a video or a camera"),
    "video_streams": Limit(64, "streams", "a video file or network stream"),
    "json_bytes": Limit(1 << 24, "bytes", "a JSON file or card"),
    "yaml_bytes": Limit(1 << 18, "bytes", "a recipe, class set, class map or fault plan"),
    # Nine lines of them may stand for a billion values.
    "yaml_aliases": Limit(0, "aliases", "a YAML file"),
    # What is wrong with a value is told with the value.
    "yaml_letters": Limit(1000, "characters", "a value in a YAML file"),
    "text_bytes": Limit(1 << 26, "bytes", "a list of files, one a line"),
    "depth": Limit(64, "levels", "JSON, YAML or an ONNX graph, one inside another"),
    "model_bytes": Limit(1 << 31, "bytes", "an ONNX file, its weights in other files included"),
    "model_fields": Limit(1 << 22, "fields", "an ONNX graph, its tensors' values apart"),
    "model_nodes": Limit(1 << 17, "nodes", "an ONNX graph"),
    "engine_bytes": Limit(1 << 33, "bytes", "a TensorRT engine"),
    "xml_bytes": Limit(1 << 28, "bytes", "the .xml file of an OpenVINO model"),
    "weights_bytes": Limit(
        1 << 33, "bytes", "a safetensors file, or the .bin of an OpenVINO model"
    ),
    "header_bytes": Limit(1 << 24, "bytes", "the header of a safetensors file"),
    "tensors": Limit(1 << 16, "tensors", "a safetensors file, or members of an archive"),
    "archive_bytes": Limit(1 << 33, "bytes", "a .pth file, unpacked"),
    "array_bytes": Limit(1 << 29, "bytes", "an .npz file, unpacked"),
    "chunk_bytes": Limit(1 << 30, "bytes", "a chunk of an MCAP log, unpacked"),
}


def find_variable(name: str) -> str:
    """The environment variable of a limit."""
    return LIMITS[name].variable or f"RTSEG_LIMIT_{name.upper()}"


def find_limit(name: str) -> int:
    """A limit, as the environment sets it, else its default.

    Raises:
        UsageError: the variable holds no positive whole number.
    """
    variable = find_variable(name)
    text = os.environ.get(variable, "")
    if not text:
        return LIMITS[name].most
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 20 and int(text)):
        raise UsageError(f"{variable} is a number of {LIMITS[name].unit}, not {text!r}")
    return int(text)


def check_limit(name: str, value: int, where: object, kind: Kind = UsageError) -> None:
    """Refuse what is beyond a limit.

    Args:
        name: a key of LIMITS.
        value: how many there are, or are claimed.
        where: what holds them, for the message.
        kind: of the error.
    """
    most = find_limit(name)
    if value > most:
        raise kind(
            f"{where} has {value:,} {LIMITS[name].unit}, and at most {most:,} are read: if it is "
            f"sound, set {find_variable(name)} higher"
        )


def read_limited(path: Path, name: str, kind: Kind = UsageError) -> bytes:
    """A file's content, whose size is checked first.

    Raises:
        UsageError: as `kind`, it is too large.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size, most = os.fstat(file.fileno()).st_size, find_limit(name)
        check_limit(name, size, path, kind)
        parts = [file.read(size + 1)]
        while parts[-1] and sum(map(len, parts)) <= most:  # a pipe has no size, a log grows
            parts.append(file.read(1 << 20))
    content = b"".join(parts)
    check_limit(name, len(content), path, kind)
    return content


def parse_json(content: str | bytes, where: object, kind: Kind = UsageError) -> Any:
    """JSON of limited size and depth.

    Raises:
        UsageError: as `kind`, it is too large or too deep, or no JSON.
    """
    check_json(content, where, kind)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise kind(
            f"{where} is damaged or not valid JSON: {' '.join(str(error).split())}"
        ) from error


def read_json(path: Path, kind: Kind = UsageError) -> Any:
    """A JSON file; errors as of `parse_json` and `read_limited`."""
    return parse_json(read_limited(path, "json_bytes", kind), path, kind)


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object that a program kept; {} where it is absent, damaged or something else, since a
    crash or a full disk may leave anything."""
    try:
        content = read_json(path)
    except (OSError, UsageError):
        return {}
    return content if isinstance(content, dict) else {}


def check_json(content: str | bytes, where: object, kind: Kind = UsageError) -> None:
    """Refuse JSON that is too large or too deep, in one pass that builds nothing."""
    text = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    check_limit("json_bytes", len(text), where, kind)
    outside = b"".join(_ESCAPES.sub(b"", text).split(b'"')[::2])  # of strings
    most, depth = find_limit("depth"), 0
    for sign in outside.translate(None, _OTHER):
        depth += 1 if sign in b"[{" else -1
        if depth > most:
            check_limit("depth", depth, where, kind)


_ESCAPES = re.compile(rb"\\.", re.DOTALL)
_OTHER = bytes(set(range(256)) - set(b"[]{}"))


def parse_yaml(content: str | bytes, where: object, kind: Kind = UsageError) -> Any:
    """YAML of limited size, depth and number of aliases, of plain values alone.

    Raises:
        UsageError: as `kind`, it is too large or too deep, or no YAML.
    """
    import yaml  # only those who bring such files need it

    check_limit("yaml_bytes", len(content), where, kind)
    depth = aliases = 0
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        for event in yaml.parse(text, yaml.SafeLoader):
            aliases += isinstance(event, yaml.AliasEvent)
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            check_limit("depth", depth, where, kind)
            check_limit("yaml_aliases", aliases, where, kind)
            letters = len(event.value) if isinstance(event, yaml.ScalarEvent) else 0
            check_limit("yaml_letters", letters, f"a value in {where}", kind)
        return yaml.safe_load(text)
    except UsageError:
        raise
    # Values such as a date that there is none of are Python's own errors.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, OverflowError) as error:
        raise kind(f"{where} is not valid YAML: {_explain_yaml(error)}") from error
    except (RecursionError, AttributeError) as error:
        raise kind(f"{where} is no YAML that can be read") from error


def _explain_yaml(error: Exception) -> str:
    """What is wrong and where, without the parser's picture of the line, which needs more lines."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def read_yaml(path: Path, kind: Kind = UsageError) -> Any:
    """A YAML file; errors as of `parse_yaml`, and as `kind` where it cannot be read."""
    try:
        content = read_limited(path, "yaml_bytes", kind)
    except OSError as error:
        raise kind(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_yaml(content, path, kind)


def read_lines(path: Path, kind: Kind = UsageError) -> list[str]:
    """The lines of a text file that are not blank, without blanks at their ends.

    Raises:
        UsageError: as `kind`, it is too large or not UTF-8.
        OSError: it cannot be read.
    """
    try:
        text = read_limited(path, "text_bytes", kind).decode()
    except UnicodeDecodeError as error:
        raise kind(f"{path} is no UTF-8 text: save it as such") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def check_archive(
    path: Path, kind: Kind = UsageError, name: str = "archive_bytes", file: BinaryIO | None = None
) -> None:
    """Refuse a zip (.npz, .pth) whose members would unpack to too much; and another file that is
    too large. A file that is not there, or is damaged, is left to its reader to tell. file: its
    content, where that was read."""
    sizes: list[int] = []
    # Only the size is judged here: the reader that comes next names such a file and what is wrong.
    with suppress(OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        sizes = [path.stat().st_size]
        if zipfile.is_zipfile(file or path):
            with zipfile.ZipFile(file or path) as archive:
                sizes = [each.file_size for each in archive.infolist()]
    check_limit("tensors", len(sizes), path, kind)
    check_limit(name, sum(sizes), path, kind)


def read_arrays(
    path: Path, kind: Kind = UsageError, digest: str | None = None
) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, which may hold no objects.

    Args:
        path: of the file.
        kind: of the error.
        digest: the SHA-256 that it must have; it is read once.

    Raises:
        UsageError: as `kind`, it is too large, damaged or another file.
        FileNotFoundError: it is not there.
    """
    import numpy as np

    content = read_limited(path, "array_bytes", kind)
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise kind(f"{path} is not the one that was exported: copy it again, or export again")
    file = io.BytesIO(content)
    check_archive(path, kind, "array_bytes", file)
    file.seek(0)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    # What a damaged archive or header makes of zipfile, zlib and NumPy is of many kinds.
    except Exception as error:
        why = " ".join(str(error).split())
        raise kind(f"{path} is damaged ({why}): copy it again, or write it again") from error
