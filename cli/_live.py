"""The live page, as an option of several commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from ._console import need, note

if TYPE_CHECKING:
    from ..demo.live import LivePage

Host = Annotated[str, Option(help="Address of the page.")]
Port = Annotated[int, Option(help="Port of the page; 0 takes a free one.")]
Token = Annotated[
    str | None, Option(help="Word that viewers need; made up where others can connect.")
]


def new_page(artifact: Path, deadline_ms: float | None, command: str) -> LivePage:
    """A sink for a drive whose first artifact is that one; give it the drive's `snapshot`.

    Raises JobFailed where the extra is missing.
    """
    for module, title in (("starlette", "Starlette"), ("uvicorn", "uvicorn")):
        need(module, title, "web", f"{command} --web")
    from ..demo.live import LivePage
    from ..runtime import read_card

    card = read_card(artifact)
    return LivePage(card.class_table, card.model, deadline_ms)


@contextmanager
def serving(page: LivePage, host: str, port: int, token: str | None) -> Iterator[None]:
    """The page can be opened meanwhile, at the address that this prints."""
    from ..demo.web import Server

    with Server(page, host, port, token) as server:
        note(f"live page: {server.url} (Ctrl-C ends)")
        yield
