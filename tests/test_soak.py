"""The soak can fail: what it is to find is put before it, and it finds it."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from tests.harness import Client, Json, Server, an_order
from tests.soak import GROWTH_BYTES, MOST_FILES, MOST_WAL_BYTES, Screen, Till, compare, flatness

MEMORY, FILES, WAL = 100_000_000, 40, 4_000_000
SECONDS = 60


def test_flat_samples() -> None:
    """What wavers and doesn't grow is flat."""
    samples = [(MEMORY + second % 7 * 1_000_000, FILES + second % 5, WAL) for second in range(SECONDS)]
    assert flatness(samples, 1000)["flat"]


@pytest.mark.parametrize(
    "growing",
    [
        lambda second: (MEMORY + second * 2 * GROWTH_BYTES // SECONDS, FILES, WAL),
        lambda second: (MEMORY, FILES + second * 2 * MOST_FILES // SECONDS, WAL),
        lambda second: (MEMORY, FILES, WAL + second * MOST_WAL_BYTES // SECONDS),
    ],
    ids=["memory", "files", "WAL"],
)
def test_samples_that_grow(growing: Any) -> None:
    """Memory, descriptors or a WAL that grow all the time are not flat."""
    assert not flatness([growing(second) for second in range(SECONDS)], 0)["flat"]


class Books:
    """A server's answers, as a client reads them."""

    def __init__(self, *orders: Json) -> None:
        self.listed = list(orders)
        self.told = [{"cursor": f"e-{seq}", "order": order} for seq, order in enumerate(orders, 1)]

    def orders(self) -> list[Json]:
        return self.listed

    def cursor(self) -> str:
        return f"e-{len(self.told)}"

    def get(self, path: str) -> Any:
        return type("Answer", (), {"json": self.listed})

    def history(self, after: str) -> list[Json]:
        return self.told[int(after.rpartition("-")[2]) :]


def found(books: Books, *, answered: int = 2, told: int = 2, board: dict[int, Json] | None = None) -> list[int]:
    """What compare says of a till that was answered, and a screen that was told, so many orders."""
    server, ending = cast("Server", None), threading.Event()
    till, screen = Till(server, "till", ending), Screen(server, "screen", ending, "e-0", sse=False)
    till.answered = {f"till-{number}": number + 1 for number in range(answered)}
    for event in books.told[:told]:
        screen.take(event)
    screen.board.update(board or {})
    return list(compare(cast("Client", books), [till], [screen]).values())


def placed(number: int, name: str | None = None) -> Json:
    return {"id": number, "status": "received", **an_order(name or f"till-{number - 1}")}


def test_books_that_agree() -> None:
    """Nothing is wrong, also where the screen had not been told of the last order when it ended."""
    assert found(Books(placed(1), placed(2))) == [0, 0, 0, 0]
    assert found(Books(placed(1), placed(2)), told=1) == [0, 0, 0, 0]


def test_books_that_do_not() -> None:
    """An order that was lost, doubled, or that nobody asked for, and a screen that shows another board, are found."""
    assert found(Books(placed(1), placed(2)), answered=3)[0] == 1
    assert found(Books(placed(1), placed(2), placed(3, "till-1")))[1] == 1
    assert found(Books(placed(1), placed(2), placed(3, "somebody else")))[2] == 1
    assert found(Books(placed(1), placed(2)), board={9: placed(9)})[3] == 1


def test_a_screen_that_is_told_twice() -> None:
    """Or out of order, or not at all: it fails at once."""
    books = Books(placed(1), placed(2))
    books.told[1]["cursor"] = "e-3"
    with pytest.raises(AssertionError, match="e-3 after e-1"):
        found(books)
