"""The command of a session: runs cells on a real ipykernel, one after another, and journals what they show.

It stands alone on the node, next to the runner, and needs only jupyter_client and pyzmq, which come with every
ipykernel. It talks by two files in the rank's folder, so notebooks may come and go as they like:

    requests.jsonl   appended by clients: {"do": "execute", "id": …, "code": …}; code, interrupt, keep, restart, stop
    events.jsonl     appended here: {"seq": …, "cell": id, "type": …, "content": …, "metadata": …, "time": …}

Every IOPub message of a cell is an event; `execute_reply` is its last. What a cell prints goes to the task's own stdout
and stderr too, whole, also where the journal leaves out the middle of a flood.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import gc
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flow_sdk import cellkernel
else:
    # It lies beside this file, which runs by itself.
    import cellkernel

IDLE_S = 1800.0
START_TIMEOUT_S = 120.0
FLUSH_S = 0.05
"""How long pieces of a stream are gathered: 20 events a second read as live, and a million lines drown nobody."""
HEAD_CHARS = 12_000_000
TAIL_CHARS = 1_000_000
DISPLAY_BYTES = 100_000_000
HELD_BYTES = 64_000_000
RESERVE_BYTES = 65536
FULL_DISK_WAIT_S = 5.0
TICK_S = 1.0
POLL_S = 0.02
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
OUTPUTS = ("display_data", "update_display_data", "execute_result", "error", "clear_output")
COMMS = ("comm_open", "comm_msg", "comm_close")
IN_MODIFY, IN_CLOSE_WRITE = 0x2, 0x8
KERNEL_END_S = 5.0
SIGTERM_WAIT_S = 0.3
INTERRUPT_AGAIN_S = 0.3


class Pipe:
    """One of the task's own streams. The runner reads it; on a full disk it does not, and then the text waits here."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.waiting: deque[bytes] = deque()
        self.waiting_bytes = 0
        self.written = 0
        os.set_blocking(fd, False)

    def write(self, data: bytes) -> None:
        self.waiting.append(data)
        self.waiting_bytes += len(data)
        self.written += len(data)
        self.flush(TICK_S if self.waiting_bytes > HELD_BYTES // 16 else 0.0)
        while self.waiting_bytes > HELD_BYTES:
            self.waiting_bytes -= len(self.waiting.popleft())

    def flush(self, wait_s: float = 0.0) -> None:
        while self.waiting:
            try:
                written = os.write(self.fd, self.waiting[0])
            except BlockingIOError:
                if not wait_s or not select.select([], [self.fd], [], wait_s)[1]:
                    return
                continue
            self.waiting_bytes -= written
            rest = self.waiting.popleft()[written:]
            if rest:
                self.waiting.appendleft(rest)


class Journal:
    """Appends events; gathers the pieces of a stream for a moment, and leaves out the middle of a flood."""

    def __init__(self, folder: str) -> None:
        path = os.path.join(folder, "events.jsonl")
        self.fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self.seq = cut_and_count(self.fd)
        self.size = os.fstat(self.fd).st_size
        self.soft: list[dict[str, Any]] = []
        # Room for a word to the reader when there is no room.
        self.reserve = os.path.join(folder, ".events.spare")
        with open(self.reserve, "wb") as spare:
            spare.write(b" " * RESERVE_BYTES)
        self.held: deque[dict[str, Any]] = deque()
        self.held_bytes = 0
        self.retry_at = 0.0
        self.streams = {"stdout": Pipe(1), "stderr": Pipe(2)}
        self.name = ""
        self.parts: list[str] = []
        self.since = 0.0
        self.begin("")

    def begin(self, cell: str) -> None:
        self.flush()
        self.cell = cell
        self.head_chars = self.display_bytes = 0
        self.left_out_chars = self.left_out_displays = 0
        self.tail: deque[tuple[str, str]] = deque()
        self.tail_chars = 0

    def add(self, kind: str, content: dict[str, Any], metadata: dict[str, Any] | None = None, **more: Any) -> None:
        """Adds one event, after what the streams have gathered."""
        self.flush()
        event = {"cell": self.cell, "type": kind, "content": content, "time": time.time(), **more}
        if metadata:
            event["metadata"] = metadata
        self.put(event)

    def add_soon(self, kind: str, content: dict[str, Any]) -> None:
        """Adds an event together with the next one, or in a moment: every write wakes the readers."""
        self.flush()
        self.since = time.monotonic()
        self.soft.append({"cell": self.cell, "type": kind, "content": content, "time": time.time()})

    def display(self, kind: str, content: dict[str, Any], metadata: dict[str, Any], buffers: list[str]) -> None:
        size = sum(len(str(value)) for value in (content.get("data") or {}).values()) + sum(map(len, buffers))
        self.display_bytes += size
        if self.display_bytes > DISPLAY_BYTES:
            self.left_out_displays += 1
            return
        self.add(kind, content, metadata, **({"buffers": buffers} if buffers else {}))

    def stream(self, name: str, text: str) -> None:
        if name != self.name:
            self.flush()
            self.name, self.since = name, time.monotonic()
        self.parts.append(text)
        self.streams[name].write(text.encode(errors="replace"))

    def due_s(self) -> float | None:
        """Seconds until there is something to write; None where there is nothing."""
        now = time.monotonic()
        waits = [max(0.0, self.since + FLUSH_S - now)] if self.parts or self.soft else []
        if self.held or any(pipe.waiting for pipe in self.streams.values()):
            waits.append(max(0.0, self.retry_at - now))
        return min(waits, default=None)

    def flush(self) -> None:
        if self.parts:
            text, self.parts = "".join(self.parts), []
            name, self.name = self.name, ""
            room = HEAD_CHARS - self.head_chars
            if room > 0:
                self.head_chars += min(len(text), room)
                self.put_stream(name, text[:room])
                text = text[room:]
            if text:
                self.keep_tail(name, text)
        if self.soft and time.monotonic() >= self.since + FLUSH_S:
            self.put(self.soft.pop())
        self.retry()

    def retry(self) -> None:
        """Tries again what a full disk did not take."""
        now = time.monotonic()
        if now < self.retry_at:
            return
        self.retry_at = now + TICK_S
        for pipe in self.streams.values():
            pipe.flush()
        while self.held:
            if not self.append(self.held[0]):
                return
            self.held.popleft()
        self.held_bytes = 0
        if not os.path.exists(self.reserve):
            self.take_reserve()

    def take_reserve(self) -> None:
        try:
            with open(self.reserve, "wb") as spare:
                spare.write(b" " * RESERVE_BYTES)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            os.unlink(self.reserve)

    def put_stream(self, name: str, text: str) -> None:
        # How far the logs were: a reader whose host was killed finds there what came after its last event.
        logs = [pipe.written for pipe in self.streams.values()]
        content = {"name": name, "text": text}
        self.put({"cell": self.cell, "type": "stream", "content": content, "time": time.time(), "logs": logs})

    def put(self, event: dict[str, Any]) -> None:
        if not self.held and self.append(event):
            return
        if not self.held:
            self.say_full()
        self.held.append(event)
        self.held_bytes += len(str(event["content"]))
        while self.held_bytes > HELD_BYTES:
            self.held_bytes -= len(str(self.held.popleft()["content"]))

    def append(self, event: dict[str, Any]) -> bool:
        """Writes one line, or none of it; returns whether there was room."""
        lines = [{"seq": number, **one} for number, one in enumerate([*self.soft, event], self.seq + 1)]
        texts = [json.dumps(line, ensure_ascii=False, default=encode) + "\n" for line in lines]
        data = "".join(texts).encode(errors="surrogatepass")
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self.fd, rest) :]
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            os.ftruncate(self.fd, self.size)
            return False
        self.seq += len(lines)
        self.size += len(data)
        self.soft = []
        return True

    def say_full(self) -> None:
        self.retry_at = time.monotonic() + TICK_S
        said = "flow: the disk of the machine is full; what the cell shows waits in memory until there is room.\n"
        self.urgent("stream", {"name": "stderr", "text": said})

    def urgent(self, kind: str, content: dict[str, Any]) -> None:
        """Adds an event at once, ahead of what is held, in the room that was kept for it."""
        if os.path.exists(self.reserve):
            os.unlink(self.reserve)
        self.append({"cell": self.cell, "type": kind, "content": content, "time": time.time()})

    def keep_tail(self, name: str, text: str) -> None:
        self.left_out_chars += max(0, len(text) - TAIL_CHARS)
        self.tail.append((name, text[-TAIL_CHARS:]))
        self.tail_chars += len(self.tail[-1][1])
        while self.tail_chars - len(self.tail[0][1]) >= TAIL_CHARS:
            gone = len(self.tail.popleft()[1])
            self.tail_chars -= gone
            self.left_out_chars += gone

    def show_tail(self) -> None:
        """Adds what was kept of a flood's end, with a word on what is missing before it."""
        self.flush()
        missing = [
            f"{count:,} {what}"
            for count, what in ((self.left_out_chars, "characters"), (self.left_out_displays, "displays"))
            if count
        ]
        if missing:
            task = os.environ.get("FLOW_TASK_ID", "TASK")
            said = f"\n… {' and '.join(missing)} are left out here; `flow logs {task}` has all that was printed …\n"
            self.put_stream("stderr", said)
        for name, text in self.tail:
            self.put_stream(name, text)
        self.tail.clear()

    def end(self, reply: dict[str, Any]) -> None:
        """Ends the cell."""
        self.show_tail()
        if self.held and not self.wait_for_room():
            evalue = "the disk of the machine is full; what the cell printed is kept, and comes when there is room"
            self.urgent("execute_reply", {"status": "error", "ename": "DiskFull", "evalue": evalue, "traceback": []})
        else:
            self.add("execute_reply", reply)
        self.begin(self.cell)

    def wait_for_room(self) -> bool:
        deadline = time.monotonic() + FULL_DISK_WAIT_S
        while self.held and time.monotonic() < deadline:
            time.sleep(TICK_S / 10)
            self.retry_at = 0.0
            self.retry()
        return not self.held


