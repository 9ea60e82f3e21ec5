"""Export a network to two runtimes and read what the proof found.

python export_and_prove.py artifacts
"""

import sys

import rtseg

out = sys.argv[1] if len(sys.argv) > 1 else "artifacts"
model = rtseg.load_model("csfcn_nano:camvid")  # our own weights, of the extra `weights`
for artifact in rtseg.export(model, size=(360, 480), to=["onnx", "openvino"], out=out):
    print(f"{artifact.path}, {artifact.path.stat().st_size / 1e6:.1f} MB: {artifact.status}")
    print(f"  on {artifact.frames}")
    for run in artifact.results:
        print(f"  {run.backend} {run.precision}: {run.status}, ", end="")
        print(f"{run.agreement:.4%} of the labels are PyTorch's")
    for warning in artifact.warnings:
        print(f"  warning: {warning}")
