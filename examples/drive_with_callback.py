"""The vehicle loop with a callback: newest frame only, and a reason whenever there is no mask.

python drive_with_callback.py 0 artifacts/csfcn_nano_360x480_fp32.onnx
"""

import sys

import rtseg
from rtseg.data.playback import open_drive_source
from rtseg.runtime import Result, read_card

source, model = sys.argv[1:3]
seconds = float(sys.argv[3]) if len(sys.argv) > 3 else None


def plan(message):
    """Called in its own thread; if it is slow, it loses messages and delays nothing else."""
    if isinstance(message, Result):
        road = float((message.labels == ROAD).mean())
        print(f"frame {message.frame_id}: {message.age_ms:.0f} ms old, road {road:.0%}")
    else:
        print(f"no mask ({message.kind.value}): {message.text}")


ROAD = read_card(model).classes.index("road")
drive = rtseg.Drive(open_drive_source(source), model, [plan])
report = drive.run(seconds)
