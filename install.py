"""Install lines: what brings an optional package, for the way in which this package came here."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parent


def localize(text: str) -> str:
    """A text with its commands of the form `pip install "rtseg[cpu]"` as they work here."""
    return re.sub(r'"rtseg\[([\w,-]+)\]"', lambda found: _name_source(found[1]), text)


def _name_source(extras: str) -> str:
    """This package with `extras` as pip is told of it. A checkout and a wheel need not be on any
    index, so they are named by where they lie; of a wheel that is gone, the packages that the
    extras bring."""
    if (ROOT / "pyproject.toml").exists():  # which wheels leave out
        return f'-e "{ROOT}[{extras}]"'
    try:
        origin = json.loads(metadata.distribution("rtseg").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        origin = {}
    if "url" not in origin:
        return f'"rtseg[{extras}]"'
    path = Path(unquote(urlsplit(origin["url"]).path))
    if path.exists():
        return f'"{path}[{extras}]"'
    if "vcs_info" in origin:
        return f'"rtseg[{extras}] @ {origin["vcs_info"]["vcs"]}+{origin["url"]}"'
    wanted = rf"extra == [\"']({extras.replace(',', '|')})[\"']"
    needs = [
        re.split(r"\s*;", line)[0]
        for line in metadata.requires("rtseg") or ()
        if re.search(wanted, line)
    ]
    return " ".join(f'"{each}"' for each in dict.fromkeys(needs))
