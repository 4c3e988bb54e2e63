"""A local kernel that a test drives as a front end does: cells in, their outputs out."""

from __future__ import annotations

import copy
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager

Output = dict[str, Any]
ANSI_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
START_TIMEOUT_S = 60.0


class KernelDiedError(Exception):
    """The kernel's process ended while a test waited for it."""


@dataclass(frozen=True)
class Result:
    """What a cell left behind.

    Attributes:
        outputs: as nbformat keeps them.
        text, errors_text: what is shown of stdout and of stderr.
        status: "ok", "error" or "aborted".
        ename, evalue, traceback: the exception, without colours; empty without one.
        execution_count: the number in `In [n]`.
        page: what the cell sent to the pager, as `%magic?` does.
        prompts: what `input()` asked.
        message_bytes: of all IOPub messages of the cell, as they came over the wire.
        seconds: from sending the cell until it was idle and had its reply.
    """

    outputs: list[Output]
    text: str
    errors_text: str
    status: str
    ename: str
    evalue: str
    traceback: str
    execution_count: int | None
    page: str
    prompts: tuple[str, ...]
    message_bytes: int
    seconds: float


class Outputs:
    """The outputs of one cell, changed by each message in the way that JupyterLab changes them."""

    def __init__(self) -> None:
        self.list: list[Output] = []
        self._clear_at_next = False

    def add(self, kind: str, content: dict[str, Any]) -> Output | None:
        """Returns the new output; None where the message added to an older one, or is no output."""
        if kind == "clear_output":
            self._clear_at_next = content["wait"]
            if not content["wait"]:
                self.list.clear()
            return None
        if self._clear_at_next:
            self.list.clear()
            self._clear_at_next = False
        if kind == "stream":
            last = self.list[-1] if self.list else {}
            if last.get("name") == content["name"]:
                last["parts"].append(content["text"])
                return None
            self.list.append({"output_type": "stream", "name": content["name"], "parts": [content["text"]]})
        else:
            kept = ("ename", "evalue", "traceback") if kind == "error" else ("data", "metadata", "execution_count")
            self.list.append({"output_type": kind, **{name: content[name] for name in kept if name in content}})
        return self.list[-1]

    def read(self) -> list[Output]:
        """As nbformat keeps them; a stream's pieces are joined here, since joining them one by one is quadratic."""
        found = []
        for output in self.list:
            if output["output_type"] == "stream":
                output["parts"] = ["".join(output["parts"])]
                found.append({"output_type": "stream", "name": output["name"], "text": output["parts"][0]})
            else:
                found.append(copy.deepcopy(output))
        return found


def stream_text(outputs: Sequence[Output], name: str) -> str:
    return "".join(output["text"] for output in outputs if output.get("name") == name)


