"""What a session adds to its kernel, outside the user's names: variables in and out, and the notebook's own numbers.

It travels with the cell host and is loaded in the kernel, so it needs only what an ipykernel has.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import pickle
import struct
import sys
import threading
import time
from collections import deque
from typing import Any

# More does not fit in a core's cache, and takes several times as long.
COPY_BYTES = 1 << 18
FLUSH_S = 0.05
MOST_PENDING = 100_000
MARK = "\0"
DRAIN_S = 1.0
SWITCH_S = 0.0002
TICK_S = 0.0105
LINUX = sys.platform == "linux"
RING_BYTES = 1 << 20
COUNT = struct.Struct("<Q")

shell: Any = None
folder = ""
# Name of an object's parts, as they were saved last under a variable's name.
saved: dict[str, list[str]] = {}
kept: list[Kept] = []
rings: dict[str, Ring] = {}
users_interval_s: float | None = None
cell_began_at = 0.0


def install(ipython: Any, node_folder: str, tails: str) -> None:
    global shell, folder
    shell, folder = ipython, os.path.join(node_folder, "objects")
    for name in ("stdout", "stderr"):
        rings[name] = Ring(os.path.join(tails, name))
    # The first thing that the kernel does with a cell, and before it is numbered.
    shell.input_transformers_cleanup.append(take_count)
    shell.events.register("post_run_cell", drain)
    shell.kernel.raw_input = shell.kernel.getpass = refuse_input
    shell.set_custom_exc((NoInput,), show_no_input)
    shell.ask_exit = refuse_exit


def take_count(lines: list[str]) -> list[str]:
    """Tracebacks say `Cell In[7]` where the notebook does."""
    global cell_began_at
    cell_began_at = time.monotonic()
    parent = shell.kernel.get_parent("shell")
    count = (parent.get("metadata") or {}).get("flow_execution_count")
    if count:
        shell.execution_count = count
    if users_interval_s is not None:
        sys.setswitchinterval(users_interval_s)
    if not kept:
        # Not earlier: within a cell, IPython has a `write` of its own on the streams, and puts back the former one.
        kept.extend((Kept(sys.stdout, 1, rings["stdout"]), Kept(sys.stderr, 2, rings["stderr"])))
    return lines


def drain(result: Any) -> None:
    """Returns when all that programs and C code wrote is in the streams: ipykernel brings it there in threads of its
    own, which may be late for the end of the cell."""
    global users_interval_s
    waits = [stream.mark() for stream in kept]
    for came in waits:
        if came is not None:
            came.wait(DRAIN_S)
    # Between cells, messages go from thread to thread, and each would wait for the one that is running.
    users_interval_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)


class Kept:
    """Takes the place of a stream's `write` and `flush`: what is written is in the ring at once, and goes out together
    with what follows within a moment. That costs less than the stream's own way for each piece."""

    def __init__(self, stream: Any, fd: int, ring: Ring) -> None:
        self.stream, self.fd, self.add = stream, fd, ring.add
        self.own_write, self.own_flush = stream.write, stream.flush
        self.watcher = getattr(stream, "watch_fd_thread", None)
        self.pipe = os.fstat(fd).st_ino
        self.pending: deque[str] = deque()
        self.is_written = False
        self.written_ns, self.marked_at = 0, 0.0
        self.lock = threading.RLock()
        self.wake, self.mark_came = threading.Event(), threading.Event()
        stream.write, stream.flush = self.write, self.flush
        os.register_at_fork(before=self.pass_on, after_in_child=self.let_go)
        threading.Thread(target=self.run, name=f"flow-{stream.name}", daemon=True).start()

    def write(self, text: str) -> int:
        if MARK in text and threading.current_thread() is self.watcher:
            if rest := text.replace(MARK, ""):
                self.write(rest)
            self.mark_came.set()
            return len(text)
        self.add(text.encode(errors="replace"))
        pending = self.pending
        pending.append(text)
        self.is_written = True
        if len(pending) == 1:
            self.wake.set()
        elif len(pending) > MOST_PENDING:
            self.pass_on()
        return len(text)

    def run(self) -> None:
        while True:
            self.wake.wait()
            self.wake.clear()
            time.sleep(FLUSH_S)
            self.flush()

    def pass_on(self) -> None:
        with self.lock:
            pieces = []
            while self.pending:
                pieces.append(self.pending.popleft())
            if pieces:
                self.own_write("".join(pieces))

    def flush(self) -> None:
        # Each flush waits for another thread, and the kernel does several for every cell. Whoever finds nothing to do
        # has waited for the one who did it.
        with self.lock:
            if self.is_written:
                self.is_written = False
                self.pass_on()
                self.own_flush()

    def let_go(self) -> None:
        """In a forked child, where the thread is not, and the stream has a way of its own."""
        self.stream.write, self.stream.flush = self.own_write, self.own_flush

    def mark(self) -> threading.Event | None:
        """Sends a mark the way of what programs write; it sets the event when it comes through. None where there is
        nothing to wait for."""
        try:
            found = os.fstat(self.fd)
        except OSError:
            # The user has closed it.
            return None
        # Not into a file that the user has put in the pipe's place.
        if self.watcher is None or found.st_ino != self.pipe:
            return None
        # A write sets a pipe's time, by a clock that stands still for a tick.
        if found.st_mtime_ns == self.written_ns and cell_began_at - self.marked_at > TICK_S and LINUX:
            return None
        self.mark_came.clear()
        os.write(self.fd, MARK.encode())
        self.written_ns, self.marked_at = os.fstat(self.fd).st_mtime_ns, time.monotonic()
        return self.mark_came


