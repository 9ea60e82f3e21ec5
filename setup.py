"""Metadata and mapping: the repository's root is the package `rtseg`."""

import contextlib
import re
import site
import subprocess
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel

HERE = Path(__file__).parent
FOLDERS = (
    "models", "data", "train", "export", "runtime", "labels", "speed", "demo", "fleet", "cli",
)  # fmt: skip
# One of two: both packages write the folder `onnxruntime`, and CUDA is gone where both are there.
CPU = ["onnxruntime>=1.20"]
GPU = ["onnxruntime-gpu[cuda,cudnn]>=1.20"]
EXPORT = [  # and CPU or GPU: a graph is proven in ONNX Runtime
    "torch>=2.6",
    "onnx>=1.17",
    "onnxscript>=0.3",
    "onnxslim>=0.1.48",
    "safetensors>=0.4",
]
FAST = ["numba>=0.61"]  # labels of coarse logits on CPUs
TRITON = ['triton>=3.2; platform_system == "Linux"']  # labels of coarse logits on GPUs
OPENVINO = ["openvino>=2025.0", *FAST]
ENGINES = ["cuda-bindings>=12.9", "nvidia-ml-py>=12"]
ON_NVIDIA = 'platform_system == "Linux" or platform_system == "Windows"'
# Two packages, for different GPUs: `runtime/support.py` has the table.
TENSORRT_RTX = [f"tensorrt-rtx-cu13>=1.2; {ON_NVIDIA}", *ENGINES]
TENSORRT = [f"tensorrt>=10.3; {ON_NVIDIA}", *ENGINES]
DRIVE = [  # logs in and out, metrics, fault plans
    "mcap>=1.2",
    "mcap-ros2-support>=0.5",
    "mcap-protobuf-support>=0.5",
    "prometheus-client>=0.20",
    "PyYAML>=6",
]
ROS2 = [  # DDS, Zenoh, bags
    # Linux on Arm has no wheel of it, and building it wants an installed Cyclone DDS.
    'cyclonedds>=11.0; platform_system != "Linux" or platform_machine == "x86_64"',
    "eclipse-zenoh>=1.5",
    "rosbags>=0.10",
]
# Compiles on x86, runs on the chip; its wheels need Python 3.11 and a glibc of 2.35.
QNN = ['onnxruntime-qnn>=2.7; platform_system == "Linux" and python_version >= "3.11"']
# Lowers and runs; its Python runtime needs PyTorch.
EXECUTORCH = ["executorch>=1.5"]
TRAIN = [*EXPORT, "PyYAML>=6", "matplotlib>=3.8"]  # and tensorboard, where it is asked for
SIGN = ["cryptography>=42"]
AV = ["av>=14"]  # times of network streams that OpenCV hides
WEB = ["starlette>=0.40", "uvicorn>=0.30"]
FLEET = ["ray[data]>=2.40", "pyarrow>=17"]
ZOO_TESTS = ["transformers>=5", "scipy"]  # others' networks, for the tests alone
DOCS = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]
SERVER = ["tritonclient>=2.41", "grpcio>=1.60"]  # to ask a Triton server
TESTS = ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6", "playwright>=1.45", *SERVER, *TRITON]
MOST = [*TRAIN, *OPENVINO, *TENSORRT_RTX, *DRIVE, *WEB, *SIGN, *AV]  # fleets apart: Ray is large
ALL = [*MOST, *CPU]
LINT = ["ruff>=0.9", "mypy>=1.14", "types-PyYAML", "types-psutil"]
DEVELOP = [*FLEET, *ROS2, *TESTS, *DOCS, *LINT]  # in a checkout, where the weights are


def ask_weights() -> str:
    """The weights of our own networks: from a checkout the folder in it, so that its extras need no
    index to have them. Source distributions leave that out, so what is built of one asks an index.
    """
    folder = HERE / "models" / "pretrained"
    if (folder / "pyproject.toml").is_file():
        return f"rtseg-weights @ {folder.as_uri()}"
    return "rtseg-weights>=0.2"


WEIGHTS = [ask_weights()]


def find_home() -> str:
    """The web page of the repository that this clone came from, "" where none is known."""
    try:
        asked = ["git", "-C", str(HERE), "remote", "get-url", "origin"]
        told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    url = re.sub(r"^(ssh://)?git@([^:/]+)[:/]", r"https://\2/", told)
    url = re.sub(r"^https://[^/@]*@", "https://", url)  # a password has no place in a package
    return url.removesuffix(".git") if url.startswith("https://") else ""


