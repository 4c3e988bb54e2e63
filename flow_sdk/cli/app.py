"""The group of all subcommands, and what becomes of their errors."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from flow_sdk import __version__
from flow_sdk.cli import show
from flow_sdk.errors import FlowError

INTERRUPTED, PIPE_CLOSED = 130, 141
OUTPUT_ERRORS = (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT)
COMPLETE_VARIABLE = "_FLOW_COMPLETE"

COMMANDS = {
    "init": ("init", "Set up: provider, API key, shell completion."),
    "run": ("run", "Run a command, a file or a YAML config."),
    "status": ("tasks", "List tasks, newest first."),
    "logs": ("logs", "Print or follow a task's output."),
    "info": ("tasks", "Show all that is known of a task."),
    "cancel": ("tasks", "End tasks."),
    "ssh": ("node", "Open a shell where a task runs, or run a command there."),
    "mount": ("node", "Add a volume to a running task."),
    "volume": ("volumes", "Create, list and delete volumes."),
    "upload-code": ("node", "Bring this folder's files into a running task."),
    "download": ("node", "Copy a task's file or folder here."),
}
"""Name: the module that has it, and its line in `flow --help`, which is shown without loading the module."""

EPILOG = """\b
Exit codes:
  0  done                       4  no such task, volume or file
  1  failed                     5  no capacity, or over the quota
  2  wrong usage or input       6  the provider failed
  3  key missing or refused     7  out of time
`flow run --watch` and `--wait` exit with the task's own code, 130 means Ctrl-C."""


class Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"flow_sdk.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in COMMANDS or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, n=2)
        raise Usage(
            f"There is no command {name!r}.",
            [f"Did you mean `flow {one}`?" for one in near] or ["`flow --help` lists all commands."],
        )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


class Usage(click.UsageError):
    """Wrong usage that comes with suggestions of its own."""

    def __init__(self, message: str, suggestions: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.suggestions = list(suggestions)


@click.command(
    cls=Commands,
    name="flow",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, "-V", "--version", message="flow %(version)s")
def flow() -> None:
    """Run a command or a file on a GPU machine as if it were local."""


def run(arguments: list[str]) -> int:
    make_streams_usable()
    try:
        return guarded(arguments)
    except BrokenPipeError:
        # Whoever read our output has gone, as `| head` does.
        abandon_output()
        return PIPE_CLOSED


def abandon_output() -> None:
    """Python would try to write what is left once more at its exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def make_streams_usable() -> None:
    """A file opened where a standard stream was closed would be written to as if it were that stream."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is no reason to fail.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def guarded(arguments: list[str]) -> int:
    as_json = "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)
    try:
        code = invoke(arguments)
        sys.stdout.flush()
        return code
    except FlowError as error:
        show.error(type(error).__name__, error.message, error.suggestions, as_json)
        return error.exit_code
    except click.ClickException as problem:
        message, suggestions = usage(problem)
        show.error("UsageError", message, suggestions, as_json)
        return problem.exit_code
    except click.exceptions.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, click.Abort):
        show.error("Interrupted", "Interrupted.", [], as_json)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as problem:
        if problem.filename is not None:
            show.error("OSError", f"{os.fsdecode(problem.filename)}: {problem.strerror}.", [], as_json)
            return 1
        if problem.errno not in OUTPUT_ERRORS:
            raise
        abandon_output()
        show.error("OSError", f"The output could not be written: {problem.strerror}.", [], False)
        return 1


def invoke(arguments: list[str]) -> int:
    if COMPLETE_VARIABLE in os.environ:
        flow.main(arguments, prog_name="flow", complete_var=COMPLETE_VARIABLE)
    with flow.make_context("flow", arguments or ["--help"]) as context:
        return flow.invoke(context) or 0


def usage(problem: click.ClickException) -> tuple[str, list[str]]:
    """Click's complaint as our one sentence and suggestions."""
    if isinstance(problem, Usage):
        return problem.message, problem.suggestions
    context = problem.ctx if isinstance(problem, click.UsageError) else None
    suggestions = [f"`{context.command_path} --help` shows how it is used."] if context else []
    if not isinstance(problem, click.NoSuchOption):
        return problem.format_message(), suggestions
    if context is not None and context.command.name == "run":
        suggestions = ["An option of your own command? Put the command in quotes, or behind --."]
    near = [f"Did you mean {option}?" for option in problem.possibilities or ()]
    return f"There is no option {problem.option_name}.", near + suggestions
