"""`flow run --watch`, `--wait` and `flow logs -f`: exact bytes, exit codes, Ctrl-C, readers that go away."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import flow_sdk
from tests.cli.conftest import FLOW, Command, finish
from tests.services import wait_for


def test_the_streams_come_out_where_they_went_in(flow: Command) -> None:
    done = flow("run", "-w", "echo out; echo err >&2; exit 3", "--name", "both", code=3)
    assert done.out == "out\n"
    first, err, *end = done.err.splitlines()
    assert re.fullmatch(r"both is submitted: task-\w+, on this machine\.", first)
    assert err == "err"
    assert re.fullmatch(r"both failed after [0-9.]+ s: The command ended with exit code 3: err", end[0])
    task_id = flow_sdk.get_task("both").task_id
    assert end[1:] == [f"  flow info {task_id}", f"  flow run --from {task_id}"]


def test_a_task_that_completes(flow: Command) -> None:
    done = flow("run", "-w", "true", "--name", "ok")
    assert re.fullmatch(r"ok completed in [0-9.]+ s", done.err.splitlines()[-1])


def test_bytes_come_through_as_they_are(flow: Command) -> None:
    data = bytes(range(256)) * 4 + b"\r 10%\r 20%\rlast, unended"
    Path("data.bin").write_bytes(data)
    done = subprocess.run([FLOW, "run", "--watch", "cat data.bin"], capture_output=True)
    assert (done.returncode, done.stdout) == (0, data)
    assert subprocess.run([FLOW, "logs", ":1"], capture_output=True).stdout == data


@pytest.mark.parametrize(
    ("command", "options", "code"),
    [
        ("exit 7", [], 7),
        ("kill -9 $$", [], 137),
        ("nosuchprogram", [], 127),
        ("sleep 60", ["--max-run-time-hours", "0.0001"], 143),
        ("trap 'exit 0' TERM; sleep 60 & wait", ["--max-run-time-hours", "0.0001"], 1),
    ],
)
@pytest.mark.parametrize("how", ["--watch", "--wait"])
def test_it_exits_with_the_tasks_own_code(flow: Command, how: str, command: str, options: list[str], code: int) -> None:
    done = flow("run", how, command, *options, code=code)
    if options:
        assert " timed out after " in done.err


def test_wait_shows_no_output(flow: Command) -> None:
    done = flow("run", "--wait", "echo hi", "--name", "quiet")
    assert done.out == ""
    assert "quiet completed in" in done.err


def test_output_comes_while_the_task_runs(flow: Command) -> None:
    command = 'echo begun; while [ ! -e "$FLAG" ]; do sleep 0.02; done; echo ended'
    flag = Path("flag").absolute()
    process = subprocess.Popen([FLOW, "run", "-w", command, "-e", f"FLAG={flag}"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    flag.touch()
    assert process.communicate(timeout=30)[0] == "ended\n"
    assert process.returncode == 0


def test_of_many_nodes_the_first_ones_log_and_the_deciding_ones_reason(flow: Command) -> None:
    first = 'echo node 0; touch "$FLAG"; sleep 60'
    second = 'while [ ! -e "$FLAG" ]; do sleep 0.02; done; echo node 1; echo oh dear >&2; exit 9'
    command = f"if [ $FLOW_NODE_RANK = 0 ]; then {first}; else {second}; fi"
    flag = Path("flag").absolute()
    done = flow("run", "-w", "-N", "2", command, "-e", f"FLAG={flag}", "--name", "two", code=9)
    assert done.out == "node 0\n"
    assert "two failed after" in done.err
    assert "oh dear" in done.err.splitlines()[1]
    assert flow("logs", "two", "--node", "1").out == "node 1\noh dear\n"
    assert flow("logs", "two", "--node", "2", code=2).err.startswith("Error: two has no node 2.")


def test_a_stage_that_lasts_is_said(flow: Command, flow_home: Path) -> None:
    task_id = flow("run", "sleep 60", "--json").json[0]["task_id"]
    # What a runner writes that installs packages for minutes.
    status = flow_home / "tasks" / task_id / "node-0" / "status.json"
    wait_for(lambda: flow_sdk.get_task(task_id).status == "running", what="the task to run")
    text = status.read_text()
    status.write_text(
        text.replace('"running"', '"preparing"').replace('"reason": null', '"reason": "Installing torch."')
    )
    process = subprocess.Popen([FLOW, "logs", "-f", task_id], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().endswith("is preparing: Installing torch.\n")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    process.stderr.close()
    flow("cancel", task_id)


# Ctrl-C


@pytest.mark.parametrize("arguments", [["run", "--watch"], ["run", "--wait"]])
def test_ctrl_c_leaves_the_task_running_and_says_so(flow: Command, terminal, arguments: list[str]) -> None:
    child = terminal(*arguments, "echo begun; sleep 60", "--name", "long")
    if "--watch" in arguments:
        child.expect_exact("begun")
    else:
        child.expect_exact("is submitted")
        wait_for(lambda: flow_sdk.get_task("long").status == "running", what="the task to run")
    child.sendintr()
    task_id = flow_sdk.get_task("long").task_id
    child.expect_exact(f"Still running: flow logs -f {task_id}, flow cancel {task_id}")
    assert finish(child) == 130
    assert flow("status", "long", "--json").json[0]["state"] == "running"
    flow("cancel", "long")


def test_ctrl_c_on_a_followed_log(flow: Command, terminal) -> None:
    flow("run", "echo begun; sleep 60", "--name", "long")
    child = terminal("logs", "-f", "long")
    child.expect_exact("begun")
    child.sendintr()
    child.expect_exact("Still running: flow logs -f")
    assert finish(child) == 130
    assert flow_sdk.get_task("long").status == "running"
    flow("cancel", "long")


def test_a_closed_terminal_leaves_the_task_running(flow: Command, terminal) -> None:
    child = terminal("run", "--watch", "echo begun; sleep 0.7; echo ended", "--name", "long")
    child.expect_exact("begun")
    child.close(force=True)
    task = flow_sdk.get_task("long").wait(30)
    assert (task.status, task.logs()) == ("completed", "begun\nended\n")


def test_a_reader_that_goes_away_leaves_the_task_alone(flow: Command) -> None:
    script = f"'{FLOW}' run -w 'for i in $(seq 20); do echo $i; sleep 0.02; done' --name chatty | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (141, "1\n")
    task = flow_sdk.get_task("chatty").wait(30)
    assert (task.status, task.logs(tail=1)) == ("completed", "20\n")


# On a terminal


def test_a_terminal_shows_stages_and_then_only_the_output(flow: Command, terminal) -> None:
    child = terminal("run", "--watch", "echo the output", "--name", "t")
    shown = child.read()
    assert finish(child) == 0
    lines = shown.split("\r\n")
    assert lines[0].startswith("t is submitted")
    # The stage's line is cleared before the first byte of output.
    assert lines[1].endswith("\x1b[Kthe output")
    assert lines[2].startswith("t completed in")


def test_an_unended_line_is_not_glued_to_what_we_say(flow: Command, terminal) -> None:
    child = terminal("run", "--watch", "printf '50%%\\r100%%'", "--name", "t")
    shown = child.read()
    assert finish(child) == 0
    assert "50%\r100%\r\nt completed in" in shown
    done = flow("run", "--watch", "printf out; printf err >&2", "--name", "u")
    assert done.out == "out"
    assert "\nerr\nu completed in" in done.err


# flow logs


def test_logs_are_both_streams_as_written(flow: Command) -> None:
    flow("run", "echo 1; sleep 0.1; echo 2 >&2; sleep 0.1; echo 3", "--wait", "--name", "l")
    assert flow("logs", "l").out == "1\n2\n3\n"
    assert flow("logs", "l", "--stderr").out == "2\n"
    assert flow("logs", "l", "--stdout").out == "1\n3\n"
    assert flow("logs", "l", "--tail", "2").out == "2\n3\n"
    assert flow("logs", "l", "--tail", "0").out == ""
    assert flow("logs", "l", "-f", "-n", "1").out == "3\n"
    assert flow("logs", ":1", "--follow").out == "1\n2\n3\n"
    task_id = flow_sdk.get_task("l").task_id
    assert flow("logs", "l", "--json", "--stderr").json == [{"task_id": task_id, "stream": "stderr", "line": "2"}]


def test_following_goes_on_until_the_end(flow: Command) -> None:
    flow("run", "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done", "--name", "l")
    assert flow("logs", "-f", "l").out == "1\n2\n3\n4\n5\n"


def test_two_who_follow_see_everything_once(flow: Command) -> None:
    flow("run", "for i in $(seq 200); do echo $i; sleep 0.002; done", "--name", "l")
    followers = [subprocess.Popen([FLOW, "logs", "-f", "l"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    expected = "".join(f"{i}\n" for i in range(1, 201))
    assert [process.communicate(timeout=60)[0] for process in followers] == [expected, expected]


def test_no_output_says_why(flow: Command) -> None:
    flow("run", "true", "--name", "silent", "--wait")
    assert flow("logs", "silent") == (0, "", "")
    flow("run", "exit 5", "--name", "bad", "--wait", code=5)
    assert flow("logs", "bad").err == "bad has no output (failed). The command ended with exit code 5.\n"


MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def test_a_log_that_grows_fast_is_followed_with_little_memory(flow: Command) -> None:
    flow("run", "yes 0123456789 | head -c 200000000", "--name", "big")
    with open("copy", "wb") as copy:
        # A child counts the memory of the process that started it, until it runs its own program.
        argv = [sys.executable, "-c", MEASURED, FLOW, "logs", "-f", "big"]
        done = subprocess.run(argv, stdout=copy, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert Path("copy").stat().st_size == 200_000_000
    assert int(done.stderr.split()[-1]) < 100_000
