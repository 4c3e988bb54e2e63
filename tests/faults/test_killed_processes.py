"""`kill -9` of any of a task's processes: found by whoever looks, reported with a reason, and nothing is left over."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import flow_sdk as flow
from flow_sdk import taskdir
from tests.faults.processes import (
    FAR_S,
    alive,
    all_gone,
    command_pid,
    guard_pid,
    kill,
    node_status,
    output_of,
    run_client,
    runner_pid,
    running,
    start_client,
    tree_command,
    tree_pids,
    wait_for_file,
)
from tests.services import wait_for


def test_a_killed_runner_is_reported_as_lost_and_its_tree_is_ended(
    flow_home: Path, project: Path, tmp_path: Path
) -> None:
    task = flow.run(tree_command(tmp_path / "pids"))
    pids = tree_pids(task, tmp_path / "pids")
    kill(runner_pid(task))
    assert task.wait(FAR_S).status == taskdir.LOST
    assert task.reason == "Its runner was killed by signal 9 SIGKILL (often the kernel, out of memory); " + (
        "what it had started was ended."
    )
    assert task.exit_code is None
    all_gone(pids.values())
    assert task.logs() == "ready\n"


def test_a_killed_runner_and_guard_are_found_by_whoever_looks(flow_home: Path, project: Path, tmp_path: Path) -> None:
    task = flow.run(tree_command(tmp_path / "pids"))
    pids = tree_pids(task, tmp_path / "pids")
    kill(guard_pid(task), runner_pid(task))
    ended = flow.get_task(task.task_id).wait(FAR_S)
    assert ended.status == taskdir.LOST
    assert ended.reason and "killed" in ended.reason and f"flow run --from {task.task_id}" in ended.reason
    assert ended.ended_at and ended.started_at and ended.ended_at >= ended.started_at
    all_gone(pids.values())
    # It is lost for everybody from now on, and nothing of it comes back.
    assert run_client("import sys, flow_sdk as f; print(f.get_task(sys.argv[1]).status)", task.task_id) == "lost\n"


def test_a_task_goes_on_without_its_guard(flow_home: Path, project: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task = flow.run(f"{wait_for_file(go)}; echo done")
    runner_pid(task)
    kill(guard_pid(task))
    go.touch()
    assert task.wait(FAR_S).status == taskdir.COMPLETED
    assert task.logs() == "done\n" and task.exit_code == 0


def test_a_task_without_its_guard_can_be_cancelled(flow_home: Path, project: Path, tmp_path: Path) -> None:
    task = flow.run(tree_command(tmp_path / "pids"))
    pids = tree_pids(task, tmp_path / "pids")
    kill(guard_pid(task))
    assert task.cancel().wait(FAR_S).status == taskdir.CANCELLED
    assert task.reason and task.reason.startswith("Cancelled by ")
    all_gone(pids.values())


def test_a_guard_killed_before_it_started_anything_is_lost(
    flow_home: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = tmp_path / "marks"
    # The guard's own Python, stopped before its first line.
    monkeypatch.setattr("flow_sdk.providers.local.START", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    task = flow.run(f"echo ran >> '{marks}'")
    assert task.wait(FAR_S).status == taskdir.LOST
    assert task.reason and "The task's runner did not start; nothing ran." in task.reason
    assert not marks.exists()


def test_a_guard_that_cannot_start_says_why(flow_home: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flow_sdk.providers.local.START", "raise SystemExit('no such spirit')")
    task = flow.run("echo hi")
    assert task.wait(FAR_S).status == taskdir.LOST
    assert task.reason and "no such spirit" in task.reason


def test_a_killed_command_is_a_failure_with_its_signal(flow_home: Path, project: Path) -> None:
    task = flow.run("echo begun; exec sleep 1000")
    pid = command_pid(task)
    os.kill(pid, signal.SIGKILL)
    assert task.wait(FAR_S).status == taskdir.FAILED
    assert task.exit_code == 137
    assert task.reason == "The command was killed by signal 9 SIGKILL (often the kernel, out of memory)."
    all_gone([pid])


def test_a_command_killed_by_another_signal_is_not_called_out_of_memory(flow_home: Path, project: Path) -> None:
    task = flow.run("echo a last word >&2; kill -SEGV $$").wait(FAR_S)
    assert (task.status, task.exit_code) == (taskdir.FAILED, 139)
    assert task.reason == "The command was killed by signal 11 SIGSEGV: a last word"


def test_what_a_killed_command_left_is_ended(flow_home: Path, project: Path, tmp_path: Path) -> None:
    task = flow.run(tree_command(tmp_path / "pids"))
    pids = tree_pids(task, tmp_path / "pids")
    os.kill(pids["command"], signal.SIGKILL)
    assert task.wait(FAR_S).exit_code == 137
    all_gone(pids.values())


def test_what_a_completed_command_left_is_ended(flow_home: Path, project: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    left = f"setsid sh -c 'echo $$ > {pids}/one; exec sleep 1000' & until [ -s {pids}/one ]; do sleep 0.02; done"
    task = flow.run(left).wait(FAR_S)
    assert task.status == taskdir.COMPLETED
    all_gone([int((pids / "one").read_text())])


def test_one_killed_rank_ends_the_others(flow_home: Path, project: Path) -> None:
    task = flow.run("echo up; exec sleep 1000", num_instances=3)
    commands = [command_pid(task, rank) for rank in range(3)]
    kill(runner_pid(task, 1))
    assert task.wait(FAR_S).status == taskdir.LOST
    assert task.reason and task.reason.startswith("Node 1: Its runner was killed")
    assert [node_status(task, rank).state for rank in range(3)] == ["cancelled", "lost", "cancelled"]
    assert node_status(task, 0).reason == "Ended because rank 1 was lost."
    all_gone(commands)


def test_a_follower_of_a_killed_task_ends(flow_home: Path, project: Path) -> None:
    task = flow.run("echo begun; exec sleep 1000")
    code = "import sys, flow_sdk as f\nfor line in f.get_task(sys.argv[1]).logs(follow=True): print(line, flush=True)"
    follower = start_client(code, task.task_id)
    assert follower.stdout and follower.stdout.readline() == "begun\n"
    pid = command_pid(task)
    kill(guard_pid(task), runner_pid(task))
    assert output_of(follower, FAR_S) == ""
    assert task.status == taskdir.LOST
    all_gone([pid])


def test_a_lost_task_leaves_another_tasks_processes_alone(flow_home: Path, project: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    other = flow.run(f"{wait_for_file(go)}; echo done")
    victim = flow.run("exec sleep 1000")
    pid = command_pid(victim)
    running(other)
    kill(guard_pid(victim), runner_pid(victim))
    assert victim.wait(FAR_S).status == taskdir.LOST
    all_gone([pid])
    assert other.status == taskdir.RUNNING
    go.touch()
    assert other.wait(FAR_S).status == taskdir.COMPLETED


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that has nothing to do with Flow."""
    process = start_client("import signal; print('up', flush=True); signal.pause()")
    assert process.stdout and process.stdout.readline() == "up\n"
    yield process.pid
    process.kill()
    process.communicate()


