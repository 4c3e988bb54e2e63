"""The sessions of a notebook: which one a cell runs in, and what the notebook keeps of each."""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flow_sdk as flow
from flow_nb.arguments import Line, duration_s
from flow_nb.render import cell_number
from flow_nb.variables import Parts

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

IDLE_S = 1800.0
HARDWARE = ("instance_type", "gpu", "provider", "region", "image")


@dataclass
class Held:
    """A session as this notebook holds it.

    Attributes:
        session: the machine.
        journal: read up to where this notebook has shown it.
        sent: what the variables were made of that were sent last.
        panel: its line, where this notebook started it.
        panel_cell: the number of the cell that shows the line.
        idle_s: what its cells asked for last.
    """

    session: flow.Session
    journal: Any
    sent: Parts = field(default_factory=dict)
    panel: Any = None
    panel_cell: int = 0
    idle_s: float | None = None

    @property
    def name(self) -> str:
        return str(self.session.task.name)


class Sessions:
    """The live sessions of one notebook, the one used last first."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        self.key = notebook_key()
        self.held: list[Held] = []
        self.looked = False

    def __iter__(self) -> Iterator[Held]:
        self.look()
        return iter([held for held in self.held if held.session.is_live])

    def look(self) -> None:
        """Finds those that this notebook started before its kernel was started again."""
        if not self.looked:
            self.looked = True
            for session in flow.Session.find(f"notebook:{self.key}"):
                self.hold(session)

    def hold(self, session: flow.Session, from_start: bool = False) -> Held:
        for held in self.held:
            if held.session.task == session.task:
                return held
        self.held.append(Held(session, session.journal(from_start=from_start)))
        return self.held[-1]

    def forget(self, session: flow.Session) -> None:
        """Lets go of a session that has ended."""
        self.held = [held for held in self.held if held.session.task != session.task]

    def for_line(self, line: Line) -> Held:
        """The session that fits a cell's line, started where there is none."""
        name = str(line.own["session"]) if line.own.get("session") else None
        config = flow.TaskConfig(**flow.fields_from_text(line.fields))
        idle_s = duration_s(line.own["idle"]) if "idle" in line.own else None
        self.look()
        found = self.fitting(name, config, set(line.fields)) or self.start(config, name, idle_s)
        if idle_s is not None and idle_s != found.idle_s:
            found.session.keep(idle_s)
            found.idle_s = idle_s
        self.held.remove(found)
        self.held.insert(0, found)
        return found

    def fitting(self, name: str | None, config: flow.TaskConfig, given: set[str]) -> Held | None:
        """The session to use: the one of that name; without a name the unnamed one, or else the only one there is."""
        for held in list(self.held):
            if not held.session.is_live:
                self.forget(held.session)
                sys.stderr.write(f"flow: the session {held.name} has ended: {held.session.end_reason}.\n")
        candidates = [held for held in self.held if is_named(held.session, name)]
        if candidates or name is not None:
            return first_fitting(candidates, config, given, may_start=name is None)
        found = first_fitting(self.held, config, given, may_start=True)
        if found is not None and len(self.held) > 1:
            names = [f"session={held.name}" for held in self.held]
            raise flow.ValidationError("This notebook has several sessions.", [f"Say which: {' or '.join(names)}."])
        return found

    def start(self, config: flow.TaskConfig, name: str | None, idle_s: float | None) -> Held:
        from flow_nb.panel import Panel

        if name and not config.name:
            config = config.replace(name=name)
        tags = [f"notebook:{self.key}", f"session:{name or ''}"]
        held = self.hold(flow.Session.start(config, idle_s=idle_s or IDLE_S, tags=tags), from_start=True)
        held.idle_s = idle_s
        held.panel, held.panel_cell = Panel(held.session, self.shell), cell_number(self.shell)
        held.panel.show()
        return held

    def chosen(self, words: list[str]) -> list[flow.Session]:
        """The live sessions that a line names; all of this notebook where it names none.

        Raises:
            ValidationError: there is none, or a name is a task's that is no session.
            ResourceNotFoundError: there is nothing of that name.
        """
        live = [held.session for held in self]
        if not words:
            if not live:
                raise flow.ValidationError("This notebook has no session.", ["%%flow over a cell starts one."])
            return live
        return [session for word in words for session in matching(word, live)]


def matching(word: str, live: list[flow.Session]) -> list[flow.Session]:
    mine = [one for one in live if word in (one.task.name, one.task.task_id) or is_named(one, word)]
    if mine:
        return mine
    try:
        task = flow.get_task(word)
    except flow.ResourceNotFoundError:
        there = ", ".join(one.task.name for one in live)
        raise flow.ResourceNotFoundError(
            f"There is no session {word!r}.", [f"This notebook has: {there}." if there else "This notebook has none."]
        ) from None
    if not flow.Session.is_session(task):
        raise flow.ValidationError(f"{word} is a task and no session.", [f"%flow cancel {word} ends it."])
    return [flow.Session(task)]


@cache
def notebook_key() -> str:
    """Names the notebook, where its server says which one it is; else this process."""
    name = os.environ.get("JPY_SESSION_NAME")
    return hashlib.sha256(f"{name}\0{Path.cwd()}".encode()).hexdigest()[:16] if name else uuid.uuid4().hex[:16]


def is_named(session: flow.Session, name: str | None) -> bool:
    return f"session:{name or ''}" in session.task.record.config.get("tags", ())


def first_fitting(candidates: list[Held], config: flow.TaskConfig, given: set[str], may_start: bool) -> Held | None:
    """The first session that has what is asked for.

    Raises:
        ValidationError: one has the hardware, but not the rest, which only a new session could have.
    """
    for held in candidates:
        differs = differences(config, held.session.config, given)
        if not differs:
            return held
        if not (may_start and set(differs) & set(HARDWARE)):
            raise flow.ValidationError(
                f"The session {held.name} was started with other settings: {', '.join(differs)}.",
                ["session=OTHER starts another one.", f"%flow stop {held.name} ends it; run this again then."],
            )
    return None


def differences(wanted: flow.TaskConfig, there: flow.TaskConfig, given: set[str]) -> list[str]:
    """The given fields that a session does not fulfil."""
    found = []
    for name in sorted(given - {"name", "tags"}):
        want, have = getattr(wanted, name), getattr(there, name)
        if isinstance(want, dict):
            fits = want.items() <= have.items()
        elif isinstance(want, list):
            fits = all(one in have for one in want)
        else:
            fits = want == have or (name == "provider" and have is None)
        if not fits:
            found.append(name)
    return found
