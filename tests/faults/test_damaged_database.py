"""The database is an index of the task directories: damage to it, of any kind, loses nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import flow_sdk as flow
from flow_sdk import store, taskdir
from tests.faults.processes import FAR_S, output_of, run_client, start_client
from tests.services import wait_for

LIST = """
import json, flow_sdk as flow
print(json.dumps([[t.task_id, t.name, t.status, t.exit_code, t.reason] for t in flow.list_tasks()]))
"""


def listed(**environ: str) -> list[list[object]]:
    """The history as a process of its own sees it."""
    found: list[list[object]] = json.loads(run_client(LIST, **environ))
    return found


@pytest.fixture
def history(flow_home: Path, project: Path) -> list[list[object]]:
    """Three tasks that ended each in its own way, newest first; no connection of this process is left open."""
    flow.run("echo fine", name="one", tags=["a"]).wait(FAR_S)
    flow.run("exit 3", name="two").wait(FAR_S)
    flow.run("echo more", name="three", num_instances=2).wait(FAR_S)
    store._disconnect()
    found = listed()
    assert [row[1:4] for row in found] == [["three", "completed", 0], ["two", "failed", 3], ["one", "completed", 0]]
    return found


def zero_length(path: Path) -> None:
    path.write_bytes(b"")


def random_bytes(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(50_000))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_in_mid_page(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def only_a_header(path: Path) -> None:
    os.truncate(path, 100)


def bad_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = random.Random(2).randbytes(len(data) - 4096)
    path.write_bytes(data)


def bad_rows(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE tasks SET record = '{\"task_id\": '")
    db.close()


def rows_of_something_else(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE tasks SET record = '[]', tags = 'null'")
    db.close()


def not_utf8(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE tasks SET record = CAST(x'fffefdfc' AS TEXT)")
    db.close()


def without_its_table(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE tasks")
    db.close()


def without_a_column(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE tasks DROP COLUMN reason")
    db.close()


def of_a_newer_version(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.executescript("DROP TABLE tasks; CREATE TABLE tasks (id TEXT, payload BLOB); PRAGMA user_version = 99;")
    db.close()


def of_another_program(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.executescript("CREATE TABLE places (url TEXT); PRAGMA user_version = 7;")
    db.close()


DAMAGES = [
    random_bytes,
    truncated,
    cut_in_mid_page,
    only_a_header,
    bad_pages,
    bad_rows,
    rows_of_something_else,
    not_utf8,
    without_its_table,
    without_a_column,
    of_a_newer_version,
    of_another_program,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_database_is_made_again_and_kept_aside(
    damage: Callable[[Path], None], history: list[list[object]], flow_home: Path
) -> None:
    path = flow_home / "flow.db"
    damage(path)
    damaged = path.read_bytes()
    both = [start_client(LIST) for _ in range(2)]
    assert [json.loads(output_of(client)) for client in both] == [history, history]
    aside = [found for found in flow_home.glob("flow.db.damaged-*") if not found.name.endswith(("-wal", "-shm"))]
    # SQLite takes a last page that is cut for one that ends in zeros, which may be just what was there.
    assert [found.read_bytes() for found in aside] == [damaged] or (damage is cut_in_mid_page and not aside)
    # It works on: a new task, a filter, a look by name.
    task = flow.run("echo again").wait(FAR_S)
    assert [row.record.task_id for row in store.list_rows(tag="a")] == [history[2][0]]
    assert flow.get_task("two").exit_code == 3
    assert [row[0] for row in listed()] == [task.task_id, *(row[0] for row in history)]
    assert path.stat().st_mode & 0o777 == 0o600


def deleted(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [deleted, zero_length], ids=lambda damage: damage.__name__)
def test_a_database_that_is_gone_is_made_again(
    damage: Callable[[Path], None], history: list[list[object]], flow_home: Path
) -> None:
    damage(flow_home / "flow.db")
    both = [start_client(LIST) for _ in range(2)]
    assert [json.loads(output_of(client)) for client in both] == [history, history]
    assert not list(flow_home.glob("flow.db.damaged-*"))


KILLED = """
import os, signal
import flow_sdk as flow
for n in range(3):
    flow.run(f"echo {n}", name=f"late-{n}").wait(30)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("lost", ["-wal", "-shm", "-wal and -shm", "all but -wal", "nothing"])
def test_the_database_of_a_killed_client_loses_a_part(lost: str, history: list[list[object]], flow_home: Path) -> None:
    client = start_client(KILLED)
    client.communicate(timeout=60)
    assert client.returncode == -signal.SIGKILL
    assert (flow_home / "flow.db-wal").stat().st_size > 0, "the kill came too late for this test"
    names = {"all but -wal": ["", "-shm"], "-wal and -shm": ["-wal", "-shm"], "nothing": []}.get(lost, [lost])
    for name in names:
        (flow_home / f"flow.db{name}").unlink()
    both = [start_client(LIST) for _ in range(2)]
    found = json.loads(output_of(both[0]))
    assert json.loads(output_of(both[1])) == found
    assert [row[1:4] for row in found[:3]] == [[f"late-{n}", "completed", 0] for n in (2, 1, 0)]
    assert found[3:] == history


