"""How the client reaches a node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol


class Completed(NamedTuple):
    """What a command on a node left behind."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Transport(Protocol):
    """One node of one task. Made by `Provider.connect`; safe to close twice."""

    def run(self, command: Sequence[str] | str, input: bytes | Path | None = None) -> Completed:
        """Runs an argv list, or a text through the node's shell, in the task's folder and environment.

        Args:
            input: what the command reads from its standard input: bytes, or a file's content.

        Raises:
            ProviderError: the node cannot be reached, or the task has ended.
        """
        ...

    def put(self, path: str, data: bytes | Path) -> None:
        """Places bytes or a file's content at `path` on the node, whole or not at all; missing folders are made."""
        ...

    def read(self, path: str, offset: int = 0, *, follow: bool = False) -> Iterator[bytes]:
        """The file's bytes from `offset` on, in chunks of at most 1 MiB; with `follow` also what is appended later."""
        ...

    def forward(self, remote_port: int) -> int:
        """A port on 127.0.0.1 that leads to the node's `remote_port` until `close`."""
        ...

    def terminal(self, command: str | None = None) -> tuple[list[str], dict[str, str]]:
        """The argv and environment of a program that, on the user's terminal, is a shell on the node, or runs `command`
        there. Values of the environment are in no argv."""
        ...

    def close(self) -> None: ...
