"""Nodes and TensorRT layers of networks from outside the zoo: by `torch.onnx.export`, and by ours.

    python scripts/own_networks.py            # needs transformers, and a TensorRT for the layers

Random weights; both graphs go from an image to labels. A TensorRT layer is one of the network that
its parser makes, before the builder fuses them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import onnx
import rtseg
import torch
from rtseg.export.graph import to_onnx
from rtseg.models.loading import load_model
from rtseg.reporting import Table
from rtseg.speed.baselines import write_plain_export
from torch import nn

ROOT = Path(rtseg.__file__).parent
sys.path += [str(ROOT / "tests"), str(ROOT / "examples")]
SIZE = (256, 512)


class PSPNet(nn.Module):
    """A small encoder under PSPNet's pyramid of poolings."""

    def __init__(self, classes: int = 19, width: int = 64):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 32), (32, width)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), nn.Conv2d(width, 16, 1), nn.ReLU())
            for bins in (1, 2, 3, 6)
        )
        self.head = nn.Conv2d(width + 64, classes, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        deep = self.encoder(image)
        size = deep.shape[-2:]
        levels = [
            nn.functional.interpolate(level(deep), size, mode="bilinear") for level in self.levels
        ]
        logits = self.head(torch.cat([deep, *levels], dim=1))
        return nn.functional.interpolate(logits, image.shape[-2:], mode="bilinear")


def unet() -> nn.Module:
    """The example's, of 60 lines."""
    found: nn.Module = import_module("own_network").UNet(19, (16, 32, 64))
    return found


def from_tests(name: str) -> Callable[[], nn.Module]:
    """A network of tests/test_transformers_networks.py."""

    def make() -> nn.Module:
        networks = import_module("test_transformers_networks")
        found: nn.Module = getattr(networks, name)()
        return nn.Sequential(networks.SemanticLogits(found)) if name == "maskformer" else found

    return make


def of_transformers(kind: str, **options: object) -> Callable[[], nn.Module]:
    """A network of transformers by its configuration, for semantic segmentation."""

    def make() -> nn.Module:
        transformers = import_module("transformers")
        config = getattr(transformers, f"{kind}Config")(num_labels=19, **options)
        model: nn.Module = getattr(transformers, f"{kind}ForSemanticSegmentation")(config)
        return model

    return make


def b2(**options: object) -> Callable[[], nn.Module]:
    widths = {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3]}
    return of_transformers("Segformer", **{**widths, "decoder_hidden_size": 768, **options})


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "U-Net of 60 lines": unet,
    "PSPNet's pyramid": PSPNet,
    "MobileViT-XXS, DeepLabV3": from_tests("mobilevit"),
    "MobileNetV2, DeepLabV3": of_transformers("MobileNetV2"),
    "UPerNet, ConvNeXt": from_tests("upernet"),
    "SegFormer-B0": from_tests("segformer"),
    "Mask2Former, Swin": from_tests("maskformer"),
    "SegFormer-B2": b2(),
    "BEiT": of_transformers(
        "Beit", image_size=SIZE, hidden_size=96, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=192, out_indices=[0, 1, 2, 3], use_auxiliary_head=False,
        pool_scales=[1, 2, 3, 6],
    ),
    "DPT": of_transformers(
        "DPT", image_size=256, hidden_size=96, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=192, backbone_out_indices=[0, 1, 2, 3], use_auxiliary_head=False,
        neck_hidden_sizes=[32, 32, 32, 32], fusion_hidden_size=32,
    ),
}  # fmt: skip


def count_layers(path: Path) -> int | str:
    """Of the network that TensorRT's parser makes of an ONNX file; "-" without TensorRT."""
    try:
        import tensorrt_rtx as tensorrt
    except ImportError:
        return "-"
    log = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(log)
    typed = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parsed = tensorrt.OnnxParser(network, log).parse(path.read_bytes())
    return int(network.num_layers) if parsed else "not taken"


def measure(make: Callable[[], nn.Module], folder: Path) -> list[object]:
    """(nodes, layers) of the plain export, and (nodes, layers) of ours."""
    torch.manual_seed(0)
    model = load_model(make(), classes="cityscapes", size=SIZE, normalize="imagenet")
    plain = write_plain_export(model, SIZE)
    ours = folder / "ours.onnx"
    onnx.save(to_onnx(model.network, SIZE, "fp32", ("labels",)), ours)
    found: list[object] = []
    for path in (plain, ours):
        found += [len(onnx.load(path).graph.node), count_layers(path)]
    return found


def main(names: list[str]) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or NETWORKS:
            try:
                row = measure(NETWORKS[name], Path(folder))
            except Exception as error:  # PyTorch's exporters have many kinds
                row = [str(error).splitlines()[0][:60], "", "", ""]
            print(name, *row, flush=True)
            rows.append([name, *map(str, row)])
    header = ["network", "nodes, plain", "layers, plain", "nodes, ours", "layers, ours"]
    print(Table(header, rows, f"At {SIZE[0]}x{SIZE[1]}, from image to labels").format("md"))


if __name__ == "__main__":
    main(sys.argv[1:])
