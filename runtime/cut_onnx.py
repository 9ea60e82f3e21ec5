"""Cuts an ONNX model before its last enlargement, so that `argmax.py` can make the labels.

ONNX Runtime computes every output of the graph that it loads, asked for or not, so the end has to
go before that. The model stays serialized: of protobuf's messages only the few fields that matter
here are read, and everything else is copied as it is. The `onnx` package is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .artifact import Enlargement
from .protobuf import Field, fields, message

COARSE = "coarse"  # the output that takes the place of the labels
RESIZES: dict[str, Enlargement] = {
    "align_corners": "bilinear_aligned",
    "half_pixel": "bilinear",
    "pytorch_half_pixel": "bilinear",
}

# What may stand between the argmax and the labels.
BESIDE_LABELS = ("Cast", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "DepthToSpace", "Identity")
# Numbers of fields in onnx.proto.
GRAPH = 7  # of a model
NODE, OUTPUT = 1, 12  # of a graph
INPUTS, OUTPUTS, OPERATOR, ATTRIBUTE = 1, 2, 4, 5  # of a node
NAME = 1  # of an attribute, and of an output
INTEGER, STRING, SUBGRAPH, SUBGRAPHS = 3, 4, 6, 11  # of an attribute


@dataclass(frozen=True)
class Node:
    """`attributes`: those that are whole numbers or text; `subgraphs`: whether it has any."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, int | bytes]
    subgraphs: bool


def cut_labels(model: bytes) -> tuple[bytes, Enlargement] | None:
    """(the model with an output COARSE in place of "labels", what enlarges that one); None where
    the labels are made of something else than an argmax of classes.

    COARSE is (1, K, h, w) where a bilinear resize to the labels' size follows. Else it is what the
    argmax reads, and "shuffle" right only if that is (1, K, factor^2, h, w).
    """
    parts = _parts(model)
    if parts is None:
        return None
    of_model, of_graph, nodes = parts
    present = [node for node in nodes if node is not None]
    found = _source({output: node for node in present for output in node.outputs})
    if found is None:
        return None
    source, enlarge = found
    outputs = [_name(field) for field in of_graph if field.number == OUTPUT]
    needed = _needed(present, {source, *outputs} - {"labels"})
    kept = [
        field.raw
        for field, node in zip(of_graph, nodes, strict=True)
        if (node is None or needed.intersection(node.outputs))
        and not (field.number == OUTPUT and _name(field) == "labels")
    ]
    renamed = message(NODE, _identity(source)) + message(OUTPUT, message(NAME, COARSE.encode()))
    graph = message(GRAPH, b"".join(kept) + renamed)
    return b"".join(f.raw for f in of_model if f.number != GRAPH) + graph, enlarge


def labels_source(model: bytes) -> tuple[str, Enlargement] | None:
    """(the tensor that `cut_labels` would give as COARSE, what enlarges it); None as there."""
    parts = _parts(model)
    if parts is None:
        return None
    return _source({output: node for node in parts[2] if node for output in node.outputs})


def _parts(model: bytes) -> tuple[list[Field], list[Field], list[Node | None]] | None:
    """Fields of the model, fields of its graph, and these as nodes, where they are such; None for
    models with subgraphs, which may read any tensor unseen."""
    of_model = list(fields(model))
    graphs = [field for field in of_model if field.number == GRAPH]
    if len(graphs) != 1:
        return None
    of_graph = list(fields(graphs[0].content))
    nodes = [read_node(field.content) if field.number == NODE else None for field in of_graph]
    if any(node is not None and node.subgraphs for node in nodes):
        return None
    return of_model, of_graph, nodes


def _source(makers: dict[str, Node]) -> tuple[str, Enlargement] | None:
    """The tensor that the labels are made of, and how."""
    node = makers.get("labels")
    while node is not None and _beside_labels(node):
        node = makers.get(node.inputs[0])
    if node is None or node.operator != "ArgMax":
        return None
    if node.attributes.get("axis", 0) != 1 or node.attributes.get("select_last_index", 0) != 0:
        return None
    source = node.inputs[0]
    resize = makers.get(source)
    if resize is None or resize.operator != "Resize":
        return source, "shuffle"
    enlarge = _enlargement(resize)
    return None if enlarge is None else (resize.inputs[0], enlarge)


def _beside_labels(node: Node) -> bool:
    """Whether only type and shape change there, or the one channel is picked."""
    picked = node.operator == "Gather" and node.attributes.get("axis", 0) == 1
    return picked or node.operator in BESIDE_LABELS


def _enlargement(resize: Node) -> Enlargement | None:
    facts = resize.attributes
    corners = facts.get("coordinate_transformation_mode", b"half_pixel")
    assert isinstance(corners, bytes)
    to_size = len(resize.inputs) == 4 and resize.inputs[3] != ""  # not by a factor, which may round
    plain = facts.get("mode") == b"linear" and facts.get("antialias", 0) == 0
    return RESIZES.get(corners.decode()) if plain and to_size else None


def _needed(nodes: Iterable[Node], outputs: set[str]) -> set[str]:
    """All tensors that `outputs` are made of. A graph's nodes come after those that they read."""
    wanted = set(outputs)
    for node in reversed(list(nodes)):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
    return wanted - {""}


def _identity(source: str) -> bytes:
    """A node that gives `source` the name COARSE."""
    return (
        message(INPUTS, source.encode())
        + message(OUTPUTS, COARSE.encode())
        + message(OPERATOR, b"Identity")
    )


def read_node(content: bytes) -> Node:
    parts = list(fields(content))
    attributes: dict[str, int | bytes] = {}
    subgraphs = False
    for attribute in (list(fields(part.content)) for part in parts if part.number == ATTRIBUTE):
        held = {part.number: part.value for part in attribute}
        subgraphs |= SUBGRAPH in held or SUBGRAPHS in held
        name = held.get(NAME, b"")
        assert isinstance(name, bytes)
        for kind in (INTEGER, STRING):
            if kind in held:
                attributes[name.decode()] = held[kind]
    texts = {
        number: tuple(part.content.decode() for part in parts if part.number == number)
        for number in (INPUTS, OUTPUTS, OPERATOR)
    }
    operator = texts[OPERATOR][0] if texts[OPERATOR] else ""
    return Node(operator, texts[INPUTS], texts[OUTPUTS], attributes, subgraphs)


def _name(output: Field) -> str:
    return next(part.content.decode() for part in fields(output.content) if part.number == NAME)
