"""YAML that people write and JSON records that programs keep, read within limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UsageError

MOST_BYTES = 1 << 18  # of a YAML file: PyYAML takes seconds for a megabyte
MOST_LETTERS = 1000  # of a value: what is wrong with it is told with the value
MOST_DEPTH = 50


def load_yaml(path: Path, error: type[UsageError] = UsageError) -> object:
    """What a YAML file holds.

    Args:
        path: The file.
        error: What is raised.

    Raises:
        UsageError: if it cannot be read, is no YAML, or is larger, deeper or has longer values than
            is read; or the class that was given for it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise error(f"{path} is larger than the {MOST_BYTES} bytes that are read of YAML")
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{path} cannot be read: {' '.join(str(cause).split())}") from cause
    return parse_yaml(text, str(path), error)


def parse_yaml(text: str, where: str, error: type[UsageError] = UsageError) -> object:
    """What a YAML text holds. where: for messages; errors as of `load_yaml`."""
    import yaml  # only those who write YAML need it

    try:
        _check_events(yaml.parse(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    # ValueError: a date that is none, a number that is too long.
    except (yaml.YAMLError, ValueError) as cause:
        raise error(f"{where} is not valid YAML: {' '.join(str(cause).split())}") from cause


def _check_events(events: Any) -> None:
    """Raises ValueError for what would take endless time, memory or stack when it is built."""
    depth = 0
    for event in events:
        kind = type(event).__name__
        depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
        if depth > MOST_DEPTH:
            raise ValueError(f"it is more than {MOST_DEPTH} levels deep")
        if kind == "AliasEvent":  # nine lines of them may stand for a billion values
            raise ValueError(f"write out what *{event.anchor} stands for: aliases are not read")
        if kind == "ScalarEvent" and len(event.value) > MOST_LETTERS:
            raise ValueError(f"a value of {len(event.value)} characters: {MOST_LETTERS} are read")


def read_json_object(path: Path) -> dict[str, object]:
    """A JSON object that a program kept; {} where it is absent, damaged or something else, since a
    crash or a full disk may leave anything."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
