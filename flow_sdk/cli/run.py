"""`flow run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flow_sdk import wording
from flow_sdk.cli import follow, show
from flow_sdk.cli.app import Usage
from flow_sdk.client import Flow, as_config, pack_code, private_values, total_price
from flow_sdk.errors import ValidationError
from flow_sdk.task import Task
from flow_sdk.words import command_from_words, fields_from_text

if TYPE_CHECKING:
    from flow_sdk.config import TaskConfig
    from flow_sdk.providers import Offer


@click.command()
@click.argument("command", nargs=-1, metavar="[COMMAND | FILE]")
@click.option("-i", "--instance-type", metavar="TYPE", help="Hardware of each node: a100, 8xa100, cpu, …")
@click.option("--gpu", metavar="GPU", help="GPUs of each node: a100, a100:4.")
@click.option("-n", "--name", metavar="NAME", help="A name to find the task by.")
@click.option("-e", "--env", "env", multiple=True, metavar="NAME[=VALUE]", help="Without =VALUE, as it is set here.")
@click.option("--mount", "mounts", multiple=True, metavar="[TARGET=]SOURCE", help="s3://, volume://, https://, a path.")
@click.option("--volume", "volumes", multiple=True, metavar="NAME[:PATH]", help="A volume; made where it is new.")
@click.option("--image", metavar="IMAGE", help="Container image to run in.")
@click.option("-N", "--num-instances", type=int, metavar="N", help="Nodes.")
@click.option("--pip", "pip", multiple=True, metavar="PACKAGE", help="Package to install first.")
@click.option("--port", "ports", multiple=True, type=int, metavar="PORT", help="Port to reach from outside.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A label to find tasks by.")
@click.option("--max-price-per-hour", type=float, metavar="USD", help="Nothing dearer is taken.")
@click.option("--max-run-time-hours", type=float, metavar="HOURS", help="The task is ended then.")
@click.option("--retries", type=int, metavar="N", help="How often to start it again when it fails.")
@click.option("--working-dir", metavar="FOLDER", help="Where the command starts.")
@click.option("--no-upload", is_flag=True, help="Do not send this folder along.")
@click.option("--provider", metavar="NAME", help="Who runs it; the configured one unless given.")
@click.option("--region", metavar="NAME", help="Where it runs.")
@click.option("--from", "past", metavar="TASK", help="Run a past task again, with the same code and config.")
@click.option("-w", "--watch", is_flag=True, help="Follow its output; exit with its exit code.")
@click.option("--wait", is_flag=True, help="Wait for its end without its output; exit with its exit code.")
@click.option("--dry-run", is_flag=True, help="Show what would run, and start nothing.")
@show.json_option
def run(
    command: tuple[str, ...], past: str | None, watch: bool, wait: bool, dry_run: bool, as_json: bool, **options: Any
) -> int:
    """Run a command, a file or a YAML config.

    \b
      flow run "python train.py --epochs 10" --gpu a100
      flow run train.py -e BATCH_SIZE=256 --watch
      flow run config.yaml
      flow run -i h100                         a machine to work on: flow ssh
      flow run --from task-abc123              once more, same code and config

    The current folder goes along, but for what .flowignore or .gitignore leave out. Options win over the YAML file's or
    the past task's fields; environment, mounts, volumes and lists are added to theirs.

    With --json the task is printed as `flow status --json` does, with "note"; with --watch its output as `flow logs
    --json` does, and the task once more at its end. With --dry-run: "config", "offer", "code".
    """
    what = command_from_words(command, options["no_upload"]) if command else None
    fields = given_fields(options)
    flow = Flow()
    again = flow.get_task(past) if past else None
    base = again.config if again else None
    if isinstance(what, Path):
        from flow_sdk.config import TaskConfig

        if again:
            raise Usage("--from has a config already, so it takes no YAML file.", ["Leave one of them out."])
        base = TaskConfig.from_yaml(what)
    elif what is not None:
        fields["command"] = what
    changes = merged(base, fields) if base else startable(fields)
    config = base.replace(**changes) if base else as_config(None, changes)
    if dry_run:
        show_plan(*flow.plan(config), again, as_json)
        return 0
    task = flow.rerun(again, **changes) if again else flow.run(config)
    if as_json:
        show.json_line({**show.task_json(follow.row_of(task)), "note": task.record.note})
    else:
        announce(task, brief=watch or wait)
    if (watch or wait) and task.record.config.get("command") is None:
        return until_ready(task)
    return follow.to_end(task, with_output=watch, as_json=as_json) if watch or wait else 0


def given_fields(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as TaskConfig takes them."""
    no_upload = options.pop("no_upload")
    fields = {name: value for name, value in options.items() if value is not None and value != ()}
    if no_upload:
        fields["upload_code"] = False
    for name in ("pip", "ports", "tags"):
        if name in fields:
            fields[name] = list(fields[name])
    return fields_from_text(fields)


