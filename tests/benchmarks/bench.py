"""What every measurement needs: places, environments, contenders."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks import peers
from tests.benchmarks.measure import Driver, Figure, NotMeasured, Take, Turns, in_turns, process_ms
from tests.benchmarks.peers import Peer
from tests.benchmarks.table import Beside


class Bench:
    """One run.

    Args:
        folder: for everything that is written; removed by the caller.
        there: the peers by name.
        quick: take few samples.
    """

    def __init__(self, folder: Path, there: Mapping[str, Peer], quick: bool) -> None:
        self.folder = folder
        self.peers = there
        self.quick = quick
        self.project = self.place("project")
        self.python = Path(sys.executable)
        self.flow = self.python.parent / "flow"
        # Without PYTHONDONTWRITEBYTECODE, say: an installed package has its bytecode, and this one's is then kept too.
        own = {name: value for name, value in os.environ.items() if not name.startswith(("FLOW_", "PYTHON"))}
        self.env = {**own, "FLOW_HOME": str(self.place("home"))}
        self.peer_env = peers.environment(self.place("peer-home"))

    def place(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir()
        return path

    def rounds(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def bare_python(self) -> Figure:
        takes = {"python": self.process(self.python, "-c", "pass")}
        return in_turns(takes, self.rounds(10, 5)).figure("python")

    def process(self, *argv: str | Path, shows: bytes = b"", env: Mapping[str, str] | None = None) -> Take:
        return lambda: process_ms(argv, env or self.env, self.project, shows)

    def program(self, peer: Peer, program: str, *arguments: str | Path, shows: bytes = b"") -> Take:
        """One of a peer's own programs; the peer is there."""
        assert peer.bin is not None
        return self.process(peer.bin / program, *arguments, shows=shows, env=self.peer_env)

    @contextmanager
    def driver(self, name: str, env: Mapping[str, str] | None = None) -> Iterator[Driver]:
        """The contender `name`, warm; a peer is there."""
        peer = self.peers.get(name)
        python, own_env = (peer.python, self.peer_env) if peer else (self.python, self.env)
        with Driver(name, python, env or own_env, self.project) as driver:
            yield driver

    def has(self, name: str) -> bool:
        return self.peers[name].bin is not None

    def beside(self, turns: Turns, name: str, *, base: str = "", unit: str = "ms", note: str = "") -> Beside:
        """A peer as a cell shows it: its figure (over that of `base`), or why there is none."""
        peer = self.peers[name]
        if peer.bin is None:
            return Beside(name, None, peer.why_not)
        try:
            return Beside(name, turns.over(name, base) if base else turns.figure(name, unit), note=note)
        except NotMeasured as error:
            return Beside(name, None, str(error))
