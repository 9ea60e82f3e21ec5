"""A network from outside the zoo: a small U-Net, exported, proven and run.

python own_network.py artifacts
"""

import itertools
import sys

import cv2
import numpy as np
import rtseg
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = (128, 256)
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def block(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    def __init__(self, classes: int, widths: tuple[int, ...] = (8, 16, 32)):
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.first = block(3, widths[0])
        self.down = nn.ModuleList(block(a, b) for a, b in pairs)
        self.up = nn.ModuleList(block(a + b, a) for a, b in reversed(pairs))
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        maps = [self.first(image)]
        for down in self.down:
            maps.append(down(F.max_pool2d(maps[-1], 2)))
        x = maps.pop()
        for up, skip in zip(self.up, reversed(maps), strict=True):
            x = up(torch.cat([skip, F.interpolate(x, skip.shape[-2:], mode="bilinear")], dim=1))
        return self.head(x)


def preprocess(frame: np.ndarray) -> np.ndarray:
    """As in training, which stretched frames; compared with what the export will do."""
    image = cv2.resize(frame, SIZE[::-1])[..., ::-1].astype(np.float32) / 255
    return ((image - MEAN) / STD).transpose(2, 0, 1)


if __name__ == "__main__":
    torch.manual_seed(0)
    model = rtseg.load_model(
        UNet(classes=19), classes="cityscapes", size=SIZE, normalize="imagenet", fit="stretch",
        preprocess=preprocess,
    )  # fmt: skip
    out = sys.argv[1] if len(sys.argv) > 1 else "artifacts"
    (artifact,) = rtseg.export(model, size=SIZE, to="onnx", out=out)
    with rtseg.load(artifact.path) as segment:
        labels = segment(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8))
    print(artifact.path, labels.shape, labels.dtype)
