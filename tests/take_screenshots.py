"""`python -m tests.take_screenshots`: the pictures of the README, docs/screenshots/*.png.

A real server and a real browser show an evening that is made up: what a browser receives is shifted in time, because
a server can't be told that an order has been waiting for ten minutes.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import tempfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Browser, Page, Route, WebSocketRoute, sync_playwright

from tests.harness import ROOT, Client, Json, Server

FOLDER: Final = ROOT / "docs" / "screenshots"
SIZE: Final = {"width": 1280, "height": 800}
DISHES: Final = {
    "Burger": "grill", "Rib-eye Steak": "grill", "French Fries": "fryer", "Caesar Salad": "cold",
    "Soup of the Day": "stove", "Spaghetti Carbonara": "stove", "Pizza Margherita": "oven",
    "Ice Cream": "dessert", "Espresso": "bar", "Mineral Water": "bar",
}  # fmt: skip
NOTES: Final = {
    "Burger": "no onions",
    "Rib-eye Steak": "medium rare",
    "Caesar Salad": "nut allergy",
    "Espresso": "decaf",
}
SERVED: Final = 90  # orders of the day that are done
OPEN: Final = 12
EVENING: Final = 20  # o'clock, where the pictures are taken
DRAW: Final = random.Random(92)


def an_evening(client: Client) -> dict[int, timedelta]:
    """Fill the house. Returns how long ago each order was placed."""
    ages = {}
    for place in range(SERVED + OPEN):
        items = [
            {"name": dish, "quantity": DRAW.randint(1, 3), "station": DISHES[dish]}
            | ({"note": NOTES[dish]} if dish in NOTES and DRAW.random() < 0.35 else {})
            for dish in DRAW.sample(sorted(DISHES), DRAW.randint(1, 3))
        ]
        order: Json = {"table": f"Table {DRAW.randint(1, 14)}", "items": items}
        if place == SERVED + 7:
            order |= {"priority": "rush", "note": "Birthday: candle, please"}
        number = client.place(order)["id"]
        if place < SERVED:
            lunch = DRAW.random() < 0.4
            ages[number] = timedelta(minutes=DRAW.gauss(420, 45) if lunch else abs(DRAW.gauss(100, 55)) + 25)
            client.request("PATCH", f"/api/order/{number}", {"status": "ready"})
            if place < SERVED - 4:
                client.request("PATCH", f"/api/order/{number}", {"status": "completed"})
        else:
            ages[number] = timedelta(minutes=1.3 * (SERVED + OPEN - place) + DRAW.random())
    return ages


def shift(order: Json, ages: dict[int, timedelta]) -> None:
    """Move an order to when it would have been placed, and its preparation to a plausible length."""
    age = ages.get(order["id"], timedelta())
    placed = datetime.fromisoformat(order["created_at"]) - age
    cooked = placed + timedelta(minutes=4 + (order["id"] * 37 % 100) / 9)
    order["created_at"] = placed.isoformat()
    if "ready_at" in order:
        order["ready_at"] = cooked.isoformat()


def make_up_times(page: Page, ages: dict[int, timedelta]) -> None:
    """Shift whatever the page is told about orders."""

    def feed(socket: WebSocketRoute) -> None:
        upstream = socket.connect_to_server()

        def alter(message: str | bytes) -> None:
            told = json.loads(message)
            for order in told.get("orders", []):
                shift(order, ages)
            socket.send(json.dumps(told))

        upstream.on_message(alter)

    def orders(route: Route) -> None:
        response = route.fetch()
        if response.status != 200:
            return route.fulfill(response=response)
        listed = response.json()
        for order in listed:
            shift(order, ages)
        return route.fulfill(response=response, json=listed)

    def stats(route: Route) -> None:
        figures: dict[str, Any] = route.fetch().json()
        figures |= {"prep_seconds": {"count": SERVED, "p50": 582, "p90": 854}, "oldest_open_seconds": 961}
        figures |= {"orders_last_hour": 31, "subscribers": 4}
        route.fulfill(json=figures)

    page.route_web_socket(re.compile("/ws/orders"), feed)
    page.route("**/api/orders?*", orders)
    page.route("**/api/stats", stats)


def take(browser: Browser, server: Server, ages: dict[int, timedelta], name: str, path: str, **options: Any) -> None:
    """Open a screen, bring it to life, and keep what it looks like."""
    offset = (EVENING - datetime.now(UTC).hour + 11) % 24 - 11  # Etc/GMT-3 is three hours ahead
    zone = {"timezone_id": f"Etc/GMT{-offset:+d}"}
    defaults = {"viewport": SIZE, "locale": "en-GB", "reduced_motion": "reduce", "service_workers": "block"}
    context = browser.new_context(**{**defaults, **zone, **options})
    page = context.new_page()
    make_up_times(page, ages)
    page.goto(f"http://127.0.0.1:{server.port}{path}")
    if path == "/":
        page.locator('#health[data-state="LIVE"]').wait_for()
    else:
        page.locator('#state[data-state="LIVE"]').wait_for()
    if path == "/pos":
        page.get_by_role("button", name="Table 4", exact=True).click()
        for dish in ("Burger", "Burger", "French Fries", "Mineral Water"):
            page.locator(".tile").filter(has_text=dish).click()
        page.locator(".draft-line .name").first.click()
        page.get_by_label("Note", exact=True).first.fill("no onions")
        page.locator(".draft-line .name").first.click()
    elif path == "/dashboard":
        page.locator("#prep svg").wait_for()
    page.screenshot(path=FOLDER / f"{name}.png")
    context.close()


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tool:
        server = Server(Path(folder))
        browser = tool.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        )
        try:
            with closing(server.start().client()) as client:
                ages = an_evening(client)
                waiting = client.get("/api/orders?status=received").json
                client.request("PATCH", f"/api/order/{waiting[-3]['id']}/items/1", {"status": "ready"})
            take(browser, server, ages, "start", "/")
            take(browser, server, ages, "kitchen", "/kitchen")
            take(browser, server, ages, "pos", "/pos", viewport={"width": 1024, "height": 768})
            take(browser, server, ages, "dashboard", "/dashboard")
            take(browser, server, ages, "ready", "/ready", color_scheme="dark")
        finally:
            browser.close()
            server.end()


if __name__ == "__main__":
    main()
