"""Variables between the notebook and the machine: cloudpickle with the big arrays' memory beside the pickle, each part
named by its content, so that what the other side has is not sent again."""

from __future__ import annotations

import ast
import hashlib
import pickle
import platform
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import flow_sdk as flow

SHELL_NAMES = ("In", "Out", "exit", "quit", "open", "get_ipython")
Parts = dict[str, list[str]]


def views(name: str, value: Any) -> list[memoryview]:
    """What a variable is made of: its pickle, and the memory of its arrays.

    Raises:
        ValidationError: it cannot be pickled.
    """
    import cloudpickle

    buffers: list[pickle.PickleBuffer] = []
    try:
        data = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        return [memoryview(data), *(buffer.raw() for buffer in buffers)]
    except Exception as error:
        raise flow.ValidationError(
            f"{name!r} cannot be sent: {type(error).__name__}: {error}.", ["Send what it is made from instead."]
        ) from error


def pick(names: Iterable[str], space: Mapping[str, Any]) -> dict[str, Any]:
    """The notebook's variables of these names.

    Raises:
        ValidationError: there is no such variable.
    """
    names = list(names)
    for name in names:
        if name not in space:
            from difflib import get_close_matches

            own = [one for one in space if one.isidentifier() and not one.startswith("_") and one not in SHELL_NAMES]
            near = [f"Did you mean {one}?" for one in get_close_matches(name, own, n=2)]
            raise flow.ValidationError(
                f"There is no variable {name!r} in the notebook to send.",
                near or ["Define it in a cell without %%flow."],
            )
    return {name: space[name] for name in names}


def pack(values: Mapping[str, Any]) -> tuple[dict[str, bytes], Parts]:
    """Variables as objects for a machine that is not there yet: the content of each by its hash, and what they are made
    of."""
    objects: dict[str, bytes] = {}
    parts: Parts = {}
    for name, value in values.items():
        pieces = [bytes(view) for view in views(name, value)]
        parts[name] = [hashlib.sha256(piece).hexdigest() for piece in pieces]
        objects |= dict(zip(parts[name], pieces, strict=True))
    return objects, parts


def send(session: flow.Session, values: Mapping[str, Any], sent: Parts) -> Parts:
    """Puts variables where the machine can load them.

    Args:
        session: the machine.
        values: the variables.
        sent: what they were made of when they were sent last; brought up to date.
    """
    found = {}
    for name, value in values.items():
        parts = views(name, value)
        before = [*sent.get(name, []), *[""] * len(parts)]
        found[name] = [session.put(part, known) for part, known in zip(parts, before, strict=False)]
    sent.update(found)
    return found


def saved_parts(reply: dict[str, Any]) -> Parts:
    """What the machine stored of the variables that were asked for.

    Raises:
        ValidationError: it could not store them.
    """
    saved = reply.get("user_expressions", {}).get("saved", {})
    if saved.get("ename") == "KeyboardInterrupt":
        raise flow.ValidationError("Bringing the variables back was stopped.", ["They are still on the machine."])
    if saved.get("status") != "ok":
        raise flow.ValidationError(
            f"{saved.get('evalue', 'the variables did not come back')}.",
            ["Bring back what it is made from."] if saved.get("ename") == "TypeError" else [],
        )
    found: Parts = ast.literal_eval(saved["data"]["text/plain"])
    return found


def fetch(session: flow.Session, parts: Parts, machine_python: str | None) -> dict[str, Any]:
    """Variables of the machine.

    Args:
        session: the machine; one of the user's own.
        parts: as `saved_parts` gave them.
        machine_python: its Python's version, where it is known.

    Raises:
        ValidationError: the session is someone else's, whose pickles could run anything here.
    """
    if not session.is_own:
        raise flow.ValidationError(
            f"The session {session.task.name} is {session.task.get_user().username}'s, and only variables of your own "
            "sessions are brought back.",
            ["Write a file there, and %flow download it."],
        )
    here = platform.python_version()
    if machine_python and machine_python.split(".")[:2] != here.split(".")[:2]:
        sys.stderr.write(
            f"flow: the machine runs Python {machine_python} and the notebook {here}; functions and classes may not "
            "survive that.\n"
        )
    found = {}
    for name, (first, *rest) in parts.items():
        buffers = [session.get(part) for part in rest]
        # Of the user's own session, whose cells could do as much.
        found[name] = pickle.loads(session.get(first), buffers=buffers)  # noqa: S301
    return found
