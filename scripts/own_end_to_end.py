"""Networks from outside the zoo through all of it: export, proof, int8, engine, benchmark, drive.

    python scripts/own_end_to_end.py camvid/train -o own-networks.md

A U-Net of 60 lines, SegFormer-B0 of transformers, and an ONNX file that PyTorch's older exporter
wrote of a feature pyramid. Their weights are random, then taught for some steps to give the labels
of csfcn_nano on the same frames: labels of random weights are noise, which no calibration fits.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import rtseg
import torch
from rtseg.cli._options import parse_sizes
from rtseg.data.files import write_atomically
from rtseg.data.frames import open_source
from rtseg.data.images import read_image
from rtseg.export import Artifact
from rtseg.export.trace import silence_exporter
from rtseg.models.loading import Model
from rtseg.models.network import IMAGENET_MEAN, IMAGENET_STD
from rtseg.reporting import Table
from rtseg.runtime.drive.report import DriveReport
from rtseg.scripts import own_networks
from rtseg.speed.bench import utc_now
from rtseg.speed.result import Report
from rtseg.system import read_system
from rtseg.usage import Noise, NoiseWatch
from torch import Tensor, nn

Size = tuple[int, int]
CLASSES = 11  # of csfcn_nano:camvid
VERDICTS = {("not run", False): "built, not proven", ("failed", True): "not used"}
HEADER = ("network", "file", "run by", "proof", "agree %", "times as fast", "drive", "MiB")


@dataclass(frozen=True)
class Entry:
    """build: with random weights; as_file: it is handed on as an ONNX file; integers: targets of
    int8."""

    title: str
    build: Callable[[], nn.Module]
    as_file: bool = False
    integers: tuple[str, ...] = ("onnxruntime", "openvino")


NETWORKS = {
    "unet": Entry(
        "U-Net of 60 lines", lambda: import_module("own_network").UNet(CLASSES, (16, 32, 64))
    ),
    # ONNX Runtime's own int8 form knows convolutions alone: the proof refuses it for a transformer.
    "segformer": Entry(
        "SegFormer-B0 of transformers",
        own_networks.of_transformers("Segformer", num_labels=CLASSES),
        integers=("onnx", "openvino"),
    ),
    "file": Entry(
        "ONNX file of a feature pyramid", lambda: own_networks.FPN(CLASSES), as_file=True
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What became of one network.

    artifacts: all that was written; race: of them all, one run; drives: report of each file
    that runs here, by its name; seconds: all steps together.
    """

    name: str
    artifacts: Sequence[Artifact]
    race: Report
    drives: dict[str, DriveReport]
    seconds: float

    def table_rows(self) -> list[list[object]]:
        """A row for each way that each file was run."""
        rows: list[list[object]] = []
        for artifact in self.artifacts:
            engine, name = artifact.card.engine, artifact.path.name
            files = [artifact.path]
            if artifact.target == "openvino":  # its weights are beside it
                files.append(artifact.path.with_suffix(".bin"))
            mib = f"{sum(each.stat().st_size for each in files) / 2**20:.2f}"
            if engine:
                mib += f", {engine.layers} layers"
            for place, run in enumerate(artifact.results):
                agree = "" if run.agreement is None else f"{100 * run.agreement:.3f}"
                first = place == 0
                drive = self._driven(name) if first else ""
                # Computing in bfloat16 is a choice: where it falls below the bar, nothing does it.
                verdict = VERDICTS.get((run.status, run.precision == "bf16"), run.status)
                by = f"{run.backend} {run.precision}"
                gain = self._gain(name, run.backend, run.precision) if run.passed else ""
                names = [self.name if not rows else "", name if first else "", by]
                rows.append([*names, verdict, agree, gain, drive, mib if first else ""])
        return rows

    def _gain(self, file: str, backend: str, precision: str) -> str:
        """The plain network's time over ours, from frame to labels, with its 95 % interval."""
        for row in self.race.rows:
            subject = row.subject
            if (subject.artifact, subject.backend, subject.precision) == (file, backend, precision):
                (against,) = row.against.values()
                found = against.frame_to_labels
                return f"{found.value:.2f} ({found.low:.2f}-{found.high:.2f})"
        return ""

    def _driven(self, file: str) -> str:
        if file not in self.drives:
            return ""
        frames = self.drives[file].frames
        return f"{frames.published} of {frames.captured}"


