"""What a script of the examples finds where it runs, as one line of JSON on its output."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

PREFIXES = ("AWS_", "BATCH_", "CUDA_", "FLOW_", "LEARNING_", "LOCAL_", "MASTER_", "RANK", "WANDB_", "WORLD_")


def look() -> dict[str, object]:
    """Prints `saw {…}`: arguments, folder, the variables that matter, and everything mounted."""
    seen: dict[str, object] = {
        "script": sys.argv[0],
        "arguments": sys.argv[1:],
        "folder": os.getcwd(),
        "environ": {name: value for name, value in os.environ.items() if name.startswith(PREFIXES)},
        "mounts": mounts(),
    }
    # In one piece: many processes of a task share its output.
    os.write(1, f"saw {json.dumps(seen)}\n".encode())
    return seen


def mounts() -> dict[str, object]:
    """Mount points with what is in them (at most 20 files) and whether they can be written to."""
    found: dict[str, object] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4])
        folder = Path(point)
        if point.count("/") > 3 or point.startswith(("/proc", "/sys", "/dev", "/run")) or not folder.is_dir():
            continue
        files = [str(path.relative_to(folder)) for path in sorted(folder.glob("*"))[:20]] if point != "/" else []
        found[point] = {"files": files, "writable": os.access(point, os.W_OK)}
    return found


def need_files(*folders: str | None) -> None:
    """Ends the script where a folder it was given has nothing in it."""
    for folder in folders:
        if folder is not None and not any(Path(folder).rglob("*")):
            sys.exit(f"{sys.argv[0]}: there is nothing in {folder}")


if __name__ == "__main__":
    look()
