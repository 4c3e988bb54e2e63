"""GPUs are handed out, one task at a time, in the order of asking, and come back whatever happens to their holder."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import flow_sdk as flow
from flow_sdk import taskdir
from tests.faults.processes import (
    FAR_S,
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
    wait_for_file,
)
from tests.services import wait_for

# Notes when it held which GPUs; CLOCK_MONOTONIC is one clock for all processes.
HOLD = """
import json, os, sys, time
began = time.monotonic()
time.sleep(float(sys.argv[1]))
print(json.dumps([os.environ["CUDA_VISIBLE_DEVICES"].split(","), began, time.monotonic()]))
"""


def hold(seconds: float) -> list[str]:
    return [sys.executable, "-c", HOLD, str(seconds)]


@pytest.fixture
def four_gpus(fake_nvml: Callable[[str], None], flow_home: Path, project: Path) -> None:
    fake_nvml("4xA100")


def waiting(task: flow.Task) -> flow.Task:
    wait_for(lambda: task.reason and task.reason.startswith("Waiting for"), FAR_S, f"{task!r} to wait")
    assert task.status == taskdir.PENDING
    return task


def test_no_gpu_is_held_by_two_tasks_at_once(four_gpus: None) -> None:
    wanted = [1, 2, 1, 2, 2, 1, 1, 2, 1, 1]
    tasks = [flow.run(hold(0.15), instance_type=f"{count}xa100") for count in wanted]
    held: dict[str, list[tuple[float, float]]] = {}
    for task, count in zip(tasks, wanted, strict=True):
        assert task.wait(60).status == taskdir.COMPLETED, task.logs()
        uuids, began, ended = json.loads(task.logs())
        assert len(set(uuids)) == count
        assert node_status(task).gpus == tuple(uuids)
        for uuid in uuids:
            held.setdefault(uuid, []).append((began, ended))
    assert len(held) == 4
    for times in held.values():
        times.sort()
        for (_, ended), (began, _) in itertools.pairwise(times):
            assert ended <= began, "two tasks held one GPU at once"


def test_gpus_are_used_side_by_side(four_gpus: None, tmp_path: Path) -> None:
    go = tmp_path / "go"
    tasks = [flow.run(wait_for_file(go), gpu="a100") for _ in range(4)]
    for task in tasks:
        running(task)
    go.touch()
    assert [task.wait(FAR_S).status for task in tasks] == ["completed"] * 4


def test_the_order_of_waiting_is_kept(four_gpus: None, tmp_path: Path) -> None:
    """Also for a big task among small ones: what comes after it does not slip past it for ever."""
    go, order = tmp_path / "go", tmp_path / "order"
    first = running(flow.run(wait_for_file(go), gpu="a100"))
    behind = []
    for number, count in enumerate([4, 1, 2, 4, 1]):
        behind.append(flow.run(f"echo {number} >> '{order}'; sleep 0.05", instance_type=f"{count}xa100"))
        waiting(behind[-1])
    assert behind[0].reason == "Waiting for 4 GPUs."
    assert behind[2].reason == "Waiting for 2 GPUs, behind 2 other tasks."
    go.touch()
    assert first.wait(FAR_S).status == taskdir.COMPLETED
    for task in behind:
        assert task.wait(FAR_S).status == taskdir.COMPLETED
    # The second and the third fit side by side, so they may overtake each other by a hair.
    ran = order.read_text().split()
    assert [ran[0], sorted(ran[1:3]), *ran[3:]] == ["0", ["1", "2"], "3", "4"]


@pytest.mark.parametrize("how", ["runner", "guard and runner", "command", "cancel"])
def test_a_killed_task_gives_its_gpus_back(how: str, four_gpus: None) -> None:
    holder = flow.run("exec sleep 1000", instance_type="4xa100")
    command, runner, guard = command_pid(holder), runner_pid(holder), guard_pid(holder)
    next_one = waiting(flow.run(hold(0), instance_type="4xa100"))
    if how == "cancel":
        holder.cancel()
    else:
        kill(*{"runner": [runner], "guard and runner": [guard, runner], "command": [command]}[how])
    assert next_one.wait(FAR_S).status == taskdir.COMPLETED
    assert len(json.loads(next_one.logs())[0]) == 4
    holder.wait(FAR_S)
    all_gone([command])


def test_cancelled_while_waiting_leaves_the_queue(four_gpus: None, tmp_path: Path) -> None:
    go = tmp_path / "go"
    holder = running(flow.run(wait_for_file(go), instance_type="4xa100"))
    first = waiting(flow.run("echo first", gpu="a100"))
    second = waiting(flow.run("echo second", gpu="a100"))
    assert second.reason == "Waiting for 1 GPU, behind 1 other task."
    assert first.cancel().wait(FAR_S).status == taskdir.CANCELLED
    assert first.logs() == "" and first.exit_code is None
    wait_for(lambda: second.reason == "Waiting for 1 GPU.", FAR_S, "the second to be first")
    go.touch()
    assert second.wait(FAR_S).status == taskdir.COMPLETED
    assert holder.wait(FAR_S).status == taskdir.COMPLETED


def test_killed_while_waiting_leaves_the_queue(four_gpus: None, tmp_path: Path) -> None:
    go = tmp_path / "go"
    holder = running(flow.run(wait_for_file(go), instance_type="4xa100"))
    first = waiting(flow.run("echo first", gpu="a100"))
    second = waiting(flow.run("echo second", gpu="a100"))
    kill(guard_pid(first))
    assert first.wait(FAR_S).status == taskdir.LOST
    wait_for(lambda: second.reason == "Waiting for 1 GPU.", FAR_S, "the second to be first")
    go.touch()
    assert second.wait(FAR_S).status == taskdir.COMPLETED
    assert holder.wait(FAR_S).status == taskdir.COMPLETED


def test_a_task_cancelled_before_it_could_even_wait(four_gpus: None, tmp_path: Path) -> None:
    go = tmp_path / "go"
    holder = running(flow.run(wait_for_file(go), instance_type="4xa100"))
    for _ in range(5):
        task = flow.run("echo ran", gpu="a100").cancel()
        assert task.wait(FAR_S).status == taskdir.CANCELLED
    after = waiting(flow.run("echo after", gpu="a100"))
    assert after.reason == "Waiting for 1 GPU."
    go.touch()
    assert after.wait(FAR_S).status == holder.wait(FAR_S).status == taskdir.COMPLETED


def test_ranks_have_gpus_of_their_own(four_gpus: None) -> None:
    task = flow.run(hold(0), instance_type="2xa100", num_instances=2).wait(FAR_S)
    shares = [json.loads(task.logs(node=rank))[0] for rank in range(2)]
    assert [len(share) for share in shares] == [2, 2] and len({*shares[0], *shares[1]}) == 4
    assert [node_status(task, rank).gpus for rank in range(2)] == [tuple(share) for share in shares]


def test_a_restart_keeps_its_gpus(four_gpus: None) -> None:
    task = flow.run("echo $CUDA_VISIBLE_DEVICES; [ $FLOW_RESTART_COUNT = 2 ]", gpu="a100", retries=2).wait(FAR_S)
    assert len(task.logs().split()) == 3 and len(set(task.logs().split())) == 1


def test_a_cpu_task_sees_no_gpu_and_waits_for_none(four_gpus: None, tmp_path: Path) -> None:
    go = tmp_path / "go"
    holder = running(flow.run(wait_for_file(go), instance_type="4xa100"))
    for fields in ({}, {"instance_type": "cpu"}):
        task = flow.run("echo [$CUDA_VISIBLE_DEVICES]", **fields).wait(FAR_S)  # type: ignore[arg-type]
        assert task.logs() == "[]\n"
    go.touch()
    holder.wait(FAR_S)


HOLD_THREE_TIMES = """
import json, sys
import flow_sdk as flow
tasks = [flow.run(json.loads(sys.argv[1]), instance_type="2xa100") for _ in range(3)]
print(json.dumps([json.loads(task.wait(60).logs()) for task in tasks]))
"""


def test_clients_at_once_in_several_processes_share_the_queue(four_gpus: None) -> None:
    clients = [start_client(HOLD_THREE_TIMES, json.dumps(hold(0.05))) for _ in range(3)]
    held: dict[str, list[tuple[float, float]]] = {}
    for client in clients:
        for uuids, began, ended in json.loads(output_of(client)):
            for uuid in uuids:
                held.setdefault(uuid, []).append((began, ended))
    for times in held.values():
        times.sort()
        assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(times))


def test_strict_refuses_what_is_not_here(four_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_LOCAL_STRICT", "1")
    assert flow.run("true", instance_type="4xa100").wait(FAR_S).status == taskdir.COMPLETED
    for wanted, has in (("8xa100", "has 4 of the 8"), ("h100", "has no"), ("a100-40gb", "has no")):
        with pytest.raises(flow.errors.NoCapacityError) as caught:
            flow.run("true", instance_type=wanted)
        assert "\n" not in caught.value.message and has in caught.value.message, caught.value.message
        assert any("A100" in text for text in caught.value.suggestions)
    assert len(flow.list_tasks()) == 1


def test_a_machine_without_the_gpu_says_that_it_uses_its_cpu(
    fake_nvml: Callable[[str], None], flow_home: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for gpus in ("0", "4xT4"):
        fake_nvml(gpus)
        task = flow.run("echo [$CUDA_VISIBLE_DEVICES]", gpu="a100").wait(FAR_S)
        assert (task.status, task.logs()) == (taskdir.COMPLETED, "[]\n")
        assert task.record.note == "This machine has no a100; the task runs on its CPU."
        assert capsys.readouterr().err.count("the task runs on its CPU") == 1


def test_a_client_without_the_driver_has_no_gpus(flow_home: Path, project: Path) -> None:
    code = "import flow_sdk as f; print(f.run('true', gpu='a100').wait(30).status)"
    assert run_client(code) == "completed\n"
