"""Plain exports that a measurement needs, kept in the user's cache."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..resolve import export_cache

if TYPE_CHECKING:
    import torch

    from ..models import Network
    from ..models.loading import Model

Size = tuple[int, int]


def plain_export(source: Model, size: Size) -> Path:
    """An ONNX file as anybody would write it: `torch.onnx.export` with its defaults, float32, of
    the network, the resize to the image and the argmax; "image" (1, 3, H, W) float32, normalized,
    to "labels" (1, H, W) int64. From the cache, or exported into it."""
    import torch

    from ..export.graph import silence_exporter

    name = source.network.info.name
    path = export_cache(source) / f"{name}_{text_of(size)}_plain.onnx"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch, silence_exporter():
        torch.onnx.export(
            _plain(source.network, size),
            (torch.zeros(1, 3, *size),),
            str(Path(scratch) / path.name),
            input_names=["image"],
            output_names=["labels"],
            external_data=False,
        )
        (Path(scratch) / path.name).replace(path)
    return path


def _plain(network: Network, size: Size) -> torch.nn.Module:
    import torch

    class Labels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits = self.network(image)
            if tuple(logits.shape[-2:]) != size:
                corners = network.info.align_corners
                logits = torch.nn.functional.interpolate(
                    logits, size, mode="bilinear", align_corners=corners
                )
            labels: torch.Tensor = logits.argmax(1)
            return labels

    return Labels().eval()


def text_of(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
