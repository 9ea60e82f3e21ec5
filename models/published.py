"""What is reported of the variants: mean IoU in percent, at how many classes a network is reported,
and whose code it reproduces. Only what their authors state, or their training logs show.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """mIoU in percent at a single scale (None: not reported), and over several scales with flip."""

    data: str
    single: float | None
    multiple: float | None
    source: str


ADE20K_CLASSES = 150
CITYSCAPES, CITYSCAPES_TEST = "Cityscapes val", "Cityscapes test"
CAMVID, BDD100K = "CamVid test", "BDD100K val"
ADE20K, COCO_STUFF = "ADE20K val", "COCO-Stuff 10K test"
PASCAL_CONTEXT = "Pascal Context 59 val"
PUBLISHED, REPOSITORY, LOG = "published", "repository", "training log"

_OWN = {
    "csfcn": [
        Score(CITYSCAPES, 79.0, None, PUBLISHED),
        Score(CITYSCAPES_TEST, 78.7, None, PUBLISHED),
        Score(CAMVID, 77.8, None, PUBLISHED),
    ],
    "sfnet_r18": [Score(CITYSCAPES, 78.03, None, REPOSITORY)],
    "sfnet_r18_dsn": [Score(CITYSCAPES, 78.31, None, REPOSITORY)],
    "sfnet_r50": [Score(CITYSCAPES, 80.17, None, REPOSITORY)],
    "sfnet_r101": [Score(CITYSCAPES, 81.01, None, REPOSITORY)],
    "sfnet_r18_official": [Score(CITYSCAPES, 78.4, None, PUBLISHED)],
    "icnet": [Score(CITYSCAPES, 71.0, None, PUBLISHED)],
    "swiftnet_r18": [Score(CITYSCAPES_TEST, 75.5, None, PUBLISHED)],
    "bisenetv1": [Score(CITYSCAPES, 75.44, None, REPOSITORY)],
    "bisenetv2": [Score(CITYSCAPES, 74.95, None, REPOSITORY)],
    "pidnet_s": [
        Score(CITYSCAPES, 78.8, None, PUBLISHED),
        Score(CITYSCAPES_TEST, 78.6, None, PUBLISHED),
        Score(CAMVID, 80.1, None, PUBLISHED),
    ],
    "pidnet_m": [
        Score(CITYSCAPES, 79.9, None, PUBLISHED),
        Score(CITYSCAPES_TEST, 79.8, None, PUBLISHED),
        Score(CAMVID, 82.0, None, PUBLISHED),
    ],
    "pidnet_l": [
        Score(CITYSCAPES, 80.9, None, PUBLISHED),
        Score(CITYSCAPES_TEST, 80.6, None, PUBLISHED),
    ],
    "ddrnet_23_slim": [
        Score(CITYSCAPES, 77.8, None, PUBLISHED),
        Score(CITYSCAPES_TEST, 77.4, None, PUBLISHED),
        Score(CAMVID, 74.7, None, PUBLISHED),
    ],
    "ddrnet_23": [
        Score(CITYSCAPES, 79.5, None, PUBLISHED),
        Score(CITYSCAPES_TEST, 79.4, None, PUBLISHED),
    ],
    "ecfd_base_r50": [Score(CITYSCAPES, 79.68, None, LOG)],
    "ecfd_large_r50": [Score(CITYSCAPES, 80.25, None, LOG)],
    "ecfd_fpn_r50": [Score(CITYSCAPES, 64.41, None, LOG)],
    "ecfd_generalfpn_r50": [Score(CITYSCAPES, 77.79, None, LOG)],
    "ecfd_spatial_r50": [Score(CITYSCAPES, 78.74, None, LOG)],
}
_ECFD = {  # on Cityscapes, Pascal Context, BDD100K
    "ecfd_tiny_r50": [(79.91, 81.18), (52.13, 54.10), (62.84, 64.58)],
    "ecfd_small_r50": [(80.14, 81.32), (52.66, 54.27), (62.69, 64.87)],
    "ecfd_tiny_r101": [(80.50, 81.48), (53.80, 55.75), (64.96, 66.57)],
    "ecfd_small_r101": [(80.74, 82.00), (54.3, 56.09), (65.48, 67.32)],
    "ecfd_tiny_swin_l": [(82.67, 83.41), (63.73, 64.94), (67.80, 68.91)],
    "ecfd_small_swin_l": [(83.10, 83.61), (63.36, 64.81), (67.82, 69.13)],
    "ecfd_tiny_convnext_l": [(83.70, 84.44), (62.65, 63.93), (67.23, 67.77)],
    "ecfd_small_convnext_l": [(83.55, 84.42), (63.62, 64.48), (67.62, 67.95)],
}
_SENFORMER = {  # on ADE20K, COCO-Stuff 10K, Pascal Context, Cityscapes
    "senformer_r50": [(44.38, 45.2), (40.0, 41.3), (53.2, 54.3), (78.8, 80.1)],
    "senformer_r101": [(46.93, 47.9), (41.0, 42.1), (54.6, 56.6), (79.9, 81.4)],
    "senformer_swin_t": [(46.0, None)],
    "senformer_swin_s": [(49.2, None)],
    "senformer_swin_b": [(52.2, None)],
    "senformer_swin_l": [(53.1, None), (49.8, 51.5), (63.1, 64.5), (82.8, 84.0)],
    "senformer_nws_r50": [(44.6, 45.6), (39.0, 39.7), (53.2, 54.3), (78.8, 80.1)],
    "senformer_nws_r101": [(46.5, 47.0), (39.6, 40.6), (55.1, 56.6), (80.3, 81.4)],
    "senformer_nws_swin_t": [(46.0, 46.4)],
    "senformer_nws_swin_s": [(49.2, 50.4)],
    "senformer_nws_swin_b": [(51.8, 53.2)],
    "senformer_nws_swin_l": [(53.1, 54.2), (49.1, 50.1), (62.4, 64.0), (82.2, 83.3)],
}
_CROSSFORMER = {  # on ADE20K
    "crossformer_s_fpn": [(46.4, None)],
    "crossformer_b_fpn": [(48.0, None)],
    "crossformer_l_fpn": [(49.1, None)],
    "crossformer_s_upernet": [(47.6, 48.4)],
    "crossformer_b_upernet": [(49.7, 50.6)],
    "crossformer_l_upernet": [(50.4, 51.4)],
}
Pairs = Mapping[str, Sequence[tuple[float, float | None]]]


def _scores(table: Pairs, data: Iterable[str]) -> dict[str, list[Score]]:
    return {
        variant: [
            # The published BDD100K rows of R50 repeat R101's; these are of the logs.
            Score(name, *pair, LOG if name == BDD100K and variant.endswith("_r50") else PUBLISHED)
            for name, pair in zip(data, pairs, strict=False)
        ]
        for variant, pairs in table.items()
    }


SCORES: dict[str, list[Score]] = {
    **_OWN,
    **_scores(_ECFD, (CITYSCAPES, PASCAL_CONTEXT, BDD100K)),
    **_scores(_SENFORMER, (ADE20K, COCO_STUFF, PASCAL_CONTEXT, CITYSCAPES)),
    **_scores(_CROSSFORMER, (ADE20K,)),
}


@dataclass(frozen=True)
class Reference:
    """The implementation whose outputs a variant reproduces. license: as its LICENSE file says;
    None: it is not known here."""

    where: str
    license: str | None = None


_ZOO_OF_CSFCN = Reference("github.com/kaigelee/CSFCN", "MIT")
_REFERENCES = {  # the first that a variant's name begins with; "": none, the network is ours
    "csfcn_nano": Reference(""),
    "csfcn": _ZOO_OF_CSFCN,
    "sfnet_r18_official": Reference("github.com/lxtGH/SFSegNets"),
    "sfnet_lite": Reference("github.com/lxtGH/SFSegNets"),
    "sfnet": Reference("an mmsegmentation one"),
    "swiftnet": Reference("github.com/orsic/swiftnet"),
    "bisenet": Reference("github.com/CoinCheung/BiSeNet", "MIT"),
    "pidnet": Reference("github.com/XuJiacong/PIDNet"),
    "ddrnet": Reference("github.com/ydhongHIT/DDRNet", "MIT"),
    "sfanet": _ZOO_OF_CSFCN,
    "mgseg": _ZOO_OF_CSFCN,
    "icnet": Reference("github.com/liminn/ICNet-pytorch, github.com/kaigelee/CSFCN", "MIT"),
    "crossformer": Reference("github.com/cheerss/CrossFormer", "MIT"),
    "ecfd": Reference("the authors'"),
    "senformer": Reference("github.com/WalBouss/SenFormer", "MIT"),
}


def reference(variant: str) -> Reference | None:
    """None for a network of our own."""
    found = next(ref for name, ref in _REFERENCES.items() if variant.startswith(name))
    return found if found.where else None


def scores(variant: str) -> list[Score]:
    """As published; [] where nothing is."""
    return SCORES.get(variant, [])


def reported_classes(variant: str) -> int:
    """The class count that its parameters and MACs are reported with."""
    return ADE20K_CLASSES if variant.startswith(("crossformer", "senformer")) else 19
