"""Rows about whole processes: what starting and importing takes."""

from __future__ import annotations

from collections.abc import Mapping

from tests.benchmarks.bench import Bench
from tests.benchmarks.measure import NotMeasured, Take, in_turns
from tests.benchmarks.table import Beside, Row, Target

HISTORY_TASKS = 10_000


def import_package(bench: Bench) -> list[Row]:
    statements = {"ours": "import flow_sdk", "flow-compute": "import flow", "submitit": "import submitit"}
    return [_statements(bench, "`import flow_sdk`, over bare Python", statements, Target(12, "12 ms"))]


def import_config(bench: Bench) -> list[Row]:
    statements = {
        "ours": "import flow_sdk; flow_sdk.Flow; flow_sdk.TaskConfig(command='x', instance_type='cpu')",
        "flow-compute": "import flow; flow.Flow; flow.TaskConfig(name='x', command='x', instance_type='cpu.small')",
        "submitit": "import submitit; submitit.AutoExecutor('logs', cluster='local')",
    }
    what = "the same, client touched and `TaskConfig` built"
    return [_statements(bench, what, statements, Target(120, "120 ms"), slow=5)]


def _statements(bench: Bench, what: str, statements: Mapping[str, str], target: Target, slow: int = 15) -> Row:
    takes: dict[str, Take] = {}
    for name, statement in statements.items():
        if name == "ours":
            takes[f"bare {name}"] = bench.process(bench.python, "-c", "pass")
            takes[name] = bench.process(bench.python, "-c", statement)
        elif bench.has(name):
            takes[f"bare {name}"] = bench.program(bench.peers[name], "python", "-c", "pass")
            takes[name] = bench.program(bench.peers[name], "python", "-c", statement)
    return _over_bare(bench, what, takes, list(statements)[1:], target, slow)


def version(bench: Bench) -> list[Row]:
    takes = {
        "bare ours": bench.process(bench.python, "-c", "pass"),
        "ours": bench.process(bench.flow, "--version", shows=b"0."),
    }
    if bench.has("flow-compute"):
        peer = bench.peers["flow-compute"]
        takes["bare flow-compute"] = bench.program(peer, "python", "-c", "pass")
        takes["flow-compute"] = bench.program(peer, "flow", "--version", shows=b"3.28")
    none = Beside("submitit", None, "submitit has no command of its own.")
    row = _over_bare(bench, "`flow --version`, over bare Python", takes, ["flow-compute"], Target(50, "50 ms"), 10)
    return [Row(**{**row.__dict__, "peers": [*row.peers, none]})]


def _over_bare(bench: Bench, what: str, takes: Mapping[str, Take], peers: list[str], target: Target, slow: int) -> Row:
    """Contenders less a bare start of the same interpreter with the same packages beside it, in the same turn."""
    few = bench.rounds(slow, 2)
    fewer = {name: few for name in takes if name.removeprefix("bare ") != "ours"}
    turns = in_turns(takes, bench.rounds(30, 6), fewer)
    bare = turns.figure("bare ours")
    floors = [Beside("`python -c pass`", bare)]
    beside = [bench.beside(turns, name, base=f"bare {name}") for name in peers]
    try:
        ours = turns.over("ours", "bare ours")
    except NotMeasured as error:
        return Row(what, None, floors, beside, target, why_not=str(error))
    return Row(what, ours, floors, beside, target, over=turns.figure("ours"), python=bare)


def watch(bench: Bench) -> list[Row]:
    takes = {
        "python": bench.process(bench.python, "-c", "pass"),
        "ours": bench.process(bench.flow, "run", "--watch", "echo hi", shows=b"hi\n"),
    }
    if bench.has("flow-compute"):
        # Without a price cap it asks the provider for prices, and its local one has none.
        arguments = ["-i", "cpu.small", "-m", "1", "--no-upload-code", "-y", "--wait-until", "terminal", "echo hi"]
        takes["flow-compute"] = bench.program(
            bench.peers["flow-compute"], "flow", "run", *arguments, shows=b"completed"
        )
    turns = in_turns(takes, bench.rounds(15, 4), {"flow-compute": bench.rounds(3, 1)})
    what = "`flow run --watch 'echo hi'`, whole process"
    peers = [
        bench.beside(turns, "flow-compute", note="Waits for the end (`--wait-until terminal`), and prints no log."),
        Beside("submitit", None, "submitit has no command of its own."),
    ]
    floors = [Beside("`python -c pass`", turns.figure("python"))]
    target = Target(250, "250 ms with the log")
    try:
        return [Row(what, turns.figure("ours"), floors, peers, target, python=turns.figure("python"))]
    except NotMeasured as error:
        return [Row(what, None, floors, peers, target, why_not=str(error))]


def status(bench: Bench) -> list[Row]:
    what = f"`flow status` with {HISTORY_TASKS:,} tasks of history, whole process"
    home = {**bench.env, "FLOW_HOME": str(bench.place("history"))}
    with bench.driver("flow", home) as driver:
        driver.ask("history", count=HISTORY_TASKS)
    newest = f"task-{HISTORY_TASKS - 1:010x}".encode()
    takes = {
        "python": bench.process(bench.python, "-c", "pass"),
        "ours": bench.process(bench.flow, "status", shows=newest, env=home),
    }
    turns = in_turns(takes, bench.rounds(20, 5))
    floors = [Beside("`python -c pass`", turns.figure("python"))]
    peers = [
        Beside("flow-compute", None, "flow-compute's local tasks are forgotten when their client ends."),
        Beside("submitit", None, "submitit has no command of its own."),
    ]
    target = Target(150, "150 ms")
    try:
        return [Row(what, turns.figure("ours"), floors, peers, target, python=turns.figure("python"))]
    except NotMeasured as error:
        return [Row(what, None, floors, peers, target, why_not=str(error))]