class Ring:
    """The last bytes of a stream, in memory that outlives the process: a kernel that is killed has printed what it had
    not sent yet. 8 bytes count all that was ever written; the rest is a ring.

    Args:
        path: a file that the cell host has made; where it could not, nothing is kept.
    """

    def __init__(self, path: str) -> None:
        self.lock = threading.Lock()
        self.memory: mmap.mmap | None = None
        self.size = self.total = 0
        if os.path.exists(path):
            with open(path, "r+b") as file:
                self.memory = mmap.mmap(file.fileno(), 0)
            self.size = len(self.memory) - COUNT.size
            (self.total,) = COUNT.unpack_from(self.memory)

    def add(self, data: bytes) -> None:
        if self.memory is None:
            return
        with self.lock:
            at = self.total % self.size + COUNT.size
            end = at + len(data)
            if end <= self.size + COUNT.size:
                self.memory[at:end] = data
            else:
                self.wrap(data)
            self.total += len(data)
            COUNT.pack_into(self.memory, 0, self.total)

    def wrap(self, data: bytes) -> None:
        assert self.memory is not None
        start = self.total + max(0, len(data) - self.size)
        data = data[-self.size :]
        at = start % self.size
        first = data[: self.size - at]
        self.memory[COUNT.size + at : COUNT.size + at + len(first)] = first
        self.memory[COUNT.size : COUNT.size + len(data) - len(first)] = data[len(first) :]


def make_ring(path: str, start: int) -> None:
    """A ring whose stream has `start` bytes already; none where there is no room for it."""
    with open(path, "w+b") as file:
        try:
            # All of it now: a page for which there is no room later would end the kernel.
            os.posix_fallocate(file.fileno(), 0, COUNT.size + RING_BYTES)
        except OSError:
            os.unlink(path)
            return
        file.write(COUNT.pack(start))


def after(path: str, received: int) -> bytes:
    """What a ring has after so many bytes of its stream; as far as it goes back."""
    try:
        with open(path, "rb") as file:
            found = file.read()
    except FileNotFoundError:
        return b""
    (total,) = COUNT.unpack_from(found)
    ring = found[COUNT.size :]
    size = min(max(0, total - received), len(ring), total)
    at = (total - size) % len(ring)
    return (ring[at:] + ring[:at])[:size]


class NoInput(RuntimeError):
    """input() was called."""


NoInput.__name__ = NoInput.__qualname__ = "StdinNotImplementedError"


def refuse_input(prompt: str = "", *_: Any, **__: Any) -> str:
    raise NoInput("a cell on the machine cannot ask; set a variable in the notebook and send it with -i")


