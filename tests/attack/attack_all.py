"""All cases, and the share of them that every run of the tests takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from attack_commands import command_cases
from attack_files import file_cases
from attack_live import live_cases
from attack_materials import Materials
from attack_media import media_cases
from attack_programs import program_cases
from attack_run import Case
from attack_texts import text_cases

FORMATS = (
    "images", "folders", "videos", "MCAP logs", "ONNX", "OpenVINO", "engines", "safetensors",
    "checkpoints", "class sets", "class maps", "fault plans", "recipes", "soft labels", "records",
    "data sets", "HTTP", "rings", "Python API", "fleets", "ROS bags", "options", "full disks",
    "signals",
)  # fmt: skip
FOUND = (  # broke it once, so every run takes them
    "descriptors", "load nothing", "numbers for classes", "gives NaN", "size of text", "NUL",
    "endless size", "sink that is none", "SQLITE3, .yaml, a bit in the tail",
)  # fmt: skip
SLOW = ("options", "full disks", "signals")  # a process or more each


def all_cases(made: Materials) -> list[Case]:
    """Every case, with names that occur once."""
    cases = [
        *media_cases(made),
        *file_cases(made),
        *text_cases(made),
        *live_cases(made),
        *command_cases(made),
        *program_cases(made),
    ]
    twice = [name for name, count in Counter(map(str, cases)).items() if count > 1]
    assert not twice, f"two cases are called {twice[0]}"
    assert {case.format for case in cases} == set(FORMATS)
    return cases


def quick_share(cases: Iterable[Case]) -> list[Case]:
    """About one in twelve of each format, the first and others spread over it; commands are few."""
    seen: Counter[str] = Counter()
    share = []
    for case in cases:
        step = 60 if case.format in SLOW else 12 if case.probe and case.format != "HTTP" else 20
        kind = f"{case.format} {case.probe is None}"
        if seen[kind] % step == 0 or any(each in case.name for each in FOUND):
            share.append(case)
        seen[kind] += 1
    return share
