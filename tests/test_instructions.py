"""The check of instruction counts: what it fails for. That it counts is shown by running it (`make instructions`)."""

from __future__ import annotations

from bench.instructions import compare

MADE_WITH = {"python": "3.11.7"}
KNOWN = {"made_with": MADE_WITH, "instructions": {"echo": 1000, "order": 2000}}


def test_more_instructions_than_before() -> None:
    """A unit of work that takes more than 10 % over the file's count is named, and only that."""
    assert compare({"echo": 1000, "order": 2199}, KNOWN, MADE_WITH) == []
    assert compare({"echo": 1000, "order": 2201}, KNOWN, MADE_WITH) == ["order"]


def test_more_instructions_under_another_version() -> None:
    """Where the interpreter is another one, what counts is the ratio to echo, counted in the same run."""
    other = {"python": "3.13.1"}
    assert compare({"echo": 1500, "order": 3200}, KNOWN, other) == []
    assert compare({"echo": 800, "order": 1900}, KNOWN, other) == ["order"]


def test_a_unit_of_work_that_is_not_in_the_file() -> None:
    """What was never counted can't be compared, so it is named until it is accepted."""
    assert compare({"echo": 1000, "order": 2000, "poll": 5}, KNOWN, MADE_WITH) == ["poll"]
