"""Steps of the GPU suite, which `gpu_suite.py` starts one by one: each writes rows of facts.

    python -m rtseg.scripts.gpu_steps STEP --device cuda --seconds 60 --rows rows.jsonl
    python -m rtseg.scripts.gpu_steps pack CAMVID FOLDER    CamVid in under 40 MB, to take along

With `--device cpu` every step runs at a small size on what a CPU has: the driver's step on a
pretended GPU, the kernels in Triton's interpreter, engines built and not run.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..models import Network
    from ..models.loading import Model
    from ..speed.contestant import Contestant
    from ..speed.timing import Lane, Limits

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = 75
STEADY = 1000  # frames over which memory has to stay where it is
MIB = 2**20


class Skip(Exception):
    """This step cannot run here; the message says why."""


@dataclass(frozen=True)
class Plan:
    """What is measured: on a GPU, or as a dry run."""

    models: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    precisions: tuple[str, ...]
    runs: int
    seconds: float
    block_ms: float
    labels_of: tuple[str, ...] = ("csfcn_tiny", "csfcn")
    engine: str = "csfcn_tiny"
    engine_size: tuple[int, int] = (512, 1024)
    steady: int = STEADY

    @property
    def limits(self) -> Limits:
        from ..speed.timing import Limits

        return Limits(self.runs, self.seconds, rounds=3, block_ms=self.block_ms)


FULL = Plan(
    models=("csfcn", "csfcn_tiny", "csfcn_nano", "pidnet_s", "sfnet_r18"),
    sizes=((1024, 2048), (512, 1024)),
    precisions=("fp16", "bf16"),
    runs=60,
    seconds=1.0,
    block_ms=80,
)
DRY = Plan(
    models=("csfcn_nano",), sizes=((64, 128),), precisions=("fp32",),
    runs=2, seconds=0.02, block_ms=1, labels_of=("csfcn_nano",),
    engine="csfcn_nano", engine_size=(64, 128), steady=5,
)  # fmt: skip


@dataclass
class Job:
    """One step at work: where its rows go, and until when."""

    device: str
    rows: Path
    out: Path
    ends: float
    camvid: Path | None = None
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        self.plan = DRY if self.dry else FULL

    @property
    def dry(self) -> bool:
        return self.device == "cpu"

    def left(self) -> float:
        return self.ends - time.monotonic()

    def row(self, **facts: Any) -> None:
        """Keep facts at once: the step may be ended at any time."""
        with self.rows.open("a") as file:
            file.write(json.dumps(facts, default=str) + "\n")

    @contextmanager
    def part(self, **named: Any) -> Iterator[None]:
        """A part of the step; if it fails, that is its row, and the next one goes on."""
        if self.left() < 1:
            self.row(**named, absent="no time was left")
            return
        began = time.monotonic()
        try:
            yield
        except Exception as error:
            from ..errors import RtsegError

            lines = str(error).strip().splitlines() or [""]
            if isinstance(error, (Skip, RtsegError)):  # which say what would help
                self.row(**named, absent=lines[0][:500])
            else:
                self.row(**named, failed=f"{type(error).__name__}: {lines[0][:300]}")
                traceback.print_exc()
        finally:
            free_memory(self.device)
            sys.stderr.write(f"{named}: {time.monotonic() - began:.1f} s\n")


def free_memory(device: str) -> None:
    gc.collect()
    if device != "cpu" and "torch" in sys.modules:
        import torch

        torch.cuda.empty_cache()


def use_tests() -> None:
    """The tests' pretended GPU and kernel cases are used as they are."""
    if not (ROOT / "tests" / "fake_cuda.py").is_file():
        raise Skip("the checkout's tests/ are not here")
    sys.path.append(str(ROOT / "tests"))


# The machine.


def machine(job: Job) -> None:
    """What it is, what is installed, what could run on each GPU."""
    import torch

    from ..gpu import gpus
    from ..system import read_system

    job.row(**asdict(read_system()), cuda_of_torch=torch.version.cuda, plan=asdict(job.plan))
    for gpu in gpus():
        job.row(**asdict(gpu))
    if not job.dry and not torch.cuda.is_available():
        raise Skip("PyTorch finds no GPU")


# PyTorch: our backend beside eager and torch.compile.


