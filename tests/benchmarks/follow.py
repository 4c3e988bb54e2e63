"""Follows a task's log for `files`: `python follow.py TASK_ID lines COUNT` prints the clock when it has had so many
lines; `python follow.py TASK_ID bytes` writes what comes to stdout, as `flow logs -f` does."""

from __future__ import annotations

import os
import sys
import time

from flow_sdk.client import get_task


def main() -> None:
    task = get_task(sys.argv[1])
    if sys.argv[2] == "bytes":
        for _, data in task.log_chunks(tail=1, follow=True):
            os.write(1, data)
        return
    count = int(sys.argv[3])
    os.write(1, b"ready\n")
    for _ in task.logs(tail=1, follow=True):
        count -= 1
        if count < 0:
            # Linux has one monotonic clock for all processes.
            os.write(1, f"{time.monotonic()}\n".encode())
            return


main()
