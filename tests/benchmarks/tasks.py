"""Rows about tasks submitted by a process that is warm."""

from __future__ import annotations

import time
from contextlib import ExitStack

from tests.benchmarks.bench import Bench
from tests.benchmarks.measure import Driver, Figure, NotMeasured, Take, Turns, in_turns
from tests.benchmarks.table import Beside, Row, Target

MANY_BUDGET_S = 75.0
HANDLE_KIB = 8


def first_line(bench: Bench) -> list[Row]:
    turns = _turns(bench, "first_line", bench.rounds(30, 6), {"flow-compute": bench.rounds(15, 3)})
    peers = [
        bench.beside(turns, "flow-compute", note="Its local tasks are threads of their client and end with it."),
        Beside("submitit", None, "submitit follows no logs."),
    ]
    what = "submit → first log line, warm process, `echo hi`, empty project"
    return [_row(what, turns, peers, Target(40, "40 ms, with a task that outlives its client"))]


def done(bench: Bench) -> list[Row]:
    few = {"flow-compute": bench.rounds(6, 1), "submitit": bench.rounds(6, 1)}
    turns = _turns(bench, "done", bench.rounds(30, 6), few)
    peers = [
        bench.beside(turns, "flow-compute", note="flow-compute's wait() looks every 2 s."),
        bench.beside(turns, "submitit", note="submitit's wait() looks every second."),
    ]
    return [_row("submit → done seen by `wait()`", turns, peers, Target(60, "60 ms"))]


def _turns(bench: Bench, what: str, rounds: int, few: dict[str, int]) -> Turns:
    with ExitStack() as stack:
        flow = stack.enter_context(bench.driver("flow"))
        bare = stack.enter_context(bench.driver("bare"))
        takes: dict[str, Take] = {
            "python": bench.process(bench.python, "-c", "pass"),
            "ours": lambda: float(flow.ask(what)),
            "interpreter": lambda: float(bare.ask(what, interpreter=True)),
            "shell": lambda: float(bare.ask(what)),
        }
        for name in few:
            if bench.has(name):
                takes[name] = _asking(stack.enter_context(bench.driver(name)), what)
        return in_turns(takes, rounds, few)


def _asking(driver: Driver, what: str) -> Take:
    return lambda: float(driver.ask(what))


def _row(what: str, turns: Turns, peers: list[Beside], target: Target) -> Row:
    floors = [
        Beside("one `python -I -S`", turns.figure("interpreter")),
        Beside("`sh -c 'echo hi'`", turns.figure("shell")),
    ]
    return Row(what, turns.figure("ours"), floors, peers, target, python=turns.figure("python"))


def many(bench: Bench) -> list[Row]:
    count, few = bench.rounds(1000, 100), bench.rounds(100, 10)
    peer_counts = {"flow-compute": bench.rounds(100, 10), "submitit": bench.rounds(25, 4)}
    started = time.monotonic()
    ours: list[float] = []
    shells: list[float] = []
    pythons: list[float] = []
    peaks: dict[int, list[float]] = {few: [], count: []}
    longest = 0.0
    # One run is thousands of processes long, so the turns are few; each contender starts fresh, for its memory.
    while not ours or (len(ours) < 3 and time.monotonic() - started + longest < MANY_BUDGET_S and not bench.quick):
        began = time.monotonic()
        for size in (few, count):
            with bench.driver("flow") as flow, bench.driver("bare") as bare:
                pythons += bench.bare_python().samples
                taken = flow.ask("many", count=size)
                peaks[size].append(taken["peak_mib"])
                if size == count:
                    ours.append(taken["ms"] / size)
                    shells.append(bare.ask("many", count=size)["ms"] / size)
        longest = max(longest, time.monotonic() - began)
    peers = [_many_of_peer(bench, name, size) for name, size in peer_counts.items()]
    with bench.driver("bare") as bare:
        idle = bare.ask("many", count=1)["peak_mib"]
    grown = [(after - before) * 1024 / (count - few) for before, after in zip(peaks[few], peaks[count], strict=True)]
    before, after = Figure(peaks[few], "MiB"), Figure(peaks[count], "MiB")
    rows = [
        Row(
            f"{count:,} tasks submitted by one process, all seen done: each",
            Figure(ours, "ms"),
            [Beside("`sh -c 'echo hi'`, one after the other", Figure(shells, "ms"))],
            peers,
            Target(25, "25 ms a task on two cores"),
            python=Figure(pythons, "ms"),
        )
    ]
    if not bench.quick:
        # A few tasks more say nothing about memory.
        row = Row(
            f"its peak memory, {few} → {count:,} tasks ({before.median:.1f} → {after.median:.1f} MiB): each",
            Figure(grown, "KiB"),
            [Beside("bare Python, whole", Figure([idle], "MiB"))],
            [],
            Target(HANDLE_KIB, f"flat: {HANDLE_KIB} KiB, the handle that is kept", absolute=False),
            over=after,
        )
        rows.append(row)
    return rows


def _many_of_peer(bench: Bench, name: str, count: int) -> Beside:
    peer = bench.peers[name]
    if peer.bin is None:
        return Beside(name, None, peer.why_not)
    try:
        with bench.driver(name) as driver:
            taken = driver.ask("many", count=count)
    except NotMeasured as error:
        return Beside(name, None, str(error))
    return Beside(name, Figure([taken["ms"] / count], "ms"), note=f"{name}: {count} tasks, not {1000:,}.")
