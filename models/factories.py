"""The user's own code: `package.module:callable`, `file.py:callable`, or a `.pt2` program."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UsageError


def is_factory(what: str) -> bool:
    """Whether `what` names a callable, `package.module:callable` or `file.py:callable`, or a
    program that `torch.export` saved, `file.pt2`."""
    module, colon, name = what.rpartition(":")
    if what.endswith(".pt2"):
        return True
    return bool(colon) and name.isidentifier() and bool(re.fullmatch(r"[\w./\\-]+", module))


def load_module(what: str) -> nn.Module:
    """The module that a factory makes, or that a `.pt2` program holds. This runs the user's code.

    Raises:
        UsageError: if it cannot be imported, is no callable, raises, or gives no module.
    """
    if what.endswith(".pt2"):
        return _load_program(Path(what))
    place, _, name = what.rpartition(":")
    make = getattr(_import(place), name, None)
    if isinstance(make, nn.Module):
        return make
    if not callable(make):
        raise UsageError(f"{place} has no callable {name!r}")
    try:
        module = make()
    except Exception as error:
        raise UsageError(f"{what} raises {first_line(error)}{find_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"{what} gives a {type(module).__name__}, not an nn.Module")
    return module


def load_function(what: str) -> Callable[..., Any]:
    """A function of the user's own, by `package.module:callable` or `file.py:callable`.

    Raises:
        UsageError: if it cannot be imported, or is no callable.
    """
    place, colon, name = what.rpartition(":")
    if not colon or not place:
        raise UsageError(
            f"a function is named package.module:callable or file.py:callable, not {what!r}"
        )
    found = getattr(_import(place), name, None)
    if not callable(found):
        raise UsageError(f"{place} has no function {name!r}")
    return found


def _import(place: str) -> object:
    try:
        if not place.endswith(".py"):
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))  # as `python -m` would find it
            return importlib.import_module(place)
        path = Path(place)
        if not path.is_file():
            raise UsageError(f"there is no file {place}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # A dataclass or a pickle in that file looks its own module up by name.
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
        return module
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{place} cannot be imported: {first_line(error)}") from error


def _load_program(path: Path) -> nn.Module:
    try:
        return torch.export.load(path).module()
    except Exception as error:
        raise UsageError(f"{path} is no program of torch.export ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """Its kind and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")


OURS = ("<", *(str(Path(__file__).parents[1] / part) for part in ("models", "export")))


def find_line(error: BaseException) -> str:
    """The line of the user's own code that raised, below PyTorch's."""
    trace, found = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "site-packages" not in file and not file.startswith(OURS):
            found = f" ({file}:{trace.tb_lineno})"
        trace = trace.tb_next
    return found
