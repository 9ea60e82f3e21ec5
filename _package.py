"""Callable packages: `rtseg.export(...)`, beside `from rtseg.export import Artifact`."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package whose main function has the package's own name; calling either is the same.

    A package takes this class in its `__init__.py`:
    `sys.modules[__name__].__class__ = CallablePackage`.
    """

    def __call__(self, *args: object, **options: object) -> object:
        return self._main(*args, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        # What `help(rtseg.export)` shows.
        return inspect.signature(self._main)

    @property
    def _main(self) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])
