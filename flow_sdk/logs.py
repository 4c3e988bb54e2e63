"""Reading a rank's output from its folder: whole, by its tail, or as it grows. There is no other reading path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from flow_sdk.watch import Watch

STDOUT, STDERR = 1, 2
BOTH = (STDOUT, STDERR)
NAMES = {STDOUT: "stdout.log", STDERR: "stderr.log"}
CHUNK_BYTES = 1 << 20
LOOK_AGAIN_S = 1.0
"""How long a follower sleeps at most: a runner killed together with its guard wakes nobody."""


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
        self._files: dict[int, int] = {}
        self._index_fd = -1
        self._index_rest = b""
        # What of stdio.index is still ahead: (stream, bytes of stdout, bytes of stderr) at each switch.
        self._switches: list[tuple[int, int, int]] = []
        self._current = 0

    def close(self) -> None:
        for fd in (*self._files.values(), *([self._index_fd] if self._index_fd >= 0 else [])):
            os.close(fd)
        self._files, self._index_fd = {}, -1

    def available(self) -> Iterator[tuple[int, bytes]]:
        """Everything written so far and not yet given, in chunks of at most 1 MiB, as (stream, bytes)."""
        # Sizes first: whatever they cover was written after its switch was noted, so the order is exact.
        sizes = {number: self._size(number) for number in BOTH}
        if self.streams == BOTH:
            self._read_index()
            switches, self._switches = self._switches, []
            for switch in switches:
                for number in BOTH:
                    yield from self._read(number, min(switch[number], sizes[number]))
                self._current = switch[0]
        for number in sorted(self.streams, key=lambda n: n != self._current):
            yield from self._read(number, sizes[number])

    def skip_to_tail(self, lines: int) -> None:
        """Moves on so that `available` starts with the last `lines` lines written so far."""
        sizes = {number: self._size(number) for number in self.streams}
        segments = [(number, 0, sizes[number]) for number in self.streams]
        if self.streams == BOTH:
            self._read_index()
            segments = self._segments(sizes)
        starts = dict(sizes)
        wanted = lines
        for number, start, end in reversed(segments):
            found, starts[number] = self._tail_start(number, start, end, wanted)
            wanted -= found
            if wanted <= 0:
                break
        self.offsets.update(starts)

    def _segments(self, sizes: dict[int, int]) -> list[tuple[int, int, int]]:
        """The runs of one stream, in the order written, as (stream, from byte, to byte)."""
        runs = []
        last = (0, sizes[STDOUT], sizes[STDERR])
        for switch, after in zip(self._switches, [*self._switches[1:], last], strict=True):
            number = switch[0]
            runs.append((number, switch[number], after[number]))
        return runs

    def _tail_start(self, number: int, start: int, end: int, lines: int) -> tuple[int, int]:
        """How many lines end in [start, end), up to `lines`, and where the first of them begins."""
        if lines <= 0 or end <= start:
            return 0, end
        found, position, block_end = 0, end, end
        # A newline at the very end closes the last line; it does not begin another.
        closing = 1 if os.pread(self._fd(number), 1, end - 1) == b"\n" else 0
        while block_end > start:
            block_start = max(start, block_end - CHUNK_BYTES)
            block = os.pread(self._fd(number), block_end - block_start, block_start)
            at = len(block)
            while (at := block.rfind(b"\n", 0, at)) >= 0:
                position = block_start + at + 1
                if closing:
                    closing = 0
                    continue
                found += 1
                if found == lines:
                    return found, position
            block_end = block_start
        return found + 1, start

    def _fd(self, number: int) -> int:
        if number not in self._files:
            self._files[number] = os.open(self.folder / NAMES[number], os.O_RDONLY)
        return self._files[number]

    def _size(self, number: int) -> int:
        try:
            return os.fstat(self._fd(number)).st_size
        except FileNotFoundError:
            return 0

    def _read(self, number: int, end: int) -> Iterator[tuple[int, bytes]]:
        while self.offsets[number] < end:
            data = os.pread(self._fd(number), min(CHUNK_BYTES, end - self.offsets[number]), self.offsets[number])
            if not data:
                return
            self.offsets[number] += len(data)
            yield number, data

    def _read_index(self) -> None:
        if self._index_fd < 0:
            try:
                self._index_fd = os.open(self.folder / "stdio.index", os.O_RDONLY)
            except FileNotFoundError:
                return
        while data := os.read(self._index_fd, CHUNK_BYTES):
            *whole, self._index_rest = (self._index_rest + data).split(b"\n")
            for line in whole:
                number, out_bytes, err_bytes = map(int, line.split())
                self._switches.append((number, out_bytes, err_bytes))


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


def lines(chunks: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Whole lines as (stream, line with its newline), in the order they were completed; an unended one comes last."""
    parts: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}
    for number, data in chunks:
        first, *rest = data.split(b"\n")
        if not rest:
            parts[number].append(data)
            continue
        yield number, b"".join([*parts[number], first, b"\n"])
        *whole, begun = rest
        for line in whole:
            yield number, line + b"\n"
        parts[number] = [begun] if begun else []
    for number, unended in parts.items():
        if unended:
            yield number, b"".join(unended)