def refuse_exit() -> None:
    """The kernel would end a moment later, under some other cell."""
    sys.stderr.write(
        "flow: exit() ends nothing here; %flow restart gives a fresh kernel, %flow stop ends the session.\n"
    )


def show_no_input(shell: Any, kind: Any, error: BaseException, trace: Any, tb_offset: Any = None) -> Any:
    """The traceback up to the user's line."""
    last = trace
    while last.tb_next is not None and last.tb_next.tb_next is not None:
        last = last.tb_next
    last.tb_next = None
    lines = shell.InteractiveTB.structured_traceback(kind, error, trace, tb_offset=tb_offset)
    shell._showtraceback(kind, error, lines)
    return lines


def load(names: dict[str, list[str]], python: str | None) -> None:
    """Sets variables that the notebook sent; each is a pickle and the memory beside it."""
    here = "{}.{}.{}".format(*sys.version_info)
    if python and python.split(".")[:2] != here.split(".")[:2]:
        said = f"the notebook runs Python {python} and the machine {here}; functions and classes may not survive that"
        sys.stderr.write(f"flow: {said}.\n")
    for name, (first, *rest) in names.items():
        with open(os.path.join(folder, first), "rb") as file:
            data = file.read()
        # Copied only where they are written to, so a large array that was sent before is there at once.
        buffers = [map_copy(os.path.join(folder, part)) for part in rest]
        shell.user_ns[name] = pickle.loads(data, buffers=buffers)  # noqa: S301


def save(names: list[str]) -> dict[str, list[str]]:
    """Places variables as objects for the notebook; returns their parts."""
    missing = [name for name in names if name not in shell.user_ns]
    if missing:
        raise NameError(f"the cell left no {', '.join(missing)} to bring back")
    import cloudpickle

    found = {}
    for name in names:
        parts: list[pickle.PickleBuffer] = []
        try:
            data = cloudpickle.dumps(shell.user_ns[name], protocol=5, buffer_callback=parts.append)
        except Exception as error:
            raise TypeError(f"{name} cannot be brought back: {type(error).__name__}: {error}") from None
        before = saved.get(name, [])
        views = [memoryview(data), *(part.raw() for part in parts)]
        old = [*before, *[""] * len(views)]
        found[name] = [place(view, folder, known) for view, known in zip(views, old)]  # noqa: B905
        saved[name] = found[name]
    return found


def map_copy(path: str) -> Any:
    size = os.path.getsize(path)
    if size == 0:
        return bytearray()
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def place(data: memoryview, into: str, known: str = "") -> str:
    """Stores one object under the hash of its content; `known` is the name it most likely has already."""
    if known and is_content(os.path.join(into, known), data):
        return known
    digest = hashlib.sha256(data).hexdigest()
    path = os.path.join(into, digest)
    if not os.path.exists(path):
        os.makedirs(into, mode=0o700, exist_ok=True)
        part = f"{path}.{os.getpid()}.part"
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        os.replace(part, path)
    return digest


def is_content(path: str, data: memoryview) -> bool:
    """Whether the file holds just that; comparing is several times faster than hashing."""
    try:
        if os.path.getsize(path) != len(data):
            return False
    except FileNotFoundError:
        return False
    if not data or data.readonly:
        return is_read_as(path, data)
    with open(path, "rb") as file:
        # Nothing is copied, but ctypes takes only what could be written to.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    ours, theirs = ctypes.c_char.from_buffer(data), ctypes.c_char.from_buffer(content)
    size = ctypes.c_size_t(len(data))
    same = ctypes.CDLL(None).memcmp(ctypes.byref(ours), ctypes.byref(theirs), size) == 0
    del ours, theirs
    content.close()
    return bool(same)


def is_read_as(path: str, data: memoryview) -> bool:
    with open(path, "rb", buffering=0) as file:
        block = bytearray(COPY_BYTES)
        for start in range(0, len(data), COPY_BYTES):
            read = file.readinto(block) or 0
            block = block if read == COPY_BYTES else block[:read]
            if block != data[start : start + COPY_BYTES].tobytes():
                return False
    return True
