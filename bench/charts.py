"""Bar charts as SVG, written by hand: no scripts, no fonts of their own, readable on light and dark pages."""

from __future__ import annotations

from html import escape
from typing import Final, NamedTuple

WIDTH: Final = 760
NAME: Final = 300
"""Pixels for the names, left of the bars."""
VALUE: Final = 80
"""Pixels for the numbers, right of the bars."""
STEP: Final = 24
COLOURS: Final = {"bistro92": "#1f6f5c", "echo": "#8a8a8a", "reference": "#b5651d"}
OTHER: Final = "#4a6fa5"


class Bar(NamedTuple):
    """A median, its spread, and how the median is written."""

    name: str
    median: float
    low: float
    high: float
    label: str


def bars(title: str, panels: dict[str, list[Bar]]) -> str:
    """Horizontal bars with their spread as whiskers; a panel for each unit, each with a scale of its own from 0."""
    body, y = [f'<text x="16" y="26" font-size="15" font-weight="600">{escape(title)}</text>'], 44
    for unit, members in panels.items():
        body.append(
            f'<text x="{NAME}" y="{y + 12}" font-size="11" fill="#666">{escape(unit)}, median, least and most</text>'
        )
        y += 22
        scale = (WIDTH - NAME - VALUE) / (max(bar.high for bar in members) or 1)
        for bar in members:
            body.append(_bar(bar, y, scale))
            y += STEP
        y += 8
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" role="img"'
    style = 'font-family="system-ui, sans-serif" font-size="12" fill="#222"'
    paper = f'<rect width="{WIDTH}" height="{y}" rx="6" fill="#fff"/>'
    return "\n".join([f"{head} {style}>", f"<title>{escape(title)}</title>", paper, *body, "</svg>"]) + "\n"


def _bar(bar: Bar, y: int, scale: float) -> str:
    colour = next((colour for word, colour in COLOURS.items() if bar.name.startswith(word)), OTHER)
    middle = y + STEP // 2 - 2
    low, high = NAME + bar.low * scale, NAME + bar.high * scale
    width = max(bar.median, 0) * scale
    whisker = f"M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"
    return "\n".join(
        [
            f'<text x="{NAME - 8}" y="{middle + 4}" text-anchor="end">{escape(bar.name)}</text>',
            f'<rect x="{NAME}" y="{y + 2}" width="{width:.1f}" height="{STEP - 8}" fill="{colour}"/>',
            f'<path d="{whisker}" stroke="#222"/>',
            f'<text x="{high + 8:.1f}" y="{middle + 4}">{escape(bar.label)}</text>',
        ]
    )
