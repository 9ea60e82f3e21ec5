"""The attack as a table: cases of each format, how many were right, told in one line, wrong.

python tests/attack/attack_table.py              # all of it, a quarter of an hour
python tests/attack/attack_table.py --only ONNX --quick

Ends with exit code 1 if a case is wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from attack_all import FORMATS, all_cases, quick_share
from attack_materials import make_materials
from attack_run import WRONG, Verdict, build_table, run_all


def tell(verdict: Verdict) -> None:
    if verdict.kind == WRONG:
        sys.stdout.write(f"wrong: {verdict.case}: {verdict.why}\n")
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=FORMATS, action="append", help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="the share that the tests take")
    parser.add_argument("--workers", type=int, default=1, help="cases at a time")
    options = parser.parse_args()
    sys.path.append(str(Path(__file__).parents[1]))  # some cases take other tests' pretended files
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rtseg-materials-") as folder:
        cases = all_cases(make_materials(Path(folder)))
        cases = quick_share(cases) if options.quick else cases
        cases = [case for case in cases if not options.only or case.format in options.only]
        verdicts = run_all(cases, options.workers, tell)
    sys.stdout.write(build_table(verdicts) + "\n")
    sys.stdout.write(f"{len(verdicts)} cases in {time.monotonic() - began:.0f} s\n")
    if any(verdict.kind == WRONG for verdict in verdicts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
