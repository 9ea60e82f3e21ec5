"""Two cameras, one model: the rear one may fail, and the front one goes on.

python drive_two_cameras.py 0 2 artifacts/csfcn_nano_360x480_fp32.onnx
"""

import sys

import rtseg
from rtseg.data.playback import open_drive_source
from rtseg.runtime import Result

front, rear, model = sys.argv[1:4]
seconds = float(sys.argv[4]) if len(sys.argv) > 4 else None


def plan(message):
    """Of both cameras; a sink with an attribute `camera` gets that one's messages alone."""
    if isinstance(message, Result):
        print(f"{message.camera} {message.frame_id}: {message.age_ms:.0f} ms old")
    else:
        print(f"{message.camera}: no mask ({message.kind.value}): {message.text}")


sources = {"front": open_drive_source(front), "rear": open_drive_source(rear)}
report = rtseg.Drive(sources, model, [plan]).run(seconds)
for name, camera in report.cameras.items():
    print(f"{name}: {camera.state}, {camera.frames.published} of {camera.frames.captured} answered")
