"""The names of TensorRT that the code uses, against what its releases have: recorded from their
wheels by `scripts/record_tensorrt_api.py`, since the packages need a GPU's libraries to import."""

from __future__ import annotations

import json

import pytest
from conftest import load_script

script = load_script("record_tensorrt_api")
RECORD = json.loads(script.RECORD.read_text())
USED, ASKED = script.used_names()
# Behind a look at what the package offers, or reached with TensorRT-RTX alone.
OF_RTX_ALONE = {
    "ComputeCapability", "set_compute_capability", "num_compute_capabilities",
    "get_engine_validity", "EngineValidity", "EngineInvalidityDiagnostics", "INVALID",
    "create_runtime_cache", "set_runtime_cache", "deserialize",
}  # fmt: skip


def test_the_record_is_of_the_names_in_use() -> None:
    assert set(RECORD["names"]) == USED, "run scripts/record_tensorrt_api.py on the wheels again"


@pytest.mark.parametrize("release", RECORD["releases"])
def test_every_release_has_the_names_that_are_used(release: str) -> None:
    lacking = USED - set(RECORD["releases"][release])
    allowed = set() if release.startswith("tensorrt_rtx") else OF_RTX_ALONE
    assert lacking - allowed - ASKED == set()


def test_the_oldest_and_the_newest_release_are_there() -> None:
    versions = [release.split()[1] for release in RECORD["releases"]]
    for start in ("10.3.", "10.16.", "11."):
        assert any(version.startswith(start) for version in versions)


def test_the_installed_package_has_what_its_record_says() -> None:
    """The reading of a binary, held against the package that does import here."""
    trt = pytest.importorskip("tensorrt_rtx")
    kinds = [kind for kind in vars(trt).values() if isinstance(kind, type)]
    names = set(dir(trt)).union(*map(dir, kinds))
    (recorded,) = (found for name, found in RECORD["releases"].items() if "rtx" in name)
    assert set(recorded) <= names


def test_a_removed_name_would_be_found() -> None:
    content = b"get_tensor_name\0execute_async_v2\0"
    assert script.has(content, "get_tensor_name")
    assert not script.has(content, "execute_async_v3")
    assert {"execute_async_v3", "build_serialized_network", "TensorIOMode"} <= USED
