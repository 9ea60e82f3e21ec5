"""Networks at three sizes as a LaTeX table for a paper: FPS at batch 1, and against PyTorch.

python speed_table.py csfcn pidnet_s > table.tex
"""

import sys

import rtseg

names = sys.argv[1:] or ["csfcn_nano"]
report = rtseg.bench(names, sizes=[(512, 1024), (768, 1536), (1024, 2048)], seconds=2)
print(report.tables()[0].latex())
