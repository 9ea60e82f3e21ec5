"""Read the newest mask from shared memory, in a separate process.

rtseg drive 0 --model artifacts/csfcn_nano_360x480_fp32.onnx -o /dev/shm/labels.ring
python ring_reader.py /dev/shm/labels.ring 10
"""

import sys
import time
from pathlib import Path

from rtseg.runtime.sinks.shared_memory import RingReader

reader = RingReader(Path(sys.argv[1]))  # may start before the writer
wanted = int(sys.argv[2]) if len(sys.argv) > 2 else 0
newest = seen = 0
while not wanted or seen < wanted:
    entry = reader.latest(after=newest)
    if entry is None:
        time.sleep(0.002)
        continue
    newest, seen = entry.number, seen + 1
    if entry.kind is not None:
        print(f"no mask: {entry.kind.value}")
    elif time.monotonic_ns() < entry.expires_ns:
        print(f"frame {entry.frame_id}: labels {entry.labels.shape}")
