"""The `flow` command as a process of its own, with a home of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pexpect
import pytest

FLOW = str(Path(sys.executable).with_name("flow"))
TIMEOUT_S = 60


class Done(NamedTuple):
    """What a `flow` process left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> list[dict[str, Any]]:
        """Its output as JSON lines; fails where there is anything else in it."""
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Done]


@pytest.fixture
def flow(flow_home: Path, project: Path) -> Command:
    """`flow("status", "--json")` runs it in the project's folder, without a terminal, and gives what came of it."""

    def call(*arguments: str, stdin: str = "", code: int | None = 0, **environ: str) -> Done:
        done = subprocess.run(
            [FLOW, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env={**os.environ, **environ},
            timeout=TIMEOUT_S,
        )
        assert "/flow_sdk/" not in done.stderr, f"a traceback of our own:\n{done.stderr}"
        if code is not None:
            assert done.returncode == code, f"flow {' '.join(arguments)} exited {done.returncode}:\n{done.stderr}"
        return Done(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def terminal(flow_home: Path, project: Path) -> Iterator[Callable[..., pexpect.spawn]]:
    """`terminal("run", "-i", "cpu")` runs it on a terminal of its own."""
    started: list[pexpect.spawn] = []

    def spawn(*arguments: str, columns: int = 100, program: str = FLOW, **environ: str) -> pexpect.spawn:
        own_size = {"COLUMNS", "LINES"}
        env = {name: value for name, value in os.environ.items() if name not in own_size} | {"TERM": "xterm", **environ}
        child = pexpect.spawn(
            program, list(arguments), encoding="utf-8", timeout=TIMEOUT_S, dimensions=(40, columns), env=env
        )
        started.append(child)
        return child

    yield spawn
    for child in started:
        child.close(force=True)


def interrupt(child: pexpect.spawn) -> None:
    """Ctrl-C at a question. Python looks for signals before it begins to read; one that comes in between waits for the
    next key, and a person presses again."""
    for _ in range(TIMEOUT_S * 2):
        child.sendintr()
        if child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=0.5) == 0:
            return
    pytest.fail("Ctrl-C did not end it")


def finish(child: pexpect.spawn) -> int:
    """Waits for the end of a process on a terminal; its exit code."""
    if not child.flag_eof:
        child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus is not None, f"ended by signal {child.signalstatus}"
    return int(child.exitstatus)
