"""The one table that is printed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.benchmarks.measure import Figure, amount

REFERENCE_PYTHON_MS = 14.0
"""`python -c pass` where the targets were set: 12 to 16 ms."""


@dataclass(frozen=True)
class Beside:
    """A floor or a peer in the same run.

    Attributes:
        figure: None where it could not be measured, and `why_not` says why.
        note: what a reader must know to compare.
    """

    name: str
    figure: Figure | None
    why_not: str = ""
    note: str = ""


@dataclass(frozen=True)
class Target:
    """What to reach.

    Attributes:
        limit: in the unit of our figure.
        text: as it was set.
        absolute: set as a time on another machine, so it is also shown scaled to this one.
        at_least: more is better.
    """

    limit: float
    text: str
    absolute: bool = True
    at_least: bool = False

    def is_met(self, value: float, scale: float = 1.0) -> bool:
        limit = self.limit * scale
        return value >= limit if self.at_least else value <= limit


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        ours: None where it could not be measured, and `why_not` says why.
        over: what ratios are taken of, where that is not `ours` itself: with what a bare start takes, say.
        python: `python -c pass` in the same turns.
    """

    what: str
    ours: Figure | None
    floors: Sequence[Beside] = ()
    peers: Sequence[Beside] = ()
    target: Target | None = None
    why_not: str = ""
    note: str = ""
    over: Figure | None = None
    python: Figure | None = None


@dataclass
class Notes:
    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        if not text:
            return ""
        if text not in self.texts:
            self.texts.append(text)
        return f" [{self.texts.index(text) + 1}]"


def show(rows: Sequence[Row], python: Figure, closing: Sequence[str]) -> None:
    """Prints the table, then its notes.

    Args:
        python: `python -c pass` over the whole run, for rows that have none of their own.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    notes = Notes()
    table = Table(box=box.ASCII2, show_lines=True, title="Flow, measured beside its peers", title_justify="left")
    table.add_column("what", ratio=5)
    table.add_column("ours: median (spread)", ratio=4)
    table.add_column("floor (ours is × of it)", ratio=5)
    table.add_column("peers", ratio=5)
    table.add_column("target", ratio=3)
    table.add_column("met?", ratio=2)
    for row in rows:
        base = row.over or row.ours
        floors = [_beside(floor, base, notes) for floor in row.floors]
        peers = [_beside(peer, None, notes) for peer in row.peers]
        ours = f"{row.ours}{notes.mark(row.note)}" if row.ours else f"–{notes.mark(row.why_not)}"
        cells = [
            row.what,
            ours,
            *("\n".join(c) or "–" for c in (floors, peers)),
            *_reach(row, (row.python or python).median / REFERENCE_PYTHON_MS),
        ]
        table.add_row(*cells)
    console = Console(width=None if sys.stdout.isatty() else 150, markup=False, highlight=False)
    console.print(table)
    lines = [
        "Spread: p10–p90, or smallest–largest of fewer than 10 samples. Contenders took turns in one run.",
        f"`python -c pass` took {python} here. Times in the target column were set where it took 12–16 ms; below each,"
        " the same target scaled by what it took in that row's turns. 'scaled' means that only that one is met.",
        *closing,
        *(f"[{number}] {text}" for number, text in enumerate(notes.texts, 1)),
    ]
    for line in lines:
        console.print(line, soft_wrap=True)


def _beside(one: Beside, ours: Figure | None, notes: Notes) -> str:
    if one.figure is None:
        return f"{one.name}: –{notes.mark(one.why_not)}"
    ratio = f" → {ours.median / one.figure.median:.2g}×" if ours and one.figure.median > 0 else ""
    return f"{one.name}: {one.figure}{ratio}{notes.mark(one.note)}"


def _reach(row: Row, scale: float) -> tuple[str, str]:
    target = row.target
    if target is None:
        return "–", "–"
    text = target.text
    if target.absolute and row.ours:
        text += f"\nscaled ×{scale:.2g}: {amount(target.limit * scale, row.ours.unit)}"
    if row.ours is None:
        return text, "–"
    if target.is_met(row.ours.median):
        return text, "yes"
    if target.absolute and target.is_met(row.ours.median, scale):
        return text, "scaled"
    return text, "no"
