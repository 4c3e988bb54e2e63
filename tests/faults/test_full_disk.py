"""A full disk stops nothing for good: what was printed is kept, ends are noted, and a submit is one clear sentence."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flow_sdk as flow
from flow_sdk import logs, runner, taskdir
from tests.faults.processes import (
    FAR_S,
    alive,
    all_gone,
    command_pid,
    directory,
    guard_pid,
    joined,
    kill,
    node_status,
    runner_pid,
    running,
    wait_for_file,
)
from tests.services import wait_for

Disk = Callable[[str], Path]


@pytest.fixture
def small_home(full_disk: Disk, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A FLOW_HOME with 4 MB of room, on which one task has run."""
    home = full_disk("4m")
    monkeypatch.setenv("FLOW_HOME", str(home))
    assert flow.run("echo hi").wait(FAR_S).status == taskdir.COMPLETED
    nobody_writes()
    return home


def nobody_writes() -> None:
    """A task that has ended gives its last block back a moment later."""
    wait_for(lambda: not any(directory(task).is_live() for task in flow.list_tasks()), FAR_S, "the tasks to be gone")


def free_bytes(folder: Path) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


def fill(folder: Path, leave_bytes: int = 0) -> Path:
    """Takes all the room but so many bytes, in whole blocks."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free_bytes(folder) - leave_bytes)
    assert free_bytes(folder) == leave_bytes // 4096 * 4096
    return filler


def says_the_disk_is_full(error: flow.errors.ConfigError) -> bool:
    return "\n" not in error.message and ("No space left" in error.message or "is full" in error.message)


def grow(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


# Short lines on both streams, so that the index meets the end of the disk as well.
PRINT = """
import os, sys
for n in range(int(sys.argv[1])):
    os.write(1, b"out %07d\\n" % n)
    os.write(2, b"err %07d\\n" % n)
"""


def test_a_command_that_prints_more_than_fits_waits_and_loses_nothing(small_home: Path) -> None:
    task = flow.run([sys.executable, "-c", PRINT, "300000"])
    wait_for(lambda: free_bytes(small_home) == 0, FAR_S, "the disk to be full")
    wait_for(lambda: node_status(task).reason == runner.WAITS_FOR_DISK, FAR_S, "the runner to say so")
    assert task.status == taskdir.RUNNING and task.reason == runner.WAITS_FOR_DISK
    pid = command_pid(task)
    # A reader reads what is there, also now.
    assert task.logs(stderr=False).startswith("out 0000000\nout 0000001\n")
    assert alive(pid)
    grow(small_home, "64m")
    assert task.wait(FAR_S).status == taskdir.COMPLETED
    assert task.reason is None
    assert task.logs(stderr=False) == "".join(f"out {n:07d}\n" for n in range(300_000))
    assert task.logs(stderr=True) == "".join(f"err {n:07d}\n" for n in range(300_000))
    assert sum(1 for _ in task.logs(follow=True)) == 600_000
    assert task.logs(tail=2).count("0299999") >= 1


def test_a_follower_on_a_full_disk_sees_all(small_home: Path) -> None:
    task = flow.run([sys.executable, "-c", PRINT, "200000"])
    with ThreadPoolExecutor(1) as pool:
        count = pool.submit(lambda: sum(1 for _ in task.logs(follow=True)))
        wait_for(lambda: free_bytes(small_home) == 0, FAR_S, "the disk to be full")
        grow(small_home, "64m")
    assert count.result() == 400_000
    assert task.wait(FAR_S).status == taskdir.COMPLETED


def test_what_never_fits_is_counted(small_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command has ended, nobody makes room: after a while that is a failure, and it says how much is missing."""
    start = "import runner as r; r.DISK_PATIENCE_S = 0.2; "
    monkeypatch.setattr("flow_sdk.providers.local.START", START.replace("import runner; ", "import runner; " + start))
    fill(small_home, 400_000)
    task = flow.run([sys.executable, "-c", "import os; os.set_blocking(1, False); os.write(1, b'x' * 700_000)"])
    assert task.wait(FAR_S).status == taskdir.FAILED
    written = (taskdir.TaskDir(task.task_id).node(0) / "stdout.log").stat().st_size
    assert 0 < written < 700_000
    assert task.reason == (f"The disk is full: the last {700_000 - written} bytes of output could not be written.")


START = "import sys; sys.path.append(sys.argv.pop(1)); import runner; runner.main()"


