"""Docstrings of the public names: the sections that their signatures and bodies ask for."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

import pytest
import rtseg

SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):\n((?:    .*\n|\n)+)", re.MULTILINE)


def sections_of(documented: object) -> dict[str, str]:
    return dict(SECTION.findall(f"{inspect.getdoc(documented)}\n"))


def names_in(section: str) -> set[str]:
    """Of entries `name:` and `name, other:`, which begin at the section's own indentation."""
    heads = re.findall(r"^    \**(\w[\w, ]*):", section, flags=re.MULTILINE)
    return {name.strip() for head in heads for name in head.split(",")}


def list_public() -> Iterator[tuple[str, Any]]:
    """The names of `rtseg` and the methods of its classes, as functions and classes."""
    for name in rtseg.__all__:
        found = getattr(rtseg, name)
        if isinstance(found, ModuleType):  # a package that is called like its main function
            found = getattr(found, name)
        if inspect.isfunction(found) or inspect.isclass(found):
            yield name, found
        if inspect.isclass(found):
            for method, value in vars(found).items():
                function = getattr(value, "__func__", value)  # of a class method
                called = method == "__call__" or not method.startswith("_")
                if called and inspect.isfunction(function):
                    yield f"{name}.{method}", function


PUBLIC = dict(list_public())
FUNCTIONS = [name for name, what in PUBLIC.items() if not inspect.isclass(what)]
CLASSES = [name for name, what in PUBLIC.items() if inspect.isclass(what)]


def raises(function: Callable[..., Any]) -> bool:
    """Whether it raises anything itself; what others raise in it is up to its author."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) and node.exc for node in ast.walk(tree))


def parameters_of(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "cls"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_the_sections_that_they_need(name: str) -> None:
    """Args from two parameters on, each of them; what comes back, then too; what is raised."""
    function = PUBLIC[name]
    found, given = sections_of(function), parameters_of(function)
    if len(given) > 1:
        assert given - names_in(found.get("Args", "")) == set()
        if inspect.signature(function).return_annotation != "None":
            assert "Returns" in found or "Yields" in found
    if "Args" in found:
        assert names_in(found["Args"]) - given == set()
    if raises(function):
        assert "Raises" in found


@pytest.mark.parametrize("name", CLASSES)
def test_classes_name_their_fields(name: str) -> None:
    """A field or a parameter of the constructor is told under Attributes or Args, each of them."""
    documented = PUBLIC[name]
    if is_dataclass(documented):
        needed = {field.name for field in fields(documented)}
    elif hasattr(documented, "model_fields"):
        needed = set(documented.model_fields)
    elif issubclass(documented, Exception):
        needed = set()
    else:
        needed = parameters_of(documented.__init__)
        needed = needed if len(needed) > 1 else set()
    found = sections_of(documented)
    told = names_in(found.get("Attributes", "")) | names_in(found.get("Args", ""))
    assert needed - told == set()
