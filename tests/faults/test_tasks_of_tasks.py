"""A task that is submitted by a task is its own: it outlives its parent and is ended by nobody but its user."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import flow_sdk as flow
from flow_sdk import taskdir
from tests.faults.processes import (
    FAR_S,
    alive,
    all_gone,
    command_pid,
    directory,
    guard_pid,
    kill,
    runner_pid,
    wait_for_file,
)
from tests.services import wait_for

SUBMIT = """
import os, sys
import flow_sdk as flow
task = flow.run(sys.argv[1], name="inner", upload_code=False)
print(task.task_id, flush=True)
if sys.argv[2] == "stay":
    import signal
    signal.pause()
os._exit(0)
"""


def outer_and_inner(command: str, then: str) -> tuple[flow.Task, flow.Task]:
    outer = flow.run([sys.executable, "-c", SUBMIT, command, then], name="outer")
    return outer, flow.get_task(next(outer.logs(follow=True)))


def test_it_outlives_a_task_that_ends_at_once(flow_home: Path, project: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    outer, inner = outer_and_inner(f"{wait_for_file(go)}; printenv FLOW_TASK_ID", "leave")
    assert outer.wait(FAR_S).status == taskdir.COMPLETED
    pid = command_pid(inner)
    assert inner.status == taskdir.RUNNING and alive(pid)
    go.touch()
    assert inner.wait(FAR_S).status == taskdir.COMPLETED
    # It knows itself by its own name, and its parent's is not in its environment.
    assert inner.logs() == f"{inner.task_id}\n" and inner.task_id != outer.task_id


@pytest.mark.parametrize("how", ["cancel", "kill the runner", "kill the guard and the runner", "kill the command"])
def test_it_outlives_a_task_that_is_ended(how: str, flow_home: Path, project: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    outer, inner = outer_and_inner(f"{wait_for_file(go)}; echo done", "stay")
    pids = {"command": command_pid(outer), "runner": runner_pid(outer), "guard": guard_pid(outer)}
    command_pid(inner)
    if how == "cancel":
        outer.cancel()
    else:
        kill(*(pid for name, pid in pids.items() if name in how))
    assert outer.wait(FAR_S).status in (taskdir.CANCELLED, taskdir.LOST, taskdir.FAILED)
    all_gone(pids.values())
    assert inner.status == taskdir.RUNNING
    go.touch()
    assert inner.wait(FAR_S).status == taskdir.COMPLETED and inner.logs() == "done\n"


def test_it_is_ended_without_its_parent(flow_home: Path, project: Path) -> None:
    outer, inner = outer_and_inner("exec sleep 1000", "stay")
    pid = command_pid(inner)
    assert inner.cancel().wait(FAR_S).status == taskdir.CANCELLED
    all_gone([pid])
    assert outer.status == taskdir.RUNNING
    assert outer.cancel().wait(FAR_S).status == taskdir.CANCELLED


def test_it_outlives_a_parent_that_ends_before_its_runner_has_begun(
    flow_home: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the fork and the exec, what will be the guard of the inner task looks like the shell that starts it."""
    slow = tmp_path / "bin" / "sh"
    slow.parent.mkdir()
    gate = tmp_path / "gate"
    # As dash does it: a child with the words of its parent, which then becomes the program.
    slow.write_text(
        "#!/bin/sh\n"
        'case "$2" in *"&"*) ;; *) exec /bin/sh "$@" ;; esac\n'
        f'shift 3; ( {wait_for_file(gate)}; exec "$@" ) &\n'
    )
    slow.chmod(0o755)
    submit = SUBMIT.replace("task = ", f"os.environ['PATH'] = {str(slow.parent)!r} + ':' + os.environ['PATH']\ntask = ")
    marks = tmp_path / "marks"
    outer = flow.run([sys.executable, "-c", submit, f"echo ran >> '{marks}'", "leave"], name="outer")
    assert outer.wait(FAR_S).status == taskdir.COMPLETED
    inner = flow.get_task(outer.logs().strip())
    assert inner.status == taskdir.PENDING
    gate.touch()
    assert inner.wait(FAR_S).status == taskdir.COMPLETED, f"{inner!r}"
    assert marks.read_text() == "ran\n"


def test_three_deep(flow_home: Path, project: Path) -> None:
    third = [sys.executable, "-c", "print('deepest')"]
    second = [sys.executable, "-c", f"import flow_sdk as f; print(f.run({third!r}, upload_code=False).task_id)"]
    first = [sys.executable, "-c", f"import flow_sdk as f; print(f.run({second!r}, upload_code=False).task_id)"]
    one = flow.run(first).wait(FAR_S)
    two = flow.get_task(one.logs().strip()).wait(FAR_S)
    three = flow.get_task(two.logs().strip()).wait(FAR_S)
    assert three.logs() == "deepest\n"
    assert wait_for(lambda: not directory(one).is_live(), FAR_S, "the first to be gone")
    assert os.path.exists(directory(three).path)
