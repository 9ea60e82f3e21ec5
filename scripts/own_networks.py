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
from rtseg.speed.plain_exports import write_plain_export
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


def unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class BiSeNet(nn.Module):
    """Two paths as somebody writes them: (x - mean) / std inside, channels cut by Python slices,
    attention by adaptive pooling."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, classes: int = 19, width: int = 64):
        super().__init__()
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1))
        self.stem = unit(3, 32, 2)
        self.detail = nn.Sequential(unit(32, width, 2), unit(width, width, 2))
        self.context = nn.Sequential(unit(32, 32, 2), unit(32, width, 2), unit(width, width, 2))
        self.halves = nn.ModuleList(unit(width // 2, width // 2) for _ in range(3))
        self.gate = nn.Conv2d(width, width, 1)
        self.pyramid = nn.Conv2d(width, width, 1)
        self.fuse, self.head = unit(2 * width, width), nn.Conv2d(width, classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem((image - self.mean) / self.std)
        detail, deep = self.detail(x), self.context(x)
        half = deep.shape[1] // 2
        for block in self.halves:  # one half is computed, the two change places
            kept, changed = deep[:, :half], deep[:, half:]
            deep = torch.cat([block(changed), kept], dim=1)
        deep = deep * torch.sigmoid(self.gate(nn.functional.adaptive_avg_pool2d(deep, 1)))
        cells = self.pyramid(nn.functional.adaptive_avg_pool2d(deep, (3, 5)))
        size = detail.shape[-2:]
        deep = nn.functional.interpolate(deep, size, mode="bilinear")
        deep = deep + nn.functional.interpolate(cells, size, mode="bilinear")
        logits = self.head(self.fuse(torch.cat([detail, deep], dim=1)))
        return nn.functional.interpolate(logits, image.shape[-2:], mode="bilinear")


class FPN(nn.Module):
    """A pyramid of features over a small encoder, and a head on their sum."""

    def __init__(self, classes: int = 19, width: int = 48):
        super().__init__()
        widths = (32, 48, 64, 96)
        self.stem = unit(3, widths[0], 2)
        pairs = zip((widths[0], *widths), widths, strict=False)
        self.levels = nn.ModuleList(
            nn.Sequential(unit(a, b, 2), unit(b, b)) for a, b in list(pairs)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(each, width, 1) for each in widths)
        self.smooth = nn.ModuleList(unit(width, width) for _ in widths)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x, maps = self.stem(image), []
        for level, lateral in zip(self.levels, self.lateral, strict=True):
            x = level(x)
            maps.append(lateral(x))
        for i in range(len(maps) - 2, -1, -1):
            above = nn.functional.interpolate(maps[i + 1], maps[i].shape[-2:], mode="nearest")
            maps[i] = maps[i] + above
        smoothed = [smooth(each) for smooth, each in zip(self.smooth, maps, strict=True)]
        first, *rest = smoothed
        for each in rest:
            first = first + nn.functional.interpolate(each, first.shape[-2:], mode="bilinear")
        return nn.functional.interpolate(self.head(first), image.shape[-2:], mode="bilinear")


def unet() -> nn.Module:
    """The example's, of 60 lines."""
    found: nn.Module = import_module("own_network").UNet(19, (16, 32, 64))
    return found


def from_tests(name: str) -> Callable[[], nn.Module]:
    """A network of tests/test_transformers_networks.py."""

    def make() -> nn.Module:
        networks = import_module("test_transformers_networks")
        found: nn.Module = getattr(networks, name)()
        masks = name in ("maskformer", "eomt")
        return nn.Sequential(networks.SemanticLogits(found)) if masks else found

    return make


def of_transformers(kind: str, **options: object) -> Callable[[], nn.Module]:
    """A network of transformers by its configuration, for semantic segmentation."""

    def make() -> nn.Module:
        transformers = import_module("transformers")
        config = getattr(transformers, f"{kind}Config")(**{"num_labels": 19, **options})
        model: nn.Module = getattr(transformers, f"{kind}ForSemanticSegmentation")(config)
        return model

    return make


def b2(**options: object) -> Callable[[], nn.Module]:
    widths = {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3]}
    return of_transformers("Segformer", **{**widths, "decoder_hidden_size": 768, **options})


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "U-Net of 60 lines": unet,
    "PSPNet's pyramid": PSPNet,
    "BiSeNet, normalizes inside": BiSeNet,
    "FPN": FPN,
    "MobileViT-XXS, DeepLabV3": from_tests("mobilevit"),
    "MobileNetV2, DeepLabV3": of_transformers("MobileNetV2"),
    "UPerNet, ConvNeXt": from_tests("upernet"),
    "SegFormer-B0": from_tests("segformer"),
    "Mask2Former, Swin": from_tests("maskformer"),
    "EoMT, 64x64": from_tests("eomt"),
    "SegFormer-B2": b2(),
    "BEiT": of_transformers(
        "Beit", image_size=SIZE, hidden_size=96, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=192, out_indices=[0, 1, 2, 3], use_auxiliary_head=False,
        pool_scales=[1, 2, 3, 6],
    ),
    "DPT, 256x256": of_transformers(
        "DPT", image_size=256, hidden_size=96, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=192, backbone_out_indices=[0, 1, 2, 3], use_auxiliary_head=False,
        neck_hidden_sizes=[32, 32, 32, 32], fusion_hidden_size=32,
    ),
}  # fmt: skip
NORMALIZE = {"BiSeNet, normalizes inside": "unit"}  # of the others: "imagenet"
SIZES = {"EoMT, 64x64": (64, 64), "DPT, 256x256": (256, 256)}  # these take squares only


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


def measure(name: str, folder: Path) -> list[object]:
    """(nodes, layers) of the plain export, and (nodes, layers) of ours."""
    torch.manual_seed(0)
    module, size = NETWORKS[name](), SIZES.get(name, SIZE)
    normalize = NORMALIZE.get(name, "imagenet")
    model = load_model(module, classes="cityscapes", size=size, normalize=normalize)
    ours = folder / "ours.onnx"
    onnx.save(to_onnx(model.network, size, "fp32", ("labels",)), ours)
    try:
        plain = write_plain_export(model, size)
    except Exception:  # PyTorch's exporter has many kinds
        return ["fails", "-", *count(ours)]
    return [*count(plain), *count(ours)]


def count(path: Path) -> tuple[int, int | str]:
    return len(onnx.load(path).graph.node), count_layers(path)


def main(names: list[str]) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or NETWORKS:
            try:
                row = measure(name, Path(folder))
            except Exception as error:  # one network's trouble is not the others'
                row = [str(error).splitlines()[0][:60], "", "", ""]
            print(name, *row, flush=True)
            rows.append([name, *map(str, row)])
    header = ["network", "nodes, plain", "layers, plain", "nodes, ours", "layers, ours"]
    print(Table(header, rows, f"At {SIZE[0]}x{SIZE[1]}, from image to labels").format("md"))


if __name__ == "__main__":
    main(sys.argv[1:])
