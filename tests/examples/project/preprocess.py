"""Writes every file of the input in upper case to the output, with so many threads."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from look import look, need_files

parser = argparse.ArgumentParser()
parser.add_argument("--input", type=Path, required=True)
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("--num-workers", type=int, required=True)
given = parser.parse_args()
look()
need_files(given.input)
with ThreadPoolExecutor(given.num_workers) as pool:
    files = [path for path in given.input.rglob("*") if path.is_file()]
    list(pool.map(lambda path: (given.output / path.name).write_text(path.read_text().upper()), files))
