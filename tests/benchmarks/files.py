"""Rows about files: packing a project, following a log."""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.benchmarks.bench import Bench
from tests.benchmarks.measure import Figure, NotMeasured, Take, in_turns
from tests.benchmarks.table import Beside, Row, Target

FILES, IGNORED = 2_000, 20_000
FOLLOW_TIMEOUT_S = 60.0
LINE = b"step 000000  loss 0.6931  accuracy 0.512  lr 1.0e-3  2.31 s\n"
BLOCK_LINES = 100
WRITER = """
import os, sys
log, line, count, times = sys.argv[1], sys.argv[2].encode(), *map(int, sys.argv[3:])
fd = os.open(log, os.O_WRONLY | os.O_APPEND)
for _ in range(times):
    os.write(fd, line * count)
"""


def pack(bench: Bench) -> list[Row]:
    root = bench.place("tree")
    newest = make_tree(root)
    archive = bench.folder / "tree.tar.gz"
    excludes = ["--exclude=./build", "--exclude=*.ckpt"]
    fresh = iter(range(1_000_000))
    with bench.driver("flow") as driver:

        def ours(into: Path) -> float:
            packed = driver.ask("pack", root=str(root), into=str(into))
            if packed["files"] != FILES + 1:
                raise NotMeasured(f"{packed['files']} files were packed, not {FILES + 1}")
            return float(packed["ms"])

        # Where the last change is this close, times do not yet tell whether files changed, and are not relied on.
        while time.time() < newest + 3:
            time.sleep(0.1)
        kept = bench.folder / "bundles-kept"
        takes: dict[str, Take] = {
            "python": bench.process(bench.python, "-c", "pass"),
            "tar": bench.process("tar", "czf", archive, "-C", root, *excludes, "."),
            "ours": lambda: ours(bench.folder / f"bundles-{next(fresh)}"),
            "again": lambda: ours(kept),
        }
        turns = in_turns(takes, bench.rounds(12, 3))
    packed_bytes = next(kept.glob("*.tar.gz")).stat().st_size
    tar = turns.figure("tar")
    sizes = f"{packed_bytes / 1e6:.1f} MB; tar's {archive.stat().st_size / 1e6:.1f} MB"
    floor = [Beside("`tar czf` with excludes", tar)]
    return [
        Row(
            f"pack {FILES:,} files beside {IGNORED:,} ignored ones, warm process ({sizes})",
            turns.figure("ours"),
            floor,
            [],
            Target(1.5 * tar.median, "1.5 × tar", absolute=False),
        ),
        Row(
            "the same again, unchanged",
            turns.figure("again"),
            floor,
            [],
            Target(100, "100 ms"),
            python=turns.figure("python"),
        ),
    ]


def make_tree(root: Path) -> float:
    """Sources of about 4 KB in 100 folders; beside them checkpoints, ignored by name, and a folder of build products,
    ignored as a whole. Returns the time of the last change."""
    chance = random.Random(0)
    words = [
        "".join(chance.choice("abcdefghijklmnopqrstuvwxyz_") for _ in range(chance.randint(2, 12))) for _ in range(3000)
    ]
    # What is ignored is never read, and names are made faster than files.
    product = root / "first.ckpt"
    product.write_bytes(b"weights")
    (root / ".gitignore").write_text("# what a project of this kind leaves out\nbuild/\n*.ckpt\n__pycache__/\n.venv\n")
    for number in range(FILES):
        folder = root / f"package_{number // 20}"
        folder.mkdir(exist_ok=True)
        lines = (f"    {chance.choice(words)} = {chance.choice(words)}({chance.choice(words)})" for _ in range(120))
        (folder / f"module_{number}.py").write_text("\n".join(lines))
        for ignored in range(4):
            os.link(product, folder / f"module_{number}.{ignored}.ckpt")
    build = root / "build"
    for number in range(IGNORED - 4 * FILES - 1):
        if number % 100 == 0:
            folder = build / f"lib_{number // 100}"
            folder.mkdir(parents=True)
        os.link(product, folder / f"{number}.o")
    return time.time()


