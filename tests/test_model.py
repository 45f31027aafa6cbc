"""scaleout/model.py against queueing theory, and scaleout/CAPACITY.md against scaleout/model.py."""

from __future__ import annotations

import json
from typing import Final

import pytest

import app
from scaleout import model
from scaleout.model import Line, batch_at, ceiling, simulate

HOLD: Final = Line(2.0, 0.05)  # 2 ms for a commit, and 0.05 ms for each write in it


def test_one_at_a_time_is_an_m_d_1_queue() -> None:
    """With commits of one write and one process, the mean wait is that of M/D/1: exact, by Pollaczek and Khinchine."""
    service = HOLD.of(1)
    for load in (0.2, 0.5, 0.8):
        seen = simulate(HOLD, 1e3 * load / service, 1, writes=400_000, most=1)
        assert seen.batch == 1
        assert seen.mean == pytest.approx(service * (1 + load / (2 * (1 - load))), rel=0.03)


def test_a_write_that_is_alone() -> None:
    """With little to do it takes one commit, and nobody waits."""
    for processes in (1, 4):
        seen = simulate(HOLD, 1, processes, writes=5000)
        assert seen.p50 == pytest.approx(HOLD.of(1))
        assert seen.mean == pytest.approx(HOLD.of(1), rel=0.01)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_what_comes_during_a_commit_shares_the_next(processes: int) -> None:
    """b = rate × hold(b); and a write waits for half a round of all processes, then for a whole one."""
    rate = 0.6 * 1e3 / HOLD.each
    batch = batch_at(rate, HOLD)
    assert batch == pytest.approx(rate * HOLD.of(batch) / 1e3)
    seen = simulate(HOLD, rate, processes)
    assert seen.batch == pytest.approx(batch, rel=0.1)
    assert seen.mean == pytest.approx(1.5 * processes * HOLD.of(batch), rel=0.1)
    assert seen.rate == pytest.approx(rate, rel=0.03)


@pytest.mark.parametrize("processes", [1, 4])
def test_the_ceiling_is_the_counters(processes: int) -> None:
    """More than the ceiling isn't answered, however many processes there are; commits are full then."""
    most = ceiling(HOLD)
    assert most == 1e3 * 250 / (2 + 250 * 0.05)
    seen = simulate(HOLD, 1.5 * most, processes)
    assert seen.rate == pytest.approx(most, rel=0.02)
    assert seen.batch == pytest.approx(model.MAX_BATCH, rel=0.05)  # the first ones aren't full
    assert batch_at(1.5 * most, HOLD) == model.MAX_BATCH


def test_processes_add_cpu_time_and_cost_reading() -> None:
    """Twice the processes take less than twice the writes; with displays, which are spread, nearly twice."""
    costs = model.Costs(HOLD, Line(0, 0.1), Line(0, 0.05), follow=0.05, deliver=0.001, flush=0, memory=100)
    rates = {count: model.rate_by_cpu(costs, HOLD, count, 0) for count in (1, 2, 4)}
    assert rates[1] == pytest.approx(1e3 * 0.7 / 0.1, rel=1e-6)
    assert rates[2] == pytest.approx(1e3 * 0.7 / (0.1 / 2 + 0.05 / 2), rel=1e-6)
    assert rates[4] == pytest.approx(1e3 * 0.7 / (0.1 / 4 + 0.05 * 3 / 4), rel=1e-6)
    shown = [model.rate_by_cpu(costs, HOLD, count, 10_000) for count in (1, 2)]
    assert shown[1] == pytest.approx(2 * shown[0], rel=0.01)


def test_venues_add_up() -> None:
    """Of twice the venues everything is needed twice, but each venue's own counter."""
    costs = model.Costs(HOLD, Line(0.5, 0.1), Line(0.5, 0.05), follow=0.05, deliver=0.001, flush=0.2, memory=128)
    one, two = [model.need(costs, model.Place("", venues, 2, 8)) for venues in (500, 1000)]
    assert (one.writes, two.writes) == (5000, 10_000)
    assert two.counter_each == one.counter_each
    for name in ("counter", "process_cores", "database_cores", "connections", "memory"):
        assert getattr(two, name) == pytest.approx(2 * getattr(one, name))
    assert two.connections == 1000 * 2 * 3
    assert two.memory == 1000 * 2 * 128 / 1024
    assert two.databases_on == 6


def test_the_page_has_the_figures_of_the_model() -> None:
    """Every table is what the model makes of what was measured: `make model` writes them."""
    found = json.loads((model.FOLDER / "measured.json").read_text(encoding="utf-8"))
    page = model.PAGE.read_text(encoding="utf-8")
    assert model.filled(page, model.tables(found)) == page


def test_the_model_reckons_with_the_programs_bounds() -> None:
    """As many writes share a commit as the program lets."""
    assert model.MAX_BATCH == app.MAX_BATCH
