"""How things are shown: tables, durations, money, errors, JSON lines, questions."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

import click

from flow_sdk import wording
from flow_sdk.errors import ValidationError
from flow_sdk.store import Row

STATE_STYLES = {
    "running": "cyan",
    "completed": "green",
    "failed": "red",
    "lost": "red",
    "timed_out": "yellow",
    "cancelled": "yellow",
    "preempted": "yellow",
}

GAP = 2
SHRUNK = 12

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")


def line(text: str = "") -> None:
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """A line for the person, which is no part of the output."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def json_line(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def error(kind: str, message: str, suggestions: Iterable[str], as_json: bool) -> None:
    if as_json:
        json_line({"error": {"type": kind, "message": message, "suggestions": list(suggestions)}})
        return
    sys.stdout.flush()
    head = "\x1b[1;31mError:\x1b[0m" if is_colourful(sys.stderr) else "Error:"
    note("\n".join([f"{head} {message}", *(f"  - {s}" for s in suggestions)]))


def is_colourful(stream: Any) -> bool:
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def confirm(question: str) -> None:
    """Goes on only after a yes.

    Raises:
        ValidationError: there is nobody to ask.
        click.Abort: the answer was no.
    """
    if not sys.stdin.isatty():
        raise ValidationError(
            f"{question.rstrip('?')} needs a yes, and there is no terminal to ask on.", ["Add --yes."]
        )
    if not click.confirm(question, err=True):
        raise click.exceptions.Exit(1)


# Words


def size(count: int) -> str:
    """ "812 B", "15.2 kB", "9.6 MB"."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def iso(seconds: float | None) -> str | None:
    """UTC, as 2026-01-31T12:00:00.000Z."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def local_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


# Tasks


def hardware(row: Row) -> str:
    return row.record.hardware


def run_time_s(row: Row) -> float | None:
    """How long the command has run; never below 0, whatever the clock did."""
    if row.started_at is None:
        return None
    return max(0.0, (row.ended_at or time.time()) - row.started_at)


def cost_usd(row: Row) -> float | None:
    """What the task has cost so far; None where the provider names no price."""
    price = row.record.price_per_hour_usd
    return None if price is None else round(price * (run_time_s(row) or 0.0) / 3600, 4)


def end_words(row: Row) -> str:
    """ "completed in 3.2 s", "failed after 3.2 s: the reason"."""
    seconds = run_time_s(row)
    words = row.state.replace("_", " ")
    if row.state == "completed":
        return f"{words} in {wording.duration(seconds or 0.0)}"
    words += f" after {wording.duration(seconds)}" if seconds is not None else ""
    if row.reason:
        return f"{words}: {wording.clean(row.reason)}"
    return words + (f" (exit code {row.exit_code})" if row.exit_code else "")


def task_json(row: Row) -> dict[str, Any]:
    """A task as all commands print it with --json. Times are UTC."""
    record = row.record
    return {
        "task_id": record.task_id,
        "name": record.name,
        "state": row.state,
        "hardware": hardware(row),
        "num_instances": record.config.get("num_instances", 1),
        "provider": record.provider,
        "created_at": iso(record.created_at),
        "started_at": iso(row.started_at),
        "ended_at": iso(row.ended_at),
        "duration_s": run_time_s(row),
        "exit_code": row.exit_code,
        "reason": row.reason,
        "price_per_hour_usd": record.price_per_hour_usd,
        "cost_usd": cost_usd(row),
        "tags": list(row.tags),
    }


# Tables


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, shrink: Sequence[str] = (), drop: Sequence[str] = ()
) -> None:
    """Aligned columns, without those that are empty in every row.

    Args:
        shrink: columns that are cut where the terminal is too narrow. Without a terminal nothing is cut.
        drop: columns that are left out, in this order, where that is not enough.
    """
    cells = [[wording.clean(cell) for cell in row] for row in rows]
    widths = {name: max(len(row[at]) for row in cells) for at, name in enumerate(columns)}
    kept = [name for name in columns if widths[name]]
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False, color_system="auto" if is_colourful(sys.stdout) else None)
        least = {name: min(max(widths[name], len(name)), SHRUNK if name in shrink else widths[name]) for name in kept}
        for name in drop:
            if name in kept and sum(least[one] + GAP for one in kept) - GAP > console.width:
                kept.remove(name)
        console.print(rich_table(columns, kept, cells, shrink))
        return
    heads = [name.upper() for name in columns]
    for row in [heads, *cells]:
        padded = (row[at].ljust(max(widths[name], len(name))) for at, name in enumerate(columns) if name in kept)
        line((" " * GAP).join(padded).rstrip())


def rich_table(
    columns: Sequence[str], kept: Sequence[str], rows: Sequence[Sequence[str]], shrink: Sequence[str]
) -> Any:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in kept:
        # Columns that may wrap are narrowed first; their cells are cut all the same.
        grid.add_column(name, no_wrap=name not in shrink)
    for row in rows:
        of_row = dict(zip(columns, row, strict=True))
        styles = {"state": STATE_STYLES.get(of_row.get("state", "").replace(" ", "_"), "")}
        grid.add_row(*(Text(of_row[name], styles.get(name, ""), no_wrap=True, overflow="ellipsis") for name in kept))
    return grid


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """`name  value` lines; those without a value are left out, further lines of a value are indented."""
    shown = [(name, value) for name, value in rows if value]
    width = max((len(name) for name, _ in shown), default=0) + 2
    for name, value in shown:
        line(name.ljust(width) + value.replace("\n", "\n" + " " * width))
