"""Overlay an artifact's labels on a video or a folder of images, and write a video.

python video_overlay.py drive.mp4 artifacts/csfcn_nano_360x480_fp32.onnx labeled.mp4
"""

import sys
from pathlib import Path

import rtseg
from rtseg.data.frames import Frame, open_source
from rtseg.data.images import blend
from rtseg.demo.writers import open_writer

source, model, out = sys.argv[1:4]
writer = open_writer(Path(out), fps=15)
with rtseg.load(model) as segment:
    for frame in open_source(source):
        if isinstance(frame, Frame):  # otherwise it could not be read, and says why
            labels = segment(frame.image)
            writer.add(blend(frame.image, labels, segment.card.palette, 0.5), frame.name)
print(*writer.finish())
