"""Deadlines, restarts, and tasks of several ranks."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

import flow_sdk as flow
from flow_sdk import taskdir
from tests.faults.processes import FAR_S, all_gone, command_pid, node_status, tree_command, tree_pids, wait_for_file
from tests.services import wait_for


def test_a_task_over_its_time_is_ended_without_any_client(flow_home: Path, project: Path, tmp_path: Path) -> None:
    task = flow.run(tree_command(tmp_path / "pids"), max_run_time_hours=2 / 3600)
    pids = tree_pids(task, tmp_path / "pids")
    status_json = taskdir.TaskDir(task.task_id).node(0) / "status.json"
    wait_for(lambda: json.loads(status_json.read_text())["state"] == "timed_out", FAR_S, "the deadline, unwatched")
    assert task.status == taskdir.TIMED_OUT and task.exit_code == 143
    assert task.reason and "max_run_time_hours" in task.reason
    all_gone(pids.values())


def test_a_task_over_its_time_may_clean_up(flow_home: Path, project: Path) -> None:
    task = flow.run(
        "trap 'echo saved; exit 0' TERM; echo up; while :; do sleep 0.02; done", max_run_time_hours=1 / 3600
    ).wait(FAR_S)
    assert (task.status, task.exit_code) == (taskdir.TIMED_OUT, 0)
    assert task.logs(stderr=False) == "up\nsaved\n"


def test_a_task_over_its_time_that_ignores_it_is_killed(
    flow_home: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flow_sdk.providers.local.GRACE_S", 0.5)
    task = flow.run("trap '' TERM; while :; do sleep 0.02; done", max_run_time_hours=0.5 / 3600)
    assert (task.wait(FAR_S).status, task.exit_code) == (taskdir.TIMED_OUT, 137)


def test_the_time_of_all_restarts_counts_together(flow_home: Path, project: Path) -> None:
    began = time.monotonic()
    task = flow.run("echo $FLOW_RESTART_COUNT; sleep 0.5; exit 1", retries=1000, max_run_time_hours=2 / 3600)
    assert task.wait(FAR_S).status == taskdir.TIMED_OUT
    assert time.monotonic() - began < 20
    counts = task.logs().split()
    assert counts == [str(n) for n in range(len(counts))] and 1 < len(counts) <= 5


def test_retries_end_with_the_first_success(flow_home: Path, project: Path) -> None:
    task = flow.run('echo "try $FLOW_RESTART_COUNT"; [ $FLOW_RESTART_COUNT = 2 ]', retries=5).wait(FAR_S)
    assert (task.status, task.exit_code) == (taskdir.COMPLETED, 0)
    assert task.logs() == "try 0\ntry 1\ntry 2\n"
    assert node_status(task).restarts == 2


def test_retries_run_out(flow_home: Path, project: Path) -> None:
    task = flow.run("echo $FLOW_RESTART_COUNT; exit 9", retries=2).wait(FAR_S)
    assert (task.status, task.exit_code, task.logs()) == (taskdir.FAILED, 9, "0\n1\n2\n")
    assert node_status(task).restarts == 2


def test_what_one_try_leaves_is_ended_before_the_next(flow_home: Path, project: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = f"cat {pids} 2>/dev/null | while read p; do kill -0 $p && echo alive; done; setsid sleep 1000 & "
    task = flow.run(f"{command} echo $! >> {pids}; exit 1", retries=2).wait(FAR_S)
    left = [int(line) for line in pids.read_text().split()]
    assert len(left) == 3 and "alive" not in task.logs(stderr=False)
    all_gone(left)


def test_a_restart_keeps_the_files_of_the_try_before(flow_home: Path, project: Path) -> None:
    task = flow.run("echo step >> checkpoint; wc -l < checkpoint; [ $FLOW_RESTART_COUNT = 1 ]", retries=1).wait(FAR_S)
    assert task.logs().split() == ["1", "2"]


NAMES = (
    "FLOW_TASK_ID", "FLOW_TASK_NAME", "FLOW_NODE_RANK", "FLOW_NUM_NODES", "FLOW_NODE_COUNT", "FLOW_MAIN_IP",
    "MASTER_ADDR", "MASTER_PORT", "FLOW_RESTART_COUNT", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 4])
def test_every_rank_knows_where_it_is(ranks: int, flow_home: Path, project: Path) -> None:
    show = f"import json, os; print(json.dumps({{name: os.environ[name] for name in {NAMES}}}))"
    task = flow.run([sys.executable, "-c", show], num_instances=ranks, name="spread").wait(FAR_S)
    assert task.status == taskdir.COMPLETED
    found = [json.loads(task.logs(node=rank)) for rank in range(ranks)]
    port = found[0]["MASTER_PORT"]
    assert 1024 < int(port) < 65536
    for rank, names in enumerate(found):
        assert names == {
            "FLOW_TASK_ID": task.task_id,
            "FLOW_TASK_NAME": "spread",
            "FLOW_NODE_RANK": str(rank),
            "FLOW_NUM_NODES": str(ranks),
            "FLOW_NODE_COUNT": str(ranks),
            "FLOW_MAIN_IP": "127.0.0.1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "FLOW_RESTART_COUNT": "0",
            "CUDA_VISIBLE_DEVICES": "",
        }


def test_the_users_own_environment_does_not_pass_for_flows(
    flow_home: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "stale")
    monkeypatch.setenv("KEPT", "from the client")
    task = flow.run("echo $FLOW_NODE_RANK $FLOW_RESTART_COUNT $MASTER_ADDR $KEPT", env={"FLOW_NODE_RANK": "7"})
    assert task.wait(FAR_S).logs() == "0 0 127.0.0.1 from the client\n"


MEET = """
import os, socket, sys, time
rank, count = int(os.environ["FLOW_NODE_RANK"]), int(os.environ["FLOW_NUM_NODES"])
at = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
if rank == 0:
    with socket.create_server(at) as server:
        server.settimeout(30)
        met = sorted(int(server.accept()[0].recv(8)) for _ in range(count - 1))
    print("met", *met)
