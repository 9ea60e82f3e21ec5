"""Loading: from a variant, a checkpoint or both to a network with weights."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from torch import nn
from typing_extensions import Unpack

from ..data.classes import CITYSCAPES, CLASS_SETS, ClassSet, load_class_set
from ..data.letterbox import Color, Fit, check_fit
from ..data.shipped import SHIPPED, find_pretrained, refuse_absent
from ..errors import CheckpointError, UsageError
from .checkpoints import (
    COMPUTED,
    State,
    add_silent_branches,
    official_names,
    read_checkpoint,
    read_metadata,
    refuse_broken,
    refuse_misfit,
    rename_to_ours,
    unwrap_state_dict,
)
from .factories import is_factory, load_module
from .identify import ALIKE, class_entries, identify_checkpoint, identify_variant
from .network import Network
from .own import Normalization, OwnOptions, find_normalization, load_own_weights, wrap_module
from .preprocessing import Preprocess, find_preprocess
from .random_weights import SEED, build_untrained
from .registry import VARIANTS, build, find_variant

PRETRAINED = find_pretrained()
log = logging.getLogger("rtseg")
OWN_SIZE = (512, 1024)
NUMBERED = "numbered"  # in place of a class set
FRAME_SIZES = {"cityscapes": (1024, 2048), "bdd100k": (720, 1280)}  # (height, width) in pixels


@dataclass(frozen=True)
class Model:
    """A network with its weights and its classes, as `export`, `bench` and `evaluate` take it.

    Attributes:
        network: in eval mode, on the CPU.
        classes: what its labels mean.
        weights_from: the file of the weights, or how they were drawn.
        trained: False for random weights.
        trained_size: (height, width) in pixels of the training; where nothing names it, the
            size of the variant.
        fit: "letterbox", "letterbox_center", "crop" or "stretch", how frames of another aspect
            come to its size.
        pad_color: RGB, of what is beside letterboxed ones; None: black.
        license: of the weights, as their file says.
        trained_on: the name of the data set, likewise.
        preprocess: of a network from outside the zoo, the user's own, see `OwnOptions`.
    """

    network: Network
    classes: ClassSet
    weights_from: str
    trained: bool
    trained_size: tuple[int, int]
    fit: Fit = "letterbox"
    license: str | None = None
    trained_on: str | None = None
    preprocess: Preprocess | None = None
    pad_color: Color | None = None


def load_model(
    what: str | os.PathLike[str] | nn.Module | Model,
    weights: str | os.PathLike[str] | None = None,
    classes: str | os.PathLike[str] | ClassSet | None = None,
    ignore: Sequence[str] = (),
    **own: Unpack[OwnOptions],
) -> Model:
    """A network with its weights and its classes.

    Args:
        what: a variant's name, "NAME:WEIGHTS" (those of a checkpoint, or shipped ones such as
            "csfcn_tiny:camvid"), a checkpoint (its variant is recognized), a module with the
            weights that it has, or where to find one: "package.module:callable",
            "file.py:callable", a program that `torch.export` saved, "file.pt2", or anybody's ONNX
            file.
        weights: checkpoint to load into the named variant; by default the weights that ship with
            it for `classes`, the first of `shipped_weights` without, else seeded random ones.
        classes: a class set, its name or its YAML file; by default that of the weights. Asked of a
            module or file from outside the zoo, whose classes may be "numbered" where nobody needs
            their names.
        ignore: patterns of entries that the checkpoint may lack or have too many, as
            `load_checkpoint` takes them.
        **own: for a module or file from outside the zoo, see `OwnOptions`.

    Returns:
        The network in eval mode on the CPU, and what belongs to it.

    Raises:
        UsageError: no variant has this name, `what` already has weights, or a module or file does
            not run, comes without a normalization or class names, or its `preprocess` differs from
            it.
        MissingPackage: the variant's weights are in `rtseg-weights`, which is not installed.
        CheckpointError: the weights cannot be read or do not fit; nothing was loaded.
    """
    numbered = classes == NUMBERED
    if isinstance(classes, (str, os.PathLike)):
        classes = None if numbered else load_class_set(os.fspath(classes))
    if not isinstance(classes, (ClassSet, type(None))):
        raise UsageError(f"classes is a ClassSet, its name or its YAML file, not {classes!r:.60}")
    if isinstance(what, nn.Module) and not isinstance(what, Network):
        return _open_own(what, weights, classes, own, numbered)
    named = os.fspath(what) if isinstance(what, (str, os.PathLike)) else ""
    if named.endswith(".onnx"):
        return _open_file(Path(named), weights, classes, own, numbered)
    if is_factory(named) and named.partition(":")[0] not in VARIANTS:  # else it is NAME:WEIGHTS
        return _open_own(load_module(named), weights, classes, own, numbered)
    if numbered:
        raise UsageError(f"the classes of {_title(what)} have names: leave {NUMBERED!r} out")
    if given := own.keys() - {"size"}:  # the size is asked of exports, too
        raise UsageError(
            f"{', '.join(sorted(given))} are for modules of your own, not for {_title(what)}"
        )
    if isinstance(what, (Network, Model)):
        if weights is not None:
            raise UsageError("a network has its weights already: name a variant to load some into")
        return _with_classes(what, classes)
    name, colon, file = os.fspath(what).partition(":")
    if colon and name in VARIANTS:
        if weights is not None:
            raise UsageError(f"{what} names its weights already: leave the others out")
        return _open(name, _named_weights(name, file), classes, ignore)
    return _open(os.fspath(what), None if weights is None else Path(weights), classes, ignore)


def _title(what: object) -> str:
    return what.info.name if isinstance(what, Network) else str(getattr(what, "weights_from", what))


def _open_own(
    module: nn.Module,
    weights: str | os.PathLike[str] | None,
    classes: ClassSet | None,
    own: OwnOptions,
    numbered: bool,
) -> Model:
    size = own.get("size")
    if size is None:
        raise UsageError("which size does this network take? say size=(height, width), --size HxW")
    normalization = find_normalization(own.get("normalize"))
    count = None if classes is None else len(classes)
    network = wrap_module(module, size, normalization, count, own.get("name"), own.get("output"))
    if weights is not None:
        state = unwrap_state_dict(read_checkpoint(Path(weights)), str(weights))
        load_own_weights(network.module, state, str(weights))
    classes = classes or _ask_classes(network.info.num_classes, numbered)
    model = _with_preprocess(_with_classes(network, classes), normalization, size, own)
    origin = "memory" if weights is None else Path(weights).name
    return replace(model, weights_from=origin, trained_size=size)


def _open_file(
    path: Path,
    weights: str | os.PathLike[str] | None,
    classes: ClassSet | None,
    own: OwnOptions,
    numbered: bool,
) -> Model:
    from .onnx_file import open_onnx_file  # ONNX is no part of training's install
    from .onnx_reading import read_onnx

    if weights is not None:
        raise UsageError(f"{path.name} has its weights already: leave the others out")
    content = read_onnx(path)  # an artifact is told before it is asked for what it says itself
    normalization = find_normalization(own.get("normalize"))
    output = own.get("output")
    network, size = open_onnx_file(
        path.name,
        content,
        own.get("size"),
        normalization,
        None if classes is None else len(classes),
        own.get("name"),
        None if output is None else str(output),
    )
    if network.info.name in VARIANTS:  # it may be one, and says nothing of that
        network.info = replace(network.info, name=f"{network.info.name}_onnx")
    classes = classes or _ask_classes(network.info.num_classes, numbered)
    model = _with_preprocess(_with_classes(network, classes), normalization, size, own)
    return replace(model, weights_from=path.name, trained_size=size)


def _with_preprocess(
    model: Model, normalization: Normalization, size: tuple[int, int], own: OwnOptions
) -> Model:
    fit, pad_color = own.get("fit", "letterbox"), own.get("pad_color")
    check_fit(fit, pad_color)
    preprocess = find_preprocess(own.get("preprocess"), normalization, size, fit, pad_color)
    return replace(model, fit=fit, pad_color=pad_color, preprocess=preprocess)


def _with_classes(what: Network | Model, classes: ClassSet | None) -> Model:
    network = what.network if isinstance(what, Model) else what
    count = network.info.num_classes
    if classes is not None and len(classes) != count:
        raise UsageError(f"{classes.name!r} has {len(classes)} classes, the network {count}")
    if isinstance(what, Model):
        if classes is None:
            return what
        if what.trained and what.weights_from != "memory":  # else the names were a guess
            _check_same_classes(what.classes, classes, what.weights_from)
        return replace(what, classes=classes)
    if classes is None and count == len(CITYSCAPES):
        classes = CITYSCAPES
    if classes is None:
        classes = _number_classes(count)
    return Model(network, classes, "memory", True, _usual_size(network))


def _number_classes(count: int) -> ClassSet:
    names = tuple(f"class {i}" for i in range(count))
    return ClassSet("unnamed", names, tuple((i, i, i) for i in range(count)))


def _ask_classes(count: int, numbered: bool) -> ClassSet:
    """Numbered classes, if those are wanted.

    Raises:
        UsageError: they are not; it names the likely answer.
    """
    if numbered:
        return _number_classes(count)
    likely = [f"--classes {each.name}" for each in CLASS_SETS.values() if len(each) == count]
    known = f"probably {' or '.join(likely)}; else " if likely else ""
    raise UsageError(
        f"what are the {count} classes of this network called? {known}--classes FILE.yaml with "
        f"a list of {count} names in the network's order, such as [road, sidewalk, ...], or "
        f'--classes {NUMBERED} if numbers will do (in Python: classes="{NUMBERED}")'
    )


def _open(
    model: str, weights: Path | None, classes: ClassSet | None, ignore: Sequence[str]
) -> Model:
    if model not in VARIANTS:
        if weights is not None or not Path(model).exists():
            find_variant(model)  # says what the name might have been
        model, weights = identify_checkpoint(Path(model)), Path(model)
    if weights is None:
        weights = next(iter(shipped_weights(model, classes)), None)
        sets = SHIPPED.get(model, {})
        found = [name for name, each in sets.items() if classes in (None, CLASS_SETS[each])]
        refuse_absent(PRETRAINED, model, found)
    if weights is None:
        classes = classes or CITYSCAPES
        network, size = build_untrained(model, len(classes)), VARIANTS[model].size
        return Model(network, classes, f"random, seed {SEED}", False, size)
    own = read_classes(weights)
    if own and classes:
        _check_same_classes(own, classes, weights.name)
    classes = classes or own or CITYSCAPES
    network = load_checkpoint(build(model, len(classes)), weights, ignore=ignore)
    # The bars for random weights are milder, so a file's own word that it holds some is not taken.
    size = read_trained_size(weights, network)
    opened = Model(network, classes, weights.name, True, size)
    license, trained_on = read_origin(weights)
    return replace(opened, license=license, trained_on=trained_on)


def read_origin(checkpoint: Path) -> tuple[str | None, str | None]:
    """(the license, the name of the training data) that a checkpoint's header says."""
    facts = read_metadata(checkpoint)
    told = _part(_part(facts, "recipe"), "data")
    data, license = told.get("name"), facts.get("license")
    if data == "folder":  # any data set of one's own: its folder says more
        data = Path(str(told.get("root"))).name or data
    found = [each if isinstance(each, str) else None for each in (license, data)]
    return found[0], found[1]


