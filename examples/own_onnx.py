"""An ONNX file that somebody else exported: taken as it is, proven against itself, and run.

python own_onnx.py artifacts
"""

import sys

import numpy as np
import rtseg
import torch
from torch import nn

SIZE = (64, 128)


def write_theirs(path: str) -> None:
    """A file as one gets it: a normalized float image in, int64 class ids out, of any size."""

    class Theirs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 19, 1)
            )

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits = self.layers(image)
            resized = nn.functional.interpolate(logits, image.shape[-2:], mode="bilinear")
            return resized.argmax(1)

    torch.manual_seed(0)
    image = torch.zeros(1, 3, *SIZE)
    torch.onnx.export(Theirs().eval(), (image,), path, input_names=["image"], dynamo=True)


if __name__ == "__main__":
    out = sys.argv[1] if len(sys.argv) > 1 else "artifacts"
    write_theirs("theirs.onnx")
    model = rtseg.load_model("theirs.onnx", classes="cityscapes", normalize="imagenet")
    (artifact,) = rtseg.export(model, to="onnx", precision="fp16", out=out)
    run = artifact.results[0]
    print(f"{artifact.path.name}: {run.status}, {run.agreement:.2%} of the labels are the file's")
    with rtseg.load(artifact.path) as segment:
        labels = segment(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8))
    print(labels.shape, labels.dtype)
