"""Follows a task's log through the SDK, for `files`: `python follow.py TASK_ID COUNT` prints the clock when it has had
so many lines beyond the first."""

from __future__ import annotations

import os
import sys
import time

from flow_sdk.client import get_task


def main() -> None:
    lines = get_task(sys.argv[1]).logs(tail=1, follow=True)
    left = int(sys.argv[2])
    next(lines)
    os.write(1, b"ready\n")
    for _ in lines:
        left -= 1
        if left == 0:
            # Linux has one monotonic clock for all processes.
            os.write(1, f"{time.monotonic()}\n".encode())
            return


main()
