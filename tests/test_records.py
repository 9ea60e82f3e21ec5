"""Records are believed where this user's own cache sealed them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rtseg.runtime import records
from rtseg.runtime.records import key_path, read_record, seal, unseal, write_record

FACTS = {"passed": True, "gpu": "Pretended", "agreement": 0.99991, "frames": [{"name": "a"}]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "net.proof.json"
    write_record(path, FACTS)
    return path


def test_a_record_reads_back(record: Path) -> None:
    assert read_record(record) == FACTS
    assert read_record(record, passed=True, gpu="Pretended") == FACTS
    assert read_record(record, passed=True, gpu="another") is None
    assert read_record(record, passed=1) is None
    assert read_record(record, absent="x") is None


def test_the_key_is_random_and_the_users_own(record: Path, cache: Path) -> None:
    facts = key_path().stat()
    assert stat.S_IMODE(facts.st_mode) == 0o600
    assert facts.st_size == 32
    first = key_path().read_bytes()
    key_path().unlink()
    write_record(record, FACTS)
    assert key_path().read_bytes() != first


def test_every_flipped_bit_makes_it_absent(record: Path) -> None:
    content = record.read_bytes()
    assert read_record(record) == FACTS
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        record.write_bytes(changed)
        # White space is all that may change: it says nothing.
        assert read_record(record) is None or not content[place : place + 1].strip()


MALFORMED: list[Any] = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[]",
    b'"text"',
    b"{}",
    b"[" * 100_000,
    {"seal": 5},
    {"seal": "zz"},
    {"seal": None},
    {**FACTS, "seal": "00" * 32},
    {**FACTS, "seal": ""},
]


@pytest.mark.parametrize("content", MALFORMED)
def test_a_malformed_or_forged_record_is_absent(content: Any, record: Path) -> None:
    record.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    assert read_record(record) is None


def test_a_record_of_another_user_is_absent(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(record.parent / "another"))
    assert read_record(record) is None
    write_record(record.with_name("mine.json"), FACTS)  # with a key of one's own no more
    assert read_record(record) is None


@pytest.mark.parametrize("spoil", ["readable", "short", "folder", "absent"])
def test_a_key_that_others_may_know_seals_nothing(spoil: str, record: Path) -> None:
    if spoil == "readable":
        key_path().chmod(0o644)
    elif spoil == "short":
        key_path().write_bytes(b"short")
    else:
        key_path().unlink()
    if spoil == "folder":
        key_path().mkdir()
    assert read_record(record) is None
    write_record(record, FACTS)  # with a new key, where one can be made
    assert (read_record(record) == FACTS) == (spoil != "folder")


def test_a_key_of_another_user_is_none(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert read_record(record) is None


def test_a_read_only_home_has_no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*arguments: object, **options: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(records, "write_atomically", read_only)
    write_record(tmp_path / "net.proof.json", FACTS)
    assert seal(b"kernels") is None
    assert list(tmp_path.iterdir()) == []


def test_processes_that_begin_together_share_one_key(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rtseg.runtime.records import write_record;"
        "write_record(Path(sys.argv[1]), {'passed': True})"
    )
    paths = [tmp_path / f"{number}.json" for number in range(4)]
    running = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for path in paths]
    assert [process.wait() for process in running] == [0] * 4
    assert all(read_record(path) == {"passed": True} for path in paths)


@pytest.mark.parametrize("content", [b"", b"kernels", bytes(100_000)])
def test_sealed_content_reads_back(content: bytes) -> None:
    sealed = seal(content)
    assert sealed is not None
    assert unseal(sealed) == content
    for foreign in (content, sealed[:-1], sealed + b"!", b"", bytes(32) + content):
        assert unseal(foreign) is None