def _check_same_classes(own: ClassSet, other: ClassSet, weights: str) -> None:
    """Without this, a network with other classes would be proven: agreement ignores class names.

    Raises:
        UsageError: the names differ, or their order.
    """
    if own.names == other.names:
        return
    differ = f"{len(own)} classes, not {len(other)}"
    for place, (ours, theirs) in enumerate(zip(own.names, other.names, strict=False)):
        if ours != theirs:
            differ = f"class {place} is {ours!r}, not {theirs!r}"
            break
    raise UsageError(
        f"{weights} was trained on other classes than {other.name!r} names ({differ}): leave "
        "the classes out, or give the same names in the same order"
    )


def read_trained_size(checkpoint: Path, network: Network) -> tuple[int, int]:
    """The size that a checkpoint was trained at, by its header: that of its validation, else of
    its crops; the size of its variant where it names none.

    Crops of a data set whose frames are larger (FRAME_SIZES) are a means of training: such
    networks are validated, and used, on whole frames.
    """
    facts = read_metadata(checkpoint)
    recipe = _part(facts, "recipe")
    size = (
        facts.get("trained_size")
        or recipe.get("val_size")
        or FRAME_SIZES.get(str(_part(recipe, "data").get("name")))
        or _part(recipe, "augment").get("crop")
        or _usual_size(network)
    )
    step = network.info.multiple
    try:
        height, width = (max(step, round(int(side) / step) * step) for side in size)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint}: its header is damaged (size {size!r})") from error
    return height, width


