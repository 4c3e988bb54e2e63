"""`flow cancel`."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import psutil

import flow_sdk
from flow_sdk import store
from flow_sdk.taskdir import TaskDir
from tests.cli.conftest import Command, finish, interrupt
from tests.cli.test_cli_run import TASK_KEYS
from tests.services import wait_for


def start(flow: Command, *names: str, command: str = "sleep 60") -> None:
    for name in names:
        flow("run", command, "--name", name)
    for name in names:
        wait_for(lambda name=name: flow_sdk.get_task(name).status == "running", what=f"{name} to run")


def states(*names: str) -> list[str]:
    return [flow_sdk.get_task(name).status for name in names]


def test_one_task_is_cancelled_without_asking(flow: Command) -> None:
    start(flow, "one")
    done = flow("cancel", "one")
    assert re.fullmatch(r"one \(task-\w+\) cancelled after [0-9.]+ s: Cancelled by \S+\n", done.out)
    assert states("one") == ["cancelled"]


def test_one_that_has_ended_stays_as_it_is(flow: Command) -> None:
    flow("run", "true", "--name", "done", "--wait")
    assert re.fullmatch(r"done \(task-\w+\) had ended already: completed in [0-9.]+ s\n", flow("cancel", "done").out)
    start(flow, "one")
    flow("cancel", "one")
    assert "had ended already: cancelled" in flow("cancel", "one").out


def test_a_command_that_takes_its_time_is_waited_for(flow: Command) -> None:
    start(flow, "slow", command="trap 'sleep 1; echo saved; exit 0' TERM; echo ready; sleep 60 & wait")
    wait_for(lambda: "ready" in flow_sdk.get_task("slow").logs(), what="the trap")
    begun = time.monotonic()
    assert " cancelled after " in flow("cancel", "slow").out
    assert time.monotonic() - begun > 1
    assert flow("logs", "slow").out == "ready\nsaved\n"


def test_by_pattern(flow: Command) -> None:
    start(flow, "dev-1", "dev-2", "prod")
    flow("run", "true", "--name", "dev-0", "--wait")
    done = flow("cancel", "--name-pattern", "dev-*", "--yes")
    assert sorted(line.split()[0] for line in done.out.splitlines()) == ["dev-1", "dev-2"]
    assert states("dev-0", "dev-1", "dev-2", "prod") == ["completed", "cancelled", "cancelled", "running"]
    flow("cancel", "prod")


def test_a_pattern_that_fits_nothing(flow: Command) -> None:
    assert flow("cancel", "-n", "nix-*").out == "No task that goes on is named nix-*.\n"
    assert flow("cancel", "-n", "nix-*", "--json").out == ""


def test_without_a_terminal_several_are_refused(flow: Command) -> None:
    start(flow, "a", "b")
    for arguments in (["a", "b"], ["-n", "*"]):
        done = flow("cancel", *arguments, code=2)
        assert done.err.splitlines()[-2:] == [
            "Error: Cancel these 2 tasks needs a yes, and there is no terminal to ask on.",
            "  - Add --yes.",
        ]
    assert states("a", "b") == ["running", "running"]
    assert len(flow("cancel", "a", "b", "--yes").out.splitlines()) == 2
    assert states("a", "b") == ["cancelled", "cancelled"]


def test_on_a_terminal_it_asks(flow: Command, terminal: Any) -> None:
    start(flow, "a", "b")
    child = terminal("cancel", "-n", "?")
    child.expect_exact("Cancel these 2 tasks? [y/N]: ")
    assert flow_sdk.get_task("a").task_id in child.before
    child.sendline("n")
    assert finish(child) == 1
    assert states("a", "b") == ["running", "running"]
    child = terminal("cancel", "a", "b")
    child.expect_exact("[y/N]: ")
    child.sendline("y")
    assert finish(child) == 0
    assert states("a", "b") == ["cancelled", "cancelled"]


def test_ctrl_c_at_the_question_cancels_nothing(flow: Command, terminal: Any) -> None:
    start(flow, "a")
    child = terminal("cancel", "-n", "a")
    child.expect_exact("Cancel this task? [y/N]: ")
    interrupt(child)
    assert finish(child) == 130
    assert states("a") == ["running"]
    flow("cancel", "a")


def test_json(flow: Command) -> None:
    start(flow, "a", "b")
    found = flow("cancel", "a", "b", "--yes", "--json").json
    assert [set(task) for task in found] == [TASK_KEYS, TASK_KEYS]
    assert {(task["name"], task["state"]) for task in found} == {("a", "cancelled"), ("b", "cancelled")}


def test_a_task_that_does_not_end_is_said(flow: Command) -> None:
    """Its guard and its runner are held, so nobody answers."""
    start(flow, "a", "b")
    record = flow_sdk.get_task("a").record
    assert record.lease is not None
    store.save(replace(record, lease={**record.lease, "grace_s": 0.0}))
    guard = psutil.Process(TaskDir(record.task_id).guard_pid())
    held = [guard, *guard.children()]
    for process in held:
        process.suspend()
    done = flow("cancel", "a", "b", "--yes", code=7)
    assert re.fullmatch(r"b \(task-\w+\) cancelled .*\n", done.out)
    assert done.err.startswith(f"Error: Asked to stop, and not ended yet: {record.task_id}.")
    for process in held:
        process.resume()
    flow_sdk.get_task("a").wait(20)
    assert states("a") == ["cancelled"]


def test_the_same_task_twice_is_one(flow: Command) -> None:
    start(flow, "a")
    assert len(flow("cancel", "a", flow_sdk.get_task("a").task_id).out.splitlines()) == 1


def test_one_unknown_name_cancels_nothing(flow: Command) -> None:
    start(flow, "a")
    flow("cancel", "a", "nix", "--yes", code=4)
    assert states("a") == ["running"]
    flow("cancel", "a")
