"""Whatever a command prints, the logs hold byte for byte, in the order it came, for whoever reads them and however."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flow_sdk as flow
from flow_sdk import logs, runner
from flow_sdk.watch import Watch
from tests.faults.processes import FAR_S, Chunk, joined, lines, run_client, wait_for_file

# A model of the logs: what was written, as (stream, bytes) in order.

texts = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r", b"\0", b"long " * 4, b"\xff\n"]), min_size=1, max_size=6)
writes = st.tuples(st.sampled_from([1, 2]), texts.map(b"".join))
histories = st.lists(writes, max_size=30)
streams = st.sampled_from([(1, 2), (1,), (2,)])


class Written:
    """A rank's folder, written as the runner does."""

    def __init__(self, folder: Path) -> None:
        node: Any = SimpleNamespace(path=lambda name: str(folder / name))
        self.output = runner.Output(node)

    def write(self, history: Iterable[Chunk]) -> None:
        for number, data in history:
            assert self.output.write(number, data) == b""


@pytest.fixture(params=["as it is", "tiny blocks"])
def block_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "tiny blocks":
        monkeypatch.setattr(logs, "CHUNK_BYTES", 5)
        monkeypatch.setattr(logs, "BLOCK_BYTES", 11)


@pytest.fixture
def folders() -> Iterator[Any]:
    """Fresh folders by the hundred; in memory where there is such a place."""
    root = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    numbers = iter(range(10**9))

    def fresh() -> Path:
        folder = root / str(next(numbers))
        folder.mkdir()
        return folder

    yield fresh
    shutil.rmtree(root)


many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(steps=st.lists(histories, max_size=5), wanted=streams)
def test_following_gives_everything_once_and_in_order(
    steps: list[list[Chunk]], wanted: tuple[int, ...], folders: Any, block_sizes: None
) -> None:
    folder = folders()
    reader = logs.Reader(folder, wanted)
    # A reader may come before the writer.
    seen = list(reader.available())
    written = Written(folder)
    for history in steps:
        written.write(history)
        seen += reader.available()
    reader.close()
    written.output.finish(0)
    everything = [chunk for history in steps for chunk in history if chunk[0] in wanted]
    assert joined(seen) == joined(everything)
    late = logs.Reader(folder, wanted)
    assert joined(late.available()) == joined(everything)
    late.close()


@many
@given(before=histories, after=histories, count=st.integers(0, 12), wanted=streams)
def test_a_tail_is_the_last_lines_and_all_that_comes_later(
    before: list[Chunk], after: list[Chunk], count: int, wanted: tuple[int, ...], folders: Any, block_sizes: None
) -> None:
    folder = folders()
    written = Written(folder)
    written.write(before)
    reader = logs.Reader(folder, wanted)
    reader.skip_to_tail(count)
    first = list(reader.available())
    known = lines(chunk for chunk in before if chunk[0] in wanted)
    assert lines(first) == (known[-count:] if count else [])
    written.write(after)
    later = list(reader.available())
    assert joined(later) == joined(chunk for chunk in after if chunk[0] in wanted)
    reader.close()
    written.output.finish(0)


@many
@given(history=histories, cut=st.integers(0, 10_000), wanted=streams)
def test_a_reader_in_the_middle_of_a_write_loses_and_repeats_nothing(
    history: list[Chunk], cut: int, wanted: tuple[int, ...], folders: Any, block_sizes: None
) -> None:
    """The files are seen at every state that the writer's order of writing allows: index first, then its bytes."""
    done = folders()
    written = Written(done)
    written.write(history)
    written.output.finish(0)
    folder = folders()
    reader = logs.Reader(folder, wanted)
    operations = []
    last, sizes = 0, {1: 0, 2: 0}
    for number, data in history:
        if number != last:
            operations.append((logs.INDEX, b"%d %d %d\n" % (number, sizes[1], sizes[2])))
            last = number
        operations.append((logs.NAMES[number], data))
        sizes[number] += len(data)
    for name in (*logs.NAMES.values(), logs.INDEX):
        (folder / name).touch()
    seen: list[Chunk] = []
    for name, data in operations:
        # A write shows as a whole or, when the reader is fast, in parts.
        middle = cut % (len(data) + 1)
        for part in (data[:middle], data[middle:]):
            with (folder / name).open("ab") as file:
                file.write(part)
            seen += reader.available()
    reader.close()
    assert joined(seen) == joined(chunk for chunk in history if chunk[0] in wanted)
    assert (folder / logs.INDEX).read_bytes() == (done / logs.INDEX).read_bytes()


