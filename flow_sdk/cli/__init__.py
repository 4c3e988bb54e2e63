"""The `flow` command. Each subcommand is loaded when it is called, so that all of them start fast."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `flow` with these arguments (the process's own unless given); returns its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given in (["--version"], ["-V"]):
        from flow_sdk import __version__

        print(f"flow {__version__}")  # noqa: T201
        return 0
    import gc

    # The garbage of a start is not worth looking for, and at the end all of it goes anyway: a tenth of the whole run.
    gc.set_threshold(100_000)
    from flow_sdk.cli.app import run

    code = run(given)
    gc.freeze()
    return code
