"""`python -m bench [rows...] [--rounds N] [--quick]`: measure, print, and write the results."""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
from pathlib import Path
from types import FrameType

from bench import results, rows
from bench.harness import BenchFailed, LeftOut, machine, working_folder


def stop(signum: int, frame: FrameType | None) -> None:
    """Let every `with` stop what it started."""
    sys.exit(128 + signum)


def main() -> int:
    """Returns the exit status: 0 whether goals are met or not, 1 where something was lost or didn't start."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="measurements side by side; see bench/README.md"
    )
    parser.add_argument("rows", nargs="*", type=int, choices=[[], *rows.ROWS], help="which rows (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side has its turn (default: 5)")
    parser.add_argument("--seconds", type=float, default=4, help="how long one load lasts (default: 4)")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it works; writes nothing")
    parser.add_argument("--render", action="store_true", help="measure nothing; write tables and charts anew")
    parser.add_argument("--scratch", help="where temporary files go: this disk is measured (default: the system's)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the results go")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    if chosen.render:
        results.render(json.loads((chosen.out / "results.json").read_text()), chosen.out)
        return 0
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[1], files[1]))
    failed = 0
    with working_folder(chosen.scratch) as folder:
        quick = rows.Options(folder, 1, 0.5, quick=True)
        options = quick if chosen.quick else rows.Options(folder, chosen.rounds, chosen.seconds)
        facts = machine(folder)
        for number in chosen.rows or rows.ROWS:
            try:
                row = rows.measure(number, options)
            except LeftOut as why:
                print(f"row {number} is left out: {why}", file=sys.stderr)
                continue
            except BenchFailed as error:
                print(f"row {number}: {error}", file=sys.stderr)
                failed = 1
                continue
            print(row.markdown(), flush=True)
            if not chosen.quick:
                results.save([row], facts, chosen.out)
    return failed


if __name__ == "__main__":
    sys.exit(main())
