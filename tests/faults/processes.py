"""Finding and ending the processes of a task, running a client of its own, comparing what was printed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from flow_sdk import taskdir
from flow_sdk.task import Task
from tests.services import wait_for

FAR_S = 30.0
"""A deadline for what takes a fraction of a second when nothing is wrong: machines that test are busy machines."""

TREE = Path(__file__).with_name("tree.py")
TREE_KINDS = {"command", "child", "session", "daemon", "deaf", "bare"}


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != b"Z"


def all_gone(pids: Iterable[int], timeout_s: float = FAR_S) -> None:
    wanted = set(pids)
    assert wanted
    wait_for(lambda: not {pid for pid in wanted if alive(pid)}, timeout_s, f"the end of the processes {wanted}")


def kill(*pids: int) -> None:
    """Kills them at once: none of them gets to see another one's end."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def directory(task: Task) -> taskdir.TaskDir:
    return taskdir.TaskDir(task.task_id)


def node_status(task: Task, rank: int = 0) -> taskdir.NodeStatus:
    status = directory(task).status(rank)
    assert status is not None
    return status


def guard_pid(task: Task) -> int:
    return wait_for(directory(task).guard_pid, FAR_S, "the guard's pid")


def runner_pid(task: Task, rank: int = 0) -> int:
    return wait_for(lambda: ran(task, rank).pid, FAR_S, f"the runner's pid in {task!r}")


def command_pid(task: Task, rank: int = 0) -> int:
    return wait_for(lambda: ran(task, rank).command_pid, FAR_S, f"the command's pid in {task!r}")


def ran(task: Task, rank: int) -> taskdir.NodeStatus:
    """What the rank says once its command runs, and nothing until then."""
    status = directory(task).status(rank)
    return status if status and status.command_pid else taskdir.NodeStatus(rank)


def running(task: Task) -> Task:
    wait_for(lambda: task.status == taskdir.RUNNING, FAR_S, f"{task!r} to run")
    return task


def first_line(task: Task, node: int = 0) -> str:
    lines = task.logs(follow=True, node=node)
    return next(lines)


def tree_command(pids: Path) -> list[str]:
    """A command that starts one process of each kind in TREE_KINDS, notes their pids, says "ready" and stays."""
    pids.mkdir()
    return [sys.executable, str(TREE), str(pids)]


def tree_pids(task: Task, pids: Path) -> dict[str, int]:
    assert first_line(task) == "ready"
    found = {entry.name: int(entry.read_text()) for entry in pids.iterdir()}
    assert found.keys() == TREE_KINDS
    return found


def wait_for_file(path: Path) -> str:
    """A shell line that stays until somebody makes the file."""
    import shlex

    return f"until [ -e {shlex.quote(str(path))} ]; do sleep 0.02; done"


def start_client(code: str, *arguments: object, **environ: str) -> subprocess.Popen[str]:
    """A Python process of its own that uses Flow as a user's program would."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )


def output_of(client: subprocess.Popen[str], timeout_s: float = 60.0) -> str:
    """What the client printed; fails the test where it did not succeed."""
    try:
        stdout, stderr = client.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        client.kill()
        stdout, stderr = client.communicate()
        raise AssertionError(f"the client did not end within {timeout_s:g} s: {stdout}{stderr}") from None
    assert client.returncode == 0, f"the client exited with {client.returncode}: {stdout}{stderr}"
    return stdout


def run_client(code: str, *arguments: object, **environ: str) -> str:
    return output_of(start_client(code, *arguments, **environ))


Chunk = tuple[int, bytes]


def joined(chunks: Iterable[Chunk]) -> list[Chunk]:
    """Neighbouring chunks of one stream are one."""
    runs: list[Chunk] = []
    for number, data in chunks:
        if runs and runs[-1][0] == number:
            runs[-1] = (number, runs[-1][1] + data)
        elif data:
            runs.append((number, data))
    return runs


def lines(chunks: Iterable[Chunk]) -> list[Chunk]:
    """Each line with its stream, in the order in which they ended; those that did not end come last."""
    begun = {1: b"", 2: b""}
    found: list[Chunk] = []
    for number, data in chunks:
        *ended, begun[number] = (begun[number] + data).split(b"\n")
        found += [(number, line + b"\n") for line in ended]
    return found + [(number, line) for number, line in begun.items() if line]
