"""One run of a sweep."""

from __future__ import annotations

import argparse

from look import look

parser = argparse.ArgumentParser()
parser.add_argument("--task-id", type=int, required=True)
given = parser.parse_args()
look()
print(f"experiment {given.task_id}")
