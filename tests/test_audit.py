"""What `make check` says of vulnerabilities is what pip-audit has found, and never that nothing was looked at."""

from __future__ import annotations

import json

from tests.audit import verdict

SOUND = {"name": "sound", "version": "1", "vulns": []}
FAULTY = {"name": "faulty", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found on PyPI and could not be audited: unknown (1)"}


def report(*packages: object) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_packages_without_a_vulnerability() -> None:
    """All were judged, and it says how many."""
    assert verdict(report(SOUND, SOUND)) == (True, "No vulnerability is known of 2 packages.")


def test_a_package_with_a_vulnerability() -> None:
    """It fails, and names the package, the advisory and the way out, also where others could not be judged."""
    assert verdict(report(SOUND, FAULTY, UNKNOWN)) == (False, "faulty 1: PYSEC-1, fixed in 2")


def test_packages_that_nobody_knows() -> None:
    """What wasn't judged is no success, in words."""
    assert verdict(report(SOUND, UNKNOWN))[1].startswith("NOT AUDITED: pip-audit could judge 1 of 2 packages;")
    assert verdict(report(UNKNOWN, UNKNOWN))[1].startswith("NOT AUDITED: pip-audit could judge no package;")


def test_a_report_that_never_came() -> None:
    """Nor is one that failed, or took too long."""
    assert verdict("")[1].startswith("NOT AUDITED")