def _part(facts: dict[str, object], name: str) -> dict[str, Any]:
    part = facts.get(name)
    return part if isinstance(part, dict) else {}


def _usual_size(network: Network) -> tuple[int, int]:
    """The size of its variant; of an own network, one that every multiple up to 256 divides."""
    variant = VARIANTS.get(network.info.name)
    return variant.size if variant else OWN_SIZE


def shipped_weights(variant: str, classes: ClassSet | None = None) -> list[Path]:
    """The files of the weights of `variant`, those for all streets first; with `classes`, those for
    them alone. A file VARIANT_WEIGHTS.safetensors is named VARIANT:WEIGHTS."""
    found = [
        path
        for path in sorted(PRETRAINED.glob("*.safetensors"))  # `variant` may be a path
        if path.name.startswith(f"{variant}_")
        and read_metadata(path).get("variant") == variant
        and (classes is None or classes == read_classes(path))
    ]
    return sorted(found, key=lambda path: not path.stem.endswith("_streets"))


def is_shipped(model: Model) -> bool:
    """Whether its weights are a file of ours, by its name."""
    return model.trained and (PRETRAINED / Path(model.weights_from).name).is_file()


def find_weights(what: str | os.PathLike[str]) -> Path:
    """The file of "NAME:WEIGHTS", such as "csfcn_tiny:camvid"; another path as it is.

    Raises:
        UsageError: no such weights ship with that variant.
        MissingPackage: they do, in a package that is not installed.
    """
    name, colon, weights = os.fspath(what).partition(":")
    return _named_weights(name, weights) if colon and name in VARIANTS else Path(what)


