"""Known vulnerabilities of what is installed to run: `python -m tests.audit` (or `make audit`).

pip-audit itself calls it a success when the advisory service knows none of the packages, as a mirror or a machine
that is offline doesn't. This says how many were judged; the exit code is 1 where one of them is vulnerable.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

SECONDS: Final = 180
REQUIREMENTS: Final = Path(__file__).resolve().parents[1] / "requirements.txt"
COMMAND: Final = ("-m", "pip_audit", "--requirement", str(REQUIREMENTS), "--format", "json")


def verdict(report: str) -> tuple[bool, str]:
    """(whether no vulnerability is known, what there is to say) of pip-audit's report; an empty one is no report."""
    packages = json.loads(report)["dependencies"] if report.strip() else []
    judged = [package for package in packages if "vulns" in package]
    faults = [
        f"{package['name']} {package['version']}: {fault['id']}, fixed in {', '.join(fault['fix_versions']) or 'none'}"
        for package in judged
        for fault in package["vulns"]
    ]
    if faults:
        return False, "\n".join(faults)
    if not judged or len(judged) < len(packages):
        how_many = f"{len(judged)} of {len(packages)} packages" if judged else "no package"
        why = "its advisory service can't be reached from here, or doesn't know them"
        return True, f"NOT AUDITED: pip-audit could judge {how_many}; {why}."
    return True, f"No vulnerability is known of {len(judged)} packages."


def main() -> None:
    try:
        report = subprocess.run(
            [sys.executable, *COMMAND], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=SECONDS, text=True
        ).stdout
    except subprocess.TimeoutExpired:
        report = ""
    sound, words = verdict(report)
    print(words)
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
