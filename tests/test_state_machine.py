"""Any sequence of requests, against a model of the kitchen: a real server has to do what the model says."""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests import harness
from tests.harness import Client, Display, Json, Reply, Server, events_up_to
from tests.kitchen import ON_THE_BOARD, Answer, Ask, Model, Tablet, answer_of, decided_at, serially

settings.register_profile("exploring", max_examples=150, stateful_step_count=30, deadline=None, database=None)
settings.register_profile(
    "repeating", settings.get_profile("exploring"), derandomize=True, phases=[Phase.explicit, Phase.generate]
)
PROFILE: Final = "repeating" if "CI" in os.environ else "exploring"
"""In CI the same sequences every time, so that a change is judged and not chance, and no time spent on making one that
fails shorter; elsewhere always new ones."""

LONG_AGO: Final = "2001-01-01T00:00:00Z"
FAR_AWAY: Final = ("2901-01-01T00:00:00Z", "2902-02-02T00:00:00Z")
NOBODYS: Final = 10**9  # the id of no order
run: Final = itertools.count(1)

# ---------------------------------------------------------------------------------------------------------------------
# What clients ask: drawn small, so that taps meet the same ticket, the same line and the same state often. A value
# that stands several times in a list is drawn as often; `one_of` would not do that
# ---------------------------------------------------------------------------------------------------------------------

statuses = st.sampled_from(["scheduled", "received", "preparing", "ready", "completed", "cancelled"])
notes = st.sampled_from(["", "window", "no nuts", "naïve ☕"])
times = st.sampled_from([LONG_AGO, *FAR_AWAY])
quantities = st.sampled_from([1, 2, 3, 998, 999] * 8 + [0])  # none of an item is refused
lines = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["Soup", "Steak", "Pie"]), "quantity": quantities},
        optional={"note": notes, "station": st.sampled_from(["grill", "bar"])},
    ),
    min_size=1,
    max_size=3,
)
names = st.sampled_from([{}, {}, {"source": "till"}, *({"source": "till", "external_id": str(n)} for n in range(3))])
bodies = st.fixed_dictionaries(
    {"table": st.sampled_from(["Table 1", "Bar"]), "items": lines},
    optional={"note": notes, "priority": st.sampled_from(["normal", "rush"]), "fire_at": times},
)
amendments = st.fixed_dictionaries(
    {},
    optional={
        "status": statuses,
        "table": st.sampled_from(["Table 1", "Bar"]),
        "note": st.none() | notes,
        "priority": st.sampled_from(["normal", "rush"]),
        "fire_at": times,
    },
)


class Tap(NamedTuple):
    """A write as it is drawn: which order, version and key it means is found out when it is sent."""

    which: int  # counts back from the newest order; NOBODYS for one that there isn't
    kind: str
    place: int = 1  # of a line
    body: Json | None = None
    match: str = "none"  # none, right, stale, any
    key: int = 0  # 0 for none; small, so that keys meet again


whiches = st.sampled_from([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5] * 3 + [NOBODYS])
conditions = st.sampled_from(["none"] * 6 + ["right", "stale", "any"])
keys = st.sampled_from([0] * 20 + [1, 2, 3, 4])
places = st.sampled_from([1] * 6 + [2] * 5 + [3, 3, 0])


def drawn(kind: str, bodies: st.SearchStrategy[Any]) -> st.SearchStrategy[Tap]:
    return st.builds(Tap, whiches, st.just(kind), places, bodies, conditions, keys)


moves = drawn("amend", st.fixed_dictionaries({"status": statuses}))
marks = drawn("mark", st.fixed_dictionaries({"status": st.sampled_from(["ready", "ready", "pending", "voided"])}))
appends = drawn("append", st.fixed_dictionaries({"items": lines}))
cancels = st.one_of(drawn("cancel", st.sampled_from([None, {}, {"reason": "left"}])), drawn("delete", st.none()))
kinds = [moves] * 5 + [drawn("amend", amendments)] * 3 + [marks] * 9 + [appends] * 2 + [cancels]
taps = st.sampled_from(kinds).flatmap(lambda kind: kind)


# ---------------------------------------------------------------------------------------------------------------------
# The machine
# ---------------------------------------------------------------------------------------------------------------------