def follow(bench: Bench) -> list[Row]:
    lines = bench.rounds(1_000_000, 200_000)
    with quiet_tasks(bench, 1) as [(task_id, log)]:

        def grows(argv: Sequence[str | Path]) -> float:
            os.truncate(log, 0)
            append(log, b"ready\n")
            with following(bench, argv) as output:
                until_lines(output, 1)
                started = time.monotonic()
                with writing(log, lines):
                    until_lines(output, lines)
                    return lines / (time.monotonic() - started)

        def sdk() -> float:
            os.truncate(log, 0)
            append(log, b"ready\n")
            argv: list[str | Path] = [bench.python, Path(__file__).with_name("follow.py"), task_id, str(lines)]
            with following(bench, argv) as output:
                until_lines(output, 1)
                started = time.monotonic()
                with writing(log, lines):
                    return lines / (float(until_lines(output, 1)) - started)

        takes: dict[str, Take] = {
            "tail": lambda: grows(["tail", "-n", "1", "-f", log]),
            "ours": lambda: grows(flow_logs(bench, task_id)),
            "sdk": sdk,
        }
        turns = in_turns(takes, bench.rounds(7, 2))
    tail = turns.figure("tail", "lines/s")
    floor = [Beside("`tail -f`", tail)]
    target = Target(tail.median / 2, "half of `tail -f`", absolute=False, at_least=True)
    what = f"follow a log that grows by {lines:,} lines of {len(LINE)} bytes: "
    return [
        Row(f"{what}`flow logs -f`", turns.figure("ours", "lines/s"), floor, [], target),
        Row(f"{what}`task.logs(follow=True)`, decoded, one by one", turns.figure("sdk", "lines/s"), floor, [], target),
    ]


def lag(bench: Bench) -> list[Row]:
    """Two logs, a follower each: a line goes to one, is waited for, then one goes to the other."""
    chance = random.Random(0)
    with ExitStack() as stack:
        (task_id, log), (_, other) = stack.enter_context(quiet_tasks(bench, 2))
        ours = stack.enter_context(following(bench, flow_logs(bench, task_id)))
        tail = stack.enter_context(following(bench, ["tail", "-n", "1", "-f", other]))
        until_lines(ours, 1)
        until_lines(tail, 1)

        def line(path: Path, output: int) -> float:
            # A follower that has gone to sleep, and not one that is still busy with the line before.
            time.sleep(chance.uniform(0.004, 0.012))
            started = time.perf_counter()
            append(path, LINE)
            until_lines(output, 1)
            return (time.perf_counter() - started) * 1000

        takes: dict[str, Take] = {"tail": lambda: line(other, tail), "ours": lambda: line(log, ours)}
        turns = in_turns(takes, bench.rounds(500, 100))
    figures = [turns.figure("ours"), turns.figure("tail")]
    target = Target(20, "20 ms at the median", absolute=False)
    p99 = [Figure([figure.percentile(99)], "ms") for figure in figures]
    return [
        Row(
            "one line appended → seen through `flow logs -f`", figures[0], [Beside("`tail -f`", figures[1])], [], target
        ),
        Row("the same, its 99th percentile", p99[0], [Beside("`tail -f`", p99[1])], []),
    ]


def flow_logs(bench: Bench, task_id: str) -> list[str | Path]:
    return [bench.flow, "logs", "-f", "--tail", "1", task_id]


@contextmanager
def quiet_tasks(bench: Bench, count: int) -> Iterator[list[tuple[str, Path]]]:
    """Running tasks that say no more than they have; what is appended to their logs comes from here."""
    with bench.driver("flow") as driver:
        made = [driver.ask("quiet_task") for _ in range(count)]
        try:
            yield [(task_id, Path(log)) for task_id, log in made]
        finally:
            driver.ask("cancel", task_ids=[task_id for task_id, _ in made])


@contextmanager
def following(bench: Bench, argv: Sequence[str | Path]) -> Iterator[int]:
    """The descriptor of a follower's output."""
    with subprocess.Popen(argv, env=bench.env, cwd=bench.project, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.fileno()
        finally:
            process.terminate()


@contextmanager
def writing(log: Path, lines: int) -> Iterator[None]:
    arguments: list[str | Path] = [log, LINE.decode(), str(BLOCK_LINES), str(lines // BLOCK_LINES)]
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", WRITER, *arguments]) as process:
        yield
    if process.returncode != 0:
        raise NotMeasured("the log could not be written")


def append(log: Path, data: bytes) -> None:
    with log.open("ab", buffering=0) as file:
        file.write(data)


def until_lines(output: int, count: int) -> bytes:
    """Reads until so many lines have come; gives the last that was read."""
    deadline = time.monotonic() + FOLLOW_TIMEOUT_S
    data = b""
    while count > 0:
        if not select.select([output], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise NotMeasured(f"{count} lines did not come within {FOLLOW_TIMEOUT_S:.0f} s")
        data = os.read(output, 1 << 20)
        if not data:
            raise NotMeasured(f"the follower ended with {count} lines to come")
        count -= data.count(b"\n")
    return data
