"""`flow status`, `flow info` and `flow cancel`."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from flow_sdk import store, taskdir, wording
from flow_sdk.cli import show
from flow_sdk.cli.app import Usage
from flow_sdk.cli.follow import find, row_of, task_argument, tasks_argument
from flow_sdk.errors import FlowError, ValidationError, WaitTimeoutError
from flow_sdk.providers import Instance
from flow_sdk.task import Task

ENDED_SHOWN = 20
LAST_LINES = 10
WAIT_BEYOND_GRACE_S = 5.0
ONGOING = tuple(state for state in taskdir.STATES if state not in taskdir.END_STATES)
COLUMNS = ("", "task", "name", "state", "hardware", "created", "duration", "cost", "reason")
SHRINK, DROP = ("name", "hardware", "reason"), ("cost", "hardware", "created", "", "duration", "reason")
UNITS_S = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@click.command()
@tasks_argument
@click.option("-s", "--state", "states", multiple=True, help="Only tasks in this state; may be repeated.")
@click.option("-n", "--name", metavar="PATTERN", help="Only names that fit, as 'exp-*'.")
@click.option("-t", "--tag", help="Only tasks with this tag.")
@click.option("--since", metavar="TIME", help="Only tasks submitted since: 2h, 3d, 2026-01-31, '2026-01-31 14:00'.")
@click.option("-a", "--all", "show_all", is_flag=True, help="All of them.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N tasks.")
@show.json_option
def status(
    tasks: tuple[str, ...],
    states: tuple[str, ...],
    name: str | None,
    tag: str | None,
    since: str | None,
    show_all: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """List tasks, newest first: all that have not ended, and the 20 newest of the others.

    TASK is an id, the beginning of one, a name, or :N for the Nth newest.

    With --json each task is {"task_id", "name", "state", "hardware", "num_instances", "provider", "created_at",
    "started_at", "ended_at", "duration_s", "exit_code", "reason", "price_per_hour_usd", "cost_usd", "tags"}, with times
    in UTC.
    """
    rows, more = [row_of(find(task)) for task in tasks], False
    if not tasks:
        filters = {"name_pattern": name, "tag": tag, "since": None if since is None else parse_since(since)}
        rows, more = listed(states or taskdir.STATES, filters, limit, show_all)
    if as_json:
        for row in rows:
            show.json_line(show.task_json(row))
    elif not rows:
        show.line("No tasks found")
    else:
        numbers = numbered(rows) if not tasks else {}
        show.table(COLUMNS, [cells(row, numbers) for row in rows], shrink=SHRINK, drop=DROP)
        if more and sys.stdout.isatty():
            show.note(f"Of those that have ended, the {ENDED_SHOWN} newest are shown; --all shows every one.")


def listed(
    states: Sequence[str], filters: dict[str, Any], limit: int | None, show_all: bool
) -> tuple[list[store.Row], bool]:
    """The rows to show, and whether there are more."""
    for state in states:
        check_state(state)
    look_at_ongoing()
    if limit or show_all:
        return store.list_rows(states=tuple(states), limit=limit, **filters), False
    ongoing = tuple(state for state in states if state not in taskdir.END_STATES)
    ended = tuple(state for state in states if state in taskdir.END_STATES)
    rows = store.list_rows(states=ongoing, **filters) if ongoing else []
    newest = store.list_rows(states=ended, limit=ENDED_SHOWN + 1, **filters) if ended else []
    rows += newest[:ENDED_SHOWN]
    rows.sort(key=lambda row: (row.record.created_at, row.record.task_id), reverse=True)
    return rows, len(newest) > ENDED_SHOWN


def look_at_ongoing() -> None:
    """Brings the rows of tasks that went on by themselves up to date."""
    for row in store.list_rows(states=ONGOING):
        try:
            Task(row).refresh()
        except FlowError as error:
            # One task whose files are gone must not hide the others.
            show.note(f"{row.record.task_id}: {error.message}")


def numbered(rows: list[store.Row]) -> dict[str, str]:
    """`:N` of each task, counted among all from the newest on, as every command takes it."""
    ids = store.newest_ids(rows[-1].record.created_at)
    return {task_id: f":{number}" for number, task_id in enumerate(ids, 1)}


def cells(row: store.Row, numbers: dict[str, str]) -> list[str]:
    record, seconds = row.record, show.run_time_s(row)
    nodes = record.config.get("num_instances", 1)
    cost = show.cost_usd(row)
    return [
        numbers.get(record.task_id, ""),
        record.task_id,
        record.name,
        row.state.replace("_", " "),
        show.hardware(row) + (f" x {nodes} nodes" if nodes > 1 else ""),
        wording.age(record.created_at),
        "" if seconds is None else wording.duration(seconds),
        wording.money(cost) if cost else "",
        "" if row.state in (taskdir.COMPLETED, taskdir.RUNNING) else (row.reason or "").split("\n")[0],
    ]


def check_state(state: str) -> None:
    if state not in taskdir.STATES:
        from difflib import get_close_matches

        near = [f"Did you mean {one}?" for one in get_close_matches(state, taskdir.STATES, n=1)]
        raise ValidationError(f"{state!r} is no task state.", [*near, f"States: {', '.join(taskdir.STATES)}."])


def parse_since(text: str) -> float:
    """ "2h" ago, or a local date and time, as seconds since 1970."""
    span = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([a-z]+)", text.strip())
    if span and span[2] in UNITS_S:
        return time.time() - float(span[1]) * UNITS_S[span[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        raise ValidationError(f"{text!r} is no time.", ["Write 30min, 2h, 3d, or a date as 2026-01-31."]) from None


@click.command()
@task_argument
@show.json_option
def info(task: str, as_json: bool) -> None:
    """Show all that is known of a task; of its environment the names only.

    TASK is an id, the beginning of one, a name, or :N for the Nth newest.

    With --json it is what `flow status --json` prints, with "config", "note", "restarts", "bundle_sha256", "code_root",
    "git_commit", "git_dirty", "host", "user", "email", "instances", "endpoints" and "folder".
    """
    found = find(task)
    row = row_of(found)
    if as_json:
        show.json_line(info_json(found, row))
        return
    show.pairs(info_pairs(found, row))
    if row.state in (taskdir.FAILED, taskdir.TIMED_OUT, taskdir.LOST):
        last_lines = found.logs(tail=LAST_LINES).splitlines()
        if last_lines:
            show.line("\nThe last of its output:")
        for text in last_lines:
            indent = " " * (2 + len(text) - len(text.lstrip()))
            show.line(indent + wording.clean(text))


def info_json(task: Task, row: store.Row) -> dict[str, Any]:
    record = row.record
    config = {**record.config, "env": sorted(record.config.get("env", {}))}
    names = ("note", "bundle_sha256", "code_root", "git_commit", "git_dirty", "host", "user", "email")
    return {
        **show.task_json(row),
        "config": config,
        "restarts": restarts(task),
        **{name: getattr(record, name) for name in names},
        "instances": [instance._asdict() for instance in instances(task, row)],
        "endpoints": dict(task.endpoints) if is_reachable(row) else {},
        "folder": str(folder(task)),
    }


def info_pairs(task: Task, row: store.Row) -> Iterator[tuple[str, str]]:
    record, config = row.record, row.record.config
    seconds = show.run_time_s(row)
    yield "task", record.task_id
    yield "name", record.name
    yield "state", wording.clean(row.state.replace("_", " "))
    yield "reason", wording.clean(row.reason or "")
    yield "exit code", "" if row.exit_code is None else str(row.exit_code)
    yield "restarts", str(restarts(task) or "")
    yield "submitted", f"{show.local_time(record.created_at)} by {record.user} on {record.host}"
    yield "started", show.local_time(row.started_at) if row.started_at else ""
    yield "ended", show.local_time(row.ended_at) if row.ended_at else ""
    yield "duration", "" if seconds is None else wording.duration(seconds)
    yield "cost", cost_words(row)
    yield "command", command_words(config.get("command"))
    yield from config_pairs(config)
    yield "runs on", f"{show.hardware(row)}, {record.provider}"
    yield "note", record.note or ""
    yield "code", f"{record.code_root} ({(record.bundle_sha256 or '')[:12]})" if record.code_root else ""
    dirty = " with uncommitted changes" if record.git_dirty else ""
    yield "git commit", f"{record.git_commit}{dirty}" if record.git_commit else ""
    for instance in instances(task, row):
        address = instance.public_ip or instance.private_ip or "no address"
        yield "node", f"{instance.instance_id}  {address}  {instance.status}"
    if is_reachable(row):
        for name, url in task.endpoints.items():
            yield "endpoint", f"{name}  {url}"
    yield "files", str(folder(task))


def config_pairs(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The fields that have no line of their own; of the environment the names only."""
    shown = {"name", "command", "instance_type", "gpu", "env", "mounts", "volumes", "tags", "pip", "ports", "ssh_keys"}
    yield "env", ", ".join(sorted(config.get("env", {})))
    yield "mounts", "\n".join(f"{target}  {source}" for target, source in config.get("mounts", {}).items())
    yield "volumes", "\n".join(volume_words(volume) for volume in config.get("volumes", []))
    for name in ("tags", "pip", "ports", "ssh_keys"):
        yield name.replace("_", " "), ", ".join(str(item) for item in config.get(name, []))
    for name, value in config.items():
        if name not in shown:
            yield name.replace("_", " "), str(value)