def torch_backend(job: Job) -> None:
    """Our PyTorch backend against eager, and its labels against the CPU's."""
    for size in job.plan.sizes:
        for name in job.plan.models:
            with job.part(model=name, size=size):
                measure(job, name, size, job.plan.precisions, ("eager",), labels=True)


def torch_compile(job: Job) -> None:
    """`torch.compile` at its best against ours; compiling takes minutes, so it comes apart."""
    import torch

    if job.dry:  # the frontend alone: a C++ compiler would take most of the dry run
        torch.compile = partial(torch.compile, backend="eager")
    for size in job.plan.sizes:
        for name in job.plan.models:
            with job.part(model=name, size=size):
                measure(job, name, size, job.plan.precisions[:1], ("compile",), labels=False)


def measure(
    job: Job,
    name: str,
    size: tuple[int, int],
    precisions: tuple[str, ...],
    peers: tuple[str, ...],
    labels: bool,
) -> None:
    """A row a contestant: our backend in each precision, and each peer, timed in turns."""
    from ..data.scenes import scenes
    from ..models.loading import load_model
    from ..speed.contestant import ArtifactContestant
    from ..speed.timing import Lane, race

    model, frames = load_model(name), scenes(2, size)
    opened: dict[str, tuple[Contestant, Lane]] = {}

    def enter(title: str, start: Callable[[], Contestant]) -> None:
        with job.part(model=name, size=size, contestant=title):
            each = start()
            calls = {"frame_to_labels": each.frame_to_labels, "network": each.network}
            opened[title] = each, Lane(calls)

    for precision in precisions:
        path = write_weights(model, size, precision, job.rows.parent)
        start = partial(ArtifactContestant.open, path, "torch", frames, device=job.device)
        enter(f"torch {precision}", start)
    for peer in peers:
        enter(peer, partial(open_peer, job, model, size, peer, frames))
    if opened:
        race([lane for _, lane in opened.values()], job.plan.limits)
    for title, (each, lane) in opened.items():
        job.row(model=name, size=size, contestant=title, **timed(job, each, lane, opened, peers))
    if labels:
        for title, (each, _) in opened.items():
            with job.part(model=name, size=size, contestant=title, labels="against the CPU"):
                facts = compare_labels(model.network, size, frames, each)
                job.row(model=name, size=size, contestant=title, **facts)
    for each, _ in opened.values():
        each.close()


def timed(
    job: Job, each: Contestant, lane: Lane, opened: dict[str, Any], peers: tuple[str, ...]
) -> dict[str, Any]:
    """Its times, those of a peer over its own, and the GPU's own clock beside the wall's."""
    from ..speed.timing import Timing, ratio

    subject = each.subject
    facts: dict[str, Any] = {
        "precision": subject.precision,
        "options": dict(subject.options),
        **{call: asdict(Timing.of(lane.times(call))) for call in lane.calls},
    }
    facts["device_ms"] = each.device_ms()
    for peer in peers:
        if not subject.peer and peer in opened:
            other = opened[peer][1]
            facts[f"against {peer}"] = {
                call: asdict(ratio(lane.rounds[call], other.rounds[call])) for call in lane.calls
            }
    return facts


def write_weights(model: Model, size: tuple[int, int], precision: str, folder: Path) -> Path:
    """Weights with a card, as `rtseg export --to torch` writes them, without its ONNX packages and
    without a proof: the suite compares the labels itself."""
    import torch

    from .. import __version__
    from ..models import count, digest, save_checkpoint
    from ..runtime.artifact import Card, digest_of_tensors

    info, cost = model.network.info, count(model.network, size)
    path = folder / f"{info.name}_{size[0]}x{size[1]}_{precision}.safetensors"
    save_checkpoint(model.network, path)
    card = Card(
        model=info.name, size=size, trained_size=model.trained_size, fit=model.fit,
        precision=precision, outputs=("labels",),  # type: ignore[arg-type]
        classes=model.classes.names, palette=model.classes.palette,
        label_ids=model.classes.label_ids, class_set=model.classes.name,
        mean=info.mean, std=info.std, weights=digest(model.network),
        weights_from=model.weights_from, trained=model.trained, macs=cost.macs,
        params=cost.params, tools={"rtseg": __version__, "torch": torch.__version__},
        files={"": digest_of_tensors(path)},
    )  # fmt: skip
    save_checkpoint(model.network, path, metadata={"card": card.to_json()})
    return path


