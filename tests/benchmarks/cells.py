"""Rows about cells: `%%flow` in a session on this machine, beside a local kernel and ipyparallel's `%%px` with one
local engine. Each contender is a real kernel, driven as a front end does; no Jupyter server stands between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count

from tests.benchmarks.bench import Bench
from tests.benchmarks.measure import Figure, NotMeasured, Take, Turns, in_turns
from tests.benchmarks.table import Beside, Row, Target
from tests.notebook.kernel import KernelDiedError, Notebook, Result

LOCAL, OURS, PX = "local", "ours", "ipyparallel"
HEADS = {LOCAL: "", OURS: "%%flow\n", PX: "%%px\n"}
CELL_TIMEOUT_S = 120.0
CLUSTER = (
    "import ipyparallel\ncluster = ipyparallel.Cluster(n=1)\nengines = cluster.start_and_connect_sync(activate=True)"
)
LINE = "step {:06d}  loss 0.6931  accuracy 0.512  lr 1.0e-3  grad 0.25  2.31 s  80.1 % of the epoch  9.8 it/s  ok"
LOOK_S = 2.0
"""How long a person looks at a notebook before running its first cell on a machine."""
ARRAY_FLOATS = 12_500_000


class Contender:
    """A kernel, started with the first cell that is run in it; what its cells run on is started and ended with it.

    Args:
        stack: ends it.
        begin: a cell for the notebook's own kernel to begin with.
    """

    def __init__(self, bench: Bench, name: str, stack: ExitStack, begin: str) -> None:
        self.name = name
        self._begin = begin
        self._bench = bench
        self._stack = stack
        self._notebook: Notebook | None = None

    @property
    def notebook(self) -> Notebook:
        if self._notebook is None:
            self._notebook = self._stack.enter_context(kernel(self._bench, self.name))
            if self.name == PX:
                run(self._notebook, CLUSTER)
            run(self._notebook, self._begin)
        return self._notebook

    def here(self, code: str) -> Result:
        """Runs a cell in the notebook's own kernel."""
        return run(self.notebook, code)

    def there(self, code: str) -> Result:
        """Runs a cell where the contender's cells run."""
        return run(self.notebook, HEADS[self.name] + code)


@contextmanager
def kernel(bench: Bench, name: str) -> Iterator[Notebook]:
    """A notebook with the contender's magics, without anything to run its cells on yet; ends what its cells started."""
    peer = bench.peers.get(name)
    python, env = (peer.python, bench.peer_env) if peer else (bench.python, bench.env)
    with Notebook(bench.project, env, python) as notebook:
        try:
            if name == OURS:
                run(notebook, "%load_ext flow_nb")
            yield notebook
        finally:
            if name == OURS:
                notebook.run("%flow stop")
            elif name == PX:
                notebook.run("cluster.stop_cluster_sync()")


def run(notebook: Notebook, code: str) -> Result:
    """Raises NotMeasured where the cell fails."""
    try:
        result = notebook.run(code, CELL_TIMEOUT_S)
    except (KernelDiedError, TimeoutError) as error:
        raise NotMeasured(f"`{code.splitlines()[0]}`: {str(error).splitlines()[0]}") from error
    if result.status != "ok":
        raise NotMeasured(f"`{code.splitlines()[0]}` failed: {result.ename}: {result.evalue[:160]}")
    return result


def contenders(bench: Bench, stack: ExitStack, begin: str = "") -> dict[str, Contender]:
    names = [LOCAL, OURS, *([PX] if bench.has(PX) else [])]
    return {name: Contender(bench, name, stack, begin) for name in names}


def beside_px(bench: Bench, turns: Turns, name: str = PX, *, unit: str = "ms", note: str = "") -> Beside:
    """The peer as a cell of the table shows it; `name` is what was measured of it."""
    peer = bench.peers[PX]
    if peer.bin is None:
        return Beside("`%%px`", None, peer.why_not)
    try:
        return Beside("`%%px`", turns.figure(name, unit), note=note)
    except NotMeasured as error:
        return Beside("`%%px`", None, str(error))


def row(what: str, ours: Callable[[], Figure], floors: list[Beside], peer: Beside | None, target: Target) -> Row:
    peers = [peer] if peer else []
    try:
        return Row(what, ours(), floors, peers, target)
    except NotMeasured as error:
        return Row(what, None, floors, peers, target, why_not=str(error))


