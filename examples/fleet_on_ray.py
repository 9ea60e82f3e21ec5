"""Label many logs on all cores with Ray Data; run it again to resume where it stopped.

python fleet_on_ray.py 'logs/*' artifacts/csfcn_nano_360x480_fp32.onnx labels
"""

import sys
from pathlib import Path

from rtseg.fleet.fleet import FleetOptions, fleet

inputs, model, out = sys.argv[1:4]
summary = fleet([inputs], Path(model), Path(out), FleetOptions(workers=2))
print(f"{summary.frames} frames at {summary.frames_per_s:.1f} a second, {summary.done} done before")
for log, reason in summary.failed.items():
    print(f"{log}: {reason}")
