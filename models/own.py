"""Networks from outside the zoo: any `nn.Module`, wrapped as a `Network`.

The caller supplies what a module cannot tell: how its pixels are normalized and its class names.
The rest is found by running it: where the logits are in its output, how many classes they have, and
whether it ends in a resize that the argmax can be taken before.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..data.letterbox import Color, Fit
from ..errors import UsageError
from .checkpoints import refuse_broken, refuse_misfit
from .factories import find_line, first_line
from .layers import averages
from .network import IMAGENET_MEAN, IMAGENET_STD, Network, NetworkInfo

Triple = tuple[float, float, float]
Size = tuple[int, int]


@dataclass(frozen=True)
class Normalization:
    """How a network's input is normalized: `(pixel * scale - mean) / std`.

    Attributes:
        mean: of each channel, in `order`, after scaling.
        std: of each channel, in `order`, after scaling.
        order: of the channels that the network reads.
        scale: what the camera's 0..255 are multiplied by first.
    """

    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    order: Literal["rgb", "bgr"] = "rgb"
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        if self.order not in ("rgb", "bgr"):
            raise UsageError(f'the channel order is "rgb" or "bgr", not {self.order!r}')
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0 or self.scale <= 0:
            raise UsageError(
                "a normalization has three means, three positive standard deviations and a "
                f"positive scale, not {self}"
            )

    @property
    def rgb(self) -> tuple[Triple, Triple]:
        """(mean, std) in RGB order of pixels in 0..1, as `NetworkInfo` keeps them."""
        unit = 255 * self.scale
        step = 1 if self.order == "rgb" else -1
        mean, std = ([value / unit for value in values[::step]] for values in (self.mean, self.std))
        return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


NORMALIZATIONS = {
    "imagenet": Normalization(IMAGENET_MEAN, IMAGENET_STD),
    "unit": Normalization(),  # RGB in 0..1
    "none": Normalization(scale=1.0),  # RGB as the camera has it, 0..255
}


def find_normalization(what: str | Normalization | None) -> Normalization:
    """A normalization by name, or as given.

    Raises:
        UsageError: if it is None or no name of NORMALIZATIONS; a guess would cost accuracy.
    """
    if isinstance(what, Normalization):
        return what
    if what in NORMALIZATIONS:
        return NORMALIZATIONS[what]
    near = get_close_matches(str(what), NORMALIZATIONS, n=1)
    asked = f"no normalization is called {what!r}{f', but {near[0]!r} is' if near else ''}:"
    if what is None:
        asked = "how are this network's pixels normalized?"
    raise UsageError(
        f'{asked} say normalize="imagenet" (RGB in 0..1, ImageNet\'s mean and std, the usual one), '
        '"unit" (RGB in 0..1), "none" (RGB in 0..255) or Normalization(mean, std, order, scale); '
        "on the command line --normalize NAME, or --mean and --std, and --order"
    )


class OwnOptions(TypedDict, total=False):
    """What `load_model` needs to know of a module from outside the zoo.

    Attributes:
        size: (height, width) in pixels that it takes; required.
        normalize: a name of NORMALIZATIONS, or a Normalization; required.
        name: for files and reports; by default its class's.
        output: where the logits are in what it returns: a key, an attribute or an index.
        fit: "letterbox" (the default), "letterbox_center", "crop" or "stretch", how frames of
            another aspect than the size's come to it; letterboxed ones lie at the top left or in
            the middle, over black, of cropped ones only the middle is seen.
        pad_color: RGB, 0..255, in place of black, such as (114, 114, 114).
        preprocess: what makes its input of a camera's frame, (H, W, 3) uint8 BGR -> (1, 3, h, w),
            or where to find it, "package.module:callable" or "file.py:callable": every export is
            held against it. For several sizes it takes `size`, (height, width), too.
    """

    size: Size
    normalize: str | Normalization
    name: str
    output: str | int
    fit: Fit
    pad_color: Color | None
    preprocess: str | Callable[[NDArray[np.uint8]], object]


class OwnNetwork(Network):
    """A module from outside the zoo, as a `Network`.

    The module maps (N, 3, H, W) to logits (N, K, h, w) of any stride, alone or among other outputs;
    to one logit (N, 1, h, w) for two classes; or to class ids (N, h, w), (N, 1, h, w).

    Args:
        module: in eval mode; it is not copied.
        info: name, number of classes, normalization in RGB order.
        output: where the logits are in what it returns: a key, an attribute or an index.
        order: of the channels that it reads.
        resizes: how many bilinear resizes it makes, if the last one's result is the logits, else 0;
            that one is left to the argmax, see `forward_logits`.
    """

    def __init__(
        self,
        module: nn.Module,
        info: NetworkInfo,
        output: str | int | None,
        order: str,
        resizes: int = 0,
    ):
        super().__init__()
        self.module = module
        self.info = info
        self.output, self.order, self.resizes = output, order, resizes
        self.upsample_logits = nn.Identity()

    def forward_logits(self, image: Tensor) -> Tensor:
        """image (N, 3, H, W) in RGB -> logits (N, K, h, w).

        A resize at the module's end is left out: labels are made of the logits before it, by the
        same interpolation, without a map of classes x height x width in memory.
        """
        if self.order == "bgr":
            image = image.flip(1)
        # Without values (device "meta"), what the module makes itself must be without them too.
        on = torch.device("meta") if image.is_meta else nullcontext()
        exporting = torch.compiler.is_exporting()
        try:
            with on, _WithoutResize(self.resizes, exporting or image.is_meta):
                result = self.module(image)
        except Exception as error:
            if not (image.is_meta or exporting) or isinstance(error, UsageError):
                raise
            raise UsageError(_explain_trace(self.module, error)) from error
        return self._as_logits(pick_output(result, self.output), image)

    def answer(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """The module's own logits, as it makes them: the reference of its export."""
        pixels = image.flip(1) if self.order == "bgr" else image
        return self._as_logits(pick_output(self.module(pixels), self.output), image), None

    def _as_logits(self, found: Tensor, image: Tensor) -> Tensor:
        if not found.is_floating_point():  # labels already: the argmax of their one-hot form
            ids = found[:, 0] if found.ndim == 4 else found
            return F.one_hot(ids.long(), self.info.num_classes).permute(0, 3, 1, 2).to(image.dtype)
        if found.shape[1] == 1 and self.info.num_classes == 2:
            return torch.cat([torch.zeros_like(found), found], dim=1)  # sigmoid(x) > 1/2: x > 0
        return found


