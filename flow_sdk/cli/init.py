"""`flow init`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from flow_sdk import providers, settings
from flow_sdk.cli import completion, show
from flow_sdk.cli.app import Usage
from flow_sdk.errors import ConfigError, ValidationError

WORDS = {
    "provider": "provider",
    "api_key": "API key",
    "project": "project",
    "region": "region",
    "api_url": "API address",
}


@click.command()
@click.option("--provider", metavar="NAME", help="Where tasks run unless they say otherwise.")
@click.option(
    "--api-key", metavar="KEY", help="Of your account; - reads it from standard input, out of sight of others."
)
@click.option("--project", metavar="NAME", help="The project's name or id.")
@click.option("--region", metavar="NAME", help="The region you prefer.")
@click.option("--api-url", metavar="URL", help="Another address of the provider's API.")
@click.option(
    "--ssh-key", "ssh_keys", multiple=True, metavar="NAME", help="Allowed into new machines; may be repeated."
)
@click.option(
    "--completion", "shell", type=click.Choice(completion.SHELLS), help="Print the shell's completion script."
)
@click.option("--install-completion", is_flag=True, help="Put the completion script where your shell looks for it.")
@show.json_option
def init(shell: str | None, install_completion: bool, as_json: bool, **options: Any) -> None:
    """Set Flow up: asks, or takes what is given, and writes config.yaml, readable by you alone.

    What is in the file and is not asked for stays. The API key is never shown.

    With --json: {"path", "written", "completion"}, with the names of the settings written.
    """
    if shell:
        show.line(completion.script(shell))
        return
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    if not given and not install_completion:
        if not sys.stdin.isatty() or as_json:
            raise Usage(
                "With --json nothing is asked." if as_json else "There is no terminal to ask on.",
                ["Give what to write: flow init --provider local --project my-project.", "--api-key - reads the key."],
            )
        given, install_completion = asked()
    if given.get("api_key") == "-":
        given["api_key"] = sys.stdin.readline()
    changes = {name: checked(name, value) for name, value in given.items()}
    path = write(changes) if changes else None
    completion_path = completion.install() if install_completion else None
    if as_json:
        places = {"path": path and str(path), "completion": completion_path and str(completion_path)}
        show.json_line({**places, "written": sorted(changes)})
    elif path:
        written = [WORDS.get(name, name.replace("_", " ")) for name in changes]
        show.line(f"Wrote {', '.join(written)} to {path}, which only you can read.")
        for name in changes:
            overriding = [v for v in settings.ENVIRONMENT.get(name, ()) if os.environ.get(v)]
            if overriding:
                show.note(f"While {overriding[0]} is set, it is taken instead of the {WORDS[name]} in the file.")
    if completion_path:
        show.note(completion.next_step(completion_path))


def asked() -> tuple[dict[str, Any], bool]:
    """What the person answers, without what stays as it is; and whether completion is wanted."""
    known = usable_config()
    names = providers.names()
    show.note("Enter keeps what stands in brackets.")
    found = {"provider": ask(f"Provider ({', '.join(names)})", known.get("provider") or names[0])}
    key = click.prompt(
        f"API key, typed unseen{' [kept]' if known.get('api_key') else ' (Enter if you have none)'}",
        default="",
        hide_input=True,
        show_default=False,
        err=True,
    )
    found |= {"api_key": key, "project": ask("Project", known.get("project"))}
    found["region"] = ask("Region", known.get("region"))
    keys = ask("SSH keys for new machines, by name", " ".join(known.get("ssh_keys") or ()))
    changes: dict[str, Any] = {name: value for name, value in found.items() if value and value != known.get(name)}
    if keys.split() != list(known.get("ssh_keys") or ()):
        changes["ssh_keys"] = keys.split()
    shell = completion.own_shell()
    wanted = shell is not None and click.confirm(f"Complete words with Tab in {shell}?", default=True, err=True)
    return changes or {"provider": found["provider"]}, wanted


def ask(question: str, known: str | None) -> str:
    answer: str = click.prompt(question, default=known or "", show_default=bool(known), err=True)
    return answer.strip()


def checked(name: str, value: Any) -> Any:
    if name == "ssh_keys":
        return list(value)
    text = str(value).strip()
    if not text or any(c.isspace() or not c.isprintable() for c in text):
        # The value is not shown: it may be the key.
        raise ValidationError(f"The {WORDS[name]} must be one word.", ["Was something else pasted with it?"])
    if name == "provider" and settings.OLD_PROVIDER_NAMES.get(text, text) not in providers.names():
        providers.load(text)
    return text


def usable_config() -> dict[str, Any]:
    try:
        return settings.read_config(settings.config_path())
    except ConfigError:
        return {}


def write(changes: dict[str, Any]) -> Path:
    """Writes the changes; a config file that cannot be read is put aside and a new one begun."""
    path = settings.config_path()
    try:
        settings.read_config(path)
    except ConfigError as error:
        aside = path.with_name(f"{path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
        path.rename(aside)
        show.note(f"{error.message} It is now {aside}.")
    return settings.save(changes)
