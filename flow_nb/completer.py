"""What Tab offers on the line of a `%%flow` or `%flow`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import flow_sdk as flow

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

NEWEST = 50
COUNTS = ("1", "2", "4", "8")
LINE = re.compile(r"\s*(?:[\w\s.,\[\]'\"]+=\s*)?(?P<magic>%%?)flow\s+(?P<rest>.*)", re.DOTALL)
VALUE = re.compile(r"(?:--?)?(?P<key>[A-Za-z][\w-]*)=(?P<value>.*)", re.DOTALL)
TAKES_OPTIONS = ("run", "defaults", "gpus")
TAKES_TASKS = ("attach", "cancel", "download", "info", "logs", "status")
TAKES_SESSIONS = ("interrupt", "keep", "restart", "stop")
IDENTIFIER = "flow_nb.completer"
log = logging.getLogger(__name__)


class Offered(NamedTuple):
    """What fits.

    Attributes:
        typed: the end of the line that a candidate replaces.
        candidates: each begins with `typed`.
    """

    typed: str
    candidates: list[str]


def offer(line: str, shell: InteractiveShell) -> Offered | None:
    """What fits at the end of a line; None where the line is none of ours.

    Args:
        line: up to the cursor.
        shell: for the notebook's variables and the magic's verbs.
    """
    found = LINE.fullmatch(line)
    if found is None:
        return None
    words = found["rest"].split()
    typed = words.pop() if words and not line[-1].isspace() else ""
    before = words[-1] if words else ""
    verb = words[0] if words and found["magic"] == "%" else ""
    if value := VALUE.fullmatch(typed):
        typed, names = value["value"], values(value["key"], value["value"], shell)
    elif re.fullmatch(r"--?[A-Za-z][\w-]*", before) and takes_value(before.lstrip("-")):
        names = values(before.lstrip("-"), typed, shell)
    elif found["magic"] == "%" and not verb:
        names = [f"{name} " for name in verbs(shell)]
    else:
        names = arguments(verb, typed, words)
    # Of several values with commas, the last is the one that is typed.
    typed = typed.rpartition(",")[2]
    return Offered(typed, sorted({name for name in names if name.startswith(typed) and name != typed}))


def arguments(verb: str, typed: str, words: list[str]) -> Iterator[str]:
    """What may stand behind a verb; "" is a cell's line."""
    if verb in TAKES_TASKS:
        yield from tasks()
    if verb in TAKES_SESSIONS and not (verb == "keep" and len(words) < 2):
        yield from sessions()
    if verb == "run" and not typed.startswith("-"):
        yield from files(typed)
    if verb == "" or verb in TAKES_OPTIONS:
        yield from options(typed)


def options(typed: str) -> Iterator[str]:
    from flow_nb.arguments import FLAGS, known

    for name in known():
        flag = name in FLAGS
        if flag or typed.startswith("-"):
            yield f"--{name.replace('_', '-')} "
        else:
            yield f"{name}="


def option(key: str) -> str | None:
    from flow_nb import arguments

    try:
        return arguments.option(key)
    except flow.ValidationError:
        return None


def takes_value(key: str) -> bool:
    from flow_nb.arguments import FLAGS

    return option(key) not in (None, *FLAGS)


def values(key: str, typed: str, shell: InteractiveShell) -> Iterable[str]:
    name = option(key)
    if name in ("gpu", "instance_type"):
        return gpu_types(typed)
    if name in ("inputs", "outputs"):
        return variables(shell)
    if name == "session":
        return sessions()
    if name == "requirements":
        return files(typed)
    if name == "volumes":
        return (f"{volume.name}:" for volume in flow.list_volumes())
    return ()


def gpu_types(typed: str) -> Iterator[str]:
    kind, colon, _ = typed.partition(":")
    if colon:
        yield from (f"{kind}:{count}" for count in COUNTS)
    else:
        yield from (*flow.GPUS, *flow.SIZES)


def variables(shell: InteractiveShell) -> Iterator[str]:
    """The notebook's own, without what IPython put there."""
    for name, value in shell.user_ns.items():
        if not name.startswith("_") and name not in shell.user_ns_hidden and not isinstance(value, ModuleType):
            yield name


def verbs(shell: InteractiveShell) -> Iterator[str]:
    magics = shell.magics_manager.registry.get("FlowMagics")
    return (name[3:] for name in dir(magics) if name.startswith("do_"))


def tasks() -> Iterator[str]:
    for task in flow.list_tasks(limit=NEWEST):
        yield task.task_id
        yield task.name


def sessions() -> Iterator[str]:
    return (session.task.name for session in flow.Session.find())


def files(typed: str) -> Iterator[str]:
    folder = typed.rpartition("/")[0] + "/" if "/" in typed else ""
    for path in Path(folder or ".").expanduser().iterdir():
        if not path.name.startswith(".") or typed[len(folder) :].startswith("."):
            yield f"{folder}{path.name}{'/' if path.is_dir() else ''}".replace(" ", "\\ ")


# IPython


def safely(line: str, shell: InteractiveShell) -> Offered | None:
    """`offer`; Tab is no place for errors, the line itself will tell."""
    try:
        return offer(line, shell)
    except Exception:
        log.debug("nothing can be offered for %r", line, exc_info=True)
        return None


def match(shell: InteractiveShell, context: Any) -> dict[str, Any]:
    """For IPython 8.6 and later."""
    from IPython.core.completer import SimpleCompletion

    line = context.full_text.split("\n")[context.cursor_line][: context.cursor_position]
    is_ours = context.cursor_line == 0 or not line.lstrip().startswith("%%")
    found = safely(line, shell) if is_ours else None
    if found is None:
        return {"completions": []}
    completions = [SimpleCompletion(text=name, type="flow") for name in found.candidates]
    return {"completions": completions, "matched_fragment": found.typed, "suppress": True}


def complete_before_8_6(shell: InteractiveShell, event: Any) -> list[str]:
    """For IPython 7, which replaces `event.symbol`: more or less of the line than what we complete."""
    found = safely(event.text_until_cursor, shell)
    if found is None:
        return []
    more = len(event.symbol) - len(found.typed)
    if more > 0:
        return [event.symbol[:more] + name for name in found.candidates]
    return [name[-more:] for name in found.candidates]


def register(shell: InteractiveShell) -> None:
    from IPython.core import completer

    if not hasattr(completer, "context_matcher"):
        for name in ("%flow", "%%flow"):
            shell.set_hook("complete_command", complete_before_8_6, str_key=name)  # type: ignore[no-untyped-call]
        return

    def matcher(context: Any) -> dict[str, Any]:
        return match(shell, context)

    as_matcher: Any = completer.context_matcher(identifier=IDENTIFIER)
    shell.Completer.custom_matchers.append(as_matcher(matcher))


def unregister(shell: InteractiveShell) -> None:
    matchers = shell.Completer.custom_matchers
    matchers[:] = [one for one in matchers if getattr(one, "matcher_identifier", None) != IDENTIFIER]
    for name in ("%flow", "%%flow"):
        shell.strdispatchers["complete_command"].strs.pop(name, None)
