"""Several clients at once: each sees everything once, and none disturbs another."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import flow_sdk as flow
from flow_sdk import taskdir
from tests.faults.processes import FAR_S, output_of, running, start_client, wait_for_file

FOLLOW_AND_WAIT = """
import hashlib, json, os, sys, time
import flow_sdk as flow
task = flow.get_task(sys.argv[1])
print("up", flush=True)
lines = hashlib.sha256()
count = 0
for line in task.logs(follow=True):
    count += 1
    lines.update(line.encode() + b"\\n")
    if sys.argv[2] == "cancel" and line == "last":
        task.cancel()
task.wait(30)
print(json.dumps([count, lines.hexdigest(), task.status, task.exit_code, task.reason]))
"""


def test_two_clients_follow_cancel_and_wait_for_one_task(flow_home: Path, project: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task = flow.run(f"{wait_for_file(go)}; seq 100000; echo last; exec sleep 1000")
    clients = [start_client(FOLLOW_AND_WAIT, task.task_id, "cancel") for _ in range(3)]
    for client in clients:
        assert client.stdout and client.stdout.readline() == "up\n"
    go.touch()
    seen = [json.loads(output_of(client)) for client in clients]
    said = "".join(f"{n}\n" for n in range(1, 100001)) + "last\n"
    user = task.get_user().username
    expected = [100001, hashlib.sha256(said.encode()).hexdigest(), "cancelled", 143, f"Cancelled by {user}."]
    assert seen == [expected] * 3
    assert task.logs() == said


def test_one_client_waits_and_another_cancels(flow_home: Path, project: Path) -> None:
    task = flow.run("echo last; exec sleep 1000")
    waiter = start_client(FOLLOW_AND_WAIT, task.task_id, "only wait")
    assert waiter.stdout and waiter.stdout.readline() == "up\n"
    running(task)
    canceller = start_client("import sys, flow_sdk as f; print(f.cancel(sys.argv[1]).wait(30).status)", task.task_id)
    assert output_of(canceller) == "cancelled\n"
    assert json.loads(output_of(waiter))[2:4] == ["cancelled", 143]


def test_one_handle_is_used_by_several_threads(flow_home: Path, project: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    task = flow.run("seq 20000; sleep 0.3; seq 20000")
    with ThreadPoolExecutor(8) as pool:
        followed = [pool.submit(lambda: sum(1 for _ in task.logs(follow=True))) for _ in range(4)]
        waited = [pool.submit(lambda: task.wait(FAR_S).status) for _ in range(4)]
    assert [one.result() for one in followed] == [40000] * 4
    assert [one.result() for one in waited] == ["completed"] * 4


def go_together(clients: list[subprocess.Popen[str]]) -> None:
    """Lets clients go on that have said "up" and wait for a line."""
    for client in clients:
        assert client.stdout and client.stdout.readline() == "up\n"
    for client in clients:
        assert client.stdin
        client.stdin.write("\n")
        client.stdin.flush()


SUBMIT_TEN = """
import sys
import flow_sdk as flow
print("up", flush=True)
sys.stdin.readline()
tasks = [flow.run(f"echo {n} >> $FLOW_MARKS", name=f"burst-{sys.argv[1]}-{n}") for n in range(10)]
print(*[task.task_id for task in tasks])
"""


def test_200_submits_from_20_processes_at_once(flow_home: Path, project: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    clients = [start_client(SUBMIT_TEN, number, FLOW_MARKS=str(marks)) for number in range(20)]
    go_together(clients)
    ids = [task_id for client in clients for task_id in output_of(client, 120).split()]
    assert len(set(ids)) == 200
    tasks = flow.list_tasks()
    assert {task.task_id for task in tasks} == set(ids) and len(tasks) == 200
    assert {task.name for task in tasks} == {f"burst-{p}-{n}" for p in range(20) for n in range(10)}
    ended = [task.wait(60).status for task in tasks]
    assert ended == [taskdir.COMPLETED] * 200
    assert len(marks.read_text().splitlines()) == 200
    created = [task.created_at for task in tasks]
    assert created == sorted(created, reverse=True)


CREATE = """
import sys
import flow_sdk as flow
print("up", flush=True)
sys.stdin.readline()
volumes = [{"name": "shared", "mount_path": "/shared"}]
print(flow.run("echo $FLOW_TASK_ID >> /shared/lines", volumes=volumes).wait(60).status)
"""


def test_a_new_volume_that_many_ask_for_at_once_is_one(flow_home: Path, project: Path) -> None:
    clients = [start_client(CREATE) for _ in range(6)]
    go_together(clients)
    assert [output_of(client) for client in clients] == ["completed\n"] * 6
    (volume,) = flow.list_volumes()
    assert volume.name == "shared"
    assert len((flow_home / "volumes" / "shared" / "lines").read_text().splitlines()) == 6
    flow.delete_volume("shared")
    assert flow.list_volumes() == []
