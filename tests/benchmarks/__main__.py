from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import cells, files, peers, starts, table, tasks
from tests.benchmarks.bench import Bench
from tests.benchmarks.measure import Figure, NotMeasured

MEASURES = {
    "import": starts.import_package,
    "config": starts.import_config,
    "version": starts.version,
    "first-line": tasks.first_line,
    "done": tasks.done,
    "watch": starts.watch,
    "status": starts.status,
    "many": tasks.many,
    "pack": files.pack,
    "follow": files.follow,
    "lag": files.lag,
    "cells": cells.warm,
    "cells-prints": cells.prints,
    "cells-first": cells.first,
    "cells-arrays": cells.arrays,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Prints one table.")
    parser.add_argument("--only", action="append", choices=MEASURES, metavar="NAME", help=", ".join(MEASURES))
    parser.add_argument("--quick", action="store_true", help="few samples: under a minute")
    options = parser.parse_args()
    there = [peers.install(name) for name in peers.REQUIREMENTS]
    started, load = time.monotonic(), os.getloadavg()[0]
    rows: list[table.Row] = []
    with tempfile.TemporaryDirectory(prefix="flow-bench-") as folder:
        bench = Bench(Path(folder), {peer.name: peer for peer in there}, options.quick)
        python = bench.bare_python().samples
        for name in options.only or MEASURES:
            print(f"{time.monotonic() - started:4.0f} s  {name}", file=sys.stderr, flush=True)
            try:
                rows += MEASURES[name](bench)
            except NotMeasured as error:
                rows.append(table.Row(name, None, why_not=str(error)))
            python += bench.bare_python().samples
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
    closing = [
        f"{platform.platform()}, Python {platform.python_version()}, {cores}; load {load:.1f} at the start,"
        f" {os.getloadavg()[0]:.1f} at the end; {', '.join(peer.label for peer in there)};"
        f" {time.monotonic() - started:.0f} s{', quick' if options.quick else ''}."
    ]
    table.show(rows, Figure(python, "ms"), closing)
    return 0


if __name__ == "__main__":
    sys.exit(main())
