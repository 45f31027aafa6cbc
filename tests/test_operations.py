"""docs/operations.md and ops/ against the program: each alert is explained, and what it measures is there."""

from __future__ import annotations

import configparser
import re

import pytest

import app
from tests.harness import ROOT, Client, an_order

ALERTS = (ROOT / "ops" / "alerts.yml").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
UNITS = sorted(path for path in (ROOT / "ops").iterdir() if path.suffix in {".service", ".timer"})


def test_every_metric_in_an_alert(client: Client) -> None:
    """It is one that /metrics has, with the labels that the alert asks for."""
    client.place(an_order())
    shown = client.get("/metrics").body.decode()
    asked = re.findall(r"\b((?:bistro92|process)_\w+)(\{[^}]*\})?", ALERTS)
    assert len(asked) > 10
    names = {line.partition("{")[0].split()[0] for line in shown.splitlines() if not line.startswith("#")}
    assert {name for name, _ in asked} <= names
    for name, labels in asked:
        of_the_program = [each for each in re.findall(r'\w+="[^"]*"', labels) if not each.startswith("job=")]
        assert all(re.search(rf"^{name}\{{[^}}]*{each}", shown, re.MULTILINE) for each in of_the_program)


def test_every_alert_is_explained() -> None:
    """The page says what each alert means, in the order of the file, and explains no other."""
    alerts = re.findall(r"alert: (\w+)", ALERTS)
    assert re.findall(r"^\*\*(Bistro92\w+)\.\*\*", OPERATIONS, re.MULTILINE) == alerts


def test_every_file_is_named() -> None:
    """The page names every file of ops/."""
    assert [path.name for path in (ROOT / "ops").iterdir() if path.is_file() and path.name not in OPERATIONS] == []


def test_every_setting_that_is_named_exists() -> None:
    """Wherever a variable is named, it is one."""
    texts = [OPERATIONS, *(path.read_text(encoding="utf-8") for path in (ROOT / "ops").iterdir() if path.is_file())]
    named = {name for text in texts for name in re.findall(r"\bBISTRO92_[A-Z_]+", text)}
    assert named <= {f"BISTRO92_{name.upper()}" for name in app.Settings.model_fields}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit(unit: object) -> None:
    """It is a file that systemd can read, and starts what is there."""
    parsed = configparser.RawConfigParser(strict=False)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read(str(unit), encoding="utf-8")
    assert "Unit" in parsed
    for program in re.findall(r"\S+\.py", parsed.get("Service", "ExecStart", fallback="")):
        assert (ROOT / program.removeprefix("/opt/bistro92/")).is_file()
