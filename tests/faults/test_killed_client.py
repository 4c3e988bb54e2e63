"""A client may die at any moment: its task is then whole, or known to have never run."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pexpect
import pytest

import flow_sdk as flow
from flow_sdk import store, taskdir
from tests.faults.processes import FAR_S, alive, command_pid, output_of, run_client, start_client, wait_for_file
from tests.services import wait_for

SUBMIT = """
import flow_sdk as flow
flow.run(f"echo ran >> {MARKS}", env={"WORD": "said"}, name="victim")
"""

# What a submit does, and the function after whose N-th call it is killed.
STEPS = {
    "nothing done yet": ("flow_sdk.client.choose_offer", 1),
    "code packed": ("flow_sdk.client.pack_code", 1),
    "folder made and locked": ("flow_sdk.taskdir.TaskDir.make", 1),
    "secrets written": ("flow_sdk.client.write_private", 1),
    "task.json written, row not": ("flow_sdk.store.write_private", 1),
    "row written": ("flow_sdk.store.save", 1),
    "lease written": ("flow_sdk.providers.local.write_private", 1),
    "runner started": ("flow_sdk.providers.local.LocalProvider._start", 1),
    "launch done": ("flow_sdk.providers.local.LocalProvider.launch", 1),
    "lease in the history": ("flow_sdk.store.save", 2),
}

KILLED_AFTER_A_STEP = (
    """
import importlib, os, signal, sys
import flow_sdk.client, flow_sdk.providers.local
MARKS, path, count = sys.argv[1], sys.argv[2].split("."), int(sys.argv[3])
at = max(n for n in range(1, len(path)) if ".".join(path[:n]) in sys.modules)
owner = sys.modules[".".join(path[:at])]
for name in path[at:-1]:
    owner = getattr(owner, name)
real = getattr(owner, path[-1])
calls = 0

def step(*args, **kwargs):
    global calls
    result = real(*args, **kwargs)
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, path[-1], step)
"""
    + SUBMIT
)


@pytest.mark.parametrize("step", STEPS)
def test_a_client_killed_in_mid_submit_leaves_a_whole_task_or_none(
    step: str, flow_home: Path, project: Path, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    assert flow.list_tasks() == []
    store._disconnect()
    client = start_client(KILLED_AFTER_A_STEP, marks, *STEPS[step])
    _, said = client.communicate(timeout=FAR_S)
    assert client.returncode == -signal.SIGKILL, said
    ended = outcome(marks)
    if step in ("nothing done yet", "code packed", "folder made and locked", "secrets written"):
        assert ended == "none"
    elif step in ("task.json written, row not", "row written", "lease written"):
        assert ended == taskdir.LOST
    else:
        assert ended == taskdir.COMPLETED


# Each file that is made, opened for writing, renamed or removed, and each process started, is one point to die at.
KILLED_BEFORE_AN_OPERATION = """
import json, os, signal, sys
import flow_sdk as flow, flow_sdk.client, flow_sdk.bundle, flow_sdk.config, flow_sdk.providers.local
MARKS = sys.argv[1]
armed_for = -1
seen = 0
EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.chmod", "os.truncate", "subprocess.Popen", "sqlite3.connect")

def hook(event, arguments):
    global seen
    writes = event == "open" and arguments[2] is not None and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if armed_for >= 0 and (writes or event in EVENTS):
        seen += 1
        if seen > armed_for:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
number, killed = 0, True
while killed:
    home = os.path.join(os.environ["FLOW_HOME"], str(number))
    pid = os.fork()
    if pid == 0:
        os.environ["FLOW_HOME"] = home
        MARKS = f"{sys.argv[1]}-{number}"
        armed_for = number
        try:
            exec(compile(sys.argv[2], "submit", "exec"))
        finally:
            os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    number += 1
