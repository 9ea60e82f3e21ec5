"""Which wheels the image for a Jetson installs: by name, from the index, without a Jetson.

    python scripts/jetson_wheels.py

pip resolves the package with its extra `drive` for Arm, Python and C library of JetPack 6 and 7; it
installs nothing. It ends with 1 where a wheel is missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
# Python, glibc 2.x, and the bindings for its CUDA, as docker/Dockerfile asks for them.
JETPACKS = {
    "JetPack 6": ("3.10", 35, "cuda-bindings>=12.9,<13"),
    "JetPack 7": ("3.12", 39, "cuda-bindings>=13"),
}


def pin(python: str) -> str:
    """constraints.txt for another Python than the one that runs, less CUDA's."""
    lines = []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith(("#", "cuda-")):
            continue
        required = Requirement(line)
        if required.marker is None or required.marker.evaluate({"python_version": python}):
            required.marker = None
            lines.append(str(required))
    return "\n".join(lines)


def resolve(python: str, glibc: int, bindings: str, folder: Path) -> list[str]:
    """The names of the wheels that pip would install.

    Raises:
        subprocess.CalledProcessError: one is missing; pip says which.
    """
    constraints, report = folder / "constraints.txt", folder / "report.json"
    constraints.write_text(pin(python))
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(17, glibc + 1)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += ["--target", str(folder), "--python-version", python, "--only-binary=:all:"]
    command += [
        word for each in (*platforms, "manylinux2014_aarch64") for word in ("--platform", each)
    ]
    command += ["-c", str(constraints), "--report", str(report)]
    command += [f"{ROOT}[drive]", "opencv-python-headless", bindings, "nvidia-ml-py"]
    subprocess.run(command, check=True)
    found = json.loads(report.read_text())["install"]
    return sorted(each["download_info"]["url"].rpartition("/")[2] for each in found)


def main() -> None:
    """Print the wheels of each JetPack; those for Arm alone by their whole names."""
    for name, asked in JETPACKS.items():
        with tempfile.TemporaryDirectory() as folder:
            wheels = resolve(*asked, Path(folder))
        own = [wheel for wheel in wheels if "aarch64" in wheel]
        print(f"{name}, Python {asked[0]}: {len(wheels)} packages, {len(own)} of them for Arm")
        for wheel in own:
            print(f"  {wheel}")


if __name__ == "__main__":
    main()