def open_peer(job: Job, model: Model, size: tuple[int, int], name: str, frames: Any) -> Contestant:
    from ..models import count, digest
    from ..speed.baselines import PlainExport, as_artifact_error, peer_class

    kind = peer_class(name, job.device.partition(":")[0])
    network = copy.deepcopy(model.network)
    macs, weights = count(network, size).macs, digest(network)
    with as_artifact_error(kind.title):
        if issubclass(kind, PlainExport):
            kind = kind.of(model, size)
        on, fit = job.device, model.fit
        return kind(network, size, weights, macs, frames, on, None, model.trained, fit)


def compare_labels(
    network: Network, size: tuple[int, int], frames: Any, each: Contestant
) -> dict[str, Any]:
    """Pixels whose label is not that of float32 on the CPU, and the widest lead that one of them
    had there: far below 1, since only near ties turn. leads are over the logits' deviation."""
    different, widest = 0, 0.0
    for frame in frames:
        labels, lead = label_on_cpu(network, size, frame)
        turned = each.label(frame) != labels
        different += int(turned.sum())
        widest = max(widest, float(lead[turned].max(initial=0)))
    pixels = len(frames) * size[0] * size[1]
    return {"labels_differ": different, "pixels": pixels, "widest_lead_of_those": round(widest, 5)}


