"""Cancelling ends a task in any of its states, and all it started, and says who it was."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

import flow_sdk as flow
from flow_sdk import taskdir
from tests.faults.processes import (
    FAR_S,
    all_gone,
    command_pid,
    directory,
    guard_pid,
    node_status,
    running,
    tree_command,
    tree_pids,
)
from tests.services import wait_for


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> float:
    """What a command gets between being asked and being killed; long enough to tell the two apart."""
    monkeypatch.setattr("flow_sdk.providers.local.GRACE_S", 1.0)
    return 1.0


def cancelled(task: flow.Task) -> flow.Task:
    assert task.wait(FAR_S).status == taskdir.CANCELLED, f"{task!r}"
    assert task.reason == f"Cancelled by {task.get_user().username}."
    return task


def test_a_running_command_is_asked_first(flow_home: Path, project: Path) -> None:
    task = flow.run("trap 'echo cleaned up; exit 0' TERM; echo up; while :; do sleep 0.02; done")
    assert next(task.logs(follow=True)) == "up"
    assert cancelled(task.cancel()).exit_code == 0
    assert task.logs(stderr=False) == "up\ncleaned up\n"


def test_a_command_that_does_not_mind_is_ended_by_the_signal(flow_home: Path, project: Path) -> None:
    task = running(flow.run("exec sleep 1000"))
    began = time.monotonic()
    assert cancelled(task.cancel()).exit_code == 143
    assert time.monotonic() - began < 8


def test_a_command_that_ignores_the_signal_is_killed_after_the_grace(
    short_grace: float, flow_home: Path, project: Path
) -> None:
    task = flow.run("trap '' TERM; echo up; while :; do sleep 0.02; done")
    assert next(task.logs(follow=True)) == "up"
    began = time.monotonic()
    assert cancelled(task.cancel()).exit_code == 137
    assert short_grace <= time.monotonic() - began < short_grace + 10


def test_the_whole_tree_ends(short_grace: float, flow_home: Path, project: Path, tmp_path: Path) -> None:
    task = flow.run(tree_command(tmp_path / "pids"))
    pids = tree_pids(task, tmp_path / "pids")
    assert cancelled(task.cancel()).exit_code == 143
    # The one that ignores SIGTERM outlived the command and was killed at once: nobody waits for it.
    all_gone(pids.values(), timeout_s=1)


def test_a_command_that_keeps_forking_is_ended(short_grace: float, flow_home: Path, project: Path) -> None:
    fork = "trap '' TERM; echo up; while :; do (trap '' TERM; setsid sleep 1000 >/dev/null 2>&1 &) ; sleep 0.01; done"
    task = flow.run(fork)
    assert next(task.logs(follow=True)) == "up"
    assert cancelled(task.cancel()).exit_code == 137


def test_a_stopped_command_is_ended(short_grace: float, flow_home: Path, project: Path) -> None:
    """A process under SIGSTOP hears no SIGTERM."""
    task = flow.run("exec sleep 1000")
    pid = command_pid(task)
    os.kill(pid, signal.SIGSTOP)
    assert cancelled(task.cancel()).exit_code in (137, 143)
    all_gone([pid])


def test_cancelled_twice_and_after_the_end(flow_home: Path, project: Path) -> None:
    task = running(flow.run("exec sleep 1000"))
    first = flow.get_task(task.task_id).cancel()
    assert task.cancel() is task
    cancelled(task)
    ended_at = task.ended_at
    flow.cancel(task.task_id)
    assert cancelled(first).ended_at == ended_at
    assert flow.get_task(task.task_id).cancel().ended_at == ended_at


def test_an_ended_task_stays_as_it_is(flow_home: Path, project: Path) -> None:
    task = flow.run("exit 4").wait(FAR_S)
    assert task.cancel().status == taskdir.FAILED
    assert (task.exit_code, task.reason) == (4, "The command ended with exit code 4.")
    assert not directory(task).stop_json.exists()


def test_at_once_after_the_submit(flow_home: Path, project: Path, tmp_path: Path) -> None:
    """Whatever the runner is at when it hears of it: the task is cancelled, never lost, and nothing is left."""
    for delay_ms in (0, 2, 5, 10, 20, 40, 60, 80, 120):
        task = flow.run("exec sleep 1000")
        time.sleep(delay_ms / 1000)
        cancelled(task.cancel())


def test_a_task_that_nobody_started_yet(flow_home: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runner comes late, finds the wish to stop, and runs nothing."""
    start = "import sys, time, os; "
    late = f"{start}exec('while not os.path.exists(sys.argv[2] + \"/late\"): time.sleep(0.01)'); "
    monkeypatch.setattr(
        "flow_sdk.providers.local.START", late + "sys.path.append(sys.argv.pop(1)); import runner; runner.main()"
    )
    task = flow.run("echo ran")
    assert task.status == taskdir.PENDING
    task.cancel()
    assert task.status == taskdir.PENDING
    (directory(task).path / "late").touch()
    cancelled(task)
    assert task.logs() == "" and task.exit_code is None


