"""How tasks, sessions, volumes and offers are shown: as a table in the notebook, as aligned text in a terminal."""

from __future__ import annotations

import html
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import flow_sdk as flow
from flow_sdk import wording

if TYPE_CHECKING:
    from datetime import datetime

    from IPython.core.interactiveshell import InteractiveShell

TASK_COLUMNS = ("task", "name", "state", "hardware", "created", "duration", "cost", "reason")
SESSION_COLUMNS = ("session", "task", "state", "hardware", "created", "cost", "ends itself")
VOLUME_COLUMNS = ("volume", "name", "size", "kind", "region", "created")
OFFER_COLUMNS = ("instance type", "region", "price per hour", "free now", "note")
STATE_COLOURS = {
    "running": "var(--jp-brand-color1, #1976d2)",
    "completed": "var(--jp-success-color1, #388e3c)",
    "failed": "var(--jp-error-color1, #d32f2f)",
    "lost": "var(--jp-error-color1, #d32f2f)",
    "timed out": "var(--jp-warn-color1, #c77700)",
    "cancelled": "var(--jp-warn-color1, #c77700)",
    "preempted": "var(--jp-warn-color1, #c77700)",
}
QUIET = "var(--jp-ui-font-color2, #777)"
LEFT = "text-align: left; vertical-align: top"


