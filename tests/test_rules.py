"""The rules of an order, by table: plain functions, without a server, a loop or a clock."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pytest

import app
from tests.harness import Json

THEN: Final = "2026-11-20T18:00:00Z"  # when the orders of these tests were last changed
NOW: Final = "2026-11-20T18:15:02Z"  # when something is done to them
SOON: Final = "2026-11-20T18:15:03Z"  # the next second
LATER: Final = "2026-11-20T19:00:00Z"

STATES: Final = ("scheduled", "received", "preparing", "ready", "completed", "cancelled")
ALLOWED: Final = {
    "scheduled": {"received", "preparing", "ready", "completed", "cancelled"},
    "received": {"preparing", "ready", "completed", "cancelled"},
    "preparing": {"ready", "completed", "cancelled"},
    "ready": {"completed", "cancelled", "preparing"},
    "completed": {"preparing"},
    "cancelled": set[str](),
}
"""The states of DESIGN.md, section 2: forward moves may skip, recall goes to preparing, cancelled is final."""

STAMPS_OF: Final[dict[str, dict[str, str]]] = {
    "scheduled": {},
    "received": {},
    "preparing": {"started_at": THEN},
    "ready": {"started_at": THEN, "ready_at": THEN},
    "completed": {"started_at": THEN, "ready_at": THEN, "completed_at": THEN},
    "cancelled": {"cancelled_at": THEN},
}
STAMP_NAMES: Final = ("fired_at", "started_at", "ready_at", "completed_at", "cancelled_at")

Rule = Callable[[Any], Json]


# How the rules are called, in one place.


def place(new: Json) -> Json:
    return app.place(None, NOW, new)  # type: ignore[arg-type, return-value]


def moved(to: str) -> Rule:
    return lambda order: app.move(order, NOW, to)  # type: ignore[arg-type, return-value]


def amended(**amendment: Any) -> Rule:
    return lambda order: app.amend(order, NOW, amendment)  # type: ignore[arg-type, return-value]


def appended(*lines: Any) -> Rule:
    return lambda order: app.append_lines(order, NOW, [*lines])  # type: ignore[return-value]


def marked(line: int, to: str) -> Rule:
    return lambda order: app.mark_line(order, NOW, line, to)  # type: ignore[arg-type, return-value]


def cancelled(reason: str | None = None) -> Rule:
    return lambda order: app.cancel(order, NOW, reason)  # type: ignore[return-value]


def fired(order: Any) -> Json:
    return app.fire(order, NOW)  # type: ignore[return-value]


def line(state: str = "p", name: str = "Burger", **more: Any) -> Json:
    """A line: p for pending, r for ready, v for voided."""
    status = {"p": {}, "r": {"status": "ready"}, "v": {"status": "voided"}}[state]
    return {"name": name, "quantity": 1, **more, **status}


def an_order(status: str = "received", lines: str = "pp", **more: Any) -> Json:
    """An order in a state, with a line for each letter."""
    when = {"fire_at": LATER} if status == "scheduled" else {}
    return {
        "id": 7,
        "table": "Table 1",
        "items": [line(each) for each in lines],
        "created_at": THEN,
        "status": status,
        "version": 3,
        "updated_at": THEN,
        **when,
        **STAMPS_OF[status],
        **more,
    }


def lines_of(order: Json) -> str:
    return "".join(each.get("status", "pending")[0] for each in order["items"])


def stamps_of(order: Json) -> dict[str, str]:
    return {name: order[name] for name in STAMP_NAMES if name in order}


def apply(rule: Rule, order: Json) -> Json:
    """Apply a rule, which must leave the order that it is given as it was, lines included."""
    before = copy.deepcopy(order)
    try:
        after = rule(order)
    finally:
        assert order == before, "the rule changed what it was given"
    if after is not order:
        assert after != before, "a rule that changes nothing returns the same object"
    return after


def refusal(rule: Rule, order: Json) -> app.Problem:
    with pytest.raises(app.Problem) as raised:
        apply(rule, order)
    return raised.value


# ---------------------------------------------------------------------------------------------------------------------
# States
# ---------------------------------------------------------------------------------------------------------------------


def test_state_table() -> None:
    """The table of transitions has every state, and just the moves that the contract allows."""
    assert {status: set(targets) for status, targets in app.NEXT.items()} == ALLOWED
    assert set(app.OPEN) == {"received", "preparing", "ready"}
    assert set(app.CLOSED) == {"completed", "cancelled"}


@pytest.mark.parametrize("to", STATES)
@pytest.mark.parametrize("status", STATES)
def test_move_from_every_state_to_every_state(status: str, to: str) -> None:
    """A move is made, refused with 409, or nothing because it was made already: as the table says for each pair."""
    order = an_order(status, "rr" if status in {"ready", "completed"} else "pp")
    for rule in (moved(to), amended(status=to)):
        if to == status:
            assert apply(rule, order) is order
        elif to in ALLOWED[status]:
            assert apply(rule, order)["status"] == to
        else:
            problem = refusal(rule, order)
            assert problem.code == "invalid_transition"
            assert app.CODES[problem.code][0] == 409
            assert status in str(problem)
            assert to in str(problem)


@pytest.mark.parametrize(
    ("status", "to", "stamps"),
    [
        ("scheduled", "received", {"fired_at": NOW}),
        ("scheduled", "preparing", {"fired_at": NOW, "started_at": NOW}),
        ("scheduled", "ready", {"fired_at": NOW, "ready_at": NOW}),
        ("scheduled", "completed", {"fired_at": NOW, "completed_at": NOW}),
        ("scheduled", "cancelled", {"cancelled_at": NOW}),
        ("received", "preparing", {"started_at": NOW}),
        ("received", "ready", {"ready_at": NOW}),
        ("received", "completed", {"completed_at": NOW}),
        ("received", "cancelled", {"cancelled_at": NOW}),
        ("preparing", "ready", {"started_at": THEN, "ready_at": NOW}),
        ("preparing", "completed", {"started_at": THEN, "completed_at": NOW}),
        ("preparing", "cancelled", {"started_at": THEN, "cancelled_at": NOW}),
        ("ready", "completed", {"started_at": THEN, "ready_at": THEN, "completed_at": NOW}),
        ("ready", "cancelled", {"started_at": THEN, "ready_at": THEN, "cancelled_at": NOW}),
        ("ready", "preparing", {"started_at": THEN}),
        ("completed", "preparing", {"started_at": THEN}),
    ],
)
def test_stamps_of_every_move(status: str, to: str, stamps: dict[str, str]) -> None:
    """The server stamps the state that is entered; a recall takes back the stamps of what was recalled."""
    order = an_order(status, "rr" if status in {"ready", "completed"} else "pp")
    assert stamps_of(apply(moved(to), order)) == stamps


@pytest.mark.parametrize("status", ["scheduled", "received", "preparing"])
@pytest.mark.parametrize(("lines", "then"), [("pp", "rr"), ("pr", "rr"), ("vp", "vr"), ("p", "r")])
def test_lines_of_an_order_that_becomes_ready(status: str, lines: str, then: str) -> None:
    """When an order becomes ready, its pending lines do; voided ones stay voided."""
    after = apply(moved("ready"), an_order(status, lines))
    assert (after["status"], lines_of(after)) == ("ready", then)


@pytest.mark.parametrize(
    ("status", "to"),
    [(status, to) for status, targets in sorted(ALLOWED.items()) for to in sorted(targets) if to != "ready"],
)
def test_lines_of_every_other_move(status: str, to: str) -> None:
    """No other move of an order touches its lines."""
    lines = "rv" if status in {"ready", "completed"} else "prv"
    assert lines_of(apply(moved(to), an_order(status, lines))) == lines


def test_move_changes_nothing_else() -> None:
    """A move leaves table, notes, names, times and the order of lines alone; version and id are the transaction's."""
    order = an_order("received", "pv", note="window", priority="rush", source="till", external_id="9")
    assert apply(moved("preparing"), order) == {**order, "status": "preparing", "started_at": NOW}


