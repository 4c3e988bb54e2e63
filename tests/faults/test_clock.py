"""Somebody sets the clock, by a day, in mid-task: deadlines and durations are as if nobody had."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import flow_sdk as flow
from flow_sdk import taskdir
from tests.faults.processes import FAR_S, node_status, output_of, run_client, start_client, wait_for_file
from tests.services import require

DAY_S = 86400

SUBMIT = """
import json, sys, flow_sdk as flow
task = flow.run(sys.argv[1], **json.loads(sys.argv[2]))
print(task.task_id, flush=True)
"""


class Clock:
    """The clock of the processes that are started with `environ`; this process has the true one."""

    def __init__(self, library: Path, file: Path) -> None:
        self.file = file
        self.environ = {"LD_PRELOAD": str(library), "CLOCK_SHIFT_FILE": str(file)}
        self.set(0)

    def set(self, shift_s: int) -> None:
        part = self.file.with_suffix(".part")
        part.write_text(str(shift_s))
        part.replace(self.file)

    def submit(self, command: str, **fields: object) -> flow.Task:
        return flow.get_task(run_client(SUBMIT, command, json.dumps(fields), **self.environ).strip())


@pytest.fixture(scope="session")
def clock_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("gcc")
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    source = Path(__file__).with_name("clock.c")
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", str(library), str(source), "-ldl"], check=True)
    return library


@pytest.fixture
def clock(clock_library: Path, tmp_path: Path) -> Clock:
    return Clock(clock_library, tmp_path / "shift")


def test_the_clock_of_the_test_can_be_set(clock: Clock) -> None:
    ask = "import time; print(time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))"
    clock.set(DAY_S)
    day, monotonic, boot = map(float, run_client(ask, **clock.environ).split())
    assert abs(day - time.time() - DAY_S) < 60
    assert abs(monotonic - time.monotonic()) < 60 and abs(boot - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60


@pytest.mark.parametrize("shift_s", [DAY_S, -DAY_S], ids=["a day on", "a day back"])
def test_a_jump_in_mid_task_moves_neither_deadline_nor_duration(
    shift_s: int, clock: Clock, flow_home: Path, project: Path, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    task = clock.submit(f"echo up; {wait_for_file(go)}; date +%s", max_run_time_hours=0.5)
    assert next(task.logs(follow=True)) == "up"
    before = time.time()
    clock.set(shift_s)
    assert abs(float(run_client("import time; print(time.time())", **clock.environ)) - before - shift_s) < 60
    assert task.status == taskdir.RUNNING
    go.touch()
    assert task.wait(FAR_S).status == taskdir.COMPLETED
    # The command itself sees the clock as it is set.
    assert abs(int(task.logs(tail=1)) - before - shift_s) < 60
    status = node_status(task)
    assert status.started_at is not None and status.ended_at is not None
    assert 0 <= status.ended_at - status.started_at < FAR_S
    assert re.search(r", \d+\.\d s, ", repr(task)), repr(task)


@pytest.mark.parametrize("shift_s", [DAY_S, -DAY_S], ids=["a day on", "a day back"])
def test_a_deadline_is_kept_across_a_jump(shift_s: int, clock: Clock, flow_home: Path, project: Path) -> None:
    task = clock.submit("echo up; exec sleep 1000", max_run_time_hours=1.5 / 3600)
    assert next(task.logs(follow=True)) == "up"
    clock.set(shift_s)
    began = time.monotonic()
    assert task.wait(FAR_S).status == taskdir.TIMED_OUT
    assert time.monotonic() - began < 15


LOOK = """
import sys, time, flow_sdk as flow
task = flow.get_task(sys.argv[1])
began = time.monotonic()
try:
    task.wait(0.5)
except flow.errors.WaitTimeoutError:
    print("waited", 0.4 < time.monotonic() - began < 20, repr(task))
"""


@pytest.mark.parametrize("shift_s", [DAY_S, -DAY_S], ids=["a day ahead", "a day behind"])
def test_a_client_with_another_time_of_day(
    shift_s: int, clock: Clock, flow_home: Path, project: Path, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    task = flow.run(wait_for_file(go))
    clock.set(shift_s)
    said = run_client(LOOK, task.task_id, **clock.environ)
    assert said.startswith("waited True <Task ")
    assert not re.search(r"-\d", said.replace(task.name, "").replace(task.task_id, "")), said
    go.touch()
    assert task.wait(FAR_S).status == taskdir.COMPLETED


def test_a_lost_task_never_ended_before_it_began(clock: Clock, flow_home: Path, project: Path) -> None:
    from tests.faults.processes import all_gone, command_pid, guard_pid, kill, runner_pid

    clock.set(DAY_S)
    task = clock.submit("exec sleep 1000")
    pids = [command_pid(task), guard_pid(task), runner_pid(task)]
    kill(*pids[1:])
    assert task.wait(FAR_S).status == taskdir.LOST
    all_gone(pids)
    assert task.ended_at and task.started_at and task.ended_at >= task.started_at


def test_history_is_in_the_order_of_its_times(clock: Clock, flow_home: Path, project: Path) -> None:
    """A task that was submitted while the clock was a day behind is a day old; nothing breaks, and no id is lost."""
    tasks = {}
    for shift_s in (0, -DAY_S, DAY_S, 0):
        clock.set(shift_s)
        tasks[clock.submit("true").wait(FAR_S)] = shift_s
    listed = flow.list_tasks()
    assert [tasks[task] for task in listed] == [DAY_S, 0, 0, -DAY_S]
    created = [task.created_at for task in listed]
    assert created == sorted(created, reverse=True)
    recent: Callable[[float], list[flow.Task]] = lambda age_s: flow.list_tasks(since=time.time() - age_s)  # noqa: E731
    assert len(recent(3600)) == 3 and len(recent(2 * DAY_S)) == 4


def test_a_follower_goes_on_across_a_jump(clock: Clock, flow_home: Path, project: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task = flow.run(f"echo up; {wait_for_file(go)}; echo done")
    code = "import sys, flow_sdk as f\nfor line in f.get_task(sys.argv[1]).logs(follow=True): print(line, flush=True)"
    follower = start_client(code, task.task_id, **clock.environ)
    assert follower.stdout and follower.stdout.readline() == "up\n"
    clock.set(-DAY_S)
    go.touch()
    assert output_of(follower, FAR_S) == "done\n"