def ahead(peer: Beside, text: str, limit: float = float("inf")) -> Target:
    """To be ahead of the peer, where it is there, and within `limit`."""
    if peer.figure is not None:
        limit = min(limit, peer.figure.median)
    return Target(limit, text, absolute=False)


def warm_ms(one: Contender) -> float:
    return one.there("x = 1").seconds * 1000


def warm(bench: Bench) -> list[Row]:
    with ExitStack() as stack:
        takes: dict[str, Take] = {name: partial(warm_ms, one) for name, one in contenders(bench, stack).items()}
        turns = in_turns(takes, bench.rounds(100, 15))
    local, peer = turns.figure(LOCAL), beside_px(bench, turns)
    target = ahead(peer, "ahead of `%%px`, within twice the floor", 2 * local.median)
    what = "a cell `x = 1` in a warm session, to the prompt again"
    return [row(what, partial(turns.figure, OURS), [Beside("local kernel", local)], peer, target)]


def prints(bench: Bench) -> list[Row]:
    """A flood of lines, then a trickle."""
    lines = bench.rounds(100_000, 20_000)
    flood = f"for n in range({lines}):\n    print({LINE!r}.format(n))"
    drops, drops_s = bench.rounds(1000, 200), bench.rounds(10, 2)
    trickle = f"import time\nfor n in range({drops}):\n    print({LINE!r}.format(n))\n    time.sleep({drops_s / drops})"
    sizes: dict[str, list[float]] = {}
    with ExitStack() as stack:
        there = contenders(bench, stack)

        def print_all(one: Contender) -> float:
            result = one.there(flood)
            has_all(result, lines)
            sizes.setdefault(one.name, []).append(result.message_bytes / 1e6)
            return result.seconds * 1000

        takes: dict[str, Take] = {name: partial(print_all, one) for name, one in there.items()}
        turns = in_turns(takes, bench.rounds(4, 1), {PX: bench.rounds(2, 1)})
        size_turns = Turns(sizes, turns.failed)
        # Side by side: it is their waiting that takes the time, and bytes do not depend on who else is busy.
        running = {
            name: one.notebook.start(HEADS[name] + trickle) for name, one in there.items() if name not in turns.failed
        }
        ended = {name: cell.wait(CELL_TIMEOUT_S) for name, cell in running.items()}
    for result in ended.values():
        has_all(result, drops)
    trickled = Turns({name: [result.message_bytes / 1e6] for name, result in ended.items()}, turns.failed)
    local, local_size, local_trickle = turns.figure(LOCAL), size_turns.figure(LOCAL, "MB"), trickled.figure(LOCAL, "MB")
    resends = "It shows all that a cell has printed so far again for each piece that comes."
    return [
        row(
            f"{lines:,} lines printed by a cell, shown inline",
            partial(turns.figure, OURS),
            [Beside("local kernel", local)],
            beside_px(bench, turns),
            Target(local.median / 0.8, "80% of the local kernel's speed", absolute=False),
        ),
        row(
            "its messages to the front end",
            partial(size_turns.figure, OURS, "MB"),
            [Beside("local kernel", local_size)],
            beside_px(bench, size_turns, unit="MB", note=resends),
            Target(1.1 * local_size.median, "the local kernel's (within 10%)", absolute=False),
        ),
        row(
            f"{drops:,} lines trickled over {drops_s} s: messages to the front end",
            partial(trickled.figure, OURS, "MB"),
            [Beside("local kernel", local_trickle)],
            beside_px(bench, trickled, unit="MB", note=resends),
            Target(1.1 * local_trickle.median, "the local kernel's (within 10%)", absolute=False),
        ),
    ]


def has_all(result: Result, lines: int) -> None:
    """Raises NotMeasured where not every line is shown."""
    if result.status != "ok":
        raise NotMeasured(f"the cell failed: {result.ename}: {result.evalue[:160]}")
    shown = str(result.outputs).count("loss 0.6931")
    if shown != lines:
        raise NotMeasured(f"{shown:,} of {lines:,} lines are shown")


