"""`flow volume create`, `list` and `delete`."""

from __future__ import annotations

from typing import Any

import click

from flow_sdk import wording
from flow_sdk.cli import show
from flow_sdk.client import Flow
from flow_sdk.providers import Volume

provider_option = click.option(
    "--provider", metavar="NAME", help="Whose volumes; the configured provider's unless given."
)


@click.group(no_args_is_help=False)
def volume() -> None:
    """Create, list and delete volumes: storage that outlives tasks."""


def volume_json(one: Volume) -> dict[str, Any]:
    return {**one._asdict(), "created_at": show.iso(one.created_at)}


@volume.command()
@click.argument("name_word", metavar="[NAME]", required=False)
@click.option("-s", "--size-gb", type=int, required=True, metavar="GB", help="Its size in GB.")
@click.option("-n", "--name", metavar="NAME", help="Lower-case letters, digits and dashes; made up unless given.")
@click.option("--interface", default="block", metavar="block|file", help="block: one machine at a time; file: shared.")
@provider_option
@show.json_option
def create(
    name_word: str | None, size_gb: int, name: str | None, interface: str, provider: str | None, as_json: bool
) -> None:
    """Make a volume.

    With --json: {"volume_id", "name", "size_gb", "interface", "region", "created_at"}.
    """
    if name and name_word:
        raise click.UsageError(f"The volume has two names, {name_word} and {name}.")
    made = Flow(provider).create_volume(size_gb, name or name_word, interface)
    if as_json:
        show.json_line(volume_json(made))
        return
    show.line(f"The volume {made.name} ({made.volume_id}) is made: {made.size_gb} GB.")
    show.line(f"  flow run … --volume {made.name}:/data   a task with it at /data")
    show.line(f"  flow mount {made.name} TASK             for a task that runs already")


@volume.command("list")
@provider_option
@show.json_option
def list_(provider: str | None, as_json: bool) -> None:
    """List volumes, oldest first.

    With --json each is {"volume_id", "name", "size_gb", "interface", "region", "created_at"}.
    """
    found = Flow(provider).list_volumes()
    if as_json:
        for one in found:
            show.json_line(volume_json(one))
    elif not found:
        show.line("No volumes found")
    else:
        rows = [
            [
                f":{n}",
                one.name,
                one.volume_id,
                f"{one.size_gb} GB",
                one.interface,
                one.region,
                wording.age(one.created_at),
            ]
            for n, one in enumerate(found, 1)
        ]
        show.table(("", "name", "id", "size", "interface", "region", "created"), rows, shrink=("region",))


@volume.command()
@click.argument("volumes", nargs=-1, required=True, metavar="VOLUME...")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@provider_option
@show.json_option
def delete(volumes: tuple[str, ...], yes: bool, provider: str | None, as_json: bool) -> None:
    """Delete volumes with all that is in them.

    VOLUME is a name, an id, or :N as `flow volume list` counts.

    With --json each is printed as `flow volume list --json` does.
    """
    flow = Flow(provider)
    chosen = list(dict.fromkeys(flow.get_volume(one) for one in volumes))
    if not yes:
        names = ", ".join(one.name for one in chosen)
        show.confirm(f"Delete {names} with all that is in {'it' if len(chosen) == 1 else 'them'}?")
    for one in chosen:
        flow.delete_volume(one)
        if as_json:
            show.json_line(volume_json(one))
        else:
            show.line(f"The volume {one.name} is deleted.")