else:
    deadline = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection(at, timeout=30) as peer:
                peer.sendall(b"%d" % rank)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
"""


def test_ranks_meet_at_the_master(flow_home: Path, project: Path) -> None:
    tasks = [flow.run([sys.executable, "-c", MEET], num_instances=4) for _ in range(2)]
    for task in tasks:
        assert task.wait(60).status == taskdir.COMPLETED, task.logs()
        assert task.logs(node=0) == "met 1 2 3\n"


def test_one_failing_rank_ends_the_others_with_its_reason(flow_home: Path, project: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    command = f"{wait_for_file(go)}; if [ $FLOW_NODE_RANK = 2 ]; then echo out of luck >&2; exit 6; fi; exec sleep 1000"
    task = flow.run(command, num_instances=4)
    pids = [command_pid(task, rank) for rank in range(4)]
    go.touch()
    assert task.wait(FAR_S).status == taskdir.FAILED
    assert (task.exit_code, task.reason) == (6, "Node 2: The command ended with exit code 6: out of luck")
    assert [node_status(task, rank).state for rank in range(4)] == ["cancelled", "cancelled", "failed", "cancelled"]
    assert node_status(task, 0).reason == "Ended because rank 2 failed."
    all_gone(pids)


def test_a_rank_over_its_time_ends_the_others(flow_home: Path, project: Path) -> None:
    task = flow.run("exec sleep 1000", num_instances=2, max_run_time_hours=1 / 3600).wait(FAR_S)
    assert task.status == taskdir.TIMED_OUT and task.reason and "max_run_time_hours" in task.reason


def test_ranks_that_end_early_leave_the_others_running(flow_home: Path, project: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task = flow.run(f"[ $FLOW_NODE_RANK != 1 ] || {{ {wait_for_file(go)}; }}; echo $FLOW_NODE_RANK", num_instances=3)
    wait_for(lambda: ends(task) == 2, FAR_S, "two ranks to end")
    assert task.status == taskdir.RUNNING and task.ended_at is None
    go.touch()
    assert task.wait(FAR_S).status == taskdir.COMPLETED
    assert [task.logs(node=rank) for rank in range(3)] == ["0\n", "1\n", "2\n"]


def ends(task: flow.Task) -> int:
    statuses = [taskdir.TaskDir(task.task_id).status(rank) for rank in range(task.num_instances)]
    return sum(status is not None and status.state in taskdir.END_STATES for status in statuses)
