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
from collections.abc import Sequence
from pathlib import Path

import torch
from rtseg.api import evaluate
from rtseg.models import save_checkpoint
from rtseg.models.checkpoints import read_metadata
from rtseg.models.loading import load_model
from torch import Tensor


def mix(before: dict[str, Tensor], after: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """The mean of two state dicts, with `share` of the second; counters stay the first's."""
    return {
        name: torch.lerp(value.float(), after[name].float(), share).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in before.items()
    }


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
    # As it ships: what is measured are the rounded values.
    rounded = {k: v.half().to(v.dtype) if v.is_floating_point() else v for k, v in mixed.items()}
    model.network.load_state_dict(rounded)
    result = evaluate(model, options.data, options.root, corrupt=True)
    found = result.as_dict()
    kept = ("miou", "iou", "pixel_accuracy", "images", "corruptions")
    told = read_metadata(Path(options.after))
    facts = {
        "classes": model.classes.name,
        "metrics": {"split": "val"} | {key: found[key] for key in kept},
        "miou": found["miou"],
        "mixed": {"before": options.before, "share": options.share},
    }
    facts |= {key: told[key] for key in ("recipe", "revision") if key in told}
    save_checkpoint(model.network, options.out, dtype=torch.float16, metadata=facts)
    print(json.dumps(result.corruptions | {"clean": found["miou"]}, indent=1))


if __name__ == "__main__":
    main()
