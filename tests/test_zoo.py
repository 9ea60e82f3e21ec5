"""The zoo's listing: every variant's parameters, MACs and scores against the specs' figures."""

from __future__ import annotations

import json

import pytest
from rtseg.cli import models as listing
from rtseg.models import VARIANTS, count
from rtseg.models.registry import build_on_meta
from rtseg.models.zoo import STORED, count_costs, describe, describe_fully, stored_costs

# name: (height, width, classes, parameters in M or None, GMACs), measured on the references.
MEASURED = {
    "csfcn": (512, 1024, 19, 13.516992, 38.619),
    "csfcn_tiny": (1024, 2048, 19, 13.284691, 149.400),
    "sfnet_r18": (512, 1024, 19, 12.869715, 60.744),
    "sfnet_r18_dsn": (1024, 2048, 19, 13.320204, 242.965),
    "sfnet_r50": (512, 1024, 19, 31.325139, 165.849),
    "sfnet_r101": (512, 1024, 19, 50.317267, 204.638),
    "sfnet_r18_official": (1024, 2048, 19, 12.869715, 242.965),
    "sfnet_lite_r18": (512, 1024, 19, 12.296074, 44.489),
    "swiftnet_r18": (1024, 2048, 19, 11.797071, 103.566),
    "swiftnet_r18_pyramid": (1024, 2048, 19, 12.056275, 128.193),
    "bisenetv1": (1024, 2048, 19, 13.425721, 118.338),
    "bisenetv2": (1024, 2048, 19, 5.231487, 98.413),
    "pidnet_s": (1024, 2048, 19, 7.720935, 47.194),
    "pidnet_m": (1024, 2048, 19, 28.763111, 177.329),
    "pidnet_l": (512, 1024, 19, 37.314311, 68.733),
    "ddrnet_23_slim": (1024, 2048, 19, 5.734342, 36.281),
    "ddrnet_23": (512, 1024, 19, 20.299366, 35.765),
    "sfanet": (512, 1024, 19, 12.793438, 24.437),
    "mgseg": (512, 1024, 19, 13.811840, 24.088),
    "icnet": (512, 1024, 19, 28.298376, 28.533),
    "crossformer_s_fpn": (1024, 1024, 150, 34.260000, 209.7),
    "crossformer_b_fpn": (1024, 1024, 150, 55.574160, 320.0),
    "crossformer_l_fpn": (1024, 1024, 150, 95.440158, 482.6),
    "crossformer_s_upernet": (1024, 1024, 150, 62.308022, 979.3),
    "crossformer_b_upernet": (1024, 1024, 150, 83.622182, 1089.6),
    "crossformer_l_upernet": (1024, 1024, 150, 125.478836, 1257.7),
    "crossformer_b_fpn_g7": (1024, 1024, 150, 55.574160, 330.9),
    "crossformer_s_fpn_code2023": (1024, 1024, 150, 34.260000, 194.6),
    "crossformer_l_fpn_code2023": (1024, 1024, 150, 95.440158, 478.8),
    "crossformer_s_upernet_code2023": (1024, 1024, 150, 62.308022, 953.3),
    "ecfd_tiny_r50": (512, 1024, 19, 41.335, 206.08),
    "ecfd_small_r50": (512, 1024, 19, 50.645, 221.51),
    "ecfd_tiny_r101": (512, 1024, 19, 60.328, 244.87),
    "ecfd_small_r101": (512, 1024, 19, 69.637, 260.30),
    "ecfd_tiny_swin_l": (512, 1024, 19, 208.785, 478.07),
    "ecfd_small_swin_l": (512, 1024, 19, 217.799, 492.85),
    "ecfd_tiny_convnext_l": (512, 1024, 19, 210.020, 453.03),
    "ecfd_small_convnext_l": (512, 1024, 19, 219.034, 467.80),
    "ecfd_fpn_r50": (512, 1024, 19, 33.572, 199.02),
    "ecfd_patch4_r50": (512, 1024, 19, 40.663, 204.10),
    "ecfd_generalfpn_r50": (512, 1024, 19, 35.023, 93.95),
    "ecfd_general_r50": (512, 1024, 19, 34.351, 253.88),
    "ecfd_spatial_r50": (512, 1024, 19, 33.802, 204.00),
    "ecfd_base_r50": (512, 1024, 19, 73.245, 279.77),
    "ecfd_large_r50": (512, 1024, 19, 91.139, 337.79),
    **{
        f"senformer_{shared}{backbone}": (side, side, 150, params[i], macs)
        for backbone, side, params, macs in (
            ("r50", 512, (60.058, 144.138), 202.86),
            ("r101", 512, (79.050, 163.131), 222.25),
            ("swin_t", 512, (59.873, 143.954), 203.24),
            ("swin_s", 512, (81.191, 165.272), 226.96),
            ("swin_b", 640, (120.069, 204.149), 416.27),
            ("swin_l", 640, (230.061, 314.141), 596.16),
        )
        for i, shared in enumerate(("", "nws_"))
    },
}
OURS = {  # made of the others, or without a figure
    "csfcn_nano", "csfcn_rep", "csfcn_nano_rep", "sfnet_r18_rep", "ecfd_tiny_r50_context",
}  # fmt: skip


