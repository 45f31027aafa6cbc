"""`python -m bench.instructions [--accept]`: instructions that a fixed workload takes, against those it took before.

Time on a shared machine is noise; instructions are the same from run to run within some tenths of a percent. So this is
what CI can fail for: a unit of work that takes ALLOWED more than instructions.json says fails. The workload is
workload.py; callgrind counts it, only where it says so. Needs valgrind and a C compiler.

Under other versions than the file's (interpreter, SQLite, packages) absolute counts mean little: what is compared there
is each count's ratio to that of echo, which was counted in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from bench.harness import ROOT, versions

ALLOWED: Final = 1.10
ECHO: Final = "echo"
FILE: Final = Path(__file__).with_name("instructions.json")
LIMIT_SECONDS: Final = 600


class CountFailed(Exception):
    """The instructions could not be counted."""


def count() -> dict[str, float]:
    """Run the workload under callgrind; the instructions of each unit."""
    if missing := [program for program in ("cc", "valgrind") if not shutil.which(program)]:
        raise CountFailed(f"{' and '.join(missing)} needed (apt install valgrind gcc libc6-dev)")
    with tempfile.TemporaryDirectory(prefix="bistro92-instructions-") as name:
        folder = Path(name)
        library = folder / "marks.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, ROOT / "bench" / "marks.c"], check=True)
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder / 'out'}"]
        command += [sys.executable, "-m", "bench.workload", str(library)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BISTRO92_")}
        done = subprocess.run(
            command, cwd=ROOT, env={**inherited, "PYTHONHASHSEED": "0", "TMPDIR": str(folder)},
            capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise CountFailed(f"the workload failed:\n{done.stdout}{done.stderr[-4000:]}")
        units = {name: int(number) for number, name in re.findall(r"^(\d+) (.+)$", done.stdout, re.MULTILINE)}
        counts = {}
        for dump in sorted(folder.glob("out.*"), key=lambda file: int(file.suffix[1:])):
            text = dump.read_text(errors="replace")
            trigger, total = re.search(r"Client Request: (.+)", text), re.search(r"^totals: (\d+)", text, re.MULTILINE)
            if trigger and total:
                counts[trigger[1]] = int(total[1]) / units[trigger[1]]
    if counts.keys() != units.keys() or ECHO not in counts:
        raise CountFailed(f"callgrind counted {sorted(counts)}, the workload did {sorted(units)}")
    return counts


def compare(counts: dict[str, float], known: dict[str, Any], made_with: dict[str, str]) -> list[str]:
    """Print each count beside what it was; the names of those that grew too much, or that are new."""
    before = known.get("instructions", {})
    same = known.get("made_with") == made_with
    echo = 1.0 if same else before.get(ECHO, counts[ECHO]) / counts[ECHO]
    if not same:
        old = known.get("made_with", {})
        others = [f"{name} {old.get(name, '?')} → {version}" for name, version in made_with.items()
                  if old.get(name) != version]  # fmt: skip
        print(f"Other versions ({', '.join(others)}), so each is compared by its ratio to echo.\n")
    print(f"{'instructions of one':36} {'now':>11} {'before':>11} {'change':>8} {'to echo':>8}")
    grown = []
    for name, now in counts.items():
        was = before.get(name)
        change = f"{now * echo / was - 1:+.1%}" if was else "new"
        print(f"{name:36} {now:11,.0f} {was or 0:11,.0f} {change:>8} {now / counts[ECHO]:8.2f}")
        if not was or now * echo > was * ALLOWED:
            grown.append(name)
    return grown


def main() -> int:
    """Returns the exit status: 1 where something grew by more than what is allowed, 2 where it couldn't be counted."""
    parser = argparse.ArgumentParser(description="count the instructions of a fixed workload")
    parser.add_argument("--accept", action="store_true", help=f"write what is counted to {FILE.name}, whatever it was")
    accept = parser.parse_args().accept
    try:
        counts = count()
    except CountFailed as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 2
    made_with = versions()
    grown = compare(counts, json.loads(FILE.read_text()) if FILE.exists() else {}, made_with)
    if accept:
        whole = {name: round(number) for name, number in counts.items()}
        FILE.write_text(json.dumps({"made_with": made_with, "instructions": whole}, indent=1) + "\n")
        print(f"\nWritten to bench/{FILE.name}.")
        return 0
    if grown:
        print(
            f"\nMore than {ALLOWED - 1:.0%} over bench/{FILE.name}: {'; '.join(grown)}.\n"
            "Make it cheaper; or, where it is worth it, `make instructions ARGS=--accept`, and say why in the commit.",
            file=sys.stderr,
        )
    return bool(grown)


if __name__ == "__main__":
    sys.exit(main())
