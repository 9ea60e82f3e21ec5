"""Deep learning accelerator (DLA) of a Jetson: which layers of an engine run on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..errors import UsageError

NAMED = 8  # layers in a warning; the card has them all


@dataclass(frozen=True)
class DlaUse:
    """What an engine's DLA core does.

    Attributes:
        core: its number.
        layers: of the network as TensorRT parsed it.
        fallback: names of the layers that the GPU does instead.
    """

    core: int
    layers: int
    fallback: tuple[str, ...]

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{len(self.fallback)} of {self.layers} layers run on the GPU, not on DLA core "
            f"{self.core}: {_shorten(self.fallback)}"
        )

    def facts(self) -> dict[str, str]:
        """For the card, beside the builder's options."""
        return {"dla_fallback": ", ".join(self.fallback)}


def use_dla(
    trt: ModuleType, builder: Any, network: Any, config: Any, core: int, precision: str
) -> DlaUse:
    """Have the builder put all layers on the DLA that can run there, and the others on the GPU.

    Args:
        trt: either TensorRT package.
        builder: of that package.
        network: parsed already.
        config: of the builder; changed.
        core: 0 or 1.
        precision: of the graph.

    Raises:
        UsageError: there is no such core here, the precision is none of the DLA's, or no layer
            can run on it.
    """
    if precision not in ("fp16", "int8"):
        raise UsageError(f"a DLA computes in fp16 or int8, not {precision}: add --precision fp16")
    cores = int(getattr(builder, "num_DLA_cores", 0))
    if core >= cores:
        has = f"DLA cores 0 to {cores - 1} only" if cores else "no DLA here"
        raise UsageError(
            f"{trt.__name__} {trt.__version__} finds {has}: --dla is for Jetson Orin with the full "
            "TensorRT of JetPack; leave it out"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(place) for place in range(network.num_layers)]
    fallback = tuple(layer.name for layer in layers if not config.can_run_on_DLA(layer))
    if len(fallback) == len(layers):
        raise UsageError(
            f"no layer of this network can run on DLA core {core}: {_shorten(fallback)}; leave "
            "--dla out"
        )
    return DlaUse(core, len(layers), fallback)


def _shorten(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