@pytest.mark.parametrize("damage", [deleted, random_bytes, zero_length], ids=lambda damage: damage.__name__)
def test_damage_under_an_open_client(
    damage: Callable[[Path], None], history: list[list[object]], flow_home: Path
) -> None:
    """A long-lived process, as a notebook is, goes on as well, and so do those that come after it."""
    assert len(flow.list_tasks()) == 3
    damage(flow_home / "flow.db")
    task = flow.run("echo on", name="four").wait(FAR_S)
    assert [t.name for t in flow.list_tasks()] == ["four", "three", "two", "one"]
    assert listed() == [[task.task_id, "four", "completed", 0, None], *history]
    # And it sees what others do from now on.
    run_client("import flow_sdk as f; f.run('true', name='five').wait(30)")
    assert [t.name for t in flow.list_tasks()] == ["five", "four", "three", "two", "one"]


def test_a_running_task_is_found_again(flow_home: Path, project: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task = flow.run(f"until [ -e {go} ]; do sleep 0.02; done", name="long")
    store._disconnect()
    for path in flow_home.glob("flow.db*"):
        path.unlink()
    found = flow.get_task("long")
    assert found == task and not found.is_done
    go.touch()
    assert found.wait(FAR_S).status == taskdir.COMPLETED


def test_an_unreadable_task_directory_hides_no_other(history: list[list[object]], flow_home: Path) -> None:
    (flow_home / "flow.db").unlink()
    (flow_home / "tasks" / str(history[1][0]) / "task.json").write_text('{"task_id": "half a rec')
    (flow_home / "tasks" / "task-empty").mkdir()
    (flow_home / "tasks" / "a file").write_text("of somebody")
    assert listed() == [history[0], history[2]]


def test_a_database_that_is_a_folder_is_one_sentence(flow_home: Path, project: Path) -> None:
    (flow_home / "flow.db").mkdir(parents=True)
    with pytest.raises(flow.errors.ConfigError, match=r"^Flow cannot write to its folder .*flow\.db") as caught:
        flow.run("echo hi")
    assert "\n" not in caught.value.message


FORK = """
import os, sys, flow_sdk as flow
flow.list_tasks()
read_fd, write_fd = os.pipe()
for n in range(4):
    if os.fork() == 0:
        # Until the parent, whose connection is open, has ended.
        os.close(write_fd)
        os.read(read_fd, 1)
        for i in range(5):
            flow.run("true", name=f"child-{n}-{i}")
        open(f"{sys.argv[1]}-{n}", "w").close()
        os._exit(0)
flow.run("true", name="parent")
"""


def test_a_client_that_forks(flow_home: Path, project: Path, tmp_path: Path) -> None:
    """As `multiprocessing` and data loaders do, with the parent's connection open; the parent is the first to end."""
    forked = start_client(FORK, tmp_path / "done")
    forked.communicate(timeout=60)
    assert forked.returncode == 0
    wait_for(lambda: len(list(tmp_path.glob("done-*"))) == 4, 60, "the children")
    with closing(sqlite3.connect(flow_home / "flow.db")) as db:
        names = {name for (name,) in db.execute("SELECT name FROM tasks")}
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert names == {f"child-{n}-{i}" for n in range(4) for i in range(5)} | {"parent"}
    for task in flow.list_tasks():
        assert task.wait(FAR_S).status == taskdir.COMPLETED


def test_a_task_whose_folder_was_thrown_away_hides_no_other(
    history: list[list[object]], flow_home: Path, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    running = flow.run(f"echo up; until [ -e '{go}' ]; do sleep 0.02; done", name="running")
    lines = running.logs(follow=True)
    assert next(lines) == "up"
    files = taskdir.TaskDir(running.task_id)
    for gone in (str(running.task_id), str(history[1][0])):
        (flow_home / "tasks" / gone).rename(tmp_path / gone)
    began = time.monotonic()
    assert list(lines) == []
    assert running.wait(FAR_S).status == taskdir.LOST
    assert time.monotonic() - began < 10
    assert running.reason == f"Its files are gone from {files.path}, so nothing more is known of it."
    assert [task.name for task in flow.list_tasks()] == ["running", "three", "two", "one"]
    assert flow.get_task("two").exit_code == 3 and flow.get_task("two").logs() == ""
    go.touch()
    wait_for(lambda: not taskdir.TaskDir(running.task_id, tmp_path).is_live(), FAR_S, "the end of what was running")