@pytest.mark.parametrize(
    ("ending", "state", "exit_code"),
    [("exit 0", "completed", 0), ("exit 7", "failed", 7), ("kill -9 $$", "failed", 137)],
)
def test_an_end_is_noted_on_a_full_disk(
    ending: str, state: str, exit_code: int, small_home: Path, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    task = flow.run(f"{wait_for_file(go)}; {ending}")
    running(task)
    fill(small_home)
    go.touch()
    assert task.wait(FAR_S).status == state
    assert task.exit_code == exit_code
    assert flow.get_task(task.task_id).status == state
    assert state in repr(task)
    if state == "failed":
        assert task.reason and task.reason.endswith("(The disk is full.)")


def test_a_task_is_cancelled_on_a_full_disk(small_home: Path) -> None:
    task = flow.run("exec sleep 1000")
    pid = command_pid(task)
    fill(small_home)
    assert task.cancel().wait(FAR_S).status == taskdir.CANCELLED
    all_gone([pid])


def test_a_task_is_found_lost_on_a_full_disk(small_home: Path) -> None:
    task = flow.run("exec sleep 1000")
    pids = [command_pid(task), guard_pid(task), runner_pid(task)]
    filler = fill(small_home)
    with ThreadPoolExecutor(1) as pool:
        followed = pool.submit(lambda: list(flow.get_task(task.task_id).logs(follow=True)))
        kill(guard_pid(task), runner_pid(task))
        assert followed.result(FAR_S) == []
    assert task.wait(FAR_S).status == taskdir.LOST
    all_gone(pids)
    filler.unlink()
    again = flow.get_task(task.task_id)
    assert again.status == taskdir.LOST and again.reason == task.reason


def test_one_rank_fails_on_a_full_disk_and_takes_the_others_with_it(small_home: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task = flow.run(f'{wait_for_file(go)}; [ "$FLOW_NODE_RANK" != 1 ] || exit 5; exec sleep 1000', num_instances=3)
    for rank in range(3):
        command_pid(task, rank)
    fill(small_home)
    go.touch()
    assert task.wait(FAR_S).status == taskdir.FAILED
    assert task.exit_code == 5
    assert [node_status(task, rank).state for rank in range(3)] == ["cancelled", "failed", "cancelled"]


def test_a_submit_on_a_full_disk_is_one_sentence(small_home: Path, project: Path) -> None:
    (project / "train.py").write_text("print('hello')\n")
    filler = fill(small_home)
    with pytest.raises(flow.errors.ConfigError) as caught:
        flow.run("echo hi")
    assert says_the_disk_is_full(caught.value) and caught.value.suggestions
    filler.unlink()
    assert flow.run("echo hi").wait(FAR_S).status == taskdir.COMPLETED
    assert {task.status for task in flow.list_tasks()} == {taskdir.COMPLETED}


def test_history_and_logs_are_read_on_a_full_disk(small_home: Path) -> None:
    from flow_sdk import store

    fill(small_home)
    store._disconnect()
    (task,) = flow.list_tasks()
    assert (task.status, task.exit_code, task.logs()) == ("completed", 0, "hi\n")


def test_a_submit_with_room_for_only_a_part_of_it(small_home: Path, project: Path, tmp_path: Path) -> None:
    """With each number of free blocks the task runs to its end, or it is one clear sentence and nothing runs."""
    (project / "train.py").write_text("print('hello')\n" * 200)
    flow.run("true").wait(FAR_S)
    outcomes = []
    for blocks in range(40):
        marks = tmp_path / f"marks-{blocks}"
        before = {task.task_id for task in flow.list_tasks()}
        nobody_writes()
        filler = fill(small_home, blocks * 4096)
        try:
            task = flow.run(f"echo ran >> '{marks}'", env={"A": "b"})
        except flow.errors.ConfigError as error:
            assert says_the_disk_is_full(error), error.message
            outcomes.append("refused")
        else:
            assert task.wait(FAR_S).status in taskdir.END_STATES
            assert task.status == taskdir.COMPLETED or (task.reason and "disk is full" in task.reason), f"{task!r}"
            outcomes.append(task.status)
        finally:
            filler.unlink()
        for task in flow.list_tasks():
            assert task.wait(FAR_S).status in taskdir.END_STATES, f"{task!r}"
            if task.task_id not in before:
                assert (task.status == taskdir.COMPLETED) == marks.exists(), f"{task!r}"
        if marks.exists():
            assert marks.read_text() == "ran\n"
    # In between, one more block may go to the database or to the task, so the order is not strict.
    assert set(outcomes) <= {"refused", taskdir.LOST, taskdir.FAILED, taskdir.COMPLETED}
    assert set(outcomes[:4]) == {"refused"} and set(outcomes[-10:]) == {taskdir.COMPLETED}, outcomes


class Room:
    """A disk with so many bytes left, for what is written to some files of this process."""

    def __init__(self, fds: Iterable[int]) -> None:
        self.fds = set(fds)
        self.left = 0
        self.written: list[tuple[int, bytes]] = []

    def write(self, fd: int, data: bytes) -> int:
        if fd not in self.fds:
            return real_write(fd, data)
        if not self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = bytes(data[: self.left])
        self.left -= len(part)
        self.written.append((fd, part))
        return real_write(fd, part)


real_write = os.write
pieces = st.tuples(st.sampled_from([1, 2]), st.integers(1, 12), st.integers(0, 25))


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(pieces, max_size=25))
def test_a_disk_that_is_full_at_any_byte_loses_none_and_keeps_the_order(steps: list[tuple[int, int, int]]) -> None:
    """As the runner does it: a stream whose bytes did not fit is not read until they do."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        node: Any = SimpleNamespace(path=lambda name: f"{folder}/{name}")
        output = runner.Output(node)
        room = Room([*output.files.values(), output.index])
        monkeypatch.setattr(os, "write", room.write)
        said: dict[int, bytes] = {1: b"", 2: b""}
        waiting: dict[int, bytes] = {1: b"", 2: b""}

        def go_on() -> None:
            output.retry()
            for number in (1, 2):
                if waiting[number] and number not in output.held:
                    if rest := output.write(number, waiting[number]):
                        output.held[number] = (number, rest)
                    waiting[number] = b""

        for count, (number, size, more) in enumerate(steps):
            data = (b"%d:" % count).ljust(size, b"x") + b"\n"
            said[number] += data
            waiting[number] += data
            room.left += more
            go_on()
        room.left = 1 << 30
        go_on()
        go_on()
        assert not output.held and not any(waiting.values())
        streams = {output.files[1]: 1, output.files[2]: 2}
        order = [(streams[fd], data) for fd, data in room.written if fd in streams]
        output.finish(0)
        reader = logs.Reader(Path(folder))
        read = list(reader.available())
        reader.close()
        assert joined(read) == joined(order)
        assert {number: b"".join(data for n, data in read if n == number) for number in (1, 2)} == said
