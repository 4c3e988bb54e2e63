"""Following a cell of the machine from the notebook, and what the stop button does meanwhile."""

from __future__ import annotations

import codecs
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import flow_sdk as flow
from flow_nb.render import PACE_S, Screen

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

Reply = dict[str, Any]
ENDING_WAIT_S = 0.2


class Interrupts:
    """Presses of the stop button, taken only where nothing can be lost by them: while we wait."""

    def __init__(self) -> None:
        self.pressed = self.taken = 0
        self.waiting = False

    def __enter__(self) -> Interrupts:
        self.is_main = threading.current_thread() is threading.main_thread()
        if self.is_main:
            self.before = signal.signal(signal.SIGINT, self.on_press)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_main:
            signal.signal(signal.SIGINT, self.before)

    def on_press(self, number: int, frame: FrameType | None) -> None:
        self.pressed += 1
        if self.waiting:
            raise KeyboardInterrupt

    def wait(self, wait: Callable[[], None]) -> bool:
        """Waits; returns whether the button was pressed."""
        try:
            self.waiting = True
            if self.pressed == self.taken:
                wait()
            self.waiting = False
        except KeyboardInterrupt:
            self.waiting = False
        if self.pressed == self.taken:
            return False
        self.taken += 1
        return True


def follow_cell(session: flow.Session, feed: Any, screen: Screen, on_wake: Callable[[], None] | None = None) -> Reply:
    """Shows a cell until it is done.

    The first press of the stop button interrupts the cell on the machine, the second offers to end the session, and a
    third lets go of it. A notebook that is closed lets go of it at once.

    Args:
        session: the machine.
        feed: of the cell.
        screen: where it is shown.
        on_wake: called when something may have changed that is no event.

    Returns:
        The content of its `execute_reply`.
    """
    presses = 0
    with Interrupts() as interrupts:
        while True:
            for event in feed.available():
                screen.show(event)
            if feed.done:
                screen.end(session.task.task_id)
                reply: Reply = feed.reply
                return reply
            if on_wake is not None:
                on_wake()
            if interrupts.wait(lambda: feed.wait(PACE_S if screen.waiting else None)):
                if is_ending(screen.shell):
                    raise KeyboardInterrupt
                presses += 1
                press(session, presses, interrupts)
            if screen.waiting:
                screen.write_what_fits()


def is_ending(shell: InteractiveShell) -> bool:
    """Whether it was no press: a server that ends or restarts a kernel interrupts it first, and then says so."""
    deadline = time.monotonic() + ENDING_WAIT_S
    while not getattr(shell, "exit_now", False) and time.monotonic() < deadline:
        time.sleep(ENDING_WAIT_S / 20)
    return bool(getattr(shell, "exit_now", False))


def press(session: flow.Session, presses: int, interrupts: Interrupts) -> None:
    if presses == 1:
        session.interrupt()
        return
    name = session.task.name
    if presses == 2 and wants_to_end(name, interrupts):
        session.stop()
    elif presses > 2:
        sys.stderr.write(
            f"\nThe cell goes on. %flow attach {name} shows it, %flow interrupt {name} interrupts it again, "
            f"%flow stop {name} ends its session.\n"
        )
        raise KeyboardInterrupt


def wants_to_end(name: str, interrupts: Interrupts) -> bool:
    """Asks; where nobody can answer, says what can be done instead."""
    from IPython.core.error import StdinNotImplementedError

    interrupts.waiting = True
    try:
        answer = input(
            f"The cell has not stopped yet. End the session {name} with its variables and its machine? [y/N] "
        )
        return answer.strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False
    except (StdinNotImplementedError, EOFError):
        sys.stderr.write(
            f"\nThe cell has not stopped yet. %flow stop {name} ends its session; press again to let it go on alone.\n"
        )
        return False
    finally:
        interrupts.waiting = False


def follow_task(task: flow.Task, screen: Screen) -> bool:
    """Shows a task's output until it has ended, or the stop button is pressed; returns whether it has ended."""
    decoders = {number: codecs.getincrementaldecoder("utf-8")("replace") for number in (1, 2)}
    try:
        for number, data in task.log_chunks(follow=True):
            name = "stderr" if number == 2 else "stdout"
            screen.show({"type": "stream", "content": {"name": name, "text": decoders[number].decode(data)}})
    except KeyboardInterrupt:
        screen.end(task.task_id)
        say_it_goes_on(task)
        return False
    screen.end(task.task_id)
    return True


def say_it_goes_on(task: flow.Task) -> None:
    sys.stderr.write(
        f"\nThe task goes on. %flow attach {task.task_id} shows it again, %flow cancel {task.task_id} ends it.\n"
    )