# ---------------------------------------------------------------------------------------------------------------------
# Lines
# ---------------------------------------------------------------------------------------------------------------------


class Tap(NamedTuple):
    """An order, the line that is tapped and what for, and what comes of it."""

    status: str
    lines: str
    line: int
    to: str
    then: str
    then_lines: str
    stamped: tuple[str, ...] = ()  # what is stamped anew
    gone: tuple[str, ...] = ()  # the stamps that are taken back


TAPS: Final = [
    # Its first ready line makes a received order preparing.
    Tap("received", "ppp", 2, "ready", "preparing", "prp", ("started_at",)),
    Tap("received", "pv", 1, "ready", "ready", "rv", ("started_at", "ready_at")),
    Tap("received", "vp", 1, "ready", "preparing", "rp", ("started_at",)),
    # When its last unvoided line is ready, it is.
    Tap("received", "p", 1, "ready", "ready", "r", ("started_at", "ready_at")),
    Tap("preparing", "pr", 1, "ready", "ready", "rr", ("ready_at",)),
    Tap("preparing", "prv", 1, "ready", "ready", "rrv", ("ready_at",)),
    Tap("preparing", "ppr", 1, "ready", "preparing", "rpr"),
    Tap("preparing", "rv", 2, "ready", "ready", "rr", ("ready_at",)),
    Tap("scheduled", "pp", 1, "ready", "scheduled", "rp"),
    Tap("scheduled", "pr", 1, "ready", "ready", "rr", ("fired_at", "ready_at")),
    # A line of a ready order that is set back to pending makes it preparing.
    Tap("ready", "rr", 1, "pending", "preparing", "pr", (), ("ready_at",)),
    Tap("ready", "rv", 1, "pending", "preparing", "pv", (), ("ready_at",)),
    Tap("ready", "rv", 2, "pending", "preparing", "rp", (), ("ready_at",)),
    Tap("preparing", "rp", 1, "pending", "preparing", "pp"),
    Tap("received", "pv", 2, "pending", "received", "pp"),
    Tap("scheduled", "pv", 2, "pending", "scheduled", "pp"),
    # When the lines that are left unvoided are all ready, the order is.
    Tap("preparing", "rp", 2, "voided", "ready", "rv", ("ready_at",)),
    Tap("preparing", "rpp", 2, "voided", "preparing", "rvp"),
    Tap("preparing", "rr", 1, "voided", "ready", "vr", ("ready_at",)),
    Tap("received", "pp", 2, "voided", "received", "pv"),
    Tap("scheduled", "pp", 1, "voided", "scheduled", "vp"),
    Tap("ready", "rr", 1, "voided", "ready", "vr"),
    Tap("ready", "rv", 2, "ready", "ready", "rr"),
    # All lines voided cancels it.
    Tap("scheduled", "p", 1, "voided", "cancelled", "v", ("cancelled_at",)),
    Tap("received", "vp", 2, "voided", "cancelled", "vv", ("cancelled_at",)),
    Tap("preparing", "pv", 1, "voided", "cancelled", "vv", ("cancelled_at",)),
    Tap("ready", "r", 1, "voided", "cancelled", "v", ("cancelled_at",)),
]