def test_an_index_with_a_torn_line_is_read_on(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.write([(1, b"one\n"), (2, b"two\n")])
    written.output.finish(0)
    with (tmp_path / logs.INDEX).open("ab") as file:
        file.write(b"1 4")
    again = Written(tmp_path)
    again.write([(1, b"three\n"), (2, b"four\n"), (1, b"five\n")])
    again.output.finish(0)
    reader = logs.Reader(tmp_path)
    found = [line for _, line in lines(reader.available())]
    reader.close()
    assert sorted(found) == sorted([b"one\n", b"two\n", b"three\n", b"four\n", b"five\n"])
    assert [line for line in found if line in (b"four\n", b"five\n")] == [b"four\n", b"five\n"]


def test_one_in_the_follower_s_way_does_not_lose_the_order(tmp_path: Path) -> None:
    """A follower that looks between the two sizes must not put stderr before the stdout that was there first."""
    written = Written(tmp_path)
    written.write([(1, b"begun ")])
    reader = logs.Reader(tmp_path)
    real = reader._size

    def slow_size(name: str) -> int:
        size = real(name)
        if name == logs.NAMES[1]:
            written.write([(1, b"and ended\n"), (2, b"then this\n")])
        return size

    reader._size = slow_size  # type: ignore[method-assign]
    seen = list(reader.available())
    reader._size = real  # type: ignore[method-assign]
    seen += reader.available()
    reader.close()
    written.output.finish(0)
    assert joined(seen) == [(1, b"begun and ended\n"), (2, b"then this\n")]


# Real commands


def python(text: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", text, *map(str, arguments)]


def output(task: flow.Task, number: int) -> bytes:
    return b"".join(data for stream, data in task.log_chunks() if stream == number)


EVERY_BYTE = "import os; os.write(1, bytes(range(256)) * 1000); os.write(2, bytes(range(255, -1, -1)) * 1000)"


def test_binary_output_is_kept_byte_for_byte(flow_home: Path, project: Path) -> None:
    task = flow.run(python(EVERY_BYTE)).wait(FAR_S)
    assert output(task, 1) == bytes(range(256)) * 1000
    assert output(task, 2) == bytes(range(255, -1, -1)) * 1000
    assert joined(task.log_chunks(stderr=False)) == [(1, bytes(range(256)) * 1000)]
    assert joined(task.log_chunks(stderr=True)) == [(2, bytes(range(255, -1, -1)) * 1000)]
    # As text it can be printed, whatever it was.
    assert task.logs(stderr=False).count("\ufffd") >= 128_000
    assert "".join(f"{line}\n" for line in task.logs(follow=True, stderr=False)).count("A") == 1000


def test_a_line_of_10_mb(flow_home: Path, project: Path) -> None:
    task = flow.run(python("print('first'); print('x' * 10_000_000); print('last')")).wait(FAR_S)
    assert [len(line) for line in task.logs(follow=True)] == [5, 10_000_000, 4]
    assert task.logs(tail=1) == "last\n"
    assert task.logs(tail=2) == "x" * 10_000_000 + "\nlast\n"
    assert task.logs(tail=3) == task.logs(tail=99) == task.logs() == "first\n" + "x" * 10_000_000 + "\nlast\n"


def test_an_unterminated_line_of_10_mb_is_seen_before_it_ends(flow_home: Path, project: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task = flow.run(f"head -c 10000000 /dev/zero | tr '\\0' y; {wait_for_file(go)}; printf end")
    seen = 0
    for _, data in task.log_chunks(follow=True):
        seen += len(data)
        if seen == 10_000_000:
            go.touch()
    assert seen == 10_000_003
    assert task.logs(tail=1)[-4:] == "yend" and len(task.logs(tail=1)) == 10_000_003
    assert [len(line) for line in task.logs(follow=True)] == [10_000_003]


def test_the_tail_of_several_counts(flow_home: Path, project: Path) -> None:
    task = flow.run("seq 5; printf unended").wait(FAR_S)
    assert task.logs(tail=0) == ""
    assert task.logs(tail=1) == "unended"
    assert task.logs(tail=3) == "4\n5\nunended"
    assert task.logs(tail=6) == task.logs(tail=1000) == task.logs() == "1\n2\n3\n4\n5\nunended"
    assert list(task.logs(tail=2, follow=True)) == ["5", "unended"]
    with pytest.raises(flow.errors.ValidationError, match=r"^tail counts lines, so it cannot be -1"):
        task.logs(tail=-1)


def test_progress_bars_and_nul_bytes(flow_home: Path, project: Path) -> None:
    said = b"".join(b"\r%3d%%|%s" % (n, b"#" * n) for n in range(101)) + b"\n\0nul\0\nafter\r\n"
    task = flow.run(python("import os, sys; os.write(2, bytes.fromhex(sys.argv[1]))", said.hex())).wait(FAR_S)
    assert output(task, 2) == said
    assert task.logs(tail=2) == "\0nul\0\nafter\r\n"
    assert list(task.logs(follow=True))[1:] == ["\0nul\0", "after"]


def test_no_output_at_all(flow_home: Path, project: Path) -> None:
    task = flow.run("true").wait(FAR_S)
    assert task.logs() == task.logs(tail=5) == task.logs(stderr=True) == ""
    assert list(task.logs(follow=True)) == []


ALTERNATE = """
import os
for n in range(2000):
    os.write(1, b"out %d\\n" % n)
    os.write(2, b"err %d\\n" % n)
"""


def test_both_streams_are_whole_and_read_the_same_by_all(flow_home: Path, project: Path) -> None:
    task = flow.run(python(ALTERNATE))
    followed = joined(task.log_chunks(follow=True))
    assert followed == joined(task.log_chunks()) == joined(task.log_chunks(follow=True))
    assert output(task, 1) == b"".join(b"out %d\n" % n for n in range(2000))
    assert output(task, 2) == b"".join(b"err %d\n" % n for n in range(2000))
    everything = task.logs().splitlines()
    for count in (0, 1, 7, 3999, 4000, 5000):
        assert task.logs(tail=count).splitlines() == (everything[-count:] if count else [])


def test_what_waits_for_an_answer_keeps_its_order(flow_home: Path, project: Path) -> None:
    """Where the runner had time to look, the order between the streams is the command's own."""
    said = "for n in 1 2 3; do echo out $n; sleep 0.2; echo err $n >&2; sleep 0.2; done"
    task = flow.run(said).wait(FAR_S)
    assert task.logs() == "".join(f"out {n}\nerr {n}\n" for n in (1, 2, 3))


FOLLOW = """
import sys, flow_sdk as flow
for number, data in flow.get_task(sys.argv[1]).log_chunks(follow=True):
    sys.stdout.buffer.write(data)
"""


def test_a_restarted_command_goes_on_in_the_same_log(flow_home: Path, project: Path) -> None:
    task = flow.run("echo out $FLOW_RESTART_COUNT; echo err $FLOW_RESTART_COUNT >&2; exit 1", retries=2).wait(FAR_S)
    assert task.status == "failed"
    assert task.logs(stderr=False) == "out 0\nout 1\nout 2\n"
    assert task.logs(stderr=True) == "err 0\nerr 1\nerr 2\n"
    assert sorted(run_client(FOLLOW, task.task_id).splitlines()) == sorted(task.logs().splitlines())
    assert joined(task.log_chunks())[0] in ((1, b"out 0\n"), (2, b"err 0\n"))


def test_a_follower_is_woken_and_does_not_poll(flow_home: Path, project: Path, tmp_path: Path) -> None:
    """A network filesystem is the exception; a folder of this machine is watched."""
    with Watch([tmp_path]) as watch:
        assert watch._fd >= 0


def test_a_watch_where_inotify_gives_nothing_polls(tmp_path: Path) -> None:
    with Watch([tmp_path / "missing"]) as watch:
        assert watch._fd < 0
        watch.wait(0.01)


@many
@given(history=histories)
def test_lines_are_whole_and_none_is_lost(history: list[Chunk]) -> None:
    blocks = list(logs.whole_lines(history))
    assert lines(blocks) == lines(history)
    ended = [block for block in blocks if block[1].endswith(b"\n")]
    assert blocks[: len(ended)] == ended and len(blocks) - len(ended) <= 2
