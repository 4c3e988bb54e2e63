"""What reaches into a task: `flow ssh`, `flow mount`, `flow upload-code` and `flow download`."""

from __future__ import annotations

import os
import shlex
import sys
from typing import NoReturn

import click

from flow_sdk import providers, taskdir
from flow_sdk.cli import show
from flow_sdk.cli.follow import find, task_argument, until_running
from flow_sdk.client import Flow
from flow_sdk.errors import ResourceNotFoundError, ValidationError
from flow_sdk.task import Task
from flow_sdk.transports import Transport

node_option = click.option(
    "--node", type=click.IntRange(min=0), default=0, metavar="N", help="The node's number, from 0."
)


def find_running(text: str) -> Task:
    """The task, once it runs.

    Raises:
        ValidationError: it has ended.
    """
    task = find(text)
    state = until_running(task)
    if state in taskdir.END_STATES:
        raise ValidationError(
            f"{task.name} has ended ({state.replace('_', ' ')}), and this needs a running task.",
            [
                f"`flow run --from {task.task_id}` runs it again.",
                f"`flow download {task.task_id} PATH` copies its files.",
            ],
        )
    return task


def connect(task: Task, node: int) -> Transport:
    if node >= task.num_instances:
        raise ValidationError(f"{task.name} has no node {node}.", [f"Its nodes are 0 to {task.num_instances - 1}."])
    lease = task.record.lease
    if lease is None:
        raise ResourceNotFoundError(f"{task.name} has no machine.")
    return providers.load(task.provider).connect(lease, node)


@click.command()
@task_argument
@click.argument("command", nargs=-1, metavar="[-- COMMAND]")
@node_option
@show.json_option
def ssh(task: str, command: tuple[str, ...], node: int, as_json: bool) -> int:
    """Open a shell where a task runs, or run a command there; waits until the task runs.

    \b
      flow ssh task-abc123
      flow ssh task-abc123 -- nvidia-smi -L
      flow ssh task-abc123 'tail -f train.log | grep loss'

    TASK is an id, the beginning of one, a name, or :N for the Nth newest. Exits as the shell or the command does.

    With --json, and a command: {"exit_code", "stdout", "stderr"}.
    """
    transport = connect(find_running(task), node)
    line = None if not command else command[0] if len(command) == 1 else shlex.join(command)
    if as_json:
        if line is None:
            raise ValidationError("A shell has no JSON output.", ["Give a command, or leave --json out."])
        done = transport.run(line)
        out, err = (data.decode(errors="replace") for data in (done.stdout, done.stderr))
        show.json_line({"exit_code": done.exit_code, "stdout": out, "stderr": err})
        return done.exit_code
    return become(*transport.terminal(line))


def become(argv: list[str], env: dict[str, str]) -> NoReturn:
    """Goes on as another program: the terminal, its signals and the exit code are then that program's own."""
    sys.stdout.flush()
    os.execvpe(argv[0], argv, env)


@click.command()
@click.argument("volume")
@task_argument
@click.argument("path", required=False)
@show.json_option
def mount(volume: str, task: str, path: str | None, as_json: bool) -> None:
    """Add a volume to a running task at PATH, /mnt/NAME unless given; the task is not restarted.

    VOLUME is a name, an id, or :N as `flow volume list` counts. TASK is an id, the beginning of one, a name, or :N for
    the Nth newest.

    With --json: {"volume_id", "name", "task_id", "path"}.
    """
    flow = Flow()
    found = flow.get_volume(volume)
    running = find_running(task)
    at = flow.mount_volume(found, running, path)
    if as_json:
        names = {"volume_id": found.volume_id, "name": found.name}
        show.json_line({**names, "task_id": running.task_id, "path": at})
    else:
        show.line(f"{found.name} is at {at} in {running.name} ({running.task_id}).")


@click.command()
@task_argument
@show.json_option
def upload_code(task: str, as_json: bool) -> None:
    """Bring this folder's files, as they are now, into a running task's working directory.

    TASK is an id, the beginning of one, a name, or :N for the Nth newest.

    With --json: {"task_id", "code_root"}.
    """
    running = Flow().upload_code(find_running(task))
    if as_json:
        show.json_line({"task_id": running.task_id, "code_root": os.getcwd()})
    else:
        show.line(f"The files of {os.getcwd()} are in {running.name} ({running.task_id}).")


@click.command()
@task_argument
@click.argument("path")
@click.argument("to", default=".")
@node_option
@show.json_option
def download(task: str, path: str, to: str, node: int, as_json: bool) -> None:
    """Copy a file or folder of a task's working directory to TO, here unless given.

    TASK is an id, the beginning of one, a name, or :N for the Nth newest.

    With --json: {"task_id", "path"}, with the path where it is now.
    """
    found = find(task)
    target = found.download(path, to, node=node)
    if as_json:
        show.json_line({"task_id": found.task_id, "path": str(target.absolute())})
    else:
        show.line(f"{path} is in {target}")