ELSEWHERE = (
    "efficientvit_",
    "fddwnet",
    "ffnet_",
    "sctnet_",
    "segformer_",
)  # in their families' own tests


def test_every_variant_is_measured_or_ours():
    assert {n for n in VARIANTS if not n.startswith(ELSEWHERE)} == set(MEASURED) | OURS


@pytest.mark.parametrize("name", MEASURED)
def test_parameters_and_macs(name):
    height, width, classes, millions, gmacs = MEASURED[name]
    cost = count(build_on_meta(name, classes), (height, width))
    assert cost.params / 1e6 == pytest.approx(millions, abs=0.0006)
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_every_variant_is_stored_as_it_is():
    stored = json.loads(STORED.read_text())
    assert list(stored) == list(stored_costs()) == list(VARIANTS)
    for name, facts in stored.items():
        assert facts == json.loads(json.dumps(describe_fully(name))), f"run store_costs([{name!r}])"


QUICK = ("csfcn_nano", "pidnet_s", "icnet", "ecfd_tiny_r50", "senformer_r50", "crossformer_s_fpn")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in VARIANTS]
)
def test_what_is_stored_is_what_is_counted(name):
    assert stored_costs()[name] == count_costs(name)


@pytest.mark.parametrize("name", ["pidnet_s", "crossformer_s_fpn", "senformer_swin_b"])
def test_a_row_has_the_reported_size(name):
    height, width, classes, millions, gmacs = MEASURED[name]
    reported = describe(name)["reported"]
    assert (reported["size"], reported["classes"]) == (f"{height}x{width}", classes)
    assert reported["params"] / 1e6 == pytest.approx(millions, abs=0.0006)
    assert reported["macs"] / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_scores_are_of_variants_and_in_percent():
    assert sum(bool(variant.scores) for variant in VARIANTS.values()) > 40
    for name, variant in VARIANTS.items():
        assert len({score.data for score in variant.scores}) == len(variant.scores), name
        for score in variant.scores:
            assert 30 < score.single < 90, name
            assert score.multiple is None or score.single < score.multiple < 90, name


def test_a_few_scores():
    ecfd = {score["data"]: score for score in describe("ecfd_tiny_r50")["published"]}
    assert ecfd["BDD100K val"] == {
        "data": "BDD100K val", "single": 62.84, "multiple": 64.58, "source": "training log",
    }  # fmt: skip
    assert ecfd["Cityscapes val"]["source"] == "published"
    assert describe("csfcn_nano")["published"] == []


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match="did you mean 'csfcn_nano'"):
        describe("csfcn_nono")


def shown(name, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    listing.models(name)
    return capsys.readouterr().out.splitlines()


def test_the_table_fits_a_terminal(monkeypatch, capsys):
    lines = shown(None, 80, monkeypatch, capsys)
    assert max(map(len, lines)) <= 80
    named = {line.split()[0]: line.split() for line in lines if line.split()}
    assert named.keys() >= VARIANTS.keys()
    assert named["bisenetv1"][1:] == ["13.43", "29.6", "118.3", "75.44", "1"]
    assert named["swiftnet_r18"][4:] == ["75.5", "test", "1"]
    assert named["crossformer_s_fpn"][4:] == ["46.4", "ADE20K", "1"]


def test_a_wide_terminal_shows_recipes_and_all_scores(monkeypatch, capsys):
    lines = shown(None, 200, monkeypatch, capsys)
    (line,) = (line for line in lines if line.startswith("pidnet_s "))
    for text in ("1024x2048: 47.2", "78.8, 78.6 test, 80.1 CamVid test", "pidnet_camvid, pidnet_c"):
        assert text in line


def test_one_network_in_full(monkeypatch, capsys):
    text = "\n".join(shown("senformer_nws_swin_t", 200, monkeypatch, capsys))
    for part in (
        "ADE20K val: 46, several scales and flip 46.4 (published)",
        "at 512x512, 150 classes: 143.954 M, 203.3",
        "senformer_swin_ade20k",
        "github.com/WalBouss/SenFormer, license MIT",
        "such as backbone.patch_embed.projection.weight",
        "our names, such as backbone.stem.weight",
        "multiples of 4",
    ):
        assert part in text, part


def test_a_network_of_ours_has_no_reference_and_a_license_may_be_unknown():
    nano = listing.one("csfcn_nano")
    assert (nano["reference"], nano["license"]) == (None, None)
    assert nano["checkpoint"]["official"] is None
    assert "csfcn_nano:camvid" in nano["weights"]
    assert describe("pidnet_s")["license"] is None
    assert describe("pidnet_s")["reference"] == "github.com/XuJiacong/PIDNet"
