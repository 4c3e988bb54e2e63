"""Seeing a task through: its stages before it runs, its output as it comes, its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import click

from flow_sdk import logs, store, taskdir, wording
from flow_sdk.cli import completion, show
from flow_sdk.task import Task
from flow_sdk.watch import Watch

task_argument = click.argument("task", shell_complete=completion.tasks)
tasks_argument = click.argument("tasks", nargs=-1, metavar="[TASK]...", shell_complete=completion.tasks)

BEFORE_RUNNING = (taskdir.PENDING, taskdir.PROVISIONING, taskdir.PREPARING)
QUIET_S = 1.0
"""Stages shorter than this are not worth a line in a file."""


def find(text: str) -> Task:
    """The task that a person names, looked at."""
    return Task(store.find(text)).refresh()


def row_of(task: Task) -> store.Row:
    """What is known of it now."""
    task.refresh()
    row = store.get(task.task_id)
    assert row is not None
    return row


def until_running(task: Task) -> str:
    """Waits until the command runs or the task has ended, and says meanwhile what it waits for; returns the state."""
    directory = taskdir.TaskDir(task.task_id)
    stage = Stage()
    with Watch(directory.node(rank) for rank in range(task.num_instances)) as watch:
        try:
            while (state := task.status) in BEFORE_RUNNING:
                stage.show(f"{task.name} is {state}", task.reason)
                watch.wait(QUIET_S)
        finally:
            stage.clear()
    return state


class Stage:
    """One line that is replaced, on a terminal; elsewhere a line for each stage that lasts."""

    def __init__(self) -> None:
        self.on_terminal = sys.stderr.isatty()
        self.text = self.drawn = ""
        self.since = time.monotonic()
        self.noted = False

    def show(self, words: str, reason: str | None) -> None:
        text = words + (f": {wording.clean(reason)}" if reason else "")
        now = time.monotonic()
        if text != self.text:
            self.text, self.since, self.noted = text, now, False
        lasted = now - self.since
        if self.on_terminal:
            self.draw(self.fitting(lasted))
        elif lasted >= QUIET_S / 2 and not self.noted:
            self.noted = True
            show.note(text)

    def fitting(self, lasted: float) -> str:
        import shutil

        clock = f" ({wording.duration(lasted)})" if lasted >= QUIET_S else ""
        width = shutil.get_terminal_size().columns - 1 - len(clock)
        return self.text[:width] + clock

    def draw(self, shown: str) -> None:
        if shown != self.drawn:
            self.drawn = shown
            sys.stderr.write(f"\r\x1b[K{shown}")
            sys.stderr.flush()

    def clear(self) -> None:
        if self.on_terminal:
            self.draw("")


def write_json(task: Task, chunks: Iterator[tuple[int, bytes]]) -> None:
    """Each line as {"task_id", "stream", "line"}; what is not UTF-8 is replaced."""
    for stream, data in logs.whole_lines(chunks):
        name = "stdout" if stream == logs.STDOUT else "stderr"
        for line in data.decode(errors="replace").removesuffix("\n").split("\n"):
            show.json_line({"task_id": task.task_id, "stream": name, "line": line.rstrip("\r")})


def stream_output(task: Task, as_json: bool) -> None:
    chunks = task.log_chunks(follow=True)
    if as_json:
        write_json(task, chunks)
        return
    ended_line = True
    on_terminal = sys.stderr.isatty()
    for stream, data in chunks:
        out = sys.stdout.buffer if stream == logs.STDOUT else sys.stderr.buffer
        out.write(data)
        out.flush()
        if on_terminal or stream == logs.STDERR:
            ended_line = data.endswith(b"\n")
    if not ended_line:
        # What is said of the task's end gets a line of its own.
        show.note("")


def to_end(task: Task, *, with_output: bool, as_json: bool) -> int:
    """Sees the task through and says how it ended; returns the task's exit code. Ctrl-C leaves the task running."""
    try:
        until_running(task)
        if with_output:
            stream_output(task, as_json)
        task.wait()
    except KeyboardInterrupt:
        return left_running(task)
    row = row_of(task)
    if as_json:
        show.json_line(show.task_json(row))
    else:
        say_end(row)
    return exit_code(row)


def left_running(task: Task) -> int:
    if task.is_done:
        say_end(row_of(task))
    else:
        task_id = task.task_id
        show.note(f"\n{task.name} goes on. Still running: flow logs -f {task_id}, flow cancel {task_id}")
    return 130


def say_end(row: store.Row) -> None:
    sys.stdout.flush()
    task_id = row.record.task_id
    show.note(f"{row.record.name} {show.end_words(row)}")
    if row.state != taskdir.COMPLETED:
        show.note(f"  flow info {task_id}\n  flow run --from {task_id}")
    elif row.reason:
        show.note(f"  {row.reason}")


def exit_code(row: store.Row) -> int:
    """The command's own; where a task that did not complete has none, or 0, it is 1."""
    return 0 if row.state == taskdir.COMPLETED else row.exit_code or 1