class Shown(Sequence[Any]):
    """What a line of the magic returns: it shows itself, and is the sequence of what it shows.

    Args:
        items: what it is about.
        columns: heads; none for lines of a name and its value.
        rows: a text for each column; columns without any text are left out.
        empty: what is said where there are no rows.
    """

    def __init__(
        self, items: Iterable[Any], columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str = ""
    ) -> None:
        self.items = list(items)
        cells = [[wording.clean(text) for text in row] for row in rows]
        kept = [at for at in range(max(map(len, cells), default=0)) if any(row[at] for row in cells)]
        self.columns = [columns[at] for at in kept] if columns else []
        self.rows = [[row[at] for at in kept] for row in cells]
        self.empty = empty

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> list[Any]: ...
    def __getitem__(self, at: int | slice) -> Any:
        return self.items[at]

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        if not self.rows:
            return self.empty
        lines = [[name.upper() for name in self.columns], *self.rows] if self.columns else self.rows
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = ("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)
        return "\n".join(line.rstrip() for line in padded)

    def _repr_html_(self) -> str:
        if not self.rows:
            return f"<p>{html.escape(self.empty)}</p>"
        head = "".join(f'<th scope="col" style="{LEFT}">{html.escape(name)}</th>' for name in self.columns)
        body = "".join(f"<tr>{''.join(self.html_cells(row))}</tr>" for row in self.rows)
        return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"

    def html_cells(self, row: Sequence[str]) -> Iterator[str]:
        heads = self.columns or ["", row[0]]
        for head, text in zip(heads, row, strict=True):
            written = html.escape(text)
            if head == "state":
                colour = STATE_COLOURS.get(text, QUIET)
                written = f'<span aria-hidden="true" style="color: {colour}">●</span> {written}'
            if head == "":
                yield f'<th scope="row" style="{LEFT}">{written}</th>'
            else:
                yield f'<td style="{LEFT}">{written}</td>'


def task_table(tasks: Iterable[flow.Task]) -> Shown:
    tasks = list(tasks)
    empty = "There are no tasks; %flow run train.py gpu=a100 starts one."
    return Shown(tasks, TASK_COLUMNS, map(task_row, tasks), empty)


def task_row(task: flow.Task) -> list[str]:
    state, seconds, cost = task.status, run_time_s(task), cost_usd(task)
    return [
        task.task_id,
        task.name,
        state.replace("_", " "),
        hardware(task),
        wording.age(task.created_at.timestamp()),
        "" if seconds is None else wording.duration(seconds),
        wording.money(cost) if cost else "",
        "" if state in ("completed", "running") else (task.reason or "").split("\n")[0],
    ]


def session_table(sessions: Iterable[flow.Session]) -> Shown:
    sessions = list(sessions)
    empty = "This notebook has no session; %%flow over a cell starts one."
    return Shown(sessions, SESSION_COLUMNS, map(session_row, sessions), empty)


def session_row(session: flow.Session) -> list[str]:
    task, cost = session.task, cost_usd(session.task)
    idle_s = (session.journal().last("session") or {}).get("idle_s")
    return [
        task.name,
        task.task_id,
        task.status.replace("_", " "),
        hardware(task),
        wording.age(task.created_at.timestamp()),
        wording.money(cost) if cost else "",
        f"after {wording.duration(idle_s)} without a cell" if idle_s and not task.is_done else "",
    ]


def volume_table(volumes: Iterable[flow.Volume]) -> Shown:
    volumes = list(volumes)
    rows = [
        [one.volume_id, one.name, f"{one.size_gb} GB", one.interface, one.region, wording.age(one.created_at)]
        for one in volumes
    ]
    return Shown(volumes, VOLUME_COLUMNS, rows, 'There are no volumes; flow_sdk.create_volume(100, "data") makes one.')


def offer_table(offers: Iterable[flow.Offer]) -> Shown:
    offers = list(offers)
    rows = [
        [
            one.instance_type,
            one.region,
            wording.money(one.price_per_hour_usd),
            "" if one.capacity is None else str(one.capacity),
            one.note or "",
        ]
        for one in offers
    ]
    return Shown(offers, OFFER_COLUMNS, rows, "Nothing can be had now; ask for less, or look again later.")


def task_details(task: flow.Task) -> Shown:
    """All that a person wants to know of one task; of its environment the names only."""
    return Shown([task], (), [pair for pair in task_pairs(task) if pair[1]])


def task_pairs(task: flow.Task) -> Iterator[tuple[str, str]]:
    record, config, state = task.record, task.record.config, task.status
    seconds, cost, price = run_time_s(task), cost_usd(task), task.cost_per_hour
    yield "task", task.task_id
    yield "name", task.name
    yield "state", state.replace("_", " ")
    yield "reason", task.reason or ""
    yield "exit code", "" if task.exit_code is None else str(task.exit_code)
    yield "submitted", f"{local_time(task.created_at)} by {record.user} on {record.host}"
    yield "started", local_time(task.started_at)
    yield "ended", local_time(task.ended_at)
    yield "duration", "" if seconds is None else wording.duration(seconds)
    yield (
        "cost",
        f"{wording.money(cost)} at {wording.money(price)} per hour"
        if price and cost is not None
        else wording.money(price),
    )
    yield "command", command_words(config.get("command"))
    yield "runs on", f"{hardware(task)}, {task.provider}"
    yield "note", record.note or ""
    for name in ("image", "pip", "mounts", "ports", "tags"):
        value = config.get(name)
        yield name, "" if not value else value if isinstance(value, str) else ", ".join(map(str, value))
    yield "env", ", ".join(sorted(config.get("env", {})))
    yield "code", record.code_root or ""
    dirty = " with uncommitted changes" if record.git_dirty else ""
    yield "git commit", f"{record.git_commit}{dirty}" if record.git_commit else ""


# Words


def hardware(task: flow.Task) -> str:
    nodes = task.num_instances
    return task.record.hardware + (f" x {nodes} nodes" if nodes > 1 else "")


def run_time_s(task: flow.Task) -> float | None:
    """How long its command has run; never below 0, whatever the clock did."""
    if task.started_at is None:
        return None
    return max(0.0, (task.ended_at.timestamp() if task.ended_at else time.time()) - task.started_at.timestamp())


def cost_usd(task: flow.Task) -> float | None:
    price = task.cost_per_hour
    return None if price is None else price * (run_time_s(task) or 0.0) / 3600


def local_time(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def command_words(command: str | list[str] | None) -> str:
    if command is None:
        return "none: a machine that stays up"
    return command if isinstance(command, str) else shlex.join(command)


# What IPython shows by itself

TABLES: dict[tuple[str, str], Callable[[list[Any]], Shown]] = {
    ("flow_sdk.task", "Task"): task_table,
    ("flow_sdk.session", "Session"): session_table,
    ("flow_sdk.providers", "Volume"): volume_table,
    ("flow_sdk.providers", "Offer"): offer_table,
}


def kind_of(value: object) -> tuple[str, str]:
    return type(value).__module__, type(value).__qualname__


def one_as_html(value: Any) -> str:
    return TABLES[kind_of(value)]([value])._repr_html_()


def session_as_text(session: flow.Session, printer: Any, cycle: bool) -> None:
    printer.text(f"Session {session.task.name} on {hardware(session.task)}: {session.task.status.replace('_', ' ')}")


def list_as_html(values: list[Any]) -> str | None:
    """A list of what we have tables for; any other list is shown as ever."""
    kinds = {kind_of(value) for value in values[:1]}
    if not kinds <= TABLES.keys() or kinds != set(map(kind_of, values)):
        return None
    return TABLES[kinds.pop()](values)._repr_html_() if kinds else None


def formatter(shell: InteractiveShell, mime_type: str) -> Any:
    display: Any = shell.display_formatter
    return display.formatters[mime_type]


def register(shell: InteractiveShell) -> None:
    as_html = formatter(shell, "text/html")
    # By name: nothing of these is loaded before the first of them is shown.
    for module, name in TABLES:
        as_html.for_type_by_name(module, name, one_as_html)
    as_html.for_type(list, list_as_html)
    formatter(shell, "text/plain").for_type_by_name("flow_sdk.session", "Session", session_as_text)


def unregister(shell: InteractiveShell) -> None:
    as_html = formatter(shell, "text/html")
    for module, name in TABLES:
        as_html.pop(f"{module}.{name}", None)
    if as_html.type_printers.get(list) is list_as_html:
        as_html.pop(list)
    formatter(shell, "text/plain").pop("flow_sdk.session.Session", None)
