"""The house rules: names that occur once, no import circles, documents that point somewhere."""

from __future__ import annotations

import ast
import contextlib
import re
import shlex
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import rtseg
from conftest import ROOT
from rtseg.cli._help import split_help
from rtseg.cli.app import app
from typer.main import get_command

SHELVES = (
    "cli", "data", "demo", "export", "fleet", "labels", "models", "runtime", "speed", "train",
)  # fmt: skip
SOURCES = sorted(
    [*ROOT.glob("*.py"), *(path for shelf in SHELVES for path in (ROOT / shelf).rglob("*.py"))]
)
SOURCES = [path for path in SOURCES if path.name != "setup.py"]
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
     *(ROOT / "docs").rglob("*.md")]
)  # fmt: skip
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
# Twins on purpose: `export/X.py` builds what `runtime/backends/X.py` runs.
TWINS = {"argmax_kernel.py", "executorch.py", "openvino.py", "qnn.py", "tensorrt.py"}
# A folder beside them holds a module each; what a module is about is said by its folder.
WORDLESS = re.compile(r"(What|How|Whether|Which|Where|When|Why)\b")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("rtseg", *(part for part in parts if part != "__init__")))


MODULES = {module_of(path): path for path in SOURCES}


def test_no_basename_occurs_twice() -> None:
    """Outside `cli/`, whose files are named by their commands."""
    places = defaultdict(list)
    for path in SOURCES:
        if path.parent.name != "cli" and not path.name.startswith("__"):
            places[path.name].append(path)
    for name, paths in places.items():
        folders = {name_of(path.parent) for path in paths}
        twins = name in TWINS and folders <= {"export", "runtime/backends"}
        assert len(paths) == 1 or twins, f"{name} in {', '.join(sorted(folders))}"