def test_a_task_of_several_ranks(flow_home: Path, project: Path) -> None:
    task = flow.run("exec sleep 1000", num_instances=3)
    pids = [command_pid(task, rank) for rank in range(3)]
    cancelled(task.cancel())
    assert [node_status(task, rank).state for rank in range(3)] == ["cancelled"] * 3
    all_gone(pids)


def test_a_signal_from_elsewhere_is_a_cancel_too(flow_home: Path, project: Path) -> None:
    """As `kill PID` or the shutdown of the machine sends it."""
    task = flow.run("exec sleep 1000", num_instances=2)
    pids = [command_pid(task, rank) for rank in range(2)]
    os.kill(guard_pid(task), signal.SIGTERM)
    assert task.wait(FAR_S).status == taskdir.CANCELLED
    assert task.reason == "The runner was told to stop by a signal."
    all_gone(pids)


def test_a_task_that_has_restarts_left_is_not_restarted(flow_home: Path, project: Path) -> None:
    task = running(flow.run("echo up; exec sleep 1000", retries=5))
    cancelled(task.cancel())
    assert task.logs() == "up\n" and node_status(task).restarts == 0


def test_while_it_is_prepared(stalling_url: str, flow_home: Path, project: Path) -> None:
    task = flow.run("echo ran", mounts={"/data": stalling_url})
    wait_for(lambda: task.status == taskdir.PREPARING, FAR_S, f"{task!r} to be prepared")
    assert task.reason and task.reason.startswith("Mounting http://127.0.0.1")
    began = time.monotonic()
    cancelled(task.cancel())
    assert time.monotonic() - began < 8
    assert task.logs() == "" and task.exit_code is None and task.started_at is None


def test_while_packages_are_installed(flow_home: Path, project: Path) -> None:
    # A package whose build never ends.
    package = project / "endless"
    package.mkdir()
    (package / "setup.py").write_text("import time\nwhile True: time.sleep(1)\n")
    task = flow.run("echo ran", pip=[f"endless @ file://{package}"])
    wait_for(lambda: task.reason and task.reason.startswith("Installing"), FAR_S, f"{task!r} to install")
    cancelled(task.cancel())
    assert task.logs() == ""


def test_on_a_full_pipe(flow_home: Path, project: Path) -> None:
    """A command that prints without end, faster than anyone reads."""
    task = flow.run([sys.executable, "-c", "import os\nwhile True: os.write(1, b'y' * 65536)"])
    wait_for(lambda: directory(task).log(0, stderr=False).exists() and running(task), FAR_S, "its output")
    cancelled(task.cancel())
    size = directory(task).log(0, stderr=False).stat().st_size
    assert size % 65536 == 0 or size > 0
