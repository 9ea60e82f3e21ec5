"""Averages two checkpoints of a network, measures the mean, and writes it as weights that ship.

Weights that were fine-tuned from others for a new condition, such as noise, keep most of what they
learned and forget less on the way back to where they came from (Wortsman et al., "Robust
fine-tuning of zero-shot models", 2022).

python scripts/mix_weights.py csfcn_nano:camvid runs/noise/best.safetensors --share 0.7 \\
    camvid --root data/camvid -o csfcn_nano_camvid_noise.safetensors
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rtseg.api import evaluate
from rtseg.models import save_checkpoint
from rtseg.models.checkpoints import read_metadata
from rtseg.models.loading import Model, load_model
from torch import Tensor


def mix(before: dict[str, Tensor], after: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """The mean of two state dicts, with `share` of the second; counters stay the first's."""
    return {
        name: torch.lerp(value.float(), after[name].float(), share).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in before.items()
    }


def ship(
    model: Model,
    state: Mapping[str, Tensor],
    data: tuple[str, Path],
    out: Path,
    told: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write weights as they ship, with the metrics that the rounded values have on `data`, a data
    set's name and folder.

    Args:
        model: gets the weights.
        state: of its network.
        data: to measure on, clean and corrupted.
        out: the file.
        told: what the checkpoint that they came of says of itself; recipe and license go on.
        facts: to add.

    Returns:
        What was measured.
    """
    # As it ships: what is measured are the rounded values.
    rounded = {k: v.half().to(v.dtype) if v.is_floating_point() else v for k, v in state.items()}
    model.network.load_state_dict(rounded)
    found = evaluate(model, *data, corrupt=True).as_dict()
    kept = ("miou", "iou", "pixel_accuracy", "images", "corruptions")
    more = {key: told[key] for key in ("recipe", "revision", "license") if key in told}
    metrics = {"split": "val"} | {key: found[key] for key in kept}
    own = {"classes": model.classes.name, "metrics": metrics, "miou": found["miou"]}
    save_checkpoint(model.network, out, dtype=torch.float16, metadata={**own, **more, **facts})
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Mix, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", help="as `rtseg eval` takes it")
    parser.add_argument("after", help="a checkpoint of the same network that `rtseg train` wrote")
    parser.add_argument("data")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--share", type=float, required=True, help="of the second, 0 to 1")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    if not 0 <= options.share <= 1:
        parser.error(f"--share is from 0 to 1, not {options.share:g}")
    model, after = load_model(options.before), load_model(options.after)
    mixed = mix(model.network.state_dict(), after.network.state_dict(), options.share)
    mixed_of = {"mixed": {"before": options.before, "share": options.share}}
    told, data = read_metadata(Path(options.after)), (options.data, options.root)
    found = ship(model, mixed, data, options.out, told, mixed_of)
    print(json.dumps(found["corruptions"] | {"clean": found["miou"]}, indent=1))


if __name__ == "__main__":
    main()
