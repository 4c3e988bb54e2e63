"""A training script as the examples call it: reads data, prints a falling loss, writes a model."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from look import look, need_files


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--data-dir")
    parser.add_argument("--validation")
    parser.add_argument("--checkpoint-dir", type=Path)
    parser.add_argument("--output", "--output-dir", dest="output", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    look()
    need_files(given.data, given.data_dir, given.validation)
    last = Path("/checkpoints/last.json")
    first = json.loads(last.read_text())["epoch"] if given.resume and last.exists() else 0
    for epoch in range(first + 1, first + given.epochs + 1):
        print(f"epoch {epoch} loss: {1 / epoch:.4f} lr: {given.lr:g}", flush=True)
    state = json.dumps({"epoch": first + given.epochs})
    if given.resume:
        last.write_text(state)
    if given.output:
        (given.output / "model.json").write_text(state)
    if given.checkpoint_dir:
        (given.checkpoint_dir / f"rank-{os.environ['FLOW_NODE_RANK']}-{os.environ['LOCAL_RANK']}.json").write_text(
            state
        )
    print("done", flush=True)


if __name__ == "__main__":
    main()
