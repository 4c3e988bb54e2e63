"""Completion of commands, options and task names in bash, zsh and fish."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flow_sdk.errors import FlowError, ValidationError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SHELLS = ("bash", "zsh", "fish")
NEWEST_OFFERED = 200


def own_shell() -> str | None:
    """The user's login shell, where it is one that can be helped."""
    name = Path(os.environ.get("SHELL", "")).name
    return name if name in SHELLS else None


def script(shell: str) -> str:
    from click.shell_completion import get_completion_class

    from flow_sdk.cli.app import COMPLETE_VARIABLE, flow

    kind = get_completion_class(shell)
    assert kind is not None
    return kind(flow, {}, "flow", COMPLETE_VARIABLE).source()


def install() -> Path:
    """Writes the script for the user's shell to the folder of the user's completions; returns the file.

    Raises:
        ValidationError: the shell is not known.
    """
    shell = own_shell()
    if shell is None:
        raise ValidationError(
            "SHELL names none of bash, zsh and fish.", ["flow init --completion bash prints the script for bash."]
        )
    path = place(shell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script(shell))
    return path


def place(shell: str) -> Path:
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return {
        "bash": data / "bash-completion/completions/flow",
        "zsh": data / "zsh/site-functions/_flow",
        "fish": config / "fish/completions/flow.fish",
    }[shell]


def next_step(path: Path) -> str:
    said = f"Wrote the completion script to {path}."
    if path.name == "_flow":
        return f"{said} Put this into ~/.zshrc, before compinit: fpath+=({path.parent})"
    if path.name == "flow":
        return f"{said} New shells take it where the package bash-completion is; else put `. {path}` into ~/.bashrc."
    return f"{said} New shells take it."


def tasks(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids and names that begin with what was typed."""
    from click.shell_completion import CompletionItem

    from flow_sdk import store

    try:
        rows = store.list_rows(limit=NEWEST_OFFERED)
    except FlowError:
        return []
    ids = [CompletionItem(row.record.task_id, help=f"{row.record.name}, {row.state}") for row in rows]
    names = [CompletionItem(name, help="task") for name in dict.fromkeys(row.record.name for row in rows)]
    return [item for item in ids + names if item.value.startswith(incomplete)]
