"""What rows measure, how it is summed up, and how it is written down: RESULTS.md, results.json, an SVG a row."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import charts

TIMES: Final = "\N{MULTIPLICATION SIGN}"
BOTTLENECK: Final = 0.85
"""Of a core: a generator that is busier measures itself."""
SPREAD: Final = "min \N{EN DASH} max"


def percentile(values: list[float], share: float) -> float:
    """The value that this share of the values stays below or at."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def show(value: float) -> str:
    """A number with three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


@dataclass
class Series:
    """One thing measured in every round."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        return SPREAD.replace("min", show(min(self.values))).replace("max", show(max(self.values)))


@dataclass
class Figure(Series):
    """What a row is about: a ratio or a difference of two sides of the same round, and its goal."""

    goal: float | None = None
    later: float | None = None
    """A stricter goal that comes later."""
    at_least: bool = True

    @property
    def wanted(self) -> str:
        """The goals in words."""
        sign = "≥" if self.at_least else "≤"
        words = [] if self.goal is None else [f"{sign} {self.goal:g}"]
        return ", ".join(words if self.later is None else [*words, f"later {sign} {self.later:g}"])

    def aim(self, row: int) -> charts.Aim | None:
        """It in units of its goal, for the chart."""
        if not self.goal:
            return None
        open_ = min(self.values) < self.goal < max(self.values)
        kind = "open" if open_ else "good" if self._met(self.goal) else "bad"
        median, low, high = (value / self.goal for value in (self.median, min(self.values), max(self.values)))
        sign = "" if self.unit == TIMES else f" {self.unit}"
        label = f"{show(self.median)}{sign} / {self.goal:g}"
        return charts.Aim(f"{row}. {self.name}", median, low, high, label, kind)

    @property
    def verdict(self) -> str:
        """Whether the median meets them, and whether the spread lets one say so."""
        if not self.wanted:
            return ""
        if not self._met(self.goal):
            word = "**not met**"
        elif not self._met(self.later):
            word = "met, later one not yet" if self.goal else "not yet"
        else:
            word = "met"
        goals = [goal for goal in (self.goal, self.later) if goal is not None]
        unsure = any(min(self.values) < goal < max(self.values) for goal in goals)
        return f"{word} (open: the spread spans a goal)" if unsure else word

    def _met(self, goal: float | None) -> bool:
        return goal is None or (self.median >= goal if self.at_least else self.median <= goal)


@dataclass
class Row:
    """All of one row. `cpu` says who was busy meanwhile, in cores."""

    number: int
    title: str
    figures: dict[str, Figure] = field(default_factory=dict)
    sides: dict[str, Series] = field(default_factory=dict)
    cpu: dict[str, Series] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rounds: int = 0
    date: str = ""
    app: str = ""
    """Which app.py was measured."""

    def figure(
        self,
        name: str,
        value: float,
        goal: float | None = None,
        later: float | None = None,
        *,
        at_least: bool = True,
        unit: str = TIMES,
    ) -> None:
        """Add one round's value."""
        self.figures.setdefault(name, Figure(name, unit, [], goal, later, at_least)).values.append(value)

    def side(self, name: str, value: float, unit: str) -> float:
        self.sides.setdefault(name, Series(name, unit)).values.append(value)
        return value

    def busy(self, name: str, cores: float, generator: bool = False) -> None:
        """Note how busy a process was. A generator that was the bottleneck is named: its figures are lower bounds."""
        self.cpu.setdefault(name, Series(name, "cores")).values.append(cores)
        if generator and cores > BOTTLENECK:
            self.note(f"The generator “{name}” was busy for more than {BOTTLENECK:.0%} of a core in some round.")

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def dump(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def load(cls, data: dict[str, Any]) -> Row:
        row = cls(**data)
        row.figures = {name: Figure(**figure) for name, figure in data["figures"].items()}
        row.sides = {name: Series(**side) for name, side in data["sides"].items()}
        row.cpu = {name: Series(**side) for name, side in data["cpu"].items()}
        return row

    def markdown(self) -> str:
        """The row as tables."""
        out = [f"## {self.number}. {self.title}", "", f"{self.rounds} rounds, {self.date}, app.py {self.app}.", ""]
        out += [f"| figure | median | {SPREAD} | goal | |", "|---|---:|---:|---|---|"]
        for figure in self.figures.values():
            cells = [
                figure.name,
                f"**{show(figure.median)}** {figure.unit}",
                figure.spread,
                figure.wanted,
                figure.verdict,
            ]
            out.append(f"| {' | '.join(cells)} |")
        out += ["", f"| measured | median | {SPREAD} | |", "|---|---:|---:|---|"]
        for side in self.sides.values():
            out.append(f"| {side.name} | {show(side.median)} | {side.spread} | {side.unit} |")
        if self.cpu:
            busy = "; ".join(f"{side.name} {side.median:.2f}" for side in self.cpu.values())
            out += ["", f"CPU, in cores, medians: {busy}."]
        out += ["", f"![{self.title}](row{self.number}.svg)", ""]
        out += [f"- {note}" for note in self.notes]
        return "\n".join(out) + "\n"

    def chart(self) -> str:
        """The measured sides as bars, one panel a unit."""
        panels: dict[str, list[charts.Bar]] = {}
        for side in self.sides.values():
            bar = charts.Bar(side.name, side.median, min(side.values), max(side.values), show(side.median))
            panels.setdefault(side.unit, []).append(bar)
        return charts.bars(f"{self.number}. {self.title}", panels)


def save(rows: list[Row], machine: dict[str, str], folder: Path) -> None:
    """Write what was measured; rows that were not run this time keep what they had."""
    file = folder / "results.json"
    known = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    known["machine"] = machine
    for row in rows:
        known["rows"][str(row.number)] = row.dump()
    file.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    render(known, folder)


def render(known: dict[str, Any], folder: Path) -> None:
    """Write the tables and the chart of all rows."""
    panels: dict[str, list[charts.Aim]] = {
        "at least its goal (1, dashed): longer is better": [],
        "at most its goal (1, dashed): shorter is better": [],
    }
    for number in sorted(known["rows"], key=int):
        row = Row.load(known["rows"][number])
        (folder / f"row{number}.svg").write_text(row.chart())
        for figure in row.figures.values():
            if aim := figure.aim(row.number):
                list(panels.values())[0 if figure.at_least else 1].append(aim)
    title = "Figures in units of their goals: median, least and most"
    shown = {words: aims for words, aims in panels.items() if aims}
    (folder / "overview.svg").write_text(charts.goals(title, shown))
    (folder / "RESULTS.md").write_text(report(known))


def report(known: dict[str, Any]) -> str:
    """RESULTS.md"""
    rows = [Row.load(known["rows"][number]) for number in sorted(known["rows"], key=int)]
    machine = known["machine"]
    out = [
        "# Results",
        "",
        "Written by `python -m bench`; README.md says how each row is measured and how to read it.",
        "",
    ]
    out += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine.items()), ""]
    out += [
        "Every figure is a ratio to, or a difference from, something measured in the same run, sides alternating.",
        "",
        "![all figures that have a goal, in units of it](overview.svg)",
        "",
    ]
    out += [f"| row | figure | median | {SPREAD} | goal | |", "|---|---|---:|---:|---|---|"]
    for row in rows:
        for figure in row.figures.values():
            if figure.wanted:
                out.append(
                    f"| {row.number} | {figure.name} | {show(figure.median)} {figure.unit} | {figure.spread}"
                    f" | {figure.wanted} | {figure.verdict} |"
                )
    return "\n".join(out) + "\n\n" + "\n".join(row.markdown() for row in rows)
