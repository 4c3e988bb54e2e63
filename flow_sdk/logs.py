"""Reading a rank's output from its folder: whole, by its tail, or as it grows. There is no other reading path."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from flow_sdk.watch import Watch

STDOUT, STDERR = 1, 2
BOTH = (STDOUT, STDERR)
NAMES = {STDOUT: "stdout.log", STDERR: "stderr.log"}
INDEX = "stdio.index"
CHUNK_BYTES = 1 << 20
BLOCK_BYTES = 1 << 16
LOOK_AGAIN_S = 1.0
"""How long a follower sleeps at most: a runner killed together with its guard wakes nobody."""


class Switch(NamedTuple):
    """A line of stdio.index: from here on `stream` was written, when the logs had so many bytes."""

    stream: int
    stdout_bytes: int
    stderr_bytes: int


class Reader:
    """Reads the streams of one rank in the order they were written, each byte once.

    Args:
        folder: the rank's folder.
        streams: which of `STDOUT` and `STDERR`.
    """

    def __init__(self, folder: Path, streams: Iterable[int] = BOTH) -> None:
        self.folder = folder
        self.streams = tuple(streams)
        self.offsets = {STDOUT: 0, STDERR: 0}
        self._files: dict[str, int] = {}
        self._index_offset = 0
        self._current = 0

    def close(self) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files = {}

    def available(self) -> Iterator[tuple[int, bytes]]:
        """Everything written so far and not yet given, in chunks of at most 1 MiB, as (stream, bytes)."""
        # Sizes before the index: whatever they cover was written after its switch was noted. And whatever a switch
        # covers was written before it was noted, so it is read without asking for the size.
        sizes = {number: self._size(NAMES[number]) for number in self.streams}
        if self.streams == BOTH:
            for switch in self._switches():
                yield from self._read(STDOUT, switch.stdout_bytes)
                yield from self._read(STDERR, switch.stderr_bytes)
                self._current = switch.stream
        for number in sorted(self.streams, key=lambda n: n != self._current):
            yield from self._read(number, sizes[number])

    def skip_to_tail(self, lines: int) -> None:
        """Moves on so that `available` starts with the last `lines` lines to have ended so far."""
        sizes = {number: self._size(NAMES[number]) for number in self.streams}
        kept = dict.fromkeys(self.streams, lines) if len(self.streams) == 1 else self._last_ended(lines, sizes)
        self.offsets.update({number: self._tail_start(number, sizes[number], kept[number]) for number in kept})
        for offset, switch in self._switches_back():
            self._index_offset = offset
            if switch.stdout_bytes <= self.offsets[STDOUT] and switch.stderr_bytes <= self.offsets[STDERR]:
                break

    def _last_ended(self, lines: int, sizes: dict[int, int]) -> dict[int, int]:
        """How many of the last `lines` lines are of each stream."""
        kept = dict.fromkeys(self.streams, 0)
        for number in reversed(self.streams):
            if lines and self._is_unended(number, sizes[number]):
                lines -= 1
                kept[number] += 1
        for number, start, end in self._runs_back(sizes):
            for _ in itertools.islice(self._newlines_back(number, start, end), lines):
                lines -= 1
                kept[number] += 1
            if not lines:
                break
        return kept

    def _tail_start(self, number: int, size: int, lines: int) -> int:
        """Where the last `lines` lines of a stream of that size begin."""
        if not lines:
            return size
        # The newline at the very end belongs to the last line; the one before the first of them does not.
        before = lines - 1 if self._is_unended(number, size) else lines
        newline = next(itertools.islice(self._newlines_back(number, 0, size), before, None), -1)
        return newline + 1

    def _is_unended(self, number: int, size: int) -> bool:
        return size > 0 and os.pread(self._fd(NAMES[number]), 1, size - 1) != b"\n"

    def _newlines_back(self, number: int, start: int, end: int) -> Iterator[int]:
        """Where in [start, end) the newlines are, the last one first."""
        while end > start:
            block_start = max(start, end - BLOCK_BYTES)
            block = os.pread(self._fd(NAMES[number]), end - block_start, block_start)
            at = len(block)
            while (at := block.rfind(b"\n", 0, at)) >= 0:
                yield block_start + at
            end = block_start

    def _runs_back(self, sizes: dict[int, int]) -> Iterator[tuple[int, int, int]]:
        """The runs of one stream as (stream, from byte, to byte), the last one first."""
        after = dict(sizes)
        for _, switch in self._switches_back():
            starts = {STDOUT: switch.stdout_bytes, STDERR: switch.stderr_bytes}
            yield switch.stream, starts[switch.stream], after[switch.stream]
            after = {number: min(starts[number], sizes[number]) for number in BOTH}
        # What no index speaks of.
        for number in reversed(BOTH):
            yield number, 0, after[number]

    def _switches(self) -> Iterator[Switch]:
        """What the index says beyond where it was last read to."""
        while data := self._read_index(self._index_offset, BLOCK_BYTES):
            whole = data[: data.rfind(b"\n") + 1]
            if not whole:
                return
            self._index_offset += len(whole)
            yield from filter(None, map(to_switch, whole.splitlines()))

    def _switches_back(self) -> Iterator[tuple[int, Switch]]:
        """What the index says, as (where the line begins, what it says), the last one first."""
        if self.streams != BOTH:
            return
        end, rest = self._size(INDEX), b""
        while end > 0:
            start = max(0, end - BLOCK_BYTES)
            block = self._read_index(start, end - start) + rest
            # The first line may have begun before the block, and the last one may not be whole yet.
            first = block.find(b"\n") + 1 if start else 0
            rest, end = block[:first], start
            lines = block[first : block.rfind(b"\n") + 1].splitlines(keepends=True)
            offset = start + first + sum(map(len, lines))
            for line in reversed(lines):
                offset -= len(line)
                if switch := to_switch(line):
                    yield offset, switch

    def _read_index(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._fd(INDEX), size, offset)
        except FileNotFoundError:
            return b""

    def _fd(self, name: str) -> int:
        if name not in self._files:
            self._files[name] = os.open(self.folder / name, os.O_RDONLY)
        return self._files[name]

    def _size(self, name: str) -> int:
        try:
            return os.fstat(self._fd(name)).st_size
        except FileNotFoundError:
            return 0

    def _read(self, number: int, end: int) -> Iterator[tuple[int, bytes]]:
        while self.offsets[number] < end:
            wanted = min(CHUNK_BYTES, end - self.offsets[number])
            data = os.pread(self._fd(NAMES[number]), wanted, self.offsets[number])
            if not data:
                return
            self.offsets[number] += len(data)
            yield number, data


def to_switch(line: bytes) -> Switch | None:
    try:
        return Switch(*map(int, line.split()))
    except (TypeError, ValueError):
        # A runner that is killed on a full disk leaves a part of a line.
        return None


def follow(reader: Reader, ended: Callable[[], bool], watch: Watch) -> Iterator[tuple[int, bytes]]:
    """What is there and what comes, as (stream, bytes), until the rank has ended and all of it was given.

    Args:
        reader: where to go on from; closed by the caller.
        ended: asked before each read; true once nothing more will be written.
        watch: of the rank's folder.
    """
    while True:
        last = ended()
        yield from reader.available()
        if last:
            return
        watch.wait(LOOK_AGAIN_S)


def whole_lines(chunks: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The same bytes cut at line ends, as (stream, one or more whole lines), each as soon as it is complete; an unended
    last line comes at the end."""
    begun: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}
    for number, data in chunks:
        end = data.rfind(b"\n") + 1
        if not end:
            begun[number].append(data)
            continue
        yield number, b"".join([*begun[number], data[:end]])
        begun[number] = [data[end:]] if end < len(data) else []
    for number, unended in begun.items():
        if unended:
            yield number, b"".join(unended)
