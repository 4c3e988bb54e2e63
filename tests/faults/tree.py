"""Starts processes of every kind that a task can leave behind, notes their pids, and stays."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

PIDS = Path(sys.argv[1])


def stay(name: str) -> None:
    part = PIDS.parent / f"{PIDS.name}.{name}"
    part.write_text(str(os.getpid()))
    part.rename(PIDS / name)
    while True:
        signal.pause()


def start(become: Callable[[], object]) -> None:
    if os.fork() == 0:
        become()
        os._exit(1)


def session() -> None:
    os.setsid()
    stay("session")


def daemon() -> None:
    os.setsid()
    if os.fork() == 0:
        os.chdir("/")
        for fd in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)
        stay("daemon")
    os._exit(0)


def deaf() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stay("deaf")


def bare() -> None:
    """A process whose environment says nothing of the task."""
    os.setsid()
    code = "import signal\nwhile True: signal.pause()"
    (PIDS / "bare").write_text(str(os.getpid()))
    os.execve(sys.executable, [sys.executable, "-c", code], {})


start(lambda: stay("child"))
start(session)
start(daemon)
start(deaf)
start(bare)
deadline = time.monotonic() + 30
while len(list(PIDS.iterdir())) < 5:
    if time.monotonic() > deadline:
        sys.exit("not all of the tree started")
    time.sleep(0.01)
# The others wait for "ready", which comes from the command itself, the last one.
(PIDS / "command").write_text(str(os.getpid()))
print("ready", flush=True)
while True:
    signal.pause()
