"""`flow logs`."""

from __future__ import annotations

import sys

import click

from flow_sdk import taskdir, wording
from flow_sdk.cli import follow as following
from flow_sdk.cli import show


@click.command()
@following.task_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended. Ctrl-C leaves it running.")
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
@click.option("--stderr", "stream", flag_value="stderr", help="Only its error output.")
@click.option("--stdout", "stream", flag_value="stdout", help="Only its standard output.")
@click.option("--node", type=click.IntRange(min=0), default=0, metavar="N", help="The node's number, from 0.")
@show.json_option
def logs(task: str, follow: bool, tail: int | None, stream: str | None, node: int, as_json: bool) -> int:
    """Print what a task wrote, both streams in the order written, byte for byte.

    TASK is an id, the beginning of one, a name, or :N for the Nth newest.

    With --json each line is {"task_id", "stream": "stdout" or "stderr", "line"}.
    """
    found = following.find(task)
    only_stderr = None if stream is None else stream == "stderr"
    chunks = found.log_chunks(tail=tail, follow=follow, stderr=only_stderr, node=node)
    written = False
    try:
        if as_json:
            following.write_json(found, chunks)
            return 0
        if follow:
            following.until_running(found)
        for _, data in chunks:
            written = True
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    except KeyboardInterrupt:
        return following.left_running(found)
    row = following.row_of(found)
    if follow:
        following.say_end(row)
    elif not written and row.state != taskdir.COMPLETED:
        where = f" on node {node}" if found.num_instances > 1 else ""
        show.note(
            f"{row.record.name} has no output{where} ({row.state.replace('_', ' ')}). {wording.clean(row.reason or '')}"
        )
    return 0
