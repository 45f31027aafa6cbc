"""Bar charts as SVG, written by hand: no scripts, no fonts of their own, in the colours of a light or a dark page."""

from __future__ import annotations

from html import escape
from typing import Final, NamedTuple

WIDTH: Final = 760
NAME: Final = 300
"""Pixels for the names, left of the bars."""
VALUE: Final = 80
"""Pixels for the numbers, right of the bars."""
STEP: Final = 24
WIDE: Final = 390
"""Pixels for the names of figures."""
BESIDE: Final = 120
"""Pixels for a figure with its goal."""
COLOURS: Final = {"bistro92": "ours", "echo": "echo", "reference": "reference"}
"""What a name begins with → the class of its bar."""
STYLE: Final = """<style>
text { fill: #222 } .dim { fill: #5f5f5f } .paper { fill: #fff } path { stroke: #222; fill: none }
.ours { fill: #2a8a72 } .echo { fill: #9a9a9a } .reference { fill: #c27a34 } .other { fill: #5b82bd }
.good { fill: #2a8a72 } .bad { fill: #c2483d } .open { fill: #c9982b } .goal { stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
text { fill: #e6e6e6 } .dim { fill: #a5a5a5 } .paper { fill: #16191d } path { stroke: #e6e6e6 }
}
</style>"""
TWICE: Final = 2.0
"""How far the scale of goals() reaches, in goals."""


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
        words = f"{escape(unit)}, from 0: median, least and most"
        body.append(f'<text x="{NAME}" y="{y + 12}" font-size="11" class="dim">{words}</text>')
        y += 22
        scale = (WIDTH - NAME - VALUE) / (max(bar.high for bar in members) or 1)
        for bar in members:
            body.append(_bar(bar, y, scale))
            y += STEP
        y += 8
    return _page(title, y, body)


class Aim(NamedTuple):
    """A figure in units of its goal, and what is said of it."""

    name: str
    median: float
    low: float
    high: float
    label: str
    verdict: str
    """A class: good, bad, open."""


def goals(title: str, panels: dict[str, list[Aim]]) -> str:
    """Figures against their goals: all on one scale from 0, on which each goal is 1."""
    body, y = [f'<text x="16" y="26" font-size="15" font-weight="600">{escape(title)}</text>'], 44
    unit = (WIDTH - WIDE - BESIDE) / TWICE
    for words, members in panels.items():
        body.append(f'<text x="{WIDE}" y="{y + 12}" font-size="11" class="dim">{escape(words)}</text>')
        y += 22
        top = y
        for aim in members:
            middle = y + STEP // 2 - 2
            low, median, high = (min(max(value, 0), TWICE) * unit + WIDE for value in (aim.low, aim.median, aim.high))
            ends = f"M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8"
            ends += f"M{high:.1f} {middle - 4}v8" if aim.high <= TWICE else f"M{high - 5:.1f} {middle - 4}l5 4l-5 4"
            body += [
                f'<text x="{WIDE - 8}" y="{middle + 4}" text-anchor="end">{escape(aim.name)}</text>',
                f'<rect x="{WIDE}" y="{y + 2}" width="{median - WIDE:.1f}" height="{STEP - 8}" class="{aim.verdict}"/>',
                f'<path d="{ends}"/>',
                f'<text x="{WIDTH - BESIDE + 8}" y="{middle + 4}">{escape(aim.label)}</text>',
            ]
            y += STEP
        body.append(f'<path class="goal" d="M{WIDE + unit:.1f} {top - 4}V{y}"/>')
        y += 10
    return _page(title, y, body)


def _page(title: str, height: int, body: list[str]) -> str:
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="system-ui" font-size="12">'
    paper = f'<rect width="{WIDTH}" height="{height}" rx="6" class="paper"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, paper, *body, "</svg>"]) + "\n"


def _bar(bar: Bar, y: int, scale: float) -> str:
    colour = next((colour for word, colour in COLOURS.items() if bar.name.startswith(word)), "other")
    middle = y + STEP // 2 - 2
    low, high = NAME + bar.low * scale, NAME + bar.high * scale
    width = max(bar.median, 0) * scale
    whisker = f"M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"
    return "\n".join(
        [
            f'<text x="{NAME - 8}" y="{middle + 4}" text-anchor="end">{escape(bar.name)}</text>',
            f'<rect x="{NAME}" y="{y + 2}" width="{width:.1f}" height="{STEP - 8}" class="{colour}"/>',
            f'<path d="{whisker}"/>',
            f'<text x="{high + 8:.1f}" y="{middle + 4}">{escape(bar.label)}</text>',
        ]
    )
