"""The line under the cell that started a session: what it runs on, what it does, when it ends itself, and buttons."""

from __future__ import annotations

import html
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import flow_sdk as flow

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from flow_nb.panel_widget import PanelWidget

LOOK_S = 0.5
"""Between two looks at a cell that is followed; one that is over before the first look is not shown as running."""
MOVED_S = 1.0
"""The countdown is corrected when it is off by more than this."""
ANSWER_S = 1.0
STOP_S = 30.0
KEEP_S = 7200.0


class Panel:
    """One session's line.

    The magics call `show` once, `on_wake` while a cell is followed, and `on_end` when it is over. What else changes the
    session is noticed after the next cell of the notebook, whatever that is.
    """

    def __init__(self, session: flow.Session, shell: InteractiveShell) -> None:
        # Of its own: buttons may come in on a thread of theirs while the notebook's one follows a cell.
        self.session = flow.Session(session.task)
        self.shell = shell
        self.widget: PanelWidget | None = None
        self.journal = self.session.journal(from_start=True)
        self.lock = threading.RLock()
        self.idle_s: float | None = None
        self.idle_at: float | None = None
        self.announced = 0
        self.is_busy = self.is_stopping = self.is_over = False
        self.since = time.time()
        self.look_at = 0.0
        self.published: tuple[Any, ...] = ()

    @property
    def line(self) -> str:
        """What a saved notebook shows: true whenever it is read."""
        task = self.session.task
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(task.created_at.timestamp()))
        return f"Session {task.name} on {hardware(task)}, started {started}"

    def show(self) -> None:
        if getattr(self.shell, "kernel", None) is None:
            sys.stderr.write(f"flow: {self.line}. %flow stop {self.session.task.name} ends it.\n")
            return
        from flow_nb.panel_widget import PanelWidget

        task = self.session.task
        self.widget = PanelWidget(
            html_line=f"<p>{html.escape(self.line)}</p>",
            text_line=self.line,
            session_name=task.name,
            hardware=hardware(task),
            price_per_hour_usd=task.cost_per_hour,
            state="starting",
            since=self.since,
        )
        self.widget.on_msg(self.on_message)
        self.shell.display_pub.publish(*self.widget.bundle())
        self.shell.events.register("post_run_cell", self.after_cell)

    def show_again(self) -> None:
        """Where the cell that started the session has cleared its output, and the line with it."""
        if self.widget is not None:
            self.shell.display_pub.publish(*self.widget.bundle())

    def on_wake(self) -> None:
        if self.widget is None or time.monotonic() < self.look_at:
            return
        with self.lock:
            is_first, self.look_at = not self.look_at, time.monotonic() + LOOK_S
            if self.idle_s is None:
                self.take_in()
            if self.idle_s is not None and not self.is_busy:
                self.is_busy, self.since = True, time.time()
                if is_first:
                    return
            self.publish()

    def on_end(self) -> None:
        if self.widget is None:
            return
        with self.lock:
            if self.idle_s is None:
                self.take_in()
            # All of it was shown, and is of no use to the line.
            self.journal.skip_to_end()
            self.is_busy, self.look_at = False, 0.0
            if self.idle_s is not None:
                self.idle_at = time.time() + self.idle_s
            # `after_cell` sends it.

    def after_cell(self, result: object = None) -> None:
        with self.lock:
            self.take_in()
            self.publish()

    def refresh(self) -> None:
        """Shows what was just asked of the session, as soon as the machine has answered."""
        if self.widget is None:
            return
        before, deadline = self.announced, time.monotonic() + ANSWER_S
        feed = self.session.feed(self.journal)
        while True:
            self.after_cell()
            left_s = deadline - time.monotonic()
            if self.is_over or self.announced > before or left_s <= 0:
                return
            feed.wait(left_s)

    def take_in(self) -> None:
        """What the journal says of the session since it was read last, also of cells that others run in it."""
        if self.is_over:
            return
        for event in self.journal.read():
            kind = event["type"]
            if kind == "session":
                self.announced += 1
                self.idle_s, self.idle_at = event["content"]["idle_s"], event["content"]["idle_at"]
            elif kind == "execute_input":
                self.is_busy, self.since = True, event["time"]
            elif kind == "execute_reply":
                self.is_busy = False
                self.idle_at = event["time"] + (self.idle_s or 0.0)

    def publish(self) -> None:
        """Brings the widget up to date; only what differs is sent."""
        if self.widget is None or self.is_over:
            return
        task = self.session.task
        known = (self.is_stopping, self.is_busy, self.idle_s, self.idle_at and self.idle_at // self.moved_s)
        if self.idle_s is not None and known == self.published and self.session.is_live:
            return
        self.published = known
        values: dict[str, Any] = {"reason": "", "since": self.since, "idle_s": self.idle_s}
        if not self.session.is_live:
            values |= {"state": "ended", "reason": self.session.end_reason, "ended_at": seconds(task.ended_at)}
            self.is_over = True
            self.journal.close()
            self.shell.events.unregister("post_run_cell", self.after_cell)
        elif self.is_stopping:
            values["state"] = "stopping"
        elif self.idle_s is None:
            values |= {"state": "starting", "reason": task.reason or ""}
        else:
            values["state"] = "running" if self.is_busy else "idle"
            if self.widget.started_at is None:
                values["started_at"] = seconds(task.started_at)
        if self.idle_at is not None and abs(self.idle_at - (self.widget.idle_at or 0.0)) > self.moved_s:
            values["idle_at"] = self.idle_at
        changed = {name: value for name, value in values.items() if getattr(self.widget, name) != value}
        if changed:
            with self.widget.hold_sync():
                for name, value in changed.items():
                    setattr(self.widget, name, value)

    @property
    def moved_s(self) -> float:
        """By how much the countdown may be off before it is corrected: a cell resets it, and many are short."""
        return max(MOVED_S, (self.idle_s or 0.0) / 60)

    # Buttons

    def on_message(self, widget: PanelWidget, content: dict[str, Any], buffers: object) -> None:
        do = content.get("do")
        try:
            if do == "interrupt":
                self.session.interrupt()
            elif do == "keep":
                self.session.keep(KEEP_S)
                self.refresh()
            elif do == "stop":
                self.stop()
            elif do == "look":
                self.after_cell()
        except flow.FlowError as error:
            self.after_cell()
            widget.send({"error": error.message})
        # The page's clock may be another one than ours.
        widget.send({"done": do, "now": time.time()})

    def stop(self) -> None:
        with self.lock:
            self.is_stopping = True
            self.publish()
        self.session.stop()
        # Its last cell has some seconds to end; the notebook need not wait for that.
        threading.Thread(target=self.wait_for_end, name="flow-panel", daemon=True).start()

    def wait_for_end(self) -> None:
        try:
            self.session.task.wait(STOP_S)
        except flow.WaitTimeoutError:
            self.is_stopping = False
        self.after_cell()


def hardware(task: flow.Task) -> str:
    return "this machine" if task.provider == "local" else task.record.hardware


def seconds(moment: Any) -> float | None:
    return None if moment is None else float(moment.timestamp())