def test_no_public_class_name_occurs_twice() -> None:
    places = defaultdict(list)
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name_of(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def imports_of(path: Path, inside: bool = False) -> Iterator[str]:
    """The modules of this package that are imported as soon as this one is; `inside`: and those
    that its functions import when they are called."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in outer_nodes(TREES[path], inside):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            found = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                deeper = f"{found}.{alias.name}"
                yield deeper if deeper in MODULES else found


def outer_nodes(tree: ast.Module, inside: bool = False) -> Iterator[ast.AST]:
    """What runs at import: neither functions' bodies, but for `inside`, nor what only type checkers
    read."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not inside:
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def test_no_import_circle() -> None:
    """Nor one that an import within a function hides. All may read `rtseg.__version__`; the public
    names there wait until they are used."""
    graph = {
        name: {to for to in imports_of(path, inside=True) if to in MODULES and to != "rtseg"}
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for to in sorted(graph[name]):
                visit(to, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


# What a machine with a GPU need not have: no test that needs none of them may miss for that.
OPTIONAL = {"cuda", "numba", "openvino", "tensorrt", "tensorrt_rtx", "triton"}


def names_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
    return []


def test_tests_are_collected_without_optional_packages() -> None:
    """pytest stops at a file that it cannot import, and then runs no test at all."""

    @cache
    def packages_of(name: str) -> set[str]:
        """That have to be there for this module of ours, or of others, to be imported."""
        if name not in MODULES:
            return {name.partition(".")[0]} & OPTIONAL
        tree = TREES[MODULES[name]]
        tried = [node for node in outer_nodes(tree) if isinstance(node, ast.Try)]
        guarded = {inner for node in tried for inner in ast.walk(node)}
        names = [n for node in outer_nodes(tree) if node not in guarded for n in names_of(node)]
        return set().union(*map(packages_of, {*names, *imports_of(MODULES[name])} - {name}))

    wrong = []
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        asked_for: set[str] = set()
        for node in ast.parse(path.read_text()).body:
            asked_for |= set(re.findall(r"importorskip\(\W(\w+)", ast.unparse(node)))
            for name in names_of(node):
                missing = packages_of(name) - asked_for
                wrong += [f"{path.name} imports {name}, which needs {each}" for each in missing]
    assert wrong == []


def test_module_docstrings_begin_with_a_noun_or_a_verb() -> None:
    wrong = []
    for path, tree in TREES.items():
        text = ast.get_docstring(tree) or ""
        if not text or WORDLESS.match(text):
            wrong.append(f"{name_of(path)}: {text[:60]}")
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_paths_that_documents_name_exist(document: Path) -> None:
    """Files of the repository in backquotes, and links; a name with a capital stands for any."""
    text = FENCE.sub("", document.read_text())
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"runs", "build"}
    named = {
        path
        for path in re.findall(r"`([\w./-]+/[\w./-]*)`", text)
        if path.split("/")[0] in folders and not re.search(r"[A-Z]{3}", path)
    }
    named |= {
        path for path in re.findall(r"`([\w./-]+\.(?:py|md|toml|yaml))`", text) if "/" in path
    }
    missing = [
        path for path in named
        if not re.search(r"[A-Z]{3}", path)
        and not (ROOT / path).exists() and not (document.parent / path).exists()
        and path.split("/")[0] in folders
    ]  # fmt: skip
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    missing += [link for link in links if not (document.parent / link).exists()]
    assert missing == []


def shown_commands(text: str) -> Iterator[list[str]]:
    """The words of each command in a document's blocks of shell."""
    for language, block in FENCE.findall(text):
        lines = block.replace("\\\n", " ").splitlines() if language in ("sh", "console") else []
        for line in lines:
            lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&$")
            lexer.whitespace_split = True
            command: list[str] = []
            for word in (*lexer, ";"):
                if not set(word) <= set("();<>|&$"):
                    command.append(word)
                elif command:
                    yield command
                    command = []


def parse_only(command: Any) -> Any:
    """A command, or a group of them, that reads what it is given and does nothing."""
    command.callback = lambda **given: None
    for below in getattr(command, "commands", {}).values():
        parse_only(below)
    return command


@cache
def front_door() -> Any:
    return parse_only(get_command(app))


def check_command(words: list[str]) -> None:
    """`rtseg` understands it to the last option's value; the files need not be there."""
    with contextlib.suppress(FileNotFoundError):
        front_door().main(words, prog_name="rtseg", standalone_mode=False)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_that_documents_show_can_be_typed(document: Path) -> None:
    """`rtseg` is asked; a program of ours, and any file of ours that a command names, is there."""
    text = document.read_text()
    for words in shown_commands(text):
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        if words[0] == "rtseg":
            check_command(words[1:])
        elif words[:2] == ["python", "-m"] and words[2].startswith("rtseg."):
            assert (ROOT.joinpath(*words[2].split(".")[1:]).with_suffix(".py")).is_file(), words
        elif words[0] == "python" and words[1].startswith("scripts/"):
            program = (ROOT / words[1]).read_text()
            assert [word for word in options if f'"{word}"' not in program] == [], words
        ours = [word for word in words if re.match(r"(\.ci|docker|examples|scripts|tests)/", word)]
        assert [word for word in ours if not (ROOT / word).exists()] == [], words
    if document.name != "CHANGELOG.md":  # which names what is gone
        for name, rest in re.findall(r"`rtseg ([a-z][a-z-]+)((?: [^`\n]*)?)`", FENCE.sub("", text)):
            if name != "signature":  # the first words of a file, not a command
                known = options_of(front_door().commands[name])
                unknown = set(re.findall(r" (--[a-z0-9-]+)", rest)) - known
                assert unknown == set(), f"rtseg {name}{rest}"


def options_of(command: Any) -> set[str]:
    below = getattr(command, "commands", {}).values()
    found = {word for param in command.params for word in (*param.opts, *param.secondary_opts)}
    return {"--help", "--debug", "--log-level", *found}.union(*map(options_of, below))


def test_examples_of_help_pages_can_be_typed() -> None:
    waiting = [front_door()]
    shown = []
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        shown += split_help(command.help or "")[1]
    assert len(shown) > 60
    for line in shown:
        check_command(shlex.split(line, comments=True)[1:])


def test_public_names_are_what_the_reference_documents() -> None:
    page = ROOT / "docs" / "reference.md"
    documented = re.findall(r"^::: rtseg\.(?:[\w.]+\.)?(\w+)", page.read_text(), flags=re.MULTILINE)
    assert sorted({*documented, "__version__"}) == rtseg.__all__


def undocumented(path: Path) -> Iterator[str]:
    """Public functions and classes without a docstring, and members of the public API's classes."""
    for node in TREES[path].body:
        members = [node]
        if isinstance(node, ast.ClassDef) and node.name in rtseg.__all__:
            members += node.body
        for each in members:
            if isinstance(each, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not (
                each.name.startswith("_") or ast.get_docstring(each)
            ):
                yield f"{name_of(path)}: {each.name}"


def test_public_functions_and_classes_have_docstrings() -> None:
    assert [name for path in SOURCES for name in undocumented(path)] == []


def test_functions_are_not_named_by_a_bare_participle() -> None:
    """A verb says what is done (`stage_file`), a noun what comes back; properties may be either."""
    places = [
        f"{name_of(path)}: {each.name}"
        for path, tree in TREES.items()
        for node in tree.body
        for each in (node.body if isinstance(node, ast.ClassDef) else [node])
        if isinstance(each, ast.FunctionDef) and re.fullmatch(r"[a-z]+ed", each.name)
        if not any("property" in ast.unparse(mark) for mark in each.decorator_list)
        and each.name not in ("embed", "feed", "listed")
    ]
    assert places == []


def test_comments_stand_where_they_are_needed_and_nowhere_else() -> None:
    """Too few leave what surprises unexplained; too many say what the code says."""
    lines = comments = 0
    for path in SOURCES:
        with path.open("rb") as file:
            found = list(tokenize.tokenize(file.readline))
        lines += found[-1].start[0]
        comments += len({each.start[0] for each in found if each.type == tokenize.COMMENT})
    assert 0.03 < comments / lines < 0.08


def test_what_a_user_did_wrong_is_no_value_error() -> None:
    """A plain ValueError means a bug here; where it stays, a caller close by takes it in."""
    taken_in = {
        "data/mcap_reader.py",
        "data/transforms.py",  # pydantic's validators
        "models/families/csfcn.py",
        "runtime/argmax.py",
        "runtime/artifact.py",  # pydantic's validators
        "runtime/argmax_triton.py",
        "runtime/drive/capture.py",
        "runtime/drive/engine.py",
        "runtime/verify.py",
        "speed/timing.py",
        "train/recipe.py",
    }
    raising = {
        name_of(path)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id in ("ValueError", "Exception")
    }
    assert raising - taken_in == set()
