"""Export a network to two runtimes and read what the proof found."""

import sys

import rtseg

out = sys.argv[1] if len(sys.argv) > 1 else "artifacts"
model = rtseg.load_model("csfcn_nano:camvid")  # our own weights, of the extra `weights`
for artifact in rtseg.export(model, size=(360, 480), to=["onnx", "openvino"], out=out):
    print(artifact.path)
    for run in artifact.results:
        print(f"  {run.backend} {run.precision}: {run.status}, ", end="")
        print(f"{run.agreement:.4%} of the labels are PyTorch's")