def _named_weights(variant: str, weights: str) -> Path:
    """The file that WEIGHTS in VARIANT:WEIGHTS refers to."""
    shipped = {path.stem.removeprefix(f"{variant}_"): path for path in shipped_weights(variant)}
    if weights not in shipped and not Path(weights).exists():
        refuse_absent(PRETRAINED, variant, [weights] if weights in SHIPPED.get(variant, ()) else [])
        known = ", ".join(f"{variant}:{each}" for each in shipped)
        raise UsageError(
            f"{variant}:{weights}: no file {weights!r}, "
            + (f"and what ships is {known}" if shipped else f"and no weights of {variant} ship")
        )
    return shipped.get(weights, Path(weights))


def read_classes(path: Path) -> ClassSet | None:
    """The class set that a checkpoint names, by name or in full."""
    facts = read_metadata(path)
    named = facts.get("classes")
    if isinstance(named, str):
        return CLASS_SETS.get(named)
    if isinstance(named, dict):
        palette = tuple((int(r), int(g), int(b)) for r, g, b in named["palette"])
        return ClassSet(named["name"], tuple(named["names"]), palette)
    card = facts.get("card")
    if isinstance(card, str):
        card = json.loads(card)
    if isinstance(card, dict):
        palette = tuple((int(r), int(g), int(b)) for r, g, b in card["palette"])
        ids = tuple(card["label_ids"]) if card.get("label_ids") else None
        return ClassSet(card["class_set"], tuple(card["classes"]), palette, ids)
    return None


