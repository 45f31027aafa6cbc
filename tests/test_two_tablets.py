"""Two tablets tap the same ticket at the same moment, a thousand times."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Final

import pytest

from tests.harness import Client, Display, Json, Reply, Server, events_up_to
from tests.kitchen import ON_THE_BOARD, Ask, Model, Tablet, answer_of, serially

TICKETS: Final = 1000
AT_ONCE: Final = 10  # tickets that are tapped at the same moment: twice as many connections

Pair = tuple[Ask, Ask]


def status(ticket: str, to: str, if_match: str | None = None) -> Ask:
    return Ask("PATCH", ticket, {"status": to}, if_match=if_match)


def line(ticket: str, place: int, to: str = "ready") -> Ask:
    return Ask("PATCH", f"{ticket}/items/{place}", {"status": to})


PAIRS: Final[dict[str, Callable[[str], Pair]]] = {
    "the same state": lambda at: (status(at, "preparing"), status(at, "preparing")),
    "the same line": lambda at: (line(at, 1), line(at, 1)),
    "two lines": lambda at: (line(at, 1), line(at, 2)),
    "a line and the state it brings about": lambda at: (line(at, 1), status(at, "preparing")),
    "a line and the whole ticket": lambda at: (line(at, 1), status(at, "ready")),
    "the last line voided and the others": lambda at: (line(at, 1, "voided"), line(at, 2, "voided")),
    "forward and back": lambda at: (status(at, "ready"), status(at, "preparing")),
    "done and called off": lambda at: (status(at, "completed"), Ask("POST", f"{at}/cancel", {"reason": "left"})),
    "called off twice": lambda at: (Ask("DELETE", at), Ask("POST", f"{at}/cancel")),
    "a new line and the last one": lambda at: (
        Ask("POST", f"{at}/items", {"items": [{"name": "Pie", "quantity": 1}]}),
        status(at, "ready"),
    ),
    "from the same version": lambda at: (
        status(at, "ready", '"1"'),
        Ask("PATCH", at, {"table": "Bar"}, if_match='"1"'),
    ),
    "a retry of itself": lambda at: (Ask("DELETE", at, key=f"retry {at}"), Ask("DELETE", at, key=f"retry {at}")),
}
"""What two people do to a ticket of two lines, by its path. Chance decides who comes first."""


@pytest.fixture(scope="module")
def tablets(server: Server) -> Iterator[list[Tablet]]:
    with ExitStack() as opened:
        yield [opened.enter_context(closing(Tablet(server.port))) for _ in range(2 * AT_ONCE)]


def at_the_same_moment(tablets: list[Tablet], asks: list[Ask], chance: random.Random) -> list[Reply]:
    """Send every ask on a connection of its own, in any order, before the first answer is read."""
    places = [*range(len(asks))]
    chance.shuffle(places)
    for place in places:
        tablets[place].tap(asks[place])
    return [tablet.read() for tablet in tablets[: len(asks)]]


def board_of(told: list[Json]) -> list[Json]:
    """The board that a screen holds after what it was told, newest first."""
    initial, *events = told
    orders = {order["id"]: order for order in initial["orders"]}
    orders |= {event["order"]["id"]: event["order"] for event in events}
    return [order for _, order in sorted(orders.items(), reverse=True) if order["status"] in ON_THE_BOARD]


def test_two_tablets_tap_the_same_ticket(server: Server, client: Client, tablets: list[Tablet]) -> None:
    """Of two taps at the same moment each counts once, both are shown the same truth, and so is every screen."""
    chance = random.Random(92)
    model = Model(last_id=0)
    met: Counter[str] = Counter()

    with closing(Display(server.port)) as screen:
        kinds = [kind for _ in range(-(-TICKETS // len(PAIRS))) for kind in PAIRS][:TICKETS]
        chance.shuffle(kinds)
        for start in range(0, TICKETS, AT_ONCE):
            tickets = []
            for _ in range(AT_ONCE):
                sent = {"table": "Table 1", "items": [{"name": name, "quantity": 1} for name in ("Soup", "Steak")]}
                placed = client.place(sent)
                model.answer(Ask("POST", "/api/order", sent), placed["created_at"])
                assert placed == model.orders[placed["id"]]
                tickets.append(placed["id"])
            pairs = [PAIRS[kind](f"/api/order/{ticket}") for ticket, kind in zip(tickets, kinds[start:], strict=False)]
            asks = [ask for pair in pairs for ask in pair]
            replies = at_the_same_moment(tablets, asks, chance)
            for ticket, kind, pair, place in zip(tickets, kinds[start:], pairs, range(0, len(asks), 2), strict=False):
                both = replies[place : place + 2]
                model = serially(client, model, pair, both)
                truth = client.get(f"/api/order/{ticket}").json
                assert truth == model.orders[ticket]
                shown = [answer.order for answer in map(answer_of, both) if answer.order]
                assert not shown or truth in shown, "the later of two taps is shown how the ticket stands"
                met[kind] += 1
        cursor = client.cursor()
        told = events_up_to(screen, cursor)
        board = client.get("/api/orders?status=open").json
    with closing(Display(server.port)) as late:
        assert late.message()["orders"] == board
    assert met.total() == TICKETS
    assert board == model.board
    assert board_of(told) == board
    versions: Counter[int] = Counter(event["order"]["id"] for event in told[1:])
    assert versions == {order["id"]: order["version"] for order in client.orders()}, "an event for each change"
    assert len(told) - 1 == len(model.events)