def label_on_cpu(
    network: Network, size: tuple[int, int], frame: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(labels (H, W), by how much each leads the second class, in deviations of the logits)."""
    import torch

    from ..models.pipeline import normalize_frame

    with torch.inference_mode():
        logits = network.eval()(normalize_frame(frame, network))
        if tuple(logits.shape[-2:]) != size:
            logits = torch.nn.functional.interpolate(
                logits, size, mode="bilinear", align_corners=network.info.align_corners
            )
        best = logits.topk(2, dim=1)
        lead = (best.values[0, 0] - best.values[0, 1]) / logits.std()
        return logits.argmax(1)[0].to(torch.uint8).numpy(), lead.numpy()


# Labels by kernels.


def kernels(job: Job) -> None:
    """Every case of the unit tests on the device, then the kernels' time and bandwidth."""
    if job.dry:
        os.environ["TRITON_INTERPRET"] = "1"
    use_tests()
    from label_cases import NAMES, case_of, count_wrong, labels_on  # type: ignore[import-not-found]

    wrong: dict[str, int] = {}
    names = ("factor 3, aligned", "shuffled, odd factor") if job.dry else NAMES
    for name in names:
        with job.part(case=name):
            case = case_of(name)
            found, allowed = count_wrong(labels_on(case, job.device), case, name)
            wrong |= {name: found} if found > allowed else {}
    job.row(cases=len(names), wrong=wrong)
    from .label_cost import label_cost

    for model in job.plan.labels_of:
        for size in job.plan.sizes:
            with job.part(label_cost=model, size=size):
                time_labels(job, model, size, label_cost)


def time_labels(job: Job, name: str, size: tuple[int, int], cost_of: Callable[..., Any]) -> None:
    """Beside the time: the bytes that the kernel has to move, which over it are its bandwidth."""
    from ..data.scenes import scenes
    from ..models.loading import load_model

    network, limits, frames = load_model(name).network, job.plan.limits, scenes(2, size)
    cost = cost_of(network, frames, size, 1, limits, job.device)
    job.row(label_cost=name, **asdict(cost), **bandwidth(job, network, size, frames[0]))


def bandwidth(
    job: Job, network: Network, size: tuple[int, int], frame: NDArray[np.uint8]
) -> dict[str, Any]:
    """The bytes that the kernel has to move, and a second's by the GPU's own clock."""
    from ..models.pipeline import find_last_upsample
    from ..runtime.argmax_torch import make_label_maker
    from ..speed.timing import device_ms
    from .label_cost import NetworkEnd

    how = find_last_upsample(network, size)
    end = NetworkEnd(network, size, str(how), job.device)
    given = end.given(frame)
    maker = make_label_maker(given, size, how, 1, end.head)  # type: ignore[arg-type]
    moved = given.nbytes + size[0] * size[1] + (end.head.weight.nbytes if end.head else 0)
    spent = device_ms(lambda: maker(given), job.device)
    return {"bytes": moved} | ({} if spent is None else {"bytes_per_s": round(1e3 * moved / spent)})


# The driver's own way: module, graph, kernel.


def driver(job: Job) -> None:
    """The kernel that travels with an engine, loaded by the driver: module, launch, graph, with
    outputs poisoned before each run and memory given back."""
    use_tests()
    import numpy as np
    from fake_cuda import (  # type: ignore[import-not-found]
        COARSE_SHAPE,
        SIZE,
        PretendedKernel,
        World,
        coarse_logits,
        picture,
    )
    from labels_plain import plain  # type: ignore[import-not-found]

    from ..export.argmax_kernel import CutGraph, compile_kernel
    from ..runtime.backends import cuda as cuda_module

    world = World()
    if job.dry:
        cuda_module._bindings = lambda api="runtime": world.api[api]
    index = int(job.device.partition(":")[2] or 0)
    cuda = cuda_module.Cuda(index)
    facts: dict[str, Any] = {"gpu": cuda.name, "compute_capability": cuda.compute_capability}
    for enlarge in ("bilinear", "bilinear_aligned"):
        with job.part(kernel=enlarge):
            ending = CutGraph(None, enlarge, COARSE_SHAPE, np.dtype(np.float16))  # type: ignore[arg-type]
            file = compile_kernel(ending, SIZE, [cuda.compute_capability])
            PretendedKernel(world, file)
            inputs = [coarse_logits(picture(seed)) for seed in range(3)]
            expected = [plain(each, SIZE, enlarge == "bilinear_aligned") for each in inputs]
            free = None if job.dry else cuda.free_bytes()
            wrong = [run_kernel(cuda, file, inputs, expected, SIZE) for _ in range(3)]
            if free is not None:
                facts["bytes_not_given_back"] = free - cuda.free_bytes()
            job.row(kernel=enlarge, wrong_pixels=wrong, **facts)
    if job.dry:
        job.row(alive=world.cuda.alive, modules=len(world.driver.modules))


def run_kernel(
    cuda: Any, file: Any, inputs: Any, expected: Any, size: tuple[int, int]
) -> dict[str, int]:
    """Wrong pixels of a kernel launched as it is and as a graph, each behind poisoned labels."""
    import numpy as np

    from ..runtime.backends.argmax_kernel import LabelKernel

    stream, coarse = cuda.create_stream(), cuda.allocate(inputs[0].nbytes)
    kernel = LabelKernel(file, cuda, coarse, size, stream)
    poison, found = np.full((1, *size), 255, np.uint8), np.empty((1, *size), np.uint8)
    graph, wrong = None, {"launched": 0, "replayed": 0}
    try:
        for way in wrong:
            if way == "replayed":
                cuda.begin_capture(stream)
                kernel.enqueue(stream)
                graph = cuda.end_capture(stream)
            for given, labels in zip(inputs, expected, strict=True):
                cuda.to_device(coarse, given, stream)
                cuda.to_device(kernel.labels, poison, stream)
                if graph is None:
                    kernel.enqueue(stream)
                else:
                    cuda.launch(graph, stream)
                cuda.to_host(found, kernel.labels, stream)
                cuda.synchronize(stream)
                wrong[way] += int(np.count_nonzero(found != labels))
    finally:
        if graph is not None:
            cuda.destroy_graph(graph)
        kernel.close()
        cuda.free(coarse)
        cuda.destroy_stream(stream)
    return wrong


# The machine's ceilings.


def ceilings(job: Job) -> None:
    """Matrix products in every precision, bandwidth, and copies to and from the host."""
    import torch

    from ..speed.roofline import measure_ceilings, measure_copies

    sides, size = ((64,), 1 << 16) if job.dry else ((), 1 << 28)
    seconds = 0.01 if job.dry else 0.3
    threads = torch.get_num_threads()
    job.row(**asdict(measure_ceilings(threads, job.device, seconds, sides, size)))
    if not job.dry:
        job.row(host_copies_bytes_per_s=measure_copies(job.device, seconds))


# Artifacts in other runtimes.


def tensorrt(job: Job) -> None:
    """Engines by each TensorRT that runs here: proof at first load, both ways to labels, graph on
    and off, and memory over many frames."""
    from ..runtime.packages import FLAVOURS, find_package
    from ..runtime.support import supported

    found = [package for flavour in FLAVOURS if (package := find_package(flavour))]
    if not found:
        raise Skip("neither tensorrt nor tensorrt_rtx is installed")
    for package in found:
        with job.part(flavour=package.flavour, version=package.version):
            if not job.dry:
                verdict = supported(this_gpu(job), package.flavour, package.version)
                if not verdict.works:
                    raise Skip(f"{verdict.why}: {verdict.fix}")
            engines(job, package.flavour)


def engines(job: Job, flavour: str) -> None:
    from ..export import tensorrt as builder

    chosen = builder.choose_package
    builder.choose_package = lambda *_: chosen(flavour)  # type: ignore[arg-type]
    try:
        for kernel in (True,) if job.dry else (False, True):
            with job.part(flavour=flavour, label_kernel=kernel):
                path = export_for(job, "tensorrt", label_kernel=kernel)
                job.row(flavour=flavour, label_kernel=kernel, bytes=path.stat().st_size)
                for graph in (True, False) if not job.dry else ():
                    with job.part(flavour=flavour, label_kernel=kernel, cuda_graph=graph):
                        named = {"flavour": flavour, "label_kernel": kernel, "cuda_graph": graph}
                        serve(job, path, "tensorrt", named, cuda_graph=graph)
    finally:
        builder.choose_package = chosen


def this_gpu(job: Job) -> Any:
    from ..gpu import gpus

    index = int(job.device.partition(":")[2] or 0)
    return next(gpu for gpu in gpus() if gpu.index == index)


def export_for(job: Job, target: str, **options: Any) -> Path:
    """An artifact of the plan's network in fp16 for `target`, proven where that can be done."""
    from ..export import export

    plan, name = job.plan, f"{target}-{options.get('label_kernel', False)}"
    out = job.rows.parent / name
    (artifact, *_) = export(plan.engine, plan.engine_size, target, "fp16", out=out, **options)
    return artifact.path


def serve(job: Job, path: Path, backend: str, named: dict[str, Any], **options: Any) -> None:
    """Load an artifact (an engine proves itself then), time it, and watch memory over frames."""
    from ..data.scenes import scenes
    from ..gpu import gpu_memory_used
    from ..speed.contestant import ArtifactContestant
    from ..speed.timing import Lane, race
    from ..usage import read_usage

    frames = scenes(2, job.plan.engine_size)
    each = ArtifactContestant.open(path, backend, frames, device=job.device, **options)
    lane = Lane({"frame_to_labels": each.frame_to_labels, "network": each.network})
    race([lane], job.plan.limits)
    before = gpu_memory_used(), read_usage().resident_mib
    for _ in range(job.plan.steady):
        each.frame_to_labels()
    after = gpu_memory_used(), read_usage().resident_mib
    growth = [None if a is None or b is None else round(b - a, 1) for a, b in zip(before, after)]  # noqa: B905
    job.row(
        **named, **timed(job, each, lane, {}, ()), frames=job.plan.steady,
        device_bytes_grown=growth[0], host_mib_grown=growth[1],
    )  # fmt: skip
    each.close()


def onnxruntime(job: Job) -> None:
    """ONNX Runtime on the device: ours, and the plain export as others run it."""
    import onnxruntime as package

    if not job.dry and "CUDAExecutionProvider" not in package.get_available_providers():
        raise Skip("this ONNX Runtime was built without CUDA: install onnxruntime-gpu")
    with job.part(backend="onnxruntime"):
        path = export_for(job, "onnx")
        for options in ({},) if job.dry else ({}, {"cuda_graph": True}, {"prefer_nhwc": True}):
            with job.part(backend="onnxruntime", **options):
                serve(job, path, "onnxruntime", {"backend": "onnxruntime"} | options, **options)
    for peer in ("onnxruntime", "tensorrt", "torch_tensorrt", "torch2trt"):
        if not job.dry or peer == "onnxruntime":
            measure(job, job.plan.engine, job.plan.engine_size, (), (peer,), labels=True)


# Training.


def training(job: Job) -> None:
    """csfcn_nano on CamVid for as long as is left: a short run tells how far that is."""
    from ..train import train

    use_tests()
    folder = job.rows.parent
    data = find_camvid(job, folder)
    if not job.dry:
        import torch

        if not torch.cuda.is_available():
            raise Skip("PyTorch finds no GPU")
    workers = 0 if job.dry else max(1, min(12, (os.cpu_count() or 2) - 2))
    changes = [*data, f"data.workers={workers}", "log_every=1", "schedule.epochs=null"]
    if job.dry:
        changes += ["augment.crop=[32,64]", "val_size=[32,64]", "batch=2", "precision=fp32"]
    probe = 4 if job.dry else 60
    began = time.monotonic()
    train("csfcn_nano_camvid", run_for(changes, probe), out=folder / "probe")
    job.row(probe_iterations=probe, seconds=round(time.monotonic() - began, 2))
    rate = iterations_per_s(folder / "probe")
    count = 4 if job.dry else int(rate * 0.7 * (job.left() - 10))
    if count < probe and not job.dry:
        raise Skip(f"{job.left():.0f} s were left, too few to train in")
    began = time.monotonic()
    outcome = train("csfcn_nano_camvid", run_for(changes, count), out=folder / "run")
    seconds = round(time.monotonic() - began, 2)
    job.row(iterations=outcome.iteration, seconds=seconds, miou=outcome.miou, per_s=round(rate, 2))
    best = outcome.folder / "best.safetensors"
    if best.is_file():
        (job.out / "csfcn_nano_camvid.safetensors").write_bytes(best.read_bytes())


def run_for(changes: list[str], iterations: int) -> list[str]:
    """Warm-up over a tenth, and one validation, at the end."""
    length = [f"schedule.iterations={iterations}", f"schedule.warmup={iterations // 10}"]
    return [*changes, *length, f"val_every={iterations}", f"save_every={10 * iterations}"]


def iterations_per_s(run: Path) -> float:
    """Of the second half of a run's log, in which the workers have started; images come in eights
    by the recipe."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rates = [row["images_per_s"] for row in rows if "images_per_s" in row]
    late = rates[len(rates) // 2 :]
    return float(len(late) / sum(8 / each for each in late))


def find_camvid(job: Job, folder: Path) -> list[str]:
    """The recipe's changes that name the data: what was given, what lies beside, or drawn."""
    if job.dry:
        from tiny_camvid import write_camvid  # type: ignore[import-not-found]

        return [f"data.root={write_camvid(folder / 'camvid')}"]
    beside = [ROOT / "gpu-wheels" / "camvid", ROOT.parent / "shared" / "data" / "camvid"]
    root = next((each for each in (job.camvid, *beside) if each and each.is_dir()), None)
    if root is None:
        raise Skip("no CamVid: name its folder with --camvid")
    packed = (root / "classes.yaml").is_file()
    return [f"data.root={root}", *(["data.name=folder"] if packed else [])]


def pack(source: Path, target: Path) -> None:
    """CamVid (SegNet's version) as JPEG and label PNG in a `folder` data set, under 40 MB."""
    import cv2
    import numpy as np
    import yaml

    from ..data.datasets import open_data
    from ..data.images import encode_png

    for split in ("train", "val"):
        data = open_data("camvid", source, split)
        for sample in data:
            image = target / "images" / split / f"{Path(sample.name).stem}.jpg"
            label = target / "labels" / split / f"{image.stem}.png"
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            jpeg = cv2.imencode(".jpg", sample.image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
            image.write_bytes(jpeg.tobytes())
            assert sample.label is not None
            label.write_bytes(encode_png(sample.label.astype(np.uint8)))
    names = zip(data.classes.names, data.classes.palette, strict=True)
    rows = [{"name": name, "color": list(color)} for name, color in names]
    (target / "classes.yaml").write_text(yaml.safe_dump(rows, default_flow_style=None))


STEPS: dict[str, Callable[[Job], None]] = {
    "machine": machine,
    "torch": torch_backend,
    "compile": torch_compile,
    "kernels": kernels,
    "driver": driver,
    "ceilings": ceilings,
    "tensorrt": tensorrt,
    "onnxruntime": onnxruntime,
    "training": training,
}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if wheels := os.environ.get("RTSEG_SUITE_WHEELS"):
        sys.path.append(wheels)
    if arguments[:1] == ["pack"]:
        pack(*map(Path, arguments[1:3]))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--camvid", type=Path)
    given = parser.parse_args(arguments)
    ends = time.monotonic() + given.seconds
    job = Job(given.device, given.rows, given.out, ends, given.camvid)
    try:
        if not job.dry:
            import torch

            if not torch.cuda.is_available():
                raise Skip("PyTorch finds no GPU here")
        STEPS[given.step](job)
    except Skip as reason:
        job.row(why=str(reason))
        return SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
