"""`flow status` and `flow info`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

import flow_sdk
from flow_sdk import store, taskdir, wording
from flow_sdk.cli import show, tasks
from flow_sdk.errors import ValidationError
from tests.cli.conftest import Command, finish
from tests.cli.test_cli_run import TASK_KEYS
from tests.services import wait_for


def add_history(count: int, *, ended_at: float = 1.7e9, **fields: object) -> None:
    """Rows of tasks that ended long ago, one second apart, the last being the newest."""
    db = store._connect()
    with db:
        for n in range(count):
            record = store.Record(
                f"task-{n:010x}", f"old-{n}", "local", {"command": "true"}, ended_at + n, price_per_hour_usd=0.0
            )
            values = {"started_at": ended_at + n, "ended_at": ended_at + n + 2, "exit_code": 0, **fields}
            store._insert(db, store.Row(record, taskdir.COMPLETED, **values))  # type: ignore[arg-type]


def names(flow: Command, *arguments: str) -> list[str]:
    return [task["name"] for task in flow("status", "--json", *arguments).json]


def test_no_tasks(flow: Command) -> None:
    assert flow("status").out == "No tasks found\n"
    assert flow("status", "--json").out == ""


def test_the_table(flow: Command) -> None:
    flow("run", "true", "--name", "good", "--wait")
    flow("run", "echo oh dear; exit 3", "--name", "bad", "--gpu", "a100:2", "-N", "2", "--wait", code=3)
    head, *rows = flow("status").out.splitlines()
    assert head.split() == ["TASK", "NAME", "STATE", "HARDWARE", "CREATED", "DURATION", "REASON"]
    ids = [task["task_id"] for task in flow("status", "--json").json]
    assert re.fullmatch(
        rf":1  {ids[0]}  bad   failed     cpu \(asked: 2xa100\) x 2 nodes  \d+ s ago  [0-9.]+ s     Node \d: The .*",
        rows[0],
    )
    assert re.fullmatch(rf":2  {ids[1]}  good  completed  cpu {{28}}\d+ s ago  [0-9.]+ s", rows[1])
    # Columns begin where their heads do.
    assert rows[0].index("Node") == head.index("REASON")


def test_json_has_the_same_keys_for_every_task(flow: Command) -> None:
    flow("run", "exit 3", "--wait", code=3)
    flow("run", "sleep 60", "--name", "long", "--tag", "t")
    wait_for(lambda: flow_sdk.get_task("long").status == "running", what="the task to run")
    running, failed = flow("status", "--json").json
    assert set(running) == set(failed) == TASK_KEYS
    assert (running["state"], running["exit_code"], running["ended_at"], running["tags"]) == (
        "running",
        None,
        None,
        ["t"],
    )
    assert (failed["state"], failed["exit_code"]) == ("failed", 3)
    assert failed["reason"].startswith("The command ended with exit code 3")
    assert failed["cost_usd"] == failed["price_per_hour_usd"] == 0.0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", failed["created_at"])
    assert failed["created_at"] <= failed["started_at"] <= failed["ended_at"]
    assert running["duration_s"] > 0
    flow("cancel", "long")


def test_the_newest_twenty_that_ended_and_all_that_go_on(flow: Command) -> None:
    flow("run", "sleep 60", "--name", "long")
    add_history(30, ended_at=time.time() + 100)
    shown = names(flow)
    assert shown == [*(f"old-{n}" for n in range(29, 9, -1)), "long"]
    # The number is the one that other commands take, also where tasks in between are not shown.
    last = flow("status").out.splitlines()[-1]
    assert last.startswith(":31 ")
    assert json.loads(flow("info", ":31", "--json").out)["name"] == "long"
    assert len(names(flow, "--all")) == 31
    assert names(flow, "--limit", "3") == ["old-29", "old-28", "old-27"]
    flow("cancel", "long")


def test_filters(flow: Command) -> None:
    flow("run", "true", "--name", "exp-1", "--tag", "red", "--wait")
    flow("run", "exit 1", "--name", "exp-2", "--tag", "red", "--tag", "blue", "--wait", code=1)
    add_history(3)
    assert names(flow, "--name", "exp-*") == ["exp-2", "exp-1"]
    assert names(flow, "--tag", "blue") == ["exp-2"]
    assert names(flow, "--tag", "red", "--state", "completed") == ["exp-1"]
    assert names(flow, "--state", "failed", "-s", "completed", "--since", "1h") == ["exp-2", "exp-1"]
    assert names(flow, "--state", "running") == []
    assert names(flow, "--since", "2001-01-31", "--name", "old-?") == ["old-2", "old-1", "old-0"]
    assert names(flow, "--since", "2100-01-01 12:00") == []
    assert flow("status", "--name", "nix*").out == "No tasks found\n"


def test_named_tasks(flow: Command) -> None:
    for name in ("a", "b", "c"):
        flow("run", "true", "--name", name, "--wait")
    assert names(flow, "c", ":3") == ["c", "a"]
    task_id = flow_sdk.get_task("b").task_id
    assert names(flow, task_id[:12]) == ["b"]
    assert flow("status", "b").out.splitlines()[1].startswith(task_id)
    assert flow("status", "b", "nix", code=4).out == ""


def test_a_task_that_went_on_by_itself_is_shown_as_it_is(flow: Command) -> None:
    task_id = flow("run", "sleep 0.3", "--json").json[0]["task_id"]
    wait_for(lambda: flow("status", task_id, "--json").json[0]["state"] == "completed", what="the task to end")
    flow("run", "sleep 60", "--name", "long")
    guard = wait_for(lambda: taskdir.TaskDir(flow_sdk.get_task("long").task_id).guard_pid(), what="the guard")
    wait_for(lambda: flow_sdk.get_task("long").status == "running", what="the task to run")
    os.kill(guard, signal.SIGKILL)
    flow("cancel", "long")


def test_a_task_that_cannot_be_looked_at_hides_no_other(flow: Command) -> None:
    flow("run", "true", "--name", "good", "--wait")
    for provider in ("local", "cloud-of-the-past"):
        lease = {"task_id": f"task-{provider}", "nodes": 1, "engine": None}
        os.close(taskdir.TaskDir(lease["task_id"]).make(1))
        store.save(store.Record(lease["task_id"], provider, provider, {"command": "true"}, time.time(), lease=lease))
    shutil.rmtree(taskdir.TaskDir("task-local").path)
    done = flow("status")
    assert done.err == "task-cloud-of-the-past: There is no provider 'cloud-of-the-past' here.\n"
    states = {line.split()[2]: line.split()[3] for line in done.out.splitlines()[1:]}
    assert states == {"cloud-of-the-past": "pending", "local": "lost", "good": "completed"}
    assert flow("info", "cloud-of-the-past", code=2).err.startswith("Error: There is no provider")
    assert "nothing more is known" in flow("info", "local").out
    assert len(flow_sdk.get_task("local").get_instances()) == 1


@pytest.mark.parametrize(("columns", "cut"), [(60, True), (80, True), (200, False)])
def test_the_table_fits_the_terminal_and_shows_whole_ids(flow: Command, terminal, columns: int, cut: bool) -> None:
    name = "a-name-that-goes-on-and-on-for-forty-chars"
    flow(
        "run", "echo what a long reason this is going to be, for one line >&2; exit 1", "--name", name, "--wait", code=1
    )
    flow("run", "true", "--name", "[bold]"[1:5], "--wait")
    child = terminal("status", columns=columns, NO_COLOR="1")
    lines = child.read().rstrip("\r\n").split("\r\n")
    assert finish(child) == 0
    assert all(len(line) <= columns for line in lines), lines
    assert len(lines) == 3
    assert flow_sdk.get_task(name).task_id in lines[2]
    assert "failed" in lines[2]
    assert (name in lines[2]) is not cut
    assert ("…" in lines[2]) is cut
    # A pipe has no width.
    piped = flow("status").out
    assert name in piped
    assert "for one line" in piped


def test_what_a_task_printed_cannot_steer_the_terminal(flow: Command) -> None:
    flow("run", "printf '\\033]0;owned\\007\\033[31mred' >&2; exit 1", "--wait", "--name", "evil", code=1)
    for arguments in (["status"], ["info", "evil"]):
        shown = flow(*arguments).out
        assert "red" in shown
        assert "\x1b" not in shown
        assert "\x07" not in shown


def test_ten_thousand_tasks(flow: Command) -> None:
    add_history(10_000)
    assert len(flow("status").out.splitlines()) == 21
    assert len(flow("status", "--all").out.splitlines()) == 10_001
    assert names(flow, "--name", "old-77") == ["old-77"]


# Words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0.0 s"),
        (3.21, "3.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (250, "4 min 10 s"),
        (3599.6, "1 h"),
        (7500, "2 h 5 min"),
        (100 * 3600, "4 d 4 h"),
        (-5, "0.0 s"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert wording.duration(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s ago"), (59, "59 s ago"), (61, "1 min ago"), (7300, "2 h ago"), (200_000, "2 d ago"), (-50, "0 s ago")],
)
def test_ages(seconds: float, words: str) -> None:
    assert wording.age(time.time() - seconds) == words


def test_an_age_of_months_is_a_date() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", wording.age(time.time() - 90 * 86400))


@pytest.mark.parametrize(
    ("text", "ago_s"), [("30s", 30), ("5 min", 300), ("5m", 300), ("1.5h", 5400), ("2d", 172800), ("1w", 604800)]
)
def test_spans_of_time(text: str, ago_s: float) -> None:
    assert tasks.parse_since(text) == pytest.approx(time.time() - ago_s, abs=5)


def test_points_of_time_are_local() -> None:
    assert tasks.parse_since("2026-01-31") == time.mktime((2026, 1, 31, 0, 0, 0, 0, 0, -1))
    assert tasks.parse_since("2026-01-31 14:30") == time.mktime((2026, 1, 31, 14, 30, 0, 0, 0, -1))
    assert tasks.parse_since("2026-01-31T00:00:00+00:00") == 1769817600


@pytest.mark.parametrize("text", ["", "yesterday", "2h3m", "5 parsecs", "31.1.2026"])
def test_no_time(text: str) -> None:
    with pytest.raises(ValidationError, match="is no time"):
        tasks.parse_since(text)


def test_what_costs_something() -> None:
    record = store.Record("task-1", "n", "mithril", {}, 0.0, price_per_hour_usd=25.0)
    row = store.Row(record, "completed", started_at=0.0, ended_at=5400.0)
    assert show.cost_usd(row) == 37.5
    assert tasks.cost_words(row) == "$37.50 at $25.00 per hour"
    assert show.cost_usd(store.Row(record, "pending")) == 0.0
    unknown = store.Row(store.Record("task-1", "n", "slurm", {}, 0.0), "completed", 0.0, 5400.0)
    assert (show.cost_usd(unknown), tasks.cost_words(unknown)) == (None, "")


# flow info


def test_info(flow: Command, project: Path) -> None:
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-C", str(project)]
    Path("train.py").write_text("print('loss: 0.5')\nraise SystemExit(3)\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    Path("more.txt").write_text("not committed")
    options = ("-e", "TOKEN=hunter2", "--tag", "red", "--volume", "data:/data", "--pip", "", "--retries", "1")
    flow("run", "train.py", "--name", "exp", *(o for o in options if o not in ("--pip", "")), "--wait", code=3)
    shown = flow("info", "exp").out
    fields = dict(re.split(r" {2,}", line, maxsplit=1) for line in shown.split("\n\n")[0].splitlines())
    assert fields["task"] == flow_sdk.get_task("exp").task_id
    assert fields["state"] == "failed"
    assert fields["exit code"] == "3"
    assert fields["restarts"] == "1"
    assert fields["command"] == "python train.py"
    assert fields["env"] == "TOKEN"
    assert fields["tags"] == "red"
    assert fields["retries"] == "1"
    assert fields["volumes"] == "/data  data"
    assert fields["cost"] == "free"
    assert fields["git commit"] == f"{commit} with uncommitted changes"
    assert fields["code"].startswith(f"{project} (")
    assert Path(fields["files"]).is_dir()
    assert "The last of its output:\n  loss: 0.5\n" in shown
    assert "hunter2" not in shown

    (info,) = flow("info", "exp", "--json").json
    extra = {"config", "note", "restarts", "bundle_sha256", "code_root", "git_commit", "git_dirty", "host", "user"}
    assert set(info) == TASK_KEYS | extra | {"email", "instances", "endpoints", "folder"}
    assert (info["git_commit"], info["git_dirty"], info["code_root"]) == (commit, True, str(project))
    assert info["config"]["env"] == ["TOKEN"]
    assert info["restarts"] == 1
    assert info["instances"] == []


def test_info_of_a_running_server_has_its_endpoint(flow: Command) -> None:
    flow("run", "sleep 60", "--port", "8888", "--name", "server")
    wait_for(lambda: flow_sdk.get_task("server").status == "running", what="the task to run")
    shown = flow("info", "server").out
    assert "http://127.0.0.1:8888" in shown
    assert re.search(r"^node +\S+  127\.0\.0\.1  running$", shown, re.MULTILINE)
    assert flow("info", "server", "--json").json[0]["endpoints"]["jupyter"] == "http://127.0.0.1:8888"
    flow("cancel", "server")
    assert flow("info", "server", "--json").json[0]["endpoints"] == {}


def test_info_of_a_script_and_of_an_argv_list(flow: Command) -> None:
    flow("run", "echo a\necho b", "--name", "script", "--wait")
    assert "command    echo a\n           echo b\n" in flow("info", "script").out
    flow("run", "--wait", "--name", "words", "--", "echo", "a b")
    assert "command    echo 'a b'\n" in flow("info", "words").out
