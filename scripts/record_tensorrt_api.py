"""Records which of the names that this package uses of TensorRT are in its releases:

    python scripts/record_tensorrt_api.py WHEEL...      # tests/tensorrt_api.json

WHEEL: `tensorrt_cu*_bindings` or `tensorrt_rtx_cu*_bindings`, from `pip download --no-deps`. They
need a GPU's libraries to import, so the names are read out of the binary.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "tensorrt_api.json"
SOURCES = (
    "export/tensorrt.py",
    "export/dla.py",
    "runtime/packages.py",
    "runtime/backends/tensorrt.py",
    "runtime/backends/tensorrt_engine.py",
    "runtime/backends/tensorrt_self_test.py",
)
# What TensorRT's objects are called in these files.
OBJECTS = {
    "trt", "builder", "network", "config", "parser", "layer", "runtime", "cache", "context",
    "_trt", "_context", "_engine", "_runtime", "_config", "_cache", "error",
}  # fmt: skip
OURS = {"errors", "is_file", "read_bytes", "split"}  # of our logger, of paths and text


def used_names() -> tuple[set[str], set[str]]:
    """(names of TensorRT that the code uses, those of them that it first asks for)."""
    used: set[str] = set()
    asked: set[str] = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse((ROOT / source).read_text())):
            if isinstance(node, ast.Attribute) and _object(node.value) in OBJECTS:
                used.add(node.attr)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                asked |= set(_asked(node))
    return {name for name in used if not name.startswith("__")} - OURS, asked


def _object(node: ast.expr) -> str:
    """The name of what an attribute is taken of: `trt` in `trt.DataType.FLOAT`, or `_engine`."""
    while isinstance(node, (ast.Attribute, ast.Call)):
        if isinstance(node, ast.Attribute) and node.attr in OBJECTS:
            return node.attr
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else ""


def _asked(call: ast.Call) -> Iterator[str]:
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if name in ("getattr", "hasattr") and isinstance(call.args[1], ast.Constant):
        yield str(call.args[1].value)


def read_wheel(path: Path) -> tuple[str, bytes]:
    """("tensorrt 10.3.0", the content of its binary and of its Python files)."""
    package, version = path.name.split("-")[:2]
    flavour = "tensorrt_rtx" if "rtx" in package else "tensorrt"
    with zipfile.ZipFile(path) as wheel:
        parts = [wheel.read(name) for name in wheel.namelist() if name.endswith((".so", ".py"))]
    return f"{flavour} {version}", b"\0".join(parts)


def has(content: bytes, name: str) -> bool:
    """As a whole string of the binary (or the end of one, where the linker merged them), or as a
    function of a Python file."""
    return name.encode() + b"\0" in content or f"def {name}(".encode() in content


def main(wheels: list[str]) -> None:
    names = sorted(used_names()[0])
    record = {}
    for title, content in sorted(map(read_wheel, map(Path, wheels))):
        record[title] = [name for name in names if has(content, name)]
    RECORD.write_text(json.dumps({"names": names, "releases": record}, indent=1) + "\n")
    sys.stdout.write(f"{RECORD}: {len(names)} names in {', '.join(record)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
