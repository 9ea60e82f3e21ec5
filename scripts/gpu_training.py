"""Steps of the GPU suite: training for as long as is left, and CamVid packed to take along."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

from .gpu_job import ROOT, Job, OutOfTime, Skip, use_tests

PACKED_BYTES = 40_000_000  # that CamVid may have, packed
WORKER_BYTES = 32_000_000  # of batches that a worker has on their way, with room to spare


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
    workers = 0 if job.dry else count_workers()
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
        raise OutOfTime(f"{job.left():.0f} s were left, too few to train in")
    began = time.monotonic()
    outcome = train("csfcn_nano_camvid", run_for(changes, count), out=folder / "run")
    seconds = round(time.monotonic() - began, 2)
    job.row(iterations=outcome.iteration, seconds=seconds, miou=outcome.miou, per_s=round(rate, 2))
    best = outcome.folder / "best.safetensors"
    if best.is_file():
        (job.out / "csfcn_nano_camvid.safetensors").write_bytes(best.read_bytes())


def count_workers(shared: Path = Path("/dev/shm")) -> int:
    """Of the loader; batches come through shared memory, of which a container may have 64 MB, and a
    worker that finds none dies without a word."""
    room = shutil.disk_usage(shared).free // WORKER_BYTES if shared.is_dir() else 12
    return max(0, min(12, (os.cpu_count() or 2) - 2, room))


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
    """CamVid (SegNet's version) as JPEG and label PNG in a `folder` data set.

    Raises:
        UsageError: if it is larger than PACKED_BYTES; nothing is written then.
    """
    import cv2
    import numpy as np
    import yaml

    from ..data.datasets import open_data
    from ..data.images import encode_png
    from ..errors import UsageError

    files: dict[Path, bytes] = {}
    for split in ("train", "val"):
        data = open_data("camvid", source, split)
        for sample in data:
            image = target / "images" / split / f"{Path(sample.name).stem}.jpg"
            label = target / "labels" / split / f"{image.stem}.png"
            jpeg = cv2.imencode(".jpg", sample.image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
            files[image] = jpeg.tobytes()
            assert sample.label is not None
            files[label] = encode_png(sample.label.astype(np.uint8))
    names = zip(data.classes.names, data.classes.palette, strict=True)
    rows = [{"name": name, "color": list(color)} for name, color in names]
    files[target / "classes.yaml"] = yaml.safe_dump(rows, default_flow_style=None).encode()
    if (size := sum(map(len, files.values()))) > PACKED_BYTES:
        raise UsageError(
            f"{source} is {size / 1e6:.1f} MB when packed, more than {PACKED_BYTES / 1e6:.0f}: "
            "name SegNet's version of CamVid, of 360x480"
        )
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
