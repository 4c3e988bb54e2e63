"""Showing again what a session or a task's cells showed, and what comes."""

from __future__ import annotations

import sys
from typing import Any

import flow_sdk as flow
from flow_nb.cells import say_it_goes_on
from flow_nb.render import PACE_S, Screen

FIRST_LINE = "# %%flow\n"


def show_cells(session: flow.Session, screen: Screen, cell: str | None = None) -> dict[str, Any] | None:
    """Shows all that a task's cells show, to its end; the stop button ends the showing only.

    Args:
        session: the task.
        screen: where it is shown.
        cell: only this one, as if it had run here; all of them, with a heading each, unless given.

    Returns:
        The cell's reply, where it has come.
    """
    feed = session.feed(session.journal(from_start=True), cell)
    try:
        while not feed.done:
            for event in feed.available():
                screen.show(event) if cell is not None else show_one_of_many(screen, event)
            if not feed.done:
                feed.wait(PACE_S if screen.waiting else None)
                screen.write_what_fits()
    except KeyboardInterrupt:
        screen.end(session.task.task_id)
        say_it_goes_on(session.task)
        return None
    screen.end(session.task.task_id)
    reply: dict[str, Any] | None = feed.reply
    return reply


def show_session(session: flow.Session, screen: Screen) -> None:
    """Shows all that a session showed, and of the cells that are not done yet what comes."""
    waiting = {cell["id"] for cell in session.cells()}
    feed = session.feed(session.journal(from_start=True))
    try:
        while waiting and not feed.done:
            for event in feed.available():
                show_one_of_many(screen, event)
                if event["type"] == "execute_reply":
                    waiting.discard(event["cell"])
                    session.note_shown(event["cell"])
            if waiting and not feed.done:
                feed.wait(PACE_S if screen.waiting else None)
                screen.write_what_fits()
    except KeyboardInterrupt:
        name = session.task.name
        sys.stderr.write(f"\nThe cell goes on. %flow interrupt {name} interrupts it.\n")
    screen.end(session.task.task_id)


def show_missed(session: flow.Session, screen: Screen) -> bool:
    """Shows what no notebook has shown to its end; returns whether a cell of that is still running."""
    missed = set(session.unshown())
    running = set(missed)
    for event in session.journal(from_start=True).read():
        if event["cell"] in missed:
            show_one_of_many(screen, event)
            if event["type"] == "execute_reply":
                running.discard(event["cell"])
                session.note_shown(event["cell"])
    screen.end(session.task.task_id)
    return bool(running)


def show_one_of_many(screen: Screen, event: dict[str, Any]) -> None:
    """An event of some cell: its code is its heading, and its error does not fail the cell that shows it."""
    kind, content = event["type"], event["content"]
    if kind == "execute_reply":
        if content["status"] == "error":
            screen.error(content)
    elif kind == "execute_input":
        screen.stream("stdout", heading(content))
    elif kind == "kernel_restarted":
        screen.stream("stderr", f"flow: {content['reason']}.\n")
    else:
        screen.show(event)


def heading(content: dict[str, Any]) -> str:
    code = content["code"].removeprefix(FIRST_LINE).strip().splitlines() or [""]
    return f"── In [{content['execution_count']}]: {code[0]}{' …' if len(code) > 1 else ''}\n"