class Running:
    """A cell that was sent; reading it takes in what has come from the kernel since."""

    def __init__(self, notebook: Notebook, message_id: str, answers: Sequence[str] | None) -> None:
        self.message_bytes = 0
        self.prompts: list[str] = []
        self._notebook = notebook
        self._message_id = message_id
        self._outputs = Outputs()
        self._answers = list(answers or ())
        self._started = time.perf_counter()
        self._ended: float | None = None
        self._reply: dict[str, Any] | None = None
        self._idle = False

    @property
    def outputs(self) -> list[Output]:
        self._notebook.receive()
        return self._outputs.read()

    @property
    def text(self) -> str:
        return stream_text(self.outputs, "stdout")

    @property
    def errors_text(self) -> str:
        return stream_text(self.outputs, "stderr")

    @property
    def is_done(self) -> bool:
        self._notebook.receive()
        return self._ended is not None

    def until(self, condition: Callable[[Running], object], timeout_s: float = 60) -> Running:
        """Waits, message by message, until `condition(self)` is true.

        Raises:
            TimeoutError: it was not within `timeout_s`.
            KernelDiedError: the kernel ended first.
        """
        deadline = time.monotonic() + timeout_s
        while not condition(self):
            self._notebook.receive(deadline, self.describe)
        return self

    def wait(self, timeout_s: float = 60) -> Result:
        """The result, once the cell is over; raises what `until` raises."""
        deadline = time.monotonic() + timeout_s
        while self._ended is None:
            self._notebook.receive(deadline, self.describe)
        assert self._reply
        outputs = self._outputs.read()
        return Result(
            outputs=outputs,
            text=stream_text(outputs, "stdout"),
            errors_text=stream_text(outputs, "stderr"),
            status=self._reply["status"],
            ename=self._reply.get("ename", ""),
            evalue=self._reply.get("evalue", ""),
            traceback=ANSI_CODE.sub("", "\n".join(self._reply.get("traceback", ()))),
            execution_count=self._reply.get("execution_count"),
            page="".join(ANSI_CODE.sub("", page["data"]["text/plain"]) for page in self._pages()),
            prompts=tuple(self.prompts),
            message_bytes=self.message_bytes,
            seconds=self._ended - self._started,
        )

    def describe(self) -> str:
        outputs = self._outputs.read()
        lines = [stream_text(outputs, "stdout")[-2000:], stream_text(outputs, "stderr")[-2000:]]
        lines += ["\n".join(output["traceback"]) for output in outputs if output["output_type"] == "error"]
        return "the cell's output so far:\n" + ANSI_CODE.sub("", "\n".join(lines))

    def _pages(self) -> list[dict[str, Any]]:
        assert self._reply
        return [item for item in self._reply.get("payload", ()) if item["source"] == "page"]

    def _take(self, channel: str, kind: str, content: dict[str, Any], size_bytes: int) -> Output | None:
        output = None
        if channel == "shell":
            self._reply = content
        elif channel == "iopub":
            self.message_bytes += size_bytes
            if kind == "status":
                self._idle = self._idle or content["execution_state"] == "idle"
            elif kind in OUTPUT_KINDS:
                output = self._outputs.add(kind, content)
        # The reply may come before the last output: the kernel's "idle" is the end of the outputs.
        if self._idle and self._reply and self._ended is None:
            self._ended = time.perf_counter()
        return output

    def _answer(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if not self._answers:
            raise AssertionError(f"the cell asked {prompt!r} and the test has no more answers")
        return self._answers.pop(0)


OUTPUT_KINDS = {"stream", "display_data", "execute_result", "error", "clear_output"}


class _OneKernel(KernelSpecManager):
    """Starts the kernel of one Python, whatever kernels the machine has."""

    python = sys.executable

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [self.python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


class Notebook:
    """A kernel of its own, and the cells that were run in it.

    Nothing is received in the background: `run`, `wait`, `until` and every look at a cell take in what has come.

    Args:
        folder: the kernel's working directory, as a notebook's folder is.
        environ: its whole environment; None is this process's.
        python: the interpreter, which needs ipykernel.

    Attributes:
        comms: messages of widgets, (type, content), as they came.
    """

    def __init__(
        self, folder: Path, environ: Mapping[str, str] | None = None, python: str | Path | None = None
    ) -> None:
        self.comms: list[tuple[str, dict[str, Any]]] = []
        self._cells: dict[str, Running] = {}
        self._displays: dict[str, list[Output]] = {}
        # A unix socket's path has room for 107 characters, which a test's own folder may use up.
        self._private = Path(tempfile.mkdtemp(prefix="flow-kernel-"))
        self._context = zmq.Context()
        # A browser takes all that comes; the limit of 1,000 messages would drop what a test reads late.
        self._context.setsockopt(zmq.RCVHWM, 0)
        specs = _OneKernel()
        specs.python = str(python or sys.executable)
        # Unix sockets: free ports are found by trying, and tests run side by side.
        self._manager = KernelManager(
            kernel_spec_manager=specs,
            context=self._context,
            transport="ipc",
            ip=str(self._private / "kernel"),
            connection_file=str(self._private / "connection.json"),
        )
        env = {**(os.environ if environ is None else environ), "IPYTHONDIR": str(self._private / "ipython")}
        # With it, ipykernel leaves what programs print to pytest.
        env.pop("PYTEST_CURRENT_TEST", None)
        self._manager.start_kernel(cwd=str(folder), env=env)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        self._client = self._manager.client()
        self._client.start_channels(hb=False)
        self._sockets = {
            "iopub": self._client.iopub_channel.socket,
            "shell": self._client.shell_channel.socket,
            "stdin": self._client.stdin_channel.socket,
        }
        self._process_fd = os.pidfd_open(self.pid)
        self._poller = zmq.Poller()
        for socket in (*self._sockets.values(), self._process_fd):
            self._poller.register(socket, zmq.POLLIN)
        deadline = time.monotonic() + START_TIMEOUT_S
        # What is published before this client has subscribed is lost: ask until a cell's "idle" comes.
        while True:
            cell = self._send("", None)
            ask_again = min(time.monotonic() + 0.5, deadline)
            try:
                self._cells[cell._message_id] = cell
                cell.until(lambda running: running._reply, deadline - time.monotonic())
                cell.until(lambda running: running._ended, max(0.0, ask_again - time.monotonic()))
                return
            except TimeoutError:
                if time.monotonic() >= deadline:
                    raise

    @property
    def pid(self) -> int:
        return int(self._manager.provisioner.pid)  # type: ignore[union-attr]

    def start(self, code: str, answers: Sequence[str] | None = None) -> Running:
        """Sends a cell without waiting for it.

        Args:
            answers: to what `input()` asks; None is a front end that cannot be asked, as nbconvert is.
        """
        cell = self._send(code, answers, store_history=True)
        self._cells[cell._message_id] = cell
        return cell

    def run(self, code: str, timeout_s: float = 60, answers: Sequence[str] | None = None) -> Result:
        """Runs a cell to its end; an exception in it is in the result."""
        return self.start(code, answers).wait(timeout_s)

    def _send(self, code: str, answers: Sequence[str] | None, store_history: bool = False) -> Running:
        # The kernel holds a silent cell's outputs back, and numbers only those that are stored.
        message_id = self._client.execute(code, store_history=store_history, allow_stdin=answers is not None)
        return Running(self, message_id, answers)

    def complete(self, code: str, timeout_s: float = 10) -> list[str]:
        """What Tab offers at the end of `code`."""
        cell = Running(self, self._client.complete(code, len(code)), None)
        self._cells[cell._message_id] = cell
        cell.until(lambda running: running._reply, timeout_s)
        assert cell._reply
        return list(cell._reply["matches"])

    def interrupt(self) -> None:
        """The stop button."""
        self._manager.interrupt_kernel()

    def kill(self) -> None:
        """Ends the kernel's process at once, as a machine without memory does; `restart` gives a new one."""
        os.kill(self.pid, signal.SIGKILL)

    def restart(self) -> None:
        """A new kernel with nothing in it; what the front end shows of older cells stays as it is."""
        self._disconnect()
        self._manager.restart_kernel(now=True)
        self._connect()

    def _disconnect(self) -> None:
        self._client.stop_channels()
        os.close(self._process_fd)

    def close(self) -> None:
        if not self._private.exists():
            return
        self._manager.shutdown_kernel(now=True)
        if hasattr(self, "_process_fd"):
            self._disconnect()
        self._context.destroy(linger=0)
        shutil.rmtree(self._private)

    def __enter__(self) -> Notebook:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def receive(self, deadline: float | None = None, describe: Callable[[], str] | None = None) -> None:
        """Takes in what has come; with a deadline (of `time.monotonic()`), waits for at least one message.

        Raises:
            TimeoutError: none came until then.
            KernelDiedError: none came, and the kernel is gone.
        """
        wait_ms = 0 if deadline is None else max(0, int((deadline - time.monotonic()) * 1000) + 1)
        ready = dict(self._poller.poll(wait_ms))
        received = 0
        for channel, socket in self._sockets.items():
            if socket in ready:
                received += self._drain(channel, socket)
        if deadline is None or received:
            return
        so_far = describe() if describe else ""
        if self._process_fd in ready:
            raise KernelDiedError(f"the kernel died; {so_far}")
        if time.monotonic() >= deadline:
            raise TimeoutError(f"the kernel was silent until the deadline; {so_far}")

    def _drain(self, channel: str, socket: zmq.Socket[bytes]) -> int:
        number = 0
        # A flood may have no end: the caller's deadline is looked at in between.
        while number < 1000:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            number += 1
            self._take(channel, frames)
        return number

    def _take(self, channel: str, frames: list[bytes]) -> None:
        _, rest = self._client.session.feed_identities(frames)
        message = self._client.session.deserialize(rest)
        kind, content = message["msg_type"], message["content"]
        display_id = content.get("transient", {}).get("display_id", "") if channel == "iopub" else ""
        if kind == "update_display_data":
            for shown in self._displays.get(display_id, ()):
                shown.update(data=content["data"], metadata=content["metadata"])
        elif kind.startswith("comm_"):
            self.comms.append((kind, content))
        cell = self._cells.get(message["parent_header"].get("msg_id", ""))
        if cell is None:
            return
        if kind == "input_request":
            self._client.input(cell._answer(content["prompt"]))
            return
        output = cell._take(channel, kind, content, sum(map(len, frames)))
        if output is not None and display_id:
            self._displays.setdefault(display_id, []).append(output)
