"""Power is cut under load: what was synced is left, what was only written may be; every 201 is there, once.

preload.c keeps a copy of what each sync has put on the disk. SIGKILL ends the server, its files are cut back to that
copy, and a new server opens them. Every other cut also leaves some of the sectors that were written and not synced.
"""

from __future__ import annotations

import json
import random
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness import Json, until, without_duplicates
from tests.preload import PreloadedServer, Till, named, tills

QUIET = ("--log-level", "warning", "--no-access-log")


def cut_under_load(server: PreloadedServer, name: str, chance: random.Random, *, tear: bool) -> list[Till]:
    """Post from several tills and cut the power between any two answers. The tills know what they were answered."""
    with tills(server, name) as posting:
        wanted = chance.randrange(40, 400)
        until(lambda: sum(len(till.answered) for till in posting) >= wanted, "orders are answered")
        server.cut_power(chance if tear else None)
    return posting


@pytest.mark.slow
def test_power_cuts_under_load(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every order that was answered 201 is there, once and unchanged; each other one can be retried with its key."""
    rounds = request.config.getoption("--power-cuts")
    chance = random.Random(rounds)
    server = PreloadedServer(tmp_path, *QUIET)
    answered: dict[str, Json] = {}
    survivors = 0  # orders that nobody was answered for and that the disk had all the same
    try:
        server.start()
        for number in range(rounds):
            posting = cut_under_load(server, str(number), chance, tear=number % 2 == 1)
            answered |= {key: order for till in posting for key, order in till.answered.items()}
            unanswered = {key: order for till in posting for key, order in till.unanswered.items()}
            server.start()
            with closing(server.client()) as client:
                found = named(client.orders())
                assert {key: found.get(key) for key in answered} == answered
                assert set(found) - set(answered) <= set(unanswered)
                survivors += len(set(found) - set(answered))
                for key, order in unanswered.items():
                    answered[key] = client.place(order, idempotency_key=key)
                assert named(client.orders()) == answered
        with closing(server.client()) as client:
            ids = without_duplicates(order["id"] for order in client.orders())
            assert ids == list(range(len(answered), 0, -1))
        assert server.stop() == 0
    finally:
        server.end()
    print(json.dumps({"power cuts": rounds, "orders": len(answered), "unanswered but there": survivors}))


def test_a_power_cut_without_syncing_each_commit(tmp_path: Path) -> None:
    """The same cut loses orders with `synchronous = NORMAL`: it would show that a commit is answered too early."""
    server = PreloadedServer(tmp_path, *QUIET, alter={"synchronous": "NORMAL"})
    try:
        server.start()
        posting = cut_under_load(server, "0", random.Random(0), tear=False)
        answered = {key for till in posting for key in till.answered}
        server.start()
        with closing(server.client()) as client:
            assert answered - set(named(client.orders()))
    finally:
        server.end()