def test_the_numbers_of_dead_processes_are_no_targets(stranger: int, flow_home: Path, project: Path) -> None:
    """After a reboot, the numbers in old task directories belong to strangers."""
    task = flow.run("exec sleep 1000")
    pids = [command_pid(task), guard_pid(task), runner_pid(task)]
    kill(*pids)
    all_gone(pids)
    files = taskdir.TaskDir(task.task_id)
    files.lock.write_text(f"{stranger}\n")
    status = files.node(0) / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "pid": stranger, "command_pid": stranger}))
    assert task.cancel().wait(FAR_S).status == taskdir.LOST
    assert alive(stranger)


def test_the_number_of_a_dead_guard_is_no_target(stranger: int, flow_home: Path, project: Path) -> None:
    task = flow.run("exec sleep 1000")
    pid = command_pid(task)
    kill(guard_pid(task))
    taskdir.TaskDir(task.task_id).lock.write_text(f"{stranger}\n")
    assert task.cancel().wait(FAR_S).status == taskdir.CANCELLED
    assert alive(stranger)
    all_gone([pid])


@pytest.mark.parametrize("guard_too", [False, True])
def test_a_runner_killed_while_it_prepares(
    guard_too: bool, stalling_url: str, flow_home: Path, project: Path, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    task = flow.run(f"echo ran >> '{marks}'", mounts={"/data": stalling_url})
    wait_for(lambda: task.status == taskdir.PREPARING, FAR_S, f"{task!r} to be prepared")
    runner = node_status(task).pid
    assert runner
    children = Path(f"/proc/{runner}/task/{runner}/children")
    left = [int(pid) for pid in wait_for(lambda: children.read_text().split(), FAR_S, "the download to begin")]
    kill(*([guard_pid(task), runner] if guard_too else [runner]))
    assert task.wait(FAR_S).status == taskdir.LOST
    assert task.reason and "killed" in task.reason
    all_gone([runner, *left])
    assert not marks.exists()


def test_what_still_writes_when_the_command_has_ended_is_waited_for(flow_home: Path, project: Path) -> None:
    through_tee = "exec > >(tee kept.txt) 2>&1; echo one; echo two"
    for _ in range(5):
        assert flow.run(through_tee).wait(FAR_S).logs() == "one\ntwo\n"
    late = flow.run("(sleep 0.5; echo late) & echo main").wait(FAR_S)
    assert (late.logs(), late.reason) == ("main\nlate\n", None)


def test_what_never_ends_is_ended_and_said(flow_home: Path, project: Path) -> None:
    task = flow.run("sleep 1000 & echo main").wait(FAR_S)
    assert (task.status, task.exit_code, task.logs()) == ("completed", 0, "main\n")
    assert "left running" in str(task.reason)