def volume_words(volume: dict[str, Any]) -> str:
    which = volume.get("name") or volume.get("volume_id") or "its own"
    return f"{volume.get('mount_path', '')}  {which}"


def command_words(command: str | list[str] | None) -> str:
    if command is None:
        return "none: a machine that stays up"
    import shlex

    return command.rstrip() if isinstance(command, str) else shlex.join(command)


def cost_words(row: store.Row) -> str:
    price, cost = row.record.price_per_hour_usd, show.cost_usd(row)
    if not price or cost is None:
        return wording.money(price)
    return f"{wording.money(cost)} at {wording.money(price)} per hour"


def restarts(task: Task) -> int:
    statuses = [taskdir.TaskDir(task.task_id).status(rank) for rank in range(task.num_instances)]
    return taskdir.combined(statuses).restarts


def instances(task: Task, row: store.Row) -> list[Instance]:
    """Its machines; those of a task that has ended are gone, and its provider may be too."""
    return [] if row.state in taskdir.END_STATES else task.get_instances()


def is_reachable(row: store.Row) -> bool:
    return row.state == taskdir.RUNNING and row.record.lease is not None and bool(row.record.config.get("ports"))


def folder(task: Task) -> Path:
    return taskdir.TaskDir(task.task_id).path


@click.command()
@tasks_argument
@click.option(
    "-n", "--name-pattern", metavar="PATTERN", help="All that have not ended and whose name fits, as 'dev-*'."
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@show.json_option
def cancel(tasks: tuple[str, ...], name_pattern: str | None, yes: bool, as_json: bool) -> None:
    """End tasks, and wait until they have ended.

    TASK is an id, the beginning of one, a name, or :N for the Nth newest. Commands get 10 s to stop by themselves.

    With --json each task is printed as `flow status --json` does.
    """
    if not tasks and name_pattern is None:
        raise Usage("Which task?", ["Name tasks by id or name: flow cancel task-abc123.", "Or -n 'dev-*'."])
    chosen = {task.task_id: task for task in map(find, tasks)}
    if name_pattern is not None:
        look_at_ongoing()
        for row in store.list_rows(states=ONGOING, name_pattern=name_pattern):
            chosen[row.record.task_id] = Task(row)
    going = [task for task in chosen.values() if not task.is_done]
    if going and not yes and (len(going) > 1 or name_pattern is not None):
        for task in going:
            show.note(f"  {task.task_id}  {task.name}  {task.status}")
        show.confirm("Cancel this task?" if len(going) == 1 else f"Cancel these {len(going)} tasks?")
    if not chosen and not as_json:
        show.line(f"No task that goes on is named {name_pattern}.")
    deadline = time.monotonic() + max((grace_s(task) for task in going), default=0.0) + WAIT_BEYOND_GRACE_S
    ended_before = set(chosen) - {task.task_id for task in going}
    for task in going:
        task.cancel()
    going_on = []
    for task in chosen.values():
        try:
            task.wait(max(0.0, deadline - time.monotonic()))
        except WaitTimeoutError:
            going_on.append(task.task_id)
            continue
        row = row_of(task)
        if as_json:
            show.json_line(show.task_json(row))
        else:
            before = "had ended already: " if task.task_id in ended_before else ""
            show.line(f"{task.name} ({task.task_id}) {before}{show.end_words(row)}")
    if going_on:
        raise WaitTimeoutError(
            f"Asked to stop, and not ended yet: {', '.join(going_on)}.", ["`flow status` says when they have."]
        )


def grace_s(task: Task) -> float:
    return float((task.record.lease or {}).get("grace_s", 0.0))