def encode(value: Any) -> Any:
    """What JSON does not have: bytes become base64 and times their text, as in Jupyter's own messages."""
    if isinstance(value, (bytes, memoryview)):
        return base64.b64encode(bytes(value)).decode()
    return str(value)


def cut_and_count(fd: int) -> int:
    """The number of the last whole event, after which a host that was started again goes on; half a line is cut off."""
    end = os.fstat(fd).st_size
    block = 1 << 16
    while True:
        start = max(0, end - block)
        data = os.pread(fd, end - start, start)
        whole = data.rfind(b"\n") + 1
        lines = data[:whole].split(b"\n")
        if len(lines) > 2 or start == 0:
            break
        block *= 4
    os.ftruncate(fd, start + whole if whole or start == 0 else end)
    return int(json.loads(lines[-2])["seq"]) if len(lines) > 1 else 0


def cells_in(path: str) -> tuple[set[str], set[str]]:
    """Ids of the cells that a journal shows begun but not answered, and of those it shows answered."""
    begun, done = set(), set()
    with open(path, "rb") as file:
        for line in file:
            event = json.loads(line)
            if event["type"] == "execute_reply":
                done.add(event["cell"])
            elif event["cell"]:
                begun.add(event["cell"])
    return begun - done, done


class Requests:
    """New lines of requests.jsonl, and a descriptor that wakes when there may be some."""

    def __init__(self, folder: str) -> None:
        path = os.path.join(folder, "requests.jsonl")
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        self.file = os.open(path, os.O_RDONLY)
        self.rest = b""
        self.fd = -1
        self.wait_s = POLL_S
        if sys.platform == "linux":
            libc = ctypes.CDLL(None, use_errno=True)
            self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if self.fd >= 0 and libc.inotify_add_watch(self.fd, os.fsencode(path), IN_MODIFY | IN_CLOSE_WRITE) >= 0:
                self.wait_s = TICK_S

    def read(self) -> list[dict[str, Any]]:
        woken = self.was_woken()
        data = b"".join(iter(lambda: os.read(self.file, 1 << 20), b""))
        # What was written between the two looks has woken us by now.
        if data and not woken and not self.was_woken():
            # Written from another machine, over a network filesystem, which wakes nobody: look often from now on.
            self.wait_s = POLL_S
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [json.loads(line) for line in lines if line]

    def was_woken(self) -> bool:
        try:
            return self.fd >= 0 and bool(os.read(self.fd, 1 << 16))
        except BlockingIOError:
            return False


