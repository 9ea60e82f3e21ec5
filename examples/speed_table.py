"""A LaTeX table for a paper: FPS of networks at three sizes, batch 1, and against PyTorch.

python speed_table.py csfcn pidnet_s > table.tex
python speed_table.py csfcn 512x1024 > table.tex
"""

import re
import sys

import rtseg

SIZES = [(512, 1024), (768, 1536), (1024, 2048)]

names = [word for word in sys.argv[1:] if not re.fullmatch(r"\d+x\d+", word)]
sizes = [tuple(map(int, word.split("x"))) for word in sys.argv[1:] if word not in names]
report = rtseg.bench(names or ["csfcn_nano"], size=sizes or SIZES, seconds=1, camera_hz=None)
print(report.tables[0].latex())
