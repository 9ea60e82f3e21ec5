"""A short GIF of the live page, for README: a browser looks at it, a picture at a time.

rtseg demo FRAMES --web --port 8017 & python scripts/page_gif.py http://127.0.0.1:8017 page.gif
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("gif", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--fps", type=float, default=6.0)
    parser.add_argument("--width", type=int, default=800)
    options = parser.parse_args()
    shots: list[Image.Image] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport={"width": 1180, "height": 640})
        tab.goto(options.url)
        tab.wait_for_timeout(4000)  # until the histogram has something in it
        for _ in range(round(options.seconds * options.fps)):
            begin = time.monotonic()
            shot = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
            height = round(shot.height * options.width / shot.width)
            shots.append(shot.resize((options.width, height), Image.Resampling.LANCZOS))
            tab.wait_for_timeout(max(0.0, 1000 * (1 / options.fps - time.monotonic() + begin)))
        browser.close()
    # One palette for all pictures: with one each, flat areas flicker.
    palette = shots[0].quantize(128)
    pictures = [shot.quantize(palette=palette, dither=Image.Dither.NONE) for shot in shots]
    pictures[0].save(
        options.gif, save_all=True, append_images=pictures[1:], duration=1000 / options.fps, loop=0
    )
    print(f"{len(shots)} pictures, {options.gif.stat().st_size / 1e6:.2f} MB: {options.gif}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