def first(bench: Bench) -> list[Row]:
    """What a person waits for at the start: the extension, and the first cell of a session. All in fresh kernels."""
    first_cells: list[float] = []
    loads: list[float] = []

    def local() -> float:
        started = time.perf_counter()
        with Notebook(bench.project, bench.env, bench.python) as notebook:
            first_cells.append(run(notebook, "x = 1").seconds * 1000)
            return (time.perf_counter() - started) * 1000

    def ours() -> float:
        with Notebook(bench.project, bench.env, bench.python) as notebook:
            loads.append(run(notebook, "%load_ext flow_nb").seconds * 1000)
            time.sleep(LOOK_S)
            try:
                return run(notebook, "%%flow\nx = 1").seconds * 1000
            finally:
                notebook.run("%flow stop")

    turns = in_turns({LOCAL: local, OURS: ours}, bench.rounds(6, 2))
    start = turns.figure(LOCAL)
    return [
        row(
            f"first cell of a new session, in a notebook that loaded `flow_nb` {LOOK_S:g} s before",
            partial(turns.figure, OURS),
            [Beside("a local kernel, from its start to its first cell's end", start)],
            None,
            Target(start.median + 300, "the start of a local kernel + 300 ms", absolute=False),
        ),
        row(
            "`%load_ext flow_nb`, first cell of a fresh kernel",
            lambda: Figure(loads[1:], "ms"),
            [Beside("`x = 1` as the first cell", Figure(first_cells[1:], "ms"))],
            None,
            Target(50, "50 ms"),
        ),
    ]


def arrays(bench: Bench) -> list[Row]:
    """An array of 100 MB there and back, changed and unchanged. What changes it, and what looks whether the right one
    came, is outside of the times."""
    marks = count(1)
    # Not in the project, whose files travel with the session.
    path = str(bench.place("arrays") / "big.npy")
    make = f"import numpy\nbig = numpy.random.default_rng(0).standard_normal({ARRAY_FLOATS})"
    both = {
        OURS: ("%%flow -i big\npass", "%%flow -o back\npass"),
        PX: ("engines[0].push({'big': big}, block=True)", "back = engines[0].pull('back', block=True)"),
    }

    def send(one: Contender, code: str) -> float:
        mark = next(marks)
        one.here(f"big[[0, -1]] = {mark}")
        taken = again(one, code)
        one.there(f"assert list(big[[0, -1]]) == [{mark}] * 2 and len(big) == {ARRAY_FLOATS}")
        return taken

    def fetch(one: Contender, code: str) -> float:
        mark = next(marks)
        one.there(f"back = big + 1; back[[0, -1]] = {mark}")
        taken = again(one, code)
        one.here(f"assert list(back[[0, -1]]) == [{mark}] * 2 and len(back) == {ARRAY_FLOATS}")
        return taken

    def again(one: Contender, code: str) -> float:
        return one.here(code).seconds * 1000

    with ExitStack() as stack:
        there = contenders(bench, stack, make)
        file = f"numpy.save({path!r}, big); read = numpy.load({path!r})"
        takes: dict[str, Take] = {"file": partial(again, there[LOCAL], file)}
        for name, (put, get) in both.items():
            if name in there:
                takes[f"{name} send"] = partial(send, there[name], put)
                takes[f"{name} send again"] = partial(again, there[name], put)
                takes[f"{name} fetch"] = partial(fetch, there[name], get)
                takes[f"{name} fetch again"] = partial(again, there[name], get)
        turns = in_turns(takes, bench.rounds(6, 2))
    file_floor = [Beside("`numpy.save` and `numpy.load` in a local kernel", turns.figure("file"))]
    size = f"{ARRAY_FLOATS * 8 / 1e6:.0f} MB"
    rows = []
    for way, what, theirs in (
        ("send", f"send an array of {size} (`-i`)", "`view.push`"),
        ("fetch", f"bring an array of {size} back (`-o`)", "`view.pull`"),
    ):
        peer = beside_px(bench, turns, f"{PX} {way}", note=f"{theirs}, without a cell beside it.")
        rows.append(
            row(what, partial(turns.figure, f"{OURS} {way}"), file_floor, peer, ahead(peer, f"ahead of {theirs}"))
        )
        peer = beside_px(bench, turns, f"{PX} {way} again")
        ours = partial(turns.figure, f"{OURS} {way} again")
        rows.append(row("the same again, unchanged", ours, file_floor, peer, Target(50, "50 ms")))
    return rows