class Kernel:
    """The ipykernel process, and a client to it.

    Args:
        folder: the rank's folder.
        printed: bytes of each stream that former kernels printed.
    """

    def __init__(self, folder: str, printed: dict[str, int]) -> None:
        # Sockets in the file system, so that nobody else on the machine can connect; not in the task's folder, whose
        # path may be longer than the 107 bytes that a socket's may have.
        self.folder = tempfile.mkdtemp(prefix="flow-")
        for name, start in printed.items():
            cellkernel.make_ring(os.path.join(self.folder, name), start)
        self.log_path = os.path.join(folder, "kernel.log")
        connection = os.path.join(self.folder, "kernel.json")
        ports = {f"{name}_port": n for n, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}
        where = {"transport": "ipc", "ip": os.path.join(self.folder, "k"), "signature_scheme": "hmac-sha256"}
        key = os.urandom(16).hex()
        with open(os.open(connection, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({**ports, **where, "key": key, "kernel_name": ""}, file)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", connection, "--HistoryManager.hist_file=:memory:"]
        # For readers that do not wait for a cell's "idle".
        argv.append("--IPythonKernel._execute_sleep=0")
        with open(os.open(self.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
            )
        self.pidfd = os.pidfd_open(self.process.pid) if hasattr(os, "pidfd_open") else -1
        self.connect(key, os.path.dirname(os.path.abspath(__file__)), folder)

    def connect(self, key: str, code: str, folder: str) -> None:
        # Loaded while the kernel starts, which takes longer.
        import zmq
        from jupyter_client.session import Session

        self.zmq = zmq
        self.session = Session(key=key.encode(), signature_scheme="hmac-sha256")
        self.context = zmq.Context()
        # A kernel that prints faster than we write must not find the queue full: it would throw messages away.
        self.context.setsockopt(zmq.RCVHWM, 0)
        self.context.setsockopt(zmq.RECONNECT_IVL, 5)
        self.context.setsockopt(zmq.LINGER, 0)
        self.shell, self.iopub = self.context.socket(zmq.DEALER), self.context.socket(zmq.SUB)
        self.iopub.setsockopt(zmq.SUBSCRIBE, b"")
        self.shell.connect(f"ipc://{self.folder}/k-1")
        self.iopub.connect(f"ipc://{self.folder}/k-2")
        setup = f"import sys; sys.path.insert(0, {code!r}); import cellkernel; sys.path.remove({code!r}); "
        self.setup_code = setup + f"cellkernel.install(get_ipython(), {folder!r}, {self.folder!r}); del sys, cellkernel"
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """The first messages may go out before the subscription to IOPub stands, so it is asked until that answers."""
        deadline = time.monotonic() + START_TIMEOUT_S
        setup = self.execute(self.setup_code, silent=True)
        asked = {setup}
        heard = answered = False
        while not (heard and answered):
            message = self.receive(self.iopub, 2 if not heard else 0)
            heard = heard or (message is not None and message["parent_header"].get("msg_id") in asked)
            message = self.receive(self.shell, 10)
            if message is not None and message["parent_header"].get("msg_id") == setup:
                answered = True
                if message["content"]["status"] != "ok":
                    raise KernelFailed(f"it cannot be set up: {message['content'].get('evalue')}")
            if answered and not heard:
                asked.add(self.send("kernel_info_request", {}))
            if self.process.poll() is not None:
                raise KernelFailed(f"it {self.how_it_ended()}")
            if time.monotonic() > deadline:
                raise KernelFailed(f"it did not answer within {START_TIMEOUT_S:g} s")

    def execute(
        self,
        code: str,
        silent: bool = False,
        expressions: dict[str, str] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        content = {
            "code": code,
            "silent": silent,
            "store_history": not silent,
            "user_expressions": expressions or {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        return self.send("execute_request", content, metadata)

    def send(self, kind: str, content: dict[str, Any], metadata: dict[str, Any] | None = None) -> str:
        message = self.session.msg(kind, content, metadata=metadata)
        self.session.send(self.shell, message)
        return str(message["header"]["msg_id"])

    def receive(self, socket: Any, wait_ms: int = 0) -> dict[str, Any] | None:
        """The next message of a socket; None where none comes in time."""
        if wait_ms:
            socket.poll(wait_ms)
        message: dict[str, Any] | None = self.session.recv(socket)[1]
        return message

    def interrupt(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)

    def how_it_ended(self) -> str:
        code = self.process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        memory = " (signal 9 most often means that the machine ran out of memory)" if code == -signal.SIGKILL else ""
        with open(self.log_path, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 2000))
            last = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return f"ended {how}{memory}" + (f"; its last words: {last[-1]}" if last and code >= 0 else "")

    def close(self) -> None:
        """Ends the kernel and what it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(KERNEL_END_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.context.destroy(linger=0)
        shutil.rmtree(self.folder, ignore_errors=True)


class KernelFailed(Exception):
    pass


class Host:
    """Takes requests, drives the kernel, journals what it says.

    Args:
        folder: the rank's folder.
        once: end when the requests that are there are done, or at the first that fails.
    """

    def __init__(self, folder: str, once: bool) -> None:
        self.folder = folder
        self.once = once
        self.journal = Journal(folder)
        self.requests = Requests(folder)
        self.queue: deque[dict[str, Any]] = deque()
        self.running: dict[str, Any] | None = None
        self.message_id = self.inputs_id = ""
        self.reply: dict[str, Any] | None = None
        self.idle = False
        self.is_begun = self.interrupt_later = False
        self.interrupt_again_at = 0.0
        self.idle_s = float(os.environ.get("FLOW_IDLE_S") or IDLE_S)
        self.active_at = time.monotonic()
        self.end_reason: str | None = None
        self.exit_code = 0

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self.on_sigterm)
        before = self.journal.seq
        self.start_kernel()
        # What is there now stays, and need not be looked through again and again.
        gc.freeze()
        if before:
            self.resume()
        try:
            while self.end_reason is None:
                self.step()
        finally:
            self.journal.show_tail()
            self.kernel.close()
        self.journal.begin("")
        self.journal.add("session_ended", {"reason": self.end_reason})
        return self.exit_code

    def resume(self) -> None:
        """Goes on where a former host of this session was killed, or its machine was taken away: what it had answered
        is done, what it had begun is lost, and the rest runs now."""
        begun, done = cells_in(os.path.join(self.folder, "events.jsonl"))
        why = "the session was started again; its variables are gone"
        self.journal.begin("")
        self.journal.add("kernel_restarted", {"reason": why, "told": False})
        waiting: list[dict[str, Any]] = []
        for request in self.requests.read():
            if request["do"] == "keep":
                self.idle_s = float(request["idle_s"])
            elif request["do"] == "code":
                waiting = [*(one for one in waiting if one["do"] != "code"), {**request, "before": []}]
            elif request["do"] == "execute" and request["id"] in begun:
                self.refuse(request, "KernelDied", why)
            elif request["do"] == "execute" and request["id"] not in done:
                waiting.append(request)
        self.queue.extend(waiting)
        self.next_request()

    def on_sigterm(self, *_: object) -> None:
        self.end_reason = "stopped"

    def start_kernel(self) -> None:
        try:
            self.kernel = Kernel(self.folder, {name: pipe.written for name, pipe in self.journal.streams.items()})
        except KernelFailed as error:
            raise SystemExit(f"flow: the kernel could not be started: {error}") from None
        zmq = self.kernel.zmq
        self.poller = zmq.Poller()
        for socket in (self.kernel.iopub, self.kernel.shell, self.requests.fd, self.kernel.pidfd):
            if socket != -1:
                self.poller.register(socket, zmq.POLLIN)
        self.announce()

    def announce(self) -> None:
        """What readers want to know of the session itself."""
        version = "{}.{}.{}".format(*sys.version_info)
        idle = {"idle_s": self.idle_s, "idle_at": time.time() + self.idle_s}
        self.journal.add("session", {"python": version, **idle, "tails": self.kernel.folder}, cell="")

    def step(self) -> None:
        due_s = self.journal.due_s()
        wait_s = self.requests.wait_s if due_s is None else min(due_s, self.requests.wait_s)
        if self.interrupt_again_at:
            wait_s = min(wait_s, INTERRUPT_AGAIN_S)
        ready = dict(self.poller.poll(max(0, wait_s * 1000)))
        self.take_all(self.requests.read())
        self.drain(self.kernel.iopub, self.on_iopub)
        self.drain(self.kernel.shell, self.on_reply)
        if self.journal.due_s() == 0.0:
            self.journal.flush()
        if self.kernel.pidfd in ready or (self.kernel.pidfd < 0 and not ready):
            self.look_at_kernel()
        if self.running and 0 < self.interrupt_again_at < time.monotonic():
            self.interrupt_again_at = 0.0
            self.kernel.interrupt()
        if self.running or self.queue:
            self.active_at = time.monotonic()
        elif self.once:
            self.end_reason = "done"
        elif time.monotonic() - self.active_at > self.idle_s:
            self.end_reason = f"nothing ran in it for {minutes(self.idle_s)}"

    def drain(self, socket: Any, take: Callable[[dict[str, Any]], None]) -> None:
        deadline = time.monotonic() + FLUSH_S
        while time.monotonic() < deadline:
            message = self.kernel.receive(socket)
            if message is None:
                return
            take(message)

    def take_all(self, requests: list[dict[str, Any]]) -> None:
        """Takes requests in their order; cells that were interrupted before they were even seen do not run."""
        for number, request in enumerate(requests):
            is_stopped = any(later["do"] == "interrupt" for later in requests[number:])
            if request["do"] == "execute" and is_stopped:
                self.refuse(request, "KeyboardInterrupt", "it was stopped before it began")
            else:
                self.take(request)

    def take(self, request: dict[str, Any]) -> None:
        do = request.get("do")
        if do in ("execute", "code"):
            self.queue.append(request)
            self.next_request()
        elif do == "interrupt":
            # Those that wait behind the interrupted cell were meant to follow it.
            for waiting in self.queue:
                if waiting["do"] == "execute":
                    self.refuse(waiting, "Interrupted", "the cell before it was interrupted")
            self.queue.clear()
            if self.running and not self.is_begun:
                # Now it would be lost.
                self.interrupt_later = True
            else:
                self.kernel.interrupt()
        elif do == "keep":
            self.idle_s = float(request["idle_s"])
            self.active_at = time.monotonic()
            self.announce()
        elif do == "restart":
            self.restart("the kernel was restarted; its variables are gone", is_told=True)
        elif do == "stop":
            self.end_reason = "stopped"

    def refuse(self, request: dict[str, Any], ename: str, evalue: str) -> None:
        content = {"status": "error", "ename": ename, "evalue": evalue, "traceback": []}
        self.journal.put({"cell": request["id"], "type": "execute_reply", "content": content, "time": time.time()})

    def next_request(self) -> None:
        while self.queue and not self.running:
            request = self.queue.popleft()
            if request["do"] == "code":
                bundle = os.path.join(self.folder, "objects", request["bundle"])
                unpack_changes(bundle, os.getcwd(), set(request["before"]))
            else:
                self.start_cell(request)

    def start_cell(self, request: dict[str, Any]) -> None:
        self.running, self.reply, self.idle = request, None, False
        self.is_begun = self.interrupt_later = False
        self.active_at = time.monotonic()
        self.journal.begin(request["id"])
        self.inputs_id = ""
        if request.get("inputs"):
            load = f"__import__('cellkernel').load({request['inputs']!r}, {request.get('python')!r})"
            self.inputs_id = self.message_id = self.kernel.execute(load, silent=True)
        else:
            self.execute_cell()

    def execute_cell(self) -> None:
        request = self.running
        assert request is not None
        expressions = {}
        if request.get("outputs"):
            expressions["saved"] = f"__import__('cellkernel').save({request['outputs']!r})"
        metadata = {"flow_execution_count": request.get("count")}
        self.idle = False
        self.message_id = self.kernel.execute(request["code"], expressions=expressions, metadata=metadata)

    def on_iopub(self, message: dict[str, Any]) -> None:
        kind, content = message["msg_type"], message["content"]
        ours = message["parent_header"].get("msg_id") == self.message_id
        if kind == "stream":
            # Also what threads of former cells print, and those without a cell.
            self.journal.stream(content["name"], content["text"])
        elif kind == "execute_input" and ours:
            self.begin_cell()
            count = self.running.get("count") if self.running else None
            self.journal.add_soon(kind, {**content, "execution_count": count or content["execution_count"]})
        elif kind in COMMS or (kind in OUTPUTS and ours) or kind == "update_display_data":
            buffers = [base64.b64encode(part).decode() for part in message.get("buffers", ())]
            self.journal.display(kind, content, message["metadata"], buffers)
        elif kind == "status" and ours and content["execution_state"] == "idle":
            self.idle = True
            self.finish_cell()

    def begin_cell(self) -> None:
        self.is_begun = True
        if self.interrupt_later:
            self.interrupt_later = False
            self.kernel.interrupt()
            # It may still have come too early for the user's code.
            self.interrupt_again_at = time.monotonic() + INTERRUPT_AGAIN_S

    def on_reply(self, message: dict[str, Any]) -> None:
        if message["parent_header"].get("msg_id") == self.message_id:
            self.reply = message["content"]
            self.finish_cell()

    def finish_cell(self) -> None:
        """The reply may come before the last output or after it; the cell is over with both."""
        if self.running is None or self.reply is None or not self.idle:
            return
        if self.inputs_id == self.message_id and self.reply["status"] == "ok":
            self.inputs_id, self.reply = "", None
            self.execute_cell()
            return
        failed = self.reply["status"] != "ok"
        self.journal.end(self.reply)
        may_fail = self.running.get("may_fail")
        self.interrupt_again_at = 0.0
        self.running, self.reply = None, None
        self.active_at = time.monotonic()
        if self.once and failed and not may_fail:
            self.exit_code, self.end_reason = 1, "a cell failed"
            return
        self.next_request()

    def look_at_kernel(self) -> None:
        if self.kernel.process.poll() is None:
            return
        # Whoever ends the task signals all of its processes, and this one may be the last to hear of it.
        select.select([], [], [], SIGTERM_WAIT_S)
        if self.end_reason is not None:
            return
        # What it said before it ended is still in the socket.
        while (message := self.kernel.receive(self.kernel.iopub, 100)) is not None:
            self.on_iopub(message)
        for name, pipe in self.journal.streams.items():
            unsent = cellkernel.after(os.path.join(self.kernel.folder, name), pipe.written)
            if unsent:
                self.journal.stream(name, unsent.decode(errors="replace"))
        how = self.kernel.how_it_ended()
        self.restart(f"the kernel on the machine {how}; its variables are gone, and a new one is there")

    def restart(self, why: str, is_told: bool = False) -> None:
        is_told = is_told or self.running is not None
        error = {"status": "error", "ename": "KernelDied", "evalue": why, "traceback": []}
        if self.running is not None:
            self.journal.end(error)
            if self.once:
                self.exit_code, self.end_reason = 1, "the kernel died"
        for waiting in self.queue:
            if waiting["do"] == "execute":
                self.refuse(waiting, "KernelDied", why)
        self.running, self.reply = None, None
        self.queue.clear()
        self.journal.begin("")
        self.journal.add("kernel_restarted", {"reason": why, "told": is_told})
        self.kernel.close()
        self.start_kernel()


def unpack_changes(bundle: str, into: str, before: set[str]) -> None:
    """Brings the folder to the state of a newer bundle. Files that stay the same are not touched, so their modules are
    not loaded again; of those that were there before, what the new one does not have is removed."""
    with tarfile.open(bundle) as archive:
        members = archive.getmembers()
        for member in members:
            path = os.path.join(into, member.name)
            if member.isdir():
                os.makedirs(path, exist_ok=True)
            elif member.isfile():
                source = archive.extractfile(member)
                assert source is not None
                replace_changed(path, source.read(), member.mode)
            elif member.issym() and not (os.path.islink(path) and os.readlink(path) == member.linkname):
                if os.path.lexists(path):
                    os.unlink(path)
                os.symlink(member.linkname, path)
    for name in before - {member.name for member in members}:
        path = os.path.join(into, name)
        if os.path.lexists(path):
            os.unlink(path)


def replace_changed(path: str, data: bytes, mode: int) -> None:
    try:
        with open(path, "rb") as file:
            if file.read() == data:
                return
    except OSError:
        # Not there, or no file.
        os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{path}.{os.getpid()}.part"
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
    os.replace(part, path)
    # A change within the second in which Python compiled the old text would not be seen by its size and time.
    folder, name = os.path.split(path)
    cache = os.path.join(folder, "__pycache__")
    for compiled in os.listdir(cache) if name.endswith(".py") and os.path.isdir(cache) else []:
        if compiled.startswith(name[: -len("py")]):
            os.unlink(os.path.join(cache, compiled))


def minutes(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


def main() -> None:
    folder, *options = sys.argv[1:]
    sys.exit(Host(folder, "--once" in options).run())


if __name__ == "__main__":
    main()