@pytest.mark.parametrize("tap", TAPS, ids=lambda tap: f"{tap.status}-{tap.lines}-{tap.line}-{tap.to}")
def test_order_follows_its_lines(tap: Tap) -> None:
    """A tapped line changes, and its order as the rules of lines say, with the stamps of what that entered."""
    order = an_order(tap.status, tap.lines)
    after = apply(marked(tap.line, tap.to), order)
    assert (after["status"], lines_of(after)) == (tap.then, tap.then_lines)
    kept = {name: at for name, at in stamps_of(order).items() if name not in tap.gone}
    assert stamps_of(after) == {**kept, **dict.fromkeys(tap.stamped, NOW)}


@pytest.mark.parametrize("status", STATES)
@pytest.mark.parametrize(("lines", "to"), [("p", "pending"), ("r", "ready"), ("v", "voided")])
def test_line_tapped_twice(status: str, lines: str, to: str) -> None:
    """A line that is asked for the state it is in changes nothing, even where the order is closed."""
    order = an_order(status, lines + "p")
    assert apply(marked(1, to), order) is order


@pytest.mark.parametrize("status", ["completed", "cancelled"])
@pytest.mark.parametrize(
    ("lines", "to"),
    [("p", "ready"), ("p", "voided"), ("r", "pending"), ("r", "voided"), ("v", "ready"), ("v", "pending")],
)
def test_line_of_a_closed_order(status: str, lines: str, to: str) -> None:
    """Lines of a completed or cancelled order don't change: 409."""
    problem = refusal(marked(1, to), an_order(status, lines))
    assert problem.code == "order_closed"
    assert app.CODES[problem.code][0] == 409