class Kitchen(RuleBasedStateMachine):
    """A restaurant's day: two tablets, a screen, and the model that knows better."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.opened = ExitStack()
        self.client: Client = self.opened.enter_context(closing(server.client()))
        self.tablets = [self.opened.enter_context(closing(Tablet(server.port))) for _ in range(2)]
        self.screen = self.opened.enter_context(closing(Display(server.port)))
        self.cursor = self.client.cursor()
        self.day = next(run)  # makes keys and names that no earlier run used
        known = self.client.get("/api/orders?limit=1").json
        self.model = Model(known[0]["id"] if known else 0)
        self.asked: list[Ask] = []  # those with a key, oldest first

    def teardown(self) -> None:
        """The day is over: what everyone was told has to add up."""
        try:
            self.every_screen_shows_the_truth()
        finally:
            self.opened.close()

    # What is asked

    def ask_for(self, tap: Tap) -> Ask:
        """A drawn write, as a client that looked at the order just now would send it."""
        ids = sorted(self.model.orders, reverse=True)
        order_id = NOBODYS if tap.which == NOBODYS else ids[tap.which % len(ids)]
        at = f"/api/order/{order_id}"
        version = self.model.orders.get(order_id, {"version": 1})["version"]
        if_match = {"none": None, "right": f'"{version}"', "stale": f'"{version - 1}"', "any": "*"}[tap.match]
        method, path = {
            "amend": ("PATCH", at),
            "append": ("POST", f"{at}/items"),
            "mark": ("PATCH", f"{at}/items/{tap.place}"),
            "cancel": ("POST", f"{at}/cancel"),
            "delete": ("DELETE", at),
        }[tap.kind]
        return Ask(method, path, tap.body, self.key(tap.key), if_match)

    def key(self, number: int) -> str | None:
        return f"day {self.day}, key {number}" if number else None

    def post_for(self, body: Json, named: Json, key: int) -> Ask:
        names = {**named, "source": f"till {self.day}"} if named else {}
        return Ask("POST", "/api/order", {**body, **names}, self.key(key))

    def send(self, *asks: Ask) -> list[Reply]:
        """Send asks at the same moment."""
        for tablet, ask in zip(self.tablets, asks, strict=False):
            note(f"{ask}")
            tablet.tap(ask)
        self.asked += [ask for ask in asks if ask.key]
        return [tablet.read() for tablet in self.tablets[: len(asks)]]

    def check(self, ask: Ask) -> Answer:
        """Send one ask; it has to be answered as the model says, and the order be as the model has it."""
        before = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=1)
        [reply] = self.send(ask)
        answer = answer_of(reply)
        now = decided_at(self.client, ask, reply)
        events = len(self.model.events)
        expected = self.model.answer(ask, now)
        assert answer == expected
        if len(self.model.events) > events:
            assert before <= datetime.fromisoformat(now) <= datetime.now(UTC)
        if answer.status == 201 and answer.order:
            assert reply.headers["location"] == f"/api/order/{answer.order['id']}"
        return answer

    # What happens

    @initialize(body=bodies)
    def open_the_kitchen(self, body: Json) -> None:
        self.check(self.post_for({**body, "items": [{"name": name, "quantity": 1} for name in ("Soup", "Pie")]}, {}, 0))

    @rule(body=bodies, named=names, key=keys)
    def post(self, body: Json, named: Json, key: int) -> None:
        self.check(self.post_for(body, named, key))

    @rule(tap=taps)
    def write(self, tap: Tap) -> None:
        self.check(self.ask_for(tap))

    @rule(tap=taps)
    def double_tap(self, tap: Tap) -> None:
        """What was done is asked for once more: without a key the second one is judged by itself."""
        ask = self.ask_for(tap)
        self.check(ask)
        self.check(ask)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """A client that lost the answer asks once more, however long ago it was."""
        self.check(data.draw(st.sampled_from(self.asked), "an earlier one"))

    @rule(first=taps, second=taps, together=st.booleans())
    def two_taps_at_once(self, first: Tap, second: Tap, together: bool) -> None:
        """Two tablets at the same moment, often on the same ticket: as if one had come before the other."""
        pair = self.ask_for(first), self.ask_for(second._replace(which=first.which) if together else second)
        self.model = serially(self.client, self.model, pair, self.send(*pair))

    @rule(body=bodies, named=names, key=keys)
    def two_posts_at_once(self, body: Json, named: Json, key: int) -> None:
        """A client that is impatient posts the same twice."""
        pair = [self.post_for(body, named, key)] * 2
        self.model = serially(self.client, self.model, pair, self.send(*pair))

    # What has to be true then

    @rule(which=st.integers(0, 9))
    def read_an_order(self, which: int) -> None:
        ids = sorted(self.model.orders, reverse=True)
        order = self.model.orders[ids[which % len(ids)]]
        reply = self.client.get(f"/api/order/{order['id']}")
        assert (reply.status, reply.json, reply.headers["etag"]) == (200, order, f'"{order["version"]}"')

    @rule()
    def read_the_board(self) -> None:
        assert self.mine(self.client.get("/api/orders?status=open").json) == self.model.board

    def mine(self, orders: list[Json]) -> list[Json]:
        """Those of this run; the server has seen others."""
        return [order for order in orders if order["id"] in self.model.orders]

    def every_screen_shows_the_truth(self) -> None:
        """The log has just the model's events, and the screen's board is the list; each version was an event once."""
        events = self.client.history(self.cursor)
        assert [(event["type"], event["order"]) for event in events] == self.model.events
        for order_id, order in self.model.orders.items():
            versions = [event["order"]["version"] for event in events if event["order"]["id"] == order_id]
            assert versions == [*range(1, order["version"] + 1)]
        trails = [self.client.get(f"/api/order/{order_id}/events").json for order_id in self.model.orders]
        log = sorted(change["seq"] for trail in trails for change in trail)
        assert log == [*range(log[0], log[0] + len(events))]
        initial, *told = events_up_to(self.screen, events[-1]["cursor"])
        assert told == events
        board: dict[int, Any] = {order["id"]: order for order in initial["orders"]}
        board |= {event["order"]["id"]: event["order"] for event in told}
        shown = [order for _, order in sorted(board.items(), reverse=True) if order["status"] in ON_THE_BOARD]
        assert shown == self.client.get("/api/orders?status=open").json
        assert self.mine(shown) == self.model.board


def test_any_sequence_of_requests(server: Server) -> None:
    """Whatever is asked in whatever order, also at once: answers, orders, log and screens are what the model says."""
    profile = settings(
        settings.get_profile(PROFILE),
        max_examples=150 if harness.engine.name == "sqlite" else 40,  # the rules are the same
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        print_blob=True,
    )

    class KitchenHere(Kitchen):
        def __init__(self) -> None:
            super().__init__(server)

    run_state_machine_as_test(KitchenHere, settings=profile)
