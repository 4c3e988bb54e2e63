"""Taking times: turns, spreads, whole processes, and processes that are kept warm."""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

DRIVER = Path(__file__).with_name("driver.py")
PROCESS_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 300.0
PERCENTILES_FROM = 10
"""With fewer samples than this, a spread is their smallest and largest."""


class NotMeasured(Exception):
    """The text is the reason, for a footnote."""


class Figure(NamedTuple):
    """Samples of one quantity.

    Attributes:
        samples: in `unit`; at least one.
        unit: "ms", "MiB", "KiB", or "lines/s".
    """

    samples: list[float]
    unit: str

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """p10 and p90, or the smallest and the largest of a few."""
        if len(self.samples) < PERCENTILES_FROM:
            return min(self.samples), max(self.samples)
        return self.percentile(10), self.percentile(90)

    def percentile(self, percent: int) -> float:
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]

    def __str__(self) -> str:
        if len(self.samples) == 1:
            return f"{amount(self.median, self.unit)} (one run)"
        low, high = self.spread
        return f"{amount(self.median, self.unit)} ({number(low, self.unit)}–{number(high, self.unit)})"


def number(value: float, unit: str) -> str:
    if unit == "lines/s":
        return f"{value / 1e6:.2f} M"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"


def amount(value: float, unit: str) -> str:
    return f"{number(value, unit)} {unit}"


Take = Callable[[], float]
"""Measures once and gives the time in milliseconds, or another quantity in its own unit."""


class Turns(NamedTuple):
    """What came of measuring in turns.

    Attributes:
        samples: by name.
        failed: reasons by name, of those that could not be measured.
    """

    samples: dict[str, list[float]]
    failed: dict[str, str]

    def figure(self, name: str, unit: str = "ms") -> Figure:
        """Raises NotMeasured where there is none."""
        if name in self.failed:
            raise NotMeasured(self.failed[name])
        return Figure(self.samples[name], unit)

    def over(self, name: str, base: str) -> Figure:
        """What each took beyond the other of the same turn."""
        pairs = zip(self.figure(name).samples, self.figure(base).samples, strict=True)
        return Figure([value - less for value, less in pairs], "ms")


def in_turns(takes: Mapping[str, Take], rounds: int, fewer: Mapping[str, int] | None = None) -> Turns:
    """Measures A B B A A B …, each after one that is thrown away.

    Args:
        takes: what is measured, by name.
        rounds: how often each is taken.
        fewer: names that are slow, with how often these are taken, spread over the rounds.
    """
    times = {name: min(rounds, (fewer or {}).get(name, rounds)) for name in takes}
    turns = Turns({name: [] for name in takes}, {})
    order = list(takes)
    for turn in range(-1, rounds):
        for name in order:
            due = turn < 0 or turn * times[name] // rounds != (turn + 1) * times[name] // rounds
            if not due or name in turns.failed:
                continue
            try:
                taken = takes[name]()
            except NotMeasured as error:
                turns.failed[name] = str(error)
                continue
            if turn >= 0:
                turns.samples[name].append(taken)
        order.reverse()
    return turns


def process_ms(argv: Sequence[str | Path], env: Mapping[str, str], cwd: Path, shows: bytes = b"") -> float:
    """A whole process, from before it is started until it was reaped.

    Raises:
        NotMeasured: it failed, or did not print `shows`.
    """
    started = time.perf_counter()
    try:
        done = subprocess.run(
            argv, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROCESS_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"`{_shown(argv)}` took over {PROCESS_TIMEOUT_S:.0f} s") from None
    taken = (time.perf_counter() - started) * 1000
    if done.returncode != 0 or shows not in done.stdout + done.stderr:
        raise NotMeasured(f"`{_shown(argv)}` failed ({done.returncode}): {_last_line(done.stderr or done.stdout)}")
    return taken


def _shown(argv: Sequence[str | Path]) -> str:
    return " ".join([Path(argv[0]).name, *map(str, argv[1:])])[:60]


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1][:160] if lines else "it printed nothing"


class Driver:
    """A process in a contender's own environment that is asked for one measurement after the other.

    Args:
        name: which of driver.py's contenders.
        python: the interpreter of its environment.
    """

    def __init__(self, name: str, python: Path, env: Mapping[str, str], cwd: Path) -> None:
        # -I: the folder of driver.py, and the repository, are not in the way of the contender's own modules.
        self._process = subprocess.Popen(
            [python, "-I", DRIVER, name], env=dict(env), cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._name = name
        self._rest = b""

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def ask(self, what: str, **arguments: Any) -> Any:
        """The answer of its method `what`.

        Raises:
            NotMeasured: it failed or did not answer.
        """
        try:
            self._stdin.write(json.dumps([what, arguments]).encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise NotMeasured(f"{self._name} could not be started") from None
        answer = json.loads(self._line())
        if "error" in answer:
            raise NotMeasured(f"{self._name}: {answer['error']}")
        return answer["value"]

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while b"\n" not in self._rest:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise NotMeasured(f"{self._name} gave no answer within {ANSWER_TIMEOUT_S:.0f} s")
            data = os.read(fd, 1 << 16)
            if not data:
                raise NotMeasured(f"{self._name} ended with exit code {self._process.wait()}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