@pytest.mark.parametrize("place", [0, 3, 101, 10**30])
def test_line_that_the_order_does_not_have(place: int) -> None:
    """Lines count from 1 to the last one; any other is 404."""
    problem = refusal(marked(place, "ready"), an_order("received", "pp"))
    assert problem.code == "line_not_found"
    assert app.CODES[problem.code][0] == 404


def test_marked_line_keeps_what_it_says() -> None:
    """A line that is struck, set back and voided keeps its name, quantity, note, station and place."""
    plain = [line(name="Soup", note="no nuts", station="hot"), line(name="Salad")]
    order = an_order("preparing", "")
    order["items"] = plain
    ready = apply(marked(1, "ready"), order)
    assert ready["items"] == [{**plain[0], "status": "ready"}, plain[1]]
    assert apply(marked(1, "pending"), ready)["items"] == plain
    assert apply(marked(1, "voided"), ready)["items"] == [{**plain[0], "status": "voided"}, plain[1]]


@pytest.mark.parametrize(
    ("status", "then", "gone"),
    [
        ("scheduled", "scheduled", ()),
        ("received", "received", ()),
        ("preparing", "preparing", ()),
        ("ready", "preparing", ("ready_at",)),
    ],
)
def test_appended_lines(status: str, then: str, gone: tuple[str, ...]) -> None:
    """New lines come last and are pending; on a ready order they make it preparing, elsewhere its state stays."""
    order = an_order(status, "rv")
    more = [line(name="Pie", note="hot"), line(name="Tea", station="bar")]
    after = apply(appended(*more), order)
    assert after["items"] == [*order["items"], *more]
    assert after["status"] == then
    assert stamps_of(after) == {name: at for name, at in stamps_of(order).items() if name not in gone}


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_lines_appended_to_a_closed_order(status: str) -> None:
    """No lines are added to a completed or cancelled order: 409."""
    assert refusal(appended(line()), an_order(status)).code == "order_closed"


def test_lines_appended_up_to_the_limit_and_beyond() -> None:
    """An order grows to 100 lines; one more is refused with its pointer, and none of that request is added."""
    order = an_order("received", "p" * 98)
    assert len(apply(appended(line(), line()), order)["items"]) == 100
    problem = refusal(appended(line(), line(), line()), order)
    assert problem.code == "invalid_request"
    assert [fault["pointer"] for fault in problem.errors] == ["/items"]


# ---------------------------------------------------------------------------------------------------------------------
# Placing, and time
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fire_at", "status"),
    [(None, "received"), (LATER, "scheduled"), (NOW, "received"), (THEN, "received"), (SOON, "scheduled")],
)
def test_placed_order(fire_at: str | None, status: str) -> None:
    """A new order is received, or scheduled where its fire_at is in the future; it comes back as it was sent."""
    new: Json = {"table": "Bar", "items": [line(note="no nuts")], "note": "hot", "source": "till", "external_id": "1"}
    if fire_at:
        new["fire_at"] = fire_at
    sent = copy.deepcopy(new)
    order = place(new)
    assert new == sent
    assert {name: order[name] for name in sent} == sent
    assert order["status"] == status
    assert (order["created_at"], order["updated_at"]) == (NOW, NOW)
    assert stamps_of(order) == {}