def startable(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, where they say enough to start something."""
    if not {"command", "instance_type", "gpu", "image"} & set(fields):
        raise Usage(
            "What shall run?",
            ['flow run "python train.py" runs a command.', "flow run -i h100 starts a machine to work on."],
        )
    return fields


def merged(base: TaskConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """What to change in `base`: the fields, with mappings and lists added to those it has."""
    changes = dict(fields)
    for hardware, other in (("instance_type", "gpu"), ("gpu", "instance_type")):
        if hardware in fields and other not in fields:
            changes[other] = None
    for name in ("env", "mounts"):
        if name in fields:
            changes[name] = {**getattr(base, name), **fields[name]}
    for name in ("pip", "ports", "tags", "volumes"):
        if name in fields:
            changes[name] = [*getattr(base, name), *(new for new in fields[name] if new not in getattr(base, name))]
    lost = [name for name in base.missing_env if name not in fields.get("env", {})]
    if lost:
        raise ValidationError(
            f"The values of {', '.join(lost)} were not kept with the task.", [f"Give them again: -e {lost[0]}=VALUE."]
        )
    return changes


def announce(task: Task, brief: bool) -> None:
    """Where the task runs and what to type next."""
    record = task.record
    task_id = task.task_id
    where = "this machine" if record.provider == "local" else record.provider
    price = f", {wording.money(record.price_per_hour_usd)} per hour" if record.price_per_hour_usd else ""
    say = show.note if brief else show.line
    say(f"{task.name} is submitted: {task_id}, on {where}{price}.")
    if brief:
        return
    if record.config.get("command") is None:
        say(f"  flow ssh {task_id}       work on it")
    else:
        say(f"  flow logs -f {task_id}   follow its output")
    say(f"  flow status {task_id}    see where it stands")
    say(f"  flow cancel {task_id}    end it")


def until_ready(task: Task) -> int:
    """A machine without a command has no output and no end of its own."""
    try:
        state = follow.until_running(task)
    except KeyboardInterrupt:
        return follow.left_running(task)
    if state != "running":
        follow.say_end(follow.row_of(task))
        return follow.exit_code(follow.row_of(task))
    show.note(f"{task.name} is ready: flow ssh {task.task_id}, flow cancel {task.task_id}")
    return 0


def show_plan(config: TaskConfig, offer: Offer, again: Task | None, as_json: bool) -> None:
    # All that a real run would refuse.
    private_values(config.frozen_copy())
    bundle = None if again else pack_code(config, None)
    price = total_price(offer, config)
    values = config.to_json(secrets=False)
    if "env" in values:
        values["env"] = sorted(values["env"])
    code = {"sha256": bundle.sha256, "files": bundle.file_count, "size_bytes": bundle.size_bytes} if bundle else None
    if again and again.record.bundle_sha256:
        code = {"sha256": again.record.bundle_sha256}
    if as_json:
        names = {"instance_type": offer.instance_type, "region": offer.region, "note": offer.note}
        show.json_line({"config": values, "offer": {**names, "price_per_hour_usd": price}, "code": code})
        return
    import yaml

    show.line(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip())
    show.line()
    show.pairs(
        [
            ("offer", f"{offer.instance_type} in {offer.region}"),
            ("note", offer.note or ""),
            ("price", f"{wording.money(price)}{' per hour' if price else ''}" if price is not None else "not known"),
            (
                "code",
                f"{show.counted(bundle.file_count, 'file')}, {show.size(bundle.size_bytes)} compressed"
                if bundle
                else "",
            ),
            ("code", f"as {again.task_id} had it" if again and again.record.bundle else ""),
        ]
    )
    show.line("Nothing was started.")