print(number)
"""


def test_a_client_killed_before_any_one_file_operation_leaves_a_whole_task_or_none(
    flow_home: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "train.py").write_text("print('hello')\n")
    marks = tmp_path / "marks"
    points = int(run_client(KILLED_BEFORE_AN_OPERATION, marks, SUBMIT))
    assert points > 20, "the hook saw too little of a submit"
    outcomes = []
    for number in range(points):
        monkeypatch.setenv("FLOW_HOME", str(flow_home / str(number)))
        outcomes.append(outcome(Path(f"{marks}-{number}")))
    monkeypatch.setenv("FLOW_HOME", str(flow_home))
    order = ("none", taskdir.LOST, taskdir.COMPLETED)
    assert outcomes == sorted(outcomes, key=order.index), "a later death left less than an earlier one"
    assert set(outcomes) == set(order)


def outcome(marks: Path) -> str:
    """How the one task ended, if there is one; nothing ran unless it completed, and never twice."""
    tasks = flow.list_tasks()
    assert len(tasks) <= 1
    if not tasks:
        assert not marks.exists()
        return "none"
    task = tasks[0].wait(FAR_S)
    assert task.name == "victim"
    if task.status == taskdir.COMPLETED:
        assert marks.read_text() == "ran\n"
        return taskdir.COMPLETED
    assert task.status == taskdir.LOST, f"{task!r}"
    assert not marks.exists(), f"it ran, but is {task!r}"
    assert task.reason and "nothing ran" in task.reason and f"flow run --from {task.task_id}" in task.reason
    again = flow.rerun(task)
    assert again.wait(FAR_S).status == taskdir.COMPLETED
    assert again.config.env == {"WORD": "said"}
    assert marks.read_text() == "ran\n"
    return taskdir.LOST


SUBMIT_AND_STAY = """
import signal, sys
import flow_sdk as flow
task = flow.run(sys.argv[1])
print(task.task_id, flush=True)
signal.pause()
"""


def test_a_task_outlives_a_client_that_exits(flow_home: Path, project: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = "import sys, flow_sdk as flow\nprint(flow.run(sys.argv[1]).task_id)"
    task = flow.get_task(run_client(code, f"{wait_for_file(go)}; echo done").strip())
    pid = command_pid(task)
    assert task.status == taskdir.RUNNING and alive(pid)
    go.touch()
    assert task.wait(FAR_S).status == taskdir.COMPLETED
    assert task.logs() == "done\n"


def test_a_task_outlives_a_client_that_is_killed(flow_home: Path, project: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    client = start_client(SUBMIT_AND_STAY, f"{wait_for_file(go)}; echo done")
    assert client.stdout
    task = flow.get_task(client.stdout.readline().strip())
    client.kill()
    client.communicate()
    pid = command_pid(task)
    go.touch()
    assert task.wait(FAR_S).status == taskdir.COMPLETED
    assert task.logs() == "done\n" and not alive(pid)


@pytest.mark.parametrize("how", ["hangup", "ctrl-c", "ctrl-backslash"])
def test_a_task_outlives_its_terminal(how: str, flow_home: Path, project: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    terminal = pexpect.spawn(
        sys.executable, ["-c", SUBMIT_AND_STAY, f"{wait_for_file(go)}; echo done"], encoding="utf-8", timeout=FAR_S
    )
    terminal.expect(r"(task-\w+)\r\n")
    assert terminal.match
    task = flow.get_task(terminal.match[1])
    pid = command_pid(task)
    if how == "hangup":
        terminal.close(force=False)
    else:
        terminal.sendcontrol("c" if how == "ctrl-c" else "\\")
        terminal.expect(pexpect.EOF)
    wait_for(lambda: not terminal.isalive(), FAR_S, "the client's end")
    assert terminal.signalstatus in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT) or terminal.exitstatus
    assert alive(pid)
    go.touch()
    assert task.wait(FAR_S).status == taskdir.COMPLETED
    assert task.logs() == "done\n"


def test_a_follower_that_is_killed_harms_no_task(flow_home: Path, project: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task = flow.run(f"echo started; {wait_for_file(go)}; echo done")
    code = "import sys, flow_sdk as f\nfor line in f.get_task(sys.argv[1]).logs(follow=True): print(line, flush=True)"
    follower = start_client(code, task.task_id)
    assert follower.stdout and follower.stdout.readline() == "started\n"
    follower.kill()
    follower.communicate()
    go.touch()
    assert output_of(start_client(code, task.task_id)) == "started\ndone\n"
    assert task.wait(FAR_S).status == taskdir.COMPLETED
    assert json.loads(directory_status(task))["state"] == "completed"


def directory_status(task: flow.Task) -> bytes:
    return (taskdir.TaskDir(task.task_id).node(0) / "status.json").read_bytes()
