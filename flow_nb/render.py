"""Shows the journal's messages as outputs of the cell that asked: a saved notebook holds them like any other."""

from __future__ import annotations

import base64
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

Event = dict[str, Any]
COMMS = ("comm_open", "comm_msg", "comm_close")
# jupyter_server drops what a kernel sends beyond 1,000,000 bytes/s within 3 s, and all of the cell's output after it
# (ServerApp.iopub_data_rate_limit), so a flood is slowed to what gets through, its end included.
BURST_BYTES = 1_000_000
BYTES_PER_S = 400_000
KEPT_CHARS = 2_000_000
PACE_S = 0.2


class Screen:
    """Where a cell's events are shown.

    Args:
        shell: the notebook's.
        limited: whether a server stands between that drops floods; looked up unless said.
        on_clear: called when the cell's output was cleared.
    """

    def __init__(
        self, shell: InteractiveShell, limited: bool | None = None, on_clear: Callable[[], None] = lambda: None
    ) -> None:
        self.on_clear = on_clear
        self.shell = shell
        self.kernel: Any = getattr(shell, "kernel", None)
        self.limited = "JPY_SESSION_NAME" in os.environ if limited is None else limited
        self.room = float(BURST_BYTES)
        self.filled_at = time.monotonic()
        self.waiting: deque[tuple[str, str]] = deque()
        self.waiting_chars = 0
        self.left_out = 0
        self.unflushed = ""

    def show(self, event: Event) -> None:
        kind, content = event["type"], event["content"]
        if kind == "stream":
            self.stream(content["name"], content["text"])
        elif kind in ("display_data", "update_display_data"):
            self.flush_streams()
            self.shell.display_pub.publish(
                content["data"],
                content.get("metadata") or {},
                transient=content.get("transient") or {},
                update=kind == "update_display_data",
            )
        elif kind == "execute_result":
            self.result(content)
        elif kind == "clear_output":
            from IPython.display import clear_output

            clear_output(wait=content.get("wait", False))  # type: ignore[no-untyped-call]
            self.on_clear()
        elif kind == "kernel_restarted":
            self.stream("stderr", f"flow: {content['reason']}.\n")
        elif kind in COMMS:
            self.send(kind, content, event)

    def stream(self, name: str, text: str) -> None:
        if not self.limited:
            self.write(name, text)
            return
        self.waiting.append((name, text))
        self.waiting_chars += len(text)
        self.write_what_fits()

    def write_what_fits(self) -> None:
        now = time.monotonic()
        self.room = min(BURST_BYTES, self.room + BYTES_PER_S * (now - self.filled_at))
        self.filled_at = now
        while self.waiting and self.room >= 1:
            name, text = self.waiting.popleft()
            part, rest = text[: int(self.room)], text[int(self.room) :]
            self.write(name, part)
            self.room -= len(part.encode(errors="replace"))
            self.waiting_chars -= len(part)
            if rest:
                self.waiting.appendleft((name, rest))
        while self.waiting_chars > KEPT_CHARS:
            over = self.waiting_chars - KEPT_CHARS
            name, text = self.waiting.popleft()
            if len(text) > over:
                self.waiting.appendleft((name, text[over:]))
            gone = min(len(text), over)
            self.waiting_chars -= gone
            self.left_out += gone

    def end(self, log_of: str) -> None:
        """Shows what a flood had to wait for, with a word on what is missing before it."""
        if self.left_out:
            said = f"{self.left_out:,} characters are left out here; `%flow logs {log_of}` has all that was printed"
            self.write("stderr", f"\n… {said} …\n")
        self.left_out = 0
        while self.waiting:
            self.write_what_fits()
            if self.waiting:
                time.sleep(PACE_S)
        self.flush_streams()

    def write(self, name: str, text: str) -> None:
        if name != self.unflushed:
            # Each stream is sent at its own time, and would overtake the other.
            self.flush_streams()
        stream_of(name).write(text)
        self.unflushed = name

    def flush_streams(self) -> None:
        if self.unflushed:
            stream_of(self.unflushed).flush()
            self.unflushed = ""

    def result(self, content: dict[str, Any]) -> None:
        """As the cell's `Out`, where the shell is a kernel; in a terminal as its text."""
        self.flush_streams()
        if type(self.shell.display_pub).__name__ == "CapturingDisplayPublisher":
            # Under %%capture.
            self.shell.display_pub.publish(content["data"], content.get("metadata") or {})
            return
        if self.kernel is None:
            self.write("stdout", content["data"].get("text/plain", "") + "\n")
            return
        self.send("execute_result", {**content, "execution_count": cell_number(self.shell)}, {})

    def error(self, content: dict[str, Any]) -> None:
        """An error of a past cell, as that cell showed it, without failing this one."""
        self.flush_streams()
        lines = content.get("traceback") or [f"{content.get('ename')}: {content.get('evalue')}"]
        if self.kernel is None:
            self.write("stderr", "\n".join(lines) + "\n")
            return
        self.send("error", {**content, "traceback": lines}, {})

    def send(self, kind: str, content: dict[str, Any], event: Event) -> None:
        """A message that IPython has no call for: widgets of the machine, whose models live in the front end."""
        if self.kernel is None:
            return
        buffers = [base64.b64decode(part) for part in event.get("buffers", ())]
        self.kernel.session.send(
            self.kernel.iopub_socket,
            kind,
            content,
            metadata=event.get("metadata") or {},
            parent=self.kernel.get_parent("shell"),
            ident=self.kernel.topic(kind) if hasattr(self.kernel, "topic") else None,
            buffers=buffers,
        )


def stream_of(name: str) -> Any:
    return sys.stderr if name == "stderr" else sys.stdout


def cell_number(shell: InteractiveShell) -> int:
    """The running cell's; its shell's counter is one ahead in IPython 9 and not in 8."""
    history: Any = shell.history_manager
    return len(history.input_hist_raw) - 1


class RemoteError(Exception):
    """An exception of the cell on the machine: shown with its own traceback, and none of ours.

    Args:
        ename: the exception's type there.
        evalue: its text.
        traceback: its lines, as the machine's IPython wrote them.
        hint: one line more, for the user.
    """

    def __init__(self, ename: str, evalue: str, traceback: list[str], hint: str | None = None) -> None:
        super().__init__(evalue)
        self.ename, self.evalue, self.traceback, self.hint = ename, evalue, traceback, hint

    def _render_traceback_(self) -> list[str]:
        lines = self.traceback or [f"{self.ename}: {self.evalue}"]
        return [*lines, f"Hint: {self.hint}"] if self.hint else lines


def remote_error(reply: dict[str, Any], hint: str | None) -> RemoteError:
    """An exception of the type's name that the machine's had, so that saved notebooks and their tools see that one."""
    ename = str(reply.get("ename") or "Error")
    named: type[RemoteError] = type(ename, (RemoteError,), {}) if ename.isidentifier() else RemoteError
    return named(ename, str(reply.get("evalue", "")), reply.get("traceback") or [], hint)


class Plain(Exception):
    """An error of Flow's, shown as its sentence and suggestions without a traceback."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self.error).__name__}: {self.error}"]


def plain(error: BaseException) -> Plain:
    named: type[Plain] = type(type(error).__name__, (Plain,), {})
    return named(error)