def teach(net: nn.Module, images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """Adam on random fours of (N, 3, H, W) normalized images and (N, H, W) class ids."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(net.train().parameters(), 1e-3)
    for _ in range(steps):
        some = torch.randint(len(images), (4,))
        logits = getattr(out := net(images[some]), "logits", out)
        full = nn.functional.interpolate(logits, images.shape[-2:], mode="bilinear")
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(full, labels[some]))
        optimizer.step()
    return net.eval()


def read_lesson(frames: Path, size: Size, folder: Path) -> tuple[Tensor, Tensor]:
    """Up to 64 frames of a folder as ImageNet-normalized images, and csfcn_nano's labels."""
    (teacher,) = rtseg.export("csfcn_nano:camvid", size, precision="fp32", out=folder)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    paths = open_source(frames).paths
    images, labels = [], []
    with rtseg.load(teacher.path) as segment:
        for path in paths[:: max(1, len(paths) // 64)]:
            image = cv2.resize(read_image(path), size[::-1])
            labels.append(torch.from_numpy(segment(image).astype("int64")))
            rgb = torch.from_numpy(image[..., ::-1].copy()).float() / 255
            images.append(((rgb - mean) / std).permute(2, 0, 1))
    return torch.stack(images), torch.stack(labels)


def write_file(net: nn.Module, size: Size, path: Path) -> Path:
    """As others write it: PyTorch's older exporter, float32 NCHW in, any batch."""
    image = torch.zeros(1, 3, *size)
    batch = {"image": {0: "n"}, "logits": {0: "n"}}
    with silence_exporter():
        torch.onnx.export(
            net, (image,), str(path), dynamo=False, opset_version=17, dynamic_axes=batch,
            input_names=["image"], output_names=["logits"],
        )  # fmt: skip
    return path


def open_network(net: nn.Module, as_file: bool, size: Size, name: str, folder: Path) -> Model:
    options: Any = {"classes": "camvid", "normalize": "imagenet", "size": size, "fit": "stretch"}
    if as_file:
        return rtseg.load_model(write_file(net, size, folder / f"{name}.onnx"), **options)
    return rtseg.load_model(net, name=name, **options)


def export_forms(
    model: Model, frames: Path, folder: Path, integers: Sequence[str]
) -> list[Artifact]:
    """Every form that can be made here, proven on real frames.

    Args:
        model: what `load_model` gave.
        frames: folder of them, which int8 is calibrated on too.
        folder: for the artifacts.
        integers: targets of int8.

    Raises:
        ProofError: a form fell below its bar.
    """
    made: list[Artifact] = []
    for precision in ("fp32", "fp16"):
        both = ["onnx", "openvino"]
        made += rtseg.export(model, to=both, precision=precision, out=folder, frames=frames)
    made += rtseg.export(model, to=integers, precision="int8", out=folder, calib=frames)
    if find_spec("tensorrt_rtx") or find_spec("tensorrt"):
        made += rtseg.export(model, to="tensorrt", precision="fp16", out=folder)
    return made


def drive_over(frames: Path, artifact: Artifact, count: int) -> DriveReport:
    """A drive over the first frames of a folder, in a worker process."""
    clip = open_source(frames)
    clip = replace(clip, paths=clip.paths[:count])
    return rtseg.Drive(clip, artifact.path, every_frame=True).run(600)


def take_through(
    entry: Entry, model: Model, frames: Path, folder: Path, count: int, seconds: float
) -> Outcome:
    """Export in every form, race them in one run, and drive each over `count` frames."""
    began = time.perf_counter()
    made = export_forms(model, frames, folder, entry.integers)
    here = [each for each in made if each.status == "proven"]
    # The model brings what it was made of into the run, and exports by its own defaults.
    race = rtseg.bench([model, *(each.path for each in here)], seconds=seconds, camera_hz=None)
    drives = {each.path.name: drive_over(frames, each, count) for each in here}
    return Outcome(entry.title, made, race, drives, time.perf_counter() - began)


def write_page(outcomes: Sequence[Outcome], absent: Sequence[str], told: str) -> str:
    """The page as Markdown."""
    table = Table(
        HEADER, [row for each in outcomes for row in each.table_rows()], words=HEADER[1:4]
    )
    lines = [f"- {told}"]
    for each in outcomes:
        lines.append(f"- {each.name}: {each.seconds:.0f} s in all")
        lines += [f"- {each.name}: {line}" for line in each.race.warnings if "busy" in line]
    lines += [f"- {line}" for line in absent]
    return PAGE.format(facts="\n".join(lines), table=table.markdown())


PAGE = """# Networks of others, from end to end

Written by `scripts/own_end_to_end.py`; [how to export your own](../howto/own-network.md) has the
commands. Each network went through `rtseg.export`, `rtseg.bench` and `rtseg.Drive`, and none of
their code knows it. The weights were random and then taught to give csfcn_nano's labels for some
steps, so this says nothing about accuracy.

*agree*: pixels with the label of the network in float32 (in PyTorch, or the original file in ONNX
Runtime), on real frames that int8 was not calibrated on; *times as fast*: the time of PyTorch
eager (for a file: of ONNX Runtime with the file as it is) over this form's, from frame to labels,
taken in turns in one run, with the 95 % interval; *drive*: frames answered by a worker process
that runs the file, of those captured. An engine is built without a GPU and proven by the first
machine that loads it; its layers are counted before TensorRT fuses them.

{facts}

{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("frames", type=Path, help="folder of real frames")
    parser.add_argument("--size", default="256x512", help="height x width in pixels")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--drive-frames", type=int, default=40, help="frames to drive over")
    parser.add_argument("--steps", type=int, default=150, help="of teaching")
    parser.add_argument("--seconds", type=float, default=3.0, help="of the benchmark, a row")
    parser.add_argument("-o", "--out", type=Path, help="the page; else it is printed")
    given = parser.parse_args()
    (size,) = parse_sizes([given.size])
    watch, outcomes, absent = NoiseWatch(), [], []
    with TemporaryDirectory() as name:
        folder = Path(name)
        lesson = read_lesson(given.frames, size, folder)
        for each in given.networks:
            entry = NETWORKS[each]
            if each == "segformer" and not find_spec("transformers"):
                absent.append(f"{entry.title}: left out, transformers is not installed")
                continue
            torch.manual_seed(0)
            net = teach(entry.build(), *lesson, given.steps)
            model = open_network(net, entry.as_file, size, each, folder)
            through = take_through(
                *(entry, model, given.frames, folder / each),
                *(given.drive_frames, given.seconds),
            )
            outcomes.append(through)
            print(f"{entry.title}: {through.seconds:.0f} s", file=sys.stderr)
        told = describe(watch.noise(), given)
        page = write_page(outcomes, absent, told)
    if given.out:
        write_atomically(given.out, page.encode())
    else:
        print(page)


def describe(noise: Noise, given: argparse.Namespace) -> str:
    machine = read_system()
    others = "nobody tells" if noise.others is None else f"{noise.others:.0%}"
    return (
        f"{given.size}, {given.steps} steps of teaching; {machine.cpu}, {machine.cores} cores, "
        f"{utc_now()}; other work took {others} of the processor time (load {noise.load_average})"
    )


if __name__ == "__main__":
    main()