@pytest.mark.parametrize(
    ("fire_at", "status"), [(THEN, "received"), (NOW, "received"), (SOON, "scheduled"), (LATER, "scheduled")]
)
def test_fire_when_due_and_before(fire_at: str, status: str) -> None:
    """A scheduled order enters the kitchen once its time has come, not before."""
    order = an_order("scheduled", fire_at=fire_at)
    after = apply(fired, order)
    assert after["status"] == status
    assert (after is order) == (status == "scheduled")
    assert stamps_of(after) == ({} if status == "scheduled" else {"fired_at": NOW})


def test_fire_an_order_that_was_begun() -> None:
    """A line that was ready before its order's time makes it preparing, as it would one that is received."""
    order = an_order("scheduled", "pr", fire_at=NOW)
    after = apply(fired, order)
    assert after["status"] == "preparing"
    assert stamps_of(after) == {"fired_at": NOW, "started_at": NOW}


@pytest.mark.parametrize("status", [status for status in STATES if status != "scheduled"])
def test_fire_an_order_that_was_moved_meanwhile(status: str) -> None:
    """An order that entered the kitchen early, or was cancelled, doesn't fire again."""
    order = an_order(status, fire_at=THEN)
    assert apply(fired, order) is order


# ---------------------------------------------------------------------------------------------------------------------
# Amending
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["scheduled", "received", "preparing", "ready", "completed"])
@pytest.mark.parametrize("amendment", [{"table": "Bar"}, {"note": "window"}, {"priority": "rush"}])
def test_amendment_of_an_order_that_is_not_cancelled(status: str, amendment: Json) -> None:
    """Table, note and priority change, and nothing else does."""
    order = an_order(status, "rv")
    assert apply(amended(**amendment), order) == {**order, **amendment}


@pytest.mark.parametrize("amendment", [{"table": "Bar"}, {"note": "window"}, {"priority": "rush"}, {"fire_at": LATER}])
def test_amendment_of_a_cancelled_order(amendment: Json) -> None:
    """A cancelled order is final: 409."""
    problem = refusal(amended(**amendment), an_order("cancelled"))
    assert app.CODES[problem.code][0] == 409


@pytest.mark.parametrize("status", STATES)
@pytest.mark.parametrize("amendment", [{}, {"table": "Table 1"}, {"note": "n", "priority": "rush"}])
def test_amendment_to_what_it_is_already(status: str, amendment: Json) -> None:
    """Asking for what the order says already changes nothing, in any state."""
    order = an_order(status, note="n", priority="rush")
    assert apply(amended(**amendment), order) is order
    assert apply(amended(**amendment, status=status), order) is order


@pytest.mark.parametrize("nothing", [None, ""])
def test_note_taken_away(nothing: str | None) -> None:
    """A note that is null or empty takes the note away; where there is none that changes nothing."""
    order = an_order(note="window")
    bare = apply(amended(note=nothing), order)
    assert bare == {name: value for name, value in order.items() if name != "note"}
    assert apply(amended(note=nothing), bare) is bare


def test_priority_that_goes_without_saying() -> None:
    """An order without a priority is a normal one: to make it so changes nothing, a rush one it does change."""
    order = an_order()
    assert apply(amended(priority="normal"), order) is order
    rush = apply(amended(priority="rush"), order)
    assert apply(amended(priority="normal"), rush)["priority"] == "normal"


def test_amendment_of_several_things_at_once() -> None:
    """One amendment changes all that it names, and the state last."""
    after = apply(amended(table="Bar", note="window", priority="rush", status="ready"), an_order("received", "pv"))
    assert (after["table"], after["note"], after["priority"], after["status"]) == ("Bar", "window", "rush", "ready")
    assert lines_of(after) == "rv"


def test_amendment_of_which_a_part_is_refused() -> None:
    """Where a part of an amendment is refused, all of it is."""
    assert refusal(amended(table="Bar", status="received"), an_order("ready", "rr")).code == "invalid_transition"
    assert refusal(amended(fire_at=LATER, status="ready"), an_order("received")).code == "not_scheduled"


