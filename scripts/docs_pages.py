"""Pages of the documentation that are made from the code: the command line, a page per family.

A hook of MkDocs (`mkdocs.yml` names it); run as a script it only prints the pages' names.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]


@event_priority(100)  # before mkdocstrings reads where to look
def on_config(config: Any) -> Any:
    """Let the reference find the package, whose folder need not be called `rtseg`."""
    link = Path(tempfile.mkdtemp()) / "rtseg"
    link.symlink_to(ROOT)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(link.parent)]
    sys.path.insert(0, str(link.parent))
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those that lie in docs/."""
    texts = {file.src_uri: file.content_string for file in files.documentation_pages()}
    texts |= dict(pages())
    for path in sorted({path for name, text in texts.items() for _, path in _outside(name, text)}):
        texts[_source_page(path)] = _source(path)
    known = {file.src_uri for file in files}
    for name in texts.keys() - known:
        files.append(File.generated(config, name, content=texts[name]))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files of the repository lead to the pages that show them; results get the width."""
    name = page.file.src_uri
    if name.startswith("results/"):  # wide tables need the columns beside the page
        page.meta["hide"] = ["navigation", "toc"]
    for link, path in _outside(name, markdown):
        target = os.path.relpath(_source_page(path), os.path.dirname(name) or ".")
        markdown = markdown.replace(f"]({link})", f"]({target})")
    return markdown


def _outside(name: str, text: str) -> Iterator[tuple[str, str]]:
    """(link, file of the repository) of every link from the page `name` to a file outside docs/."""
    for link in set(re.findall(r"\]\((\.\./[^)#]+)\)", text)):
        path = os.path.normpath(os.path.join("docs", os.path.dirname(name), link))
        if not path.startswith(("docs" + os.sep, "..")) and (ROOT / path).is_file():
            yield link, path


def _source_page(path: str) -> str:
    return f"source/{path}.md"


def _source(path: str) -> str:
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    language = {".py": "python", ".yaml": "yaml"}.get(Path(path).suffix, "text")
    return f"# {path}\n\n````{language}\n{text}\n````\n"


def pages() -> Iterator[tuple[str, str]]:
    """(path below docs/, Markdown) of every generated page."""
    yield "command-line.md", command_line()
    yield from networks()


def command_line() -> str:
    """Every command with its help, options and defaults."""
    import typer
    from rtseg.cli._help import list_commands
    from rtseg.cli.app import app

    group: Any = typer.main.get_command(app)
    parts = ["# Command line", inspect.cleandoc(group.help or "")]
    for path, command in list_commands(group, "rtseg"):
        parts += [f"## {path}", *_help(command.help or "")]
        if rows := list(_options(command)):
            parts.append(
                "\n".join(["| option | default | meaning |", "| --- | --- | --- |", *rows])
            )
    return "\n\n".join(parts) + "\n"


def _help(text: str) -> Iterator[str]:
    """A command's docstring; its examples, which begin with `rtseg`, as code."""
    for block in inspect.cleandoc(text).replace("\b", "").split("\n\n"):
        lines = block.strip().splitlines()
        is_code = bool(lines) and all(line.startswith(("rtseg ", "  ", "$ ")) for line in lines)
        yield "\n".join(["```console", *lines, "```"]) if is_code else block


def _options(command: Any) -> Iterator[str]:
    for option in command.params:
        if option.name in ("help", "install_completion", "show_completion"):
            continue
        is_option = option.param_type_name == "option"
        name = ", ".join(option.opts) if is_option else str(option.name).upper()
        default = option.default if isinstance(option.default, (str, int, float)) else ""
        help_text = (getattr(option, "help", "") or "").replace("|", "\\|")
        shown = "" if default is False or default == "" else f"`{default}`"
        yield f"| `{name}` | {shown} | {help_text} |"


def networks() -> Iterator[tuple[str, str]]:
    """A page for each family, and their index."""
    import rtseg.models.families as families
    from rtseg.models import zoo
    from rtseg.train.recipe import recipes_by_variant

    recipes = recipes_by_variant()
    rows = {row["model"]: row for row in zoo.list_rows()}
    index = ["# Networks", "Every family is one file; its head names the paper and the reference."]
    table = ["| family | variants |", "| --- | --- |"]
    for _, name, _ in pkgutil.iter_modules(families.__path__):
        module = importlib.import_module(f"{families.__name__}.{name}")
        if variants := getattr(module, "VARIANTS", None):
            title, _, rest = (inspect.getdoc(module) or name).partition("\n")
            facts = [rows[variant] | {"recipes": recipes.get(variant, [])} for variant in variants]
            yield f"networks/{name}.md", _family(module, title, rest, facts)
            table.append(f"| [{title.rstrip('.')}]({name}.md) | {', '.join(variants)} |")
    yield "networks/index.md", "\n\n".join([*index, "\n".join(table)]) + "\n"


def _family(module: ModuleType, title: str, rest: str, rows: list[dict[str, Any]]) -> str:
    """What the family's file says: the paper, its parts with their shapes, its variants."""
    file = module.__name__.removeprefix("rtseg.").replace(".", "/") + ".py"
    first = rows[0]
    size = first["reported"]["size"]
    parts = [
        f"# {title.rstrip('.')}",
        rest.strip(),
        f"Source: [{file}](../../{file}). "
        + (
            f"License of the reference: {first['license'] or 'not stated'}."
            if first["reference"]
            else ""
        ),
        "```console\n"
        f"$ rtseg export {first['model']} --weights checkpoint.pth --size {size} --to onnx\n"
        f"$ rtseg models {first['model']}\n```",
        "## Variants",
        _variants(rows),
        "## Parts",
        _parts(module),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _variants(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| variant | parameters | GMACs 1024x2048 | published mIoU, % | recipes | shipped |",
        "| --- | ---: | ---: | --- | --- | --- |",
    ]
    for row in rows:
        scores = ", ".join(
            f"{score['single']:g} {score['data']}" for score in row["published"] if score["single"]
        )
        recipes = ", ".join(name for name in row["recipes"])
        lines.append(
            f"| `{row['model']}` | {row['params'] / 1e6:.2f} M | {row['macs_1024x2048'] / 1e9:.2f} "
            f"| {scores or '-'} | {recipes or '-'} | {row['weights'] or '-'} |"
        )
    return "\n".join(lines)


def _parts(module: ModuleType) -> str:
    """The family's own modules, with the first line of what each says of itself."""
    lines = ["| module | what it does |", "| --- | --- |"]
    for name, kind in inspect.getmembers(module, inspect.isclass):
        if kind.__module__ == module.__name__ and (text := kind.__doc__):
            lines.append(f"| `{name}` | {' '.join(text.split()).replace('|', chr(92) + '|')} |")
    return "\n".join(lines)
