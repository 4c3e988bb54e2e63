"""A FLOW_HOME that cannot be written to: history and logs are read, and everything else is one clear sentence."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import flow_sdk as flow
from flow_sdk import store, taskdir
from tests.faults.processes import FAR_S, all_gone, command_pid, guard_pid, kill, run_client, runner_pid
from tests.services import require


def one_sentence(error: flow.errors.FlowError, home: Path) -> None:
    assert isinstance(error, flow.errors.ConfigError)
    assert error.message == f"Flow cannot write to its folder {home}: Read-only file system."
    assert error.suggestions[0] == "Set FLOW_HOME to a folder you can write to."


@pytest.fixture
def past(flow_home: Path, project: Path, readonly_dir: Callable[[Path], Path]) -> flow.Task:
    """A task of the time when the home was writable."""
    task = flow.run("echo hello; exit 3", name="past", tags=["old"]).wait(FAR_S)
    store._disconnect()
    readonly_dir(flow_home)
    return task


def test_a_submit_is_one_sentence(past: flow.Task, flow_home: Path) -> None:
    for fields in ({"upload_code": False}, {}):
        with pytest.raises(flow.errors.ConfigError) as caught:
            flow.run("echo hi", **fields)  # type: ignore[arg-type]
        if fields:
            one_sentence(caught.value, flow_home)
        assert "\n" not in caught.value.message and "Read-only file system" in caught.value.message
    assert flow.list_tasks() == [past]


def test_history_and_logs_are_read(past: flow.Task) -> None:
    (task,) = flow.list_tasks()
    assert (task.name, task.status, task.exit_code, task.reason) == ("past", "failed", 3, past.reason)
    assert task.logs() == "hello\n" and list(task.logs(follow=True)) == ["hello"]
    assert flow.get_task("past") == task and flow.list_tasks(tag="old", status="failed") == [task]
    assert task.wait(1).exit_code == 3
    assert run_client("import flow_sdk as f; print(*[t.status for t in f.list_tasks()])") == "failed\n"
    assert flow.list_volumes() == []
    assert past.cancel().status == taskdir.FAILED


def test_history_is_read_where_no_database_was_left(past: flow.Task, flow_home: Path, readonly_dir: object) -> None:
    subprocess.run(["mount", "-o", "remount,bind,rw", str(flow_home)], check=True)
    for path in flow_home.glob("flow.db*"):
        path.unlink()
    subprocess.run(["mount", "-o", "remount,bind,ro", str(flow_home)], check=True)
    assert flow.list_tasks() == [past]


def test_other_writes_are_one_sentence(past: flow.Task, flow_home: Path) -> None:
    from flow_sdk import settings

    for write in (
        lambda: flow.create_volume(10, "data"),
        lambda: settings.save({"region": "here"}),
        lambda: flow.rerun(past),
    ):
        with pytest.raises(flow.errors.ConfigError) as caught:
            write()
        assert "\n" not in caught.value.message and "Read-only file system" in caught.value.message


def test_a_home_that_cannot_be_made_is_one_sentence(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch, readonly_dir: Callable[[Path], Path]
) -> None:
    home = readonly_dir(tmp_path / "locked") / "flow"
    monkeypatch.setenv("FLOW_HOME", str(home))
    for act in (lambda: flow.run("echo hi"), flow.list_tasks):
        with pytest.raises(flow.errors.ConfigError) as caught:
            act()
        one_sentence(caught.value, home)


def test_a_home_that_is_a_file_is_one_sentence(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "file"
    home.write_text("")
    monkeypatch.setenv("FLOW_HOME", str(home))
    with pytest.raises(flow.errors.ConfigError) as caught:
        flow.run("echo hi")
    assert "\n" not in caught.value.message and str(home) in caught.value.message


def test_a_running_task_is_followed_from_where_nothing_can_be_written(
    flow_home: Path, project: Path, tmp_path: Path
) -> None:
    """As from a container that mounts the home read-only, or from another user's account: the task itself goes on."""
    require("root", "mounts")
    task = flow.run("echo up; exec sleep 1000")
    pids = [command_pid(task), guard_pid(task), runner_pid(task)]
    code = """
import sys, flow_sdk as flow
task = flow.get_task(sys.argv[1])
print(task.status, next(task.logs(follow=True)), flush=True)
try:
    task.cancel()
except flow.errors.ConfigError as error:
    print(error.message, flush=True)
sys.stdin.readline()
print(task.wait(20).status, task.reason)
"""
    import sys

    remount = (
        'mount --bind "$FLOW_HOME" "$FLOW_HOME" && mount -o remount,bind,ro "$FLOW_HOME" && exec "$0" -c "$1" "$2"'
    )
    client = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", remount, sys.executable, code, task.task_id],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert client.stdout and client.stdout.readline() == "running up\n", client.communicate()
    assert client.stdout.readline() == f"Flow cannot write to its folder {flow_home}: Read-only file system.\n"
    assert task.status == taskdir.RUNNING
    kill(*pids[1:])
    all_gone(pids[1:])
    out, err = client.communicate("\n", timeout=FAR_S)
    assert out.startswith("lost The task's runner and guard were killed"), out + err
    all_gone(pids)
    assert task.wait(FAR_S).status == taskdir.LOST