def test_fire_at_of_a_scheduled_order() -> None:
    """While an order is scheduled its time can change: to a later one it waits, to one that isn't it fires now."""
    order = an_order("scheduled")
    later = "2026-11-21T12:00:00Z"
    assert apply(amended(fire_at=later), order) == {**order, "fire_at": later}
    for past in (THEN, NOW):
        expected = {**order, "fire_at": past, "status": "received", "fired_at": NOW}
        assert apply(amended(fire_at=past), order) == expected


@pytest.mark.parametrize("status", ["received", "preparing", "ready", "completed"])
@pytest.mark.parametrize("had", [{}, {"fire_at": THEN}])
@pytest.mark.parametrize("fire_at", [LATER, "2026-11-20T17:00:00Z"])
def test_fire_at_of_an_order_in_the_kitchen(status: str, had: Json, fire_at: str) -> None:
    """Once an order is not scheduled any more its time can't change: 409."""
    problem = refusal(amended(fire_at=fire_at), an_order(status, **had))
    assert problem.code == "not_scheduled"
    assert app.CODES[problem.code][0] == 409


# ---------------------------------------------------------------------------------------------------------------------
# Cancelling
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [None, "", "guests left"])
@pytest.mark.parametrize("status", ["scheduled", "received", "preparing", "ready"])
def test_cancel(status: str, reason: str | None) -> None:
    """An order that is not completed is cancelled, with the reason where one is given; its lines stay on record."""
    order = an_order(status, "rv")
    told = {"cancel_reason": reason} if reason else {}
    assert apply(cancelled(reason), order) == {**order, "status": "cancelled", "cancelled_at": NOW, **told}


def test_cancel_twice() -> None:
    """Cancelling a cancelled order changes nothing, not even the reason."""
    order = an_order("cancelled", cancel_reason="guests left")
    assert apply(cancelled("another reason"), order) is order


def test_cancel_a_completed_order() -> None:
    """A completed order cannot be cancelled: 409."""
    assert refusal(cancelled("late"), an_order("completed", "rr")).code == "invalid_transition"


# ---------------------------------------------------------------------------------------------------------------------
# What follows from an order
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", STATES)
def test_still_to_cook(status: str) -> None:
    """What is still to be cooked are the pending lines of an open order, each with its quantity."""
    order = an_order(status, "rv")
    order["items"] += [line(name="Pie", quantity=3), line(name="Tea", quantity=2), line(name="Pie", quantity=1)]
    expected = [("Pie", 3), ("Tea", 2), ("Pie", 1)] if status in {"received", "preparing", "ready"} else []
    assert list(app.still_to_cook(order)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "order", "expected"),
    [
        (amended(table="Bar"), an_order(), {"/table": ["Table 1", "Bar"]}),
        (amended(note="window"), an_order(), {"/note": [None, "window"]}),
        (amended(note=None), an_order(note="window"), {"/note": ["window", None]}),
        (moved("preparing"), an_order(), {"/status": ["received", "preparing"], "/started_at": [None, NOW]}),
        (moved("preparing"), an_order("ready", "r"), {"/status": ["ready", "preparing"], "/ready_at": [THEN, None]}),
        (marked(2, "voided"), an_order(), {"/items/1/status": [None, "voided"]}),
        (marked(1, "pending"), an_order("preparing", "rp"), {"/items/0/status": ["ready", None]}),
        (appended(line(name="Pie")), an_order(), {"/items/2/name": [None, "Pie"], "/items/2/quantity": [None, 1]}),
        (
            cancelled("late"),
            an_order(),
            {"/status": ["received", "cancelled"], "/cancelled_at": [None, NOW], "/cancel_reason": [None, "late"]},
        ),
    ],
)
def test_differences(rule: Rule, order: Json, expected: Json) -> None:
    """The audit trail names just what changed: JSON pointer, before and after, null for what wasn't or isn't there."""
    assert app.differences(order, apply(rule, order)) == expected  # type: ignore[arg-type]


def test_differences_of_nothing() -> None:
    """What the transaction counts by itself, version and updated_at, is no difference."""
    assert app.differences(an_order(), an_order(version=4, updated_at=NOW)) == {}  # type: ignore[arg-type]
