"""Records what the converters that `speed/plain_engines.py` calls can be given, release by release:

    python scripts/record_converters_api.py FILE...      # tests/converters_api.json

FILE: a wheel of torch-tensorrt, from `pip download --no-deps torch-tensorrt==VERSION`, or
`torch2trt@COMMIT.py`, that commit's torch2trt/torch2trt.py. They need a GPU's libraries to import,
so the signatures are read out of the source.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "converters_api.json"
# In a wheel: the function that is called, and the one that it hands the rest to.
FUNCTIONS = {
    "torch_tensorrt.compile": "torch_tensorrt/_compile.py",
    "torch_tensorrt.dynamo.compile": "torch_tensorrt/dynamo/_compiler.py",
}


def read_signature(source: str, name: str) -> dict[str, list[str] | bool]:
    """The names of a function's parameters, and whether it takes any other by `**`."""
    found = (each for each in ast.parse(source).body if isinstance(each, ast.FunctionDef))
    arguments = next(each.args for each in found if each.name == name)
    named = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    return {"names": [each.arg for each in named], "any": arguments.kwarg is not None}


def read_file(path: Path) -> Iterator[tuple[str, str, dict[str, list[str] | bool]]]:
    """(function, release, its signature)."""
    if path.suffix == ".py":
        package, _, commit = path.stem.partition("@")
        yield "torch2trt.torch2trt", commit, read_signature(path.read_text(), package)
        return
    with zipfile.ZipFile(path) as wheel:
        for function, member in FUNCTIONS.items():
            source = wheel.read(member).decode()
            yield function, path.name.split("-")[1], read_signature(source, "compile")


def main(files: list[str]) -> None:
    record: dict[str, dict[str, object]] = {}
    for path in map(Path, files):
        for function, release, signature in read_file(path):
            record.setdefault(function, {})[release] = signature
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    sys.stdout.write(f"{RECORD}: {', '.join(record)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
