"""mIoU of the very file that will be deployed, on labeled frames.

python evaluate_artifact.py artifacts/csfcn_nano_360x480_fp32.onnx camvid data/camvid
"""

import sys

import rtseg

model, dataset, root = sys.argv[1:4]
result = rtseg.evaluate(model, dataset, root=root, split="val")
print(f"{result.images} frames, labeled by {result.backend} in {result.precision}")
for name, iou in result.as_dict()["iou"].items():
    print(f"{name:<14}{'-' if iou is None else f'{iou:.1%}':>7}")
print(f"{'mean':<14}{result.confusion.miou():>7.1%}")
print(f"{result.confusion.pixel_accuracy():.1%} of the labeled pixels are right")
for miou, _, frame in result.worst(3):
    print(f"hardest: {frame}, {miou:.1%} by itself")