def long_description(home: str) -> str:
    """README.md for a package index, where relative links lead nowhere: they lead to `home`, or
    only their text stays."""

    def link(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        if re.match(r"https?:|#", target):
            return found[0]
        return (
            f"{image}[{text}]({home}/{'raw' if image else 'blob'}/HEAD/{target})" if home else text
        )

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, (HERE / "README.md").read_text())


HOME = find_home()


class Editable(editable_wheel):
    """`pip install -e`, which makes this checkout visible.

    Older versions wrote compiled loops into their installed folder. pip leaves what it did not
    write, and the folder that remains hides the checkout: Python takes it for the package.
    """

    def run(self) -> None:
        places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        for place in (*places, site.getusersitepackages()):
            remove_leftovers(Path(place) / "rtseg")
        super().run()


def remove_leftovers(package: Path) -> None:
    """Remove compiled loops from a package's folder, and all folders that are empty then."""
    for path in package.glob("**/__pycache__/*.nb[ci]"):
        path.unlink(missing_ok=True)
    if (package / "__init__.py").exists():  # what is still installed
        return
    for path in package.glob("**/__pycache__/*.pyc"):
        path.unlink(missing_ok=True)
    for path in (*sorted(package.glob("**/"), reverse=True), package):
        with contextlib.suppress(OSError):  # not empty: somebody's own
            path.rmdir()


setup(
    cmdclass={"editable_wheel": Editable},
    name="rtseg",
    # Read, not imported: the package's requirements are not there yet.
    version=re.search(r'__version__ = "(.+)"', (HERE / "__init__.py").read_text()).group(1),
    description="Street-scene segmentation networks, exported, proven, measured and driven",
    long_description=long_description(HOME),
    long_description_content_type="text/markdown",
    author="The rtseg authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    url=HOME or None,
    project_urls={"Changelog": f"{HOME}/blob/HEAD/CHANGELOG.md"} if HOME else {},
    keywords="semantic segmentation, real-time, TensorRT, OpenVINO, ONNX, autonomous driving",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10,<3.14",
    # The repository's root is the package.
    package_dir={"rtseg": "."},
    packages=["rtseg"]
    + [
        f"rtseg.{name}"
        for name in find_packages(include=[*FOLDERS, *(f"{folder}.*" for folder in FOLDERS)])
    ],
    package_data={
        "rtseg": ["py.typed"],
        "rtseg.data": ["class_maps/*.yaml"],
        "rtseg.demo": ["page/*", "frames/*"],
        "rtseg.export": ["*.json"],
        "rtseg.models": ["costs.json"],
        "rtseg.train": ["recipes/*.yaml"],
    },
    install_requires=[
        "numpy>=1.26",
        "opencv-python>=4.9",
        "openvino>=2025.0",  # runs ONNX files too, on any CPU
        "psutil>=5.9",
        "pydantic>=2.7",
        "typer>=0.15",
        "rich>=13.7",
    ],
    extras_require={
        "cpu": CPU,
        "gpu": [*GPU, "nvidia-ml-py>=12", *TRITON],
        "export": EXPORT,
        "mlperf": ["mlcommons-loadgen>=6.0"],
        "openvino": OPENVINO,
        "fast": FAST,
        "tensorrt": TENSORRT,
        "tensorrt-rtx": TENSORRT_RTX,
        "train": TRAIN,
        "sign": SIGN,
        "av": AV,
        "web": WEB,
        "fleet": FLEET,
        "drive": DRIVE,
        "ros2": ROS2,
        "qnn": [*QNN, *CPU],  # its own package asks for the CPU's ONNX Runtime
        "executorch": [*EXECUTORCH, *EXPORT, *CPU],
        "weights": WEIGHTS,
        "all": [*ALL, *WEIGHTS],
        "all-gpu": [*MOST, *GPU, *TRITON, *WEIGHTS],
        "zoo-tests": ZOO_TESTS,
        "docs": [*EXPORT, *DOCS],
        "dev": [*ALL, *DEVELOP],
        "dev-gpu": [*MOST, *GPU, *TRITON, *DEVELOP],
    },
    entry_points={"console_scripts": ["rtseg=rtseg.cli:main"]},
)