class _WithoutResize(TorchFunctionMode):
    """Passes over the bilinear resize number `number` (from 1): its input is its result.

    With `pools`, adaptive average pooling is written so that the exporter does not unroll it.
    """

    def __init__(self, number: int, pools: bool = False):
        super().__init__()
        self.number, self.pools, self.seen = number, pools, 0
        self.calls: list[tuple[Tensor, bool]] = []  # (result, align_corners) of every resize

    def __torch_function__(
        self,
        func: Any,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = dict(kwargs or {})
        if self.pools and func is F.adaptive_avg_pool2d:
            return pool_evenly(*args, **kwargs)
        if func is not F.interpolate or _argument("mode", 3, args, kwargs) != "bilinear":
            return func(*args, **kwargs)
        self.seen += 1
        if self.seen == self.number:
            return args[0] if args else kwargs["input"]
        result = func(*args, **kwargs)
        self.calls.append((result, bool(_argument("align_corners", 4, args, kwargs))))
        return result


def pool_evenly(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """`F.adaptive_avg_pool2d` for a fixed size: one pooling where its cells are alike, else a
    matrix for the rows and one for the columns; PyTorch's exporter makes a node of every cell."""
    height, width = input.shape[-2:]
    wanted = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    rows, columns = (w or own for w, own in zip(wanted, (height, width), strict=True))
    if (rows, columns) == (1, 1):
        return input.mean(dim=(-2, -1), keepdim=True)
    if height % rows == 0 and width % columns == 0:
        return F.avg_pool2d(input, (height // rows, width // columns))
    down, across = (
        torch.from_numpy(averages(bins, length)).to(input)
        for bins, length in ((rows, height), (columns, width))
    )
    return down @ input @ across.T


# What a trace trips over: a part of the message, a way around.
WAYS = {
    r"numpy": "take NumPy out of forward, and write it with PyTorch",
    r"item\(\)|data.dependent|tolist|nonzero|is_nonzero": "nothing may depend on the values of "
    "pixels: write torch.where for `if`, and a constant for .item()",
    r"": "write that line with PyTorch operations of fixed shapes, or export an ONNX file in your "
    "own way and give that",
}


def _explain_trace(module: nn.Module, error: BaseException) -> str:
    way = next(way for part, way in WAYS.items() if re.search(part, str(error), re.IGNORECASE))
    return (
        f"PyTorch's exporter cannot take {type(module).__name__}{find_line(error)}, "
        f"{first_line(error)[:200]}: {way}"
    )


def _argument(
    name: str, place: int, args: Sequence[object], kwargs: Mapping[str, object]
) -> object:
    return args[place] if len(args) > place else kwargs.get(name)


def wrap_module(
    module: nn.Module,
    size: Size,
    normalize: str | Normalization | None,
    num_classes: int | None = None,
    name: str | None = None,
    output: str | int | None = None,
) -> OwnNetwork:
    """An `nn.Module` as a network that can be exported, proven, measured and driven.

    It is run once on an image of `size`, to see what it returns.

    Args:
        module: copied, in eval mode, on the CPU, in float32.
        size: (height, width) in pixels that it takes.
        normalize: see `find_normalization`.
        num_classes: of its labels; logits say it themselves.
        name: for files and reports; by default that of its class.
        output: where the logits are in what it returns; needed where several outputs may be meant.

    Raises:
        UsageError: if it cannot be copied or run at that size, or returns no logits.
    """
    found = find_normalization(normalize)
    try:
        module = copy.deepcopy(module).cpu().float().eval()
    except Exception as error:
        raise UsageError(
            f"{type(module).__name__} cannot be copied ({first_line(error)}): take its hooks and "
            "open files away first"
        ) from error
    logits, resizes, corners = _probe(module, size, output)
    classes = _count_classes(logits, num_classes)
    name = re.sub(r"[^a-z0-9]+", "_", (name or type(module).__name__).lower()).strip("_")
    mean, std = found.rgb
    info = NetworkInfo(name, classes, mean, std, multiple=1, align_corners=corners)
    return OwnNetwork(module, info, output, found.order, resizes).eval()


def _probe(module: nn.Module, size: Size, output: str | int | None) -> tuple[Tensor, int, bool]:
    """(what it returns as logits, how many bilinear resizes if the last one made them, with aligned
    corners?)."""
    watch = _WithoutResize(0)
    try:
        with torch.no_grad(), watch:
            result = module(torch.zeros(1, 3, *size))
    except Exception as error:
        raise UsageError(
            f"{type(module).__name__} fails on an image of {size[0]}x{size[1]}: "
            f"{first_line(error)}{find_line(error)}; give the size that it was made for"
        ) from error
    logits = pick_output(result, output)
    if watch.calls and watch.calls[-1][0] is logits and logits.shape[1] > 1:
        return logits, len(watch.calls), watch.calls[-1][1]
    return logits, 0, False


def _count_classes(logits: Tensor, wanted: int | None) -> int:
    if not logits.is_floating_point():
        if wanted is None:
            raise UsageError("this network returns class ids, not logits: name its classes")
        return wanted
    found = max(2, logits.shape[1])
    if found > 255:
        raise UsageError(f"labels are uint8, and this network has {found} classes: 255 at most")
    if wanted is not None and wanted != found:
        raise UsageError(
            f"this network's logits have {logits.shape[1]} classes, the class set {wanted}: give "
            "the set that it was trained on"
        )
    return found


def pick_output(result: object, output: str | int | None = None) -> Tensor:
    """The logits or labels in what a module returned.

    Args:
        result: a tensor, a sequence, a mapping or a dataclass of them.
        output: the key, attribute or index to take; by default the tensor itself, `logits`, `out`,
            or the only one that has the shape of logits.

    Raises:
        UsageError: if none or several may be meant; the message lists them.
    """
    named = _named(result)
    if output is not None:
        if str(output) not in named:
            raise UsageError(f"the network returns no {output!r}, but {_listed(named)}")
        return named[str(output)]
    if isinstance(result, Tensor):
        return _checked(result, named)
    for usual in ("logits", "out", "sem_seg", "semantic_logits"):
        if usual in named:
            return _checked(named[usual], named)
    maps = {name: tensor for name, tensor in named.items() if _is_map(tensor)}
    if isinstance(result, (tuple, list)) and maps:
        return next(iter(maps.values()))  # the main output stands first, by custom
    if len(maps) == 1:
        return next(iter(maps.values()))
    raise UsageError(
        f"the network returns {_listed(named)}: say which holds the logits: --logits NAME, in "
        "Python output=NAME"
    )


def _named(result: object) -> dict[str, Tensor]:
    """Every tensor in what a module returned, by the name that takes it out."""
    if isinstance(result, Tensor):
        return {"0": result}
    if dataclasses.is_dataclass(result) and not isinstance(result, (type, Mapping)):
        result = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    pairs = result.items() if isinstance(result, Mapping) else enumerate(_as_sequence(result))
    return {str(name): value for name, value in pairs if isinstance(value, Tensor)}


def _as_sequence(result: object) -> Sequence[object]:
    return result if isinstance(result, (tuple, list)) else ()


def _is_map(tensor: Tensor) -> bool:
    """Whether it may be logits (N, K, h, w), or class ids (N, h, w)."""
    return tensor.ndim == 4 or (tensor.ndim == 3 and not tensor.is_floating_point())


def _checked(tensor: Tensor, named: dict[str, Tensor]) -> Tensor:
    if not _is_map(tensor):
        raise UsageError(
            f"the network returns {_listed(named)}: logits are (N, classes, h, w), labels (N, h, w)"
        )
    return tensor


def _listed(named: dict[str, Tensor]) -> str:
    kinds = (f"{n} {tuple(t.shape)} {str(t.dtype)[6:]}" for n, t in named.items())
    return ", ".join(kinds) or "no tensor"


def load_own_weights(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Fill `module` from a state dict by its own names: all or nothing.

    Raises:
        CheckpointError: naming the keys that are missing, left over or of another shape, or a value
            that is no number.
    """
    own = module.state_dict()
    refuse_misfit(
        f"{where} does not fit {type(module).__name__}",
        [key for key in own if key not in state],
        [key for key in state if key not in own],
        [
            f"{key}: found {tuple(state[key].shape)}, expected {tuple(value.shape)}"
            for key, value in own.items()
            if key in state and state[key].shape != value.shape
        ],
    )
    refuse_broken(state, where, {})
    module.load_state_dict(dict(state))
