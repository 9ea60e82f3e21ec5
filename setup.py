"""Metadata and mapping: the repository's root is the package `rtseg`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
FOLDERS = ("models", "data", "train", "export", "runtime", "speed", "demo", "fleet", "cli")
EXPORT = [
    "torch>=2.6",
    "onnx>=1.17",
    "onnxscript>=0.3",
    "onnxslim>=0.1.48",
    "safetensors>=0.4",
]
FAST = ["numba>=0.61"]  # labels of coarse logits on CPUs
TRITON = ['triton>=3.2; platform_system == "Linux"']  # labels of coarse logits on GPUs
OPENVINO = ["openvino>=2025.0", *FAST]
TENSORRT = [
    'tensorrt-rtx-cu13>=1.2; platform_system == "Linux" or platform_system == "Windows"',
    "cuda-bindings>=12.9",
    "nvidia-ml-py>=12",
]
DRIVE = [  # logs in and out, metrics, faults on purpose
    "mcap>=1.2",
    "mcap-ros2-support>=0.5",
    "mcap-protobuf-support>=0.5",
    "prometheus-client>=0.20",
    "PyYAML>=6",
]
TRAIN = [*EXPORT, "PyYAML>=6", "matplotlib>=3.8"]  # and tensorboard, where it is asked for
WEB = ["starlette>=0.40", "uvicorn>=0.30"]
FLEET = ["ray[data]>=2.40", "pyarrow>=17"]
TESTS = ["pytest>=8", "playwright>=1.45", "tritonclient>=2.41", "grpcio>=1.60", *TRITON]
ALL = [*TRAIN, *OPENVINO, *TENSORRT, *DRIVE, *WEB]  # fleets apart: Ray is large

setup(
    name="rtseg",
    version=re.search(r'__version__ = "(.+)"', (HERE / "__init__.py").read_text()).group(1),
    description="Street-scene segmentation networks, exported, proven, measured and driven",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    package_dir={"rtseg": "."},
    packages=["rtseg"]
    + [
        f"rtseg.{name}"
        for name in find_packages(include=[*FOLDERS, *(f"{folder}.*" for folder in FOLDERS)])
    ],
    package_data={
        "rtseg": ["py.typed"],
        "rtseg.demo": ["page/*"],
        "rtseg.models": ["pretrained/*.safetensors", "costs.json"],
        "rtseg.train": ["recipes/*.yaml"],
    },
    install_requires=[
        "numpy>=1.26",
        "opencv-python>=4.9",
        "onnxruntime>=1.20",
        "psutil>=5.9",
        "pydantic>=2.7",
        "typer>=0.15",
        "rich>=13.7",
    ],
    extras_require={
        "export": EXPORT,
        "mlperf": ["mlcommons-loadgen>=6.0"],
        "openvino": OPENVINO,
        "fast": FAST,
        "tensorrt": TENSORRT,
        "gpu": ["onnxruntime-gpu>=1.20", "nvidia-ml-py>=12", *TRITON],
        "train": TRAIN,
        "web": WEB,
        "fleet": FLEET,
        "drive": DRIVE,
        "all": ALL,
        "dev": [*ALL, *FLEET, *TESTS, "ruff>=0.9", "mypy>=1.14", "types-PyYAML", "types-psutil"],
    },
    entry_points={"console_scripts": ["rtseg=rtseg.cli:main"]},
)
