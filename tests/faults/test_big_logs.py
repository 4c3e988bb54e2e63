"""A log of 1 GB is written, followed and tailed in flat memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import flow_sdk as flow
from flow_sdk import logs, taskdir
from tests.faults.processes import run_client, runner_pid, start_client, wait_for_file
from tests.services import unavailable, wait_for

GB = 1 << 30
WRITE_S = 120.0

FOLLOW = """
import json, resource, sys
import flow_sdk as flow
task = flow.get_task(sys.argv[1])
print("up", flush=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = sum(len(data) for _, data in task.log_chunks(follow=True))
print(json.dumps([total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""

TAIL = """
import json, resource, sys, time
import flow_sdk as flow
task = flow.get_task(sys.argv[1])
task.logs(tail=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
lines = task.logs(tail=10).splitlines()
print(json.dumps([lines, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def peak_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def test_a_log_of_1_gb(flow_home: Path, project: Path, tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 2 * GB:
        unavailable("needs 2 GB of disk")
    begin, finish = tmp_path / "begin", tmp_path / "finish"
    line = "x" * 99
    write = f"yes {line} | head -c {GB}; seq 10; seq 10 >&2"
    task = flow.run(f"{wait_for_file(begin)}; {write}; {wait_for_file(finish)}")
    runner = runner_pid(task)
    before_kb = peak_kb(runner)
    follower = start_client(FOLLOW, task.task_id)
    assert follower.stdout and follower.stdout.readline() == "up\n"
    begin.touch()
    log = taskdir.TaskDir(task.task_id).log(0, stderr=False)
    errors = taskdir.TaskDir(task.task_id).log(0, stderr=True)
    wait_for(lambda: errors.stat().st_size == 21, WRITE_S, "1 GB of log")
    grown_kb = peak_kb(runner) - before_kb
    finish.touch()
    total, follower_kb = json.loads(follower.communicate(timeout=WRITE_S)[0])
    assert task.wait(WRITE_S).status == taskdir.COMPLETED
    assert log.stat().st_size == GB + 21 and total == GB + 42
    # A chunk is 1 MB, and there is one at a time; Python takes some more to hand it around.
    assert grown_kb < 8_000, f"the runner grew by {grown_kb} KB"
    assert follower_kb < 8_000, f"the follower grew by {follower_kb} KB"
    lines, tail_kb = json.loads(run_client(TAIL, task.task_id))
    assert sorted(lines) == sorted([*map(str, range(1, 11))]) and tail_kb < 4_000
    log.unlink()


def test_an_index_of_very_many_switches_is_read_in_flat_memory(tmp_path: Path) -> None:
    """A line to one stream, a line to the other, for days."""
    import tracemalloc

    count = 30_000
    with (tmp_path / "stdout.log").open("wb") as out, (tmp_path / "stderr.log").open("wb") as err:
        out.write(b"out\n" * count)
        err.write(b"err\n" * count)
    with (tmp_path / "stdio.index").open("wb") as index:
        for n in range(count):
            index.write(b"1 %d %d\n2 %d %d\n" % (4 * n, 4 * n, 4 * n + 4, 4 * n))
    reader = logs.Reader(tmp_path)
    tracemalloc.start()
    for n, (number, data) in enumerate(reader.available()):
        assert (number, data) == ((1, b"out\n"), (2, b"err\n"))[n % 2]
    tail = logs.Reader(tmp_path)
    tail.skip_to_tail(3)
    last = [data for _, data in tail.available()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    reader.close()
    tail.close()
    assert last == [b"err\n", b"out\n", b"err\n"]
    assert reader.offsets == {1: 4 * count, 2: 4 * count}
    assert peak < 1_000_000, f"{peak} bytes"


@pytest.mark.parametrize("stream", [1, 2])
def test_the_tail_of_one_stream_reads_only_the_end(stream: int, tmp_path: Path) -> None:
    path = tmp_path / logs.NAMES[stream]
    with path.open("wb") as file:
        file.truncate(4 * GB)
        file.seek(4 * GB)
        file.write(b"\nlast but one\nlast\n")
    reader = logs.Reader(tmp_path, (stream,))
    reader.skip_to_tail(2)
    assert list(reader.available()) == [(stream, b"last but one\nlast\n")]
    reader.close()