def load_checkpoint(
    model: Network,
    source: str | os.PathLike[str] | Mapping[str, object],
    classifier: Literal["keep", "new"] = "keep",
    ignore: Sequence[str] = (),
) -> Network:
    """Fill a network from a checkpoint, whole or not at all.

    Takes our names and the official ones, state dicts inside `state_dict`, `model` and the like,
    and prefixes such as `module.`.

    Args:
        model: a built network; left as it was if the checkpoint does not fit.
        source: a `.safetensors` file, a file that `torch.save` wrote (no pickled code is run), or
            a state dict.
        classifier: "new" leaves the entries whose shape depends on the class count as they are in
            `model` (`identify.class_entries` names them), for training on other classes.
        ignore: patterns such as "head.*" of entries, by our names or the file's, that may lack or
            be too many: those of the network keep their values, those of the file are left out.

    Returns:
        `model`.

    Raises:
        CheckpointError: if the file cannot be read or holds code, or if an entry is missing,
            unexpected, of another shape or not finite.
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    content = source if isinstance(source, Mapping) else read_checkpoint(Path(source))
    stored = unwrap_state_dict(content, where)
    state = add_silent_branches(rename_to_ours(stored, model), model)
    own = model.state_dict()
    if classifier == "new":
        state |= {k: own[k].clone() for k in class_entries(model.info.name) if k in own}
    _check(state, stored, model, where, ignore)
    # load_state_dict's strict mode needs every entry: those that may be missing come from the
    # network.
    kept = {k: v for k, v in own.items() if k not in state or k.endswith(COMPUTED)}
    model.load_state_dict(kept | {k: v for k, v in state.items() if k in own}, strict=True)
    return model


LET_GO = "what does not matter can be let go: --ignore-keys, in Python ignore=[...]"


def _check(state: State, stored: State, model: Network, where: str, ignore: Sequence[str]) -> None:
    """Raise CheckpointError unless `state` (`stored` by our names) fits; names are the file's."""
    own, theirs = model.state_dict(), _names_in_file(state, stored, model)

    def ignored(key: str) -> bool:
        return any(fnmatch(key, each) or fnmatch(theirs.get(key, key), each) for each in ignore)

    lacking = [k for k in own if k not in state and not k.endswith(COMPUTED)]
    missing = [k for k in lacking if not ignored(k)]
    unexpected = [k for k in state if k not in own and not ignored(k)]
    misshaped = [
        f"{theirs.get(k, k)}: found {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if missing or unexpected or misshaped:
        hint = _hint(stored, model)
        refuse_misfit(
            f"{where} does not fit {model.info.name} with {model.info.num_classes} classes{hint}",
            [theirs.get(k, k) for k in missing],
            [theirs.get(k, k) for k in unexpected],
            misshaped,
            "" if hint else LET_GO,
        )
    refuse_broken(state, where, theirs)
    if len(missing) < len(lacking):
        log.warning("%s: %d entries keep the network's own values, as asked", where, len(lacking))


def _names_in_file(state: State, stored: State, model: Network) -> dict[str, str]:
    """{our name: the name in the file}, of entries that it lacks the name that it would have."""
    by_value = {id(value): name for name, value in stored.items()}  # renaming keeps the tensors
    found = {k: by_value[id(v)] for k, v in state.items() if id(v) in by_value}
    official = any(ours != theirs for ours, theirs in found.items())
    return (official_names(model) if official else {}) | found


def _hint(stored: State, model: Network) -> str:
    """What a checkpoint that does not fit seems to be, for the message."""
    found = identify_variant(stored, guess=model.info.name)
    if found.variant != model.info.name:
        if found.share < ALIKE:
            return f": it fits no variant, {found.variant} the most ({found.share:.0%} of entries)"
        classes = f" with {found.num_classes} classes" if found.num_classes else ""
        return f": it looks like {found.variant}{classes} ({found.share:.0%} of its entries fit)"
    if found.num_classes and found.num_classes != model.info.num_classes:
        return (
            f": it has {found.num_classes} classes; name them with --classes (in Python, build "
            f"the model with num_classes={found.num_classes}), or take all but its classifier "
            "with classifier=new (in Python, classifier='new')"
        )
    return ""
