"""What all commands share: help, errors, JSON, exit codes, pipes, colours, and what an invocation loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from flow_sdk import __version__, errors
from flow_sdk.cli import app
from tests.cli.conftest import FLOW, Command

LOADED = """
import json, sys
from flow_sdk.cli import main
code = main(sys.argv[1:])
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


def loaded(*arguments: str) -> set[str]:
    """The modules that a `flow` process has loaded at its end."""
    done = subprocess.run([sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {module.split(".")[0] for module in json.loads(done.stderr.splitlines()[-1])}


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(flow: Command, option: str) -> None:
    assert flow(option).out == f"flow {__version__}\n"


def test_version_is_shown_without_loading_click(flow_home: Path) -> None:
    assert {"click", "rich", "pydantic", "sqlite3", "json"} & (loaded("--version") - {"json"}) == set()


@pytest.mark.parametrize("command", ["status", "logs", "info", "cancel"])
def test_what_is_typed_all_day_loads_neither_pydantic_nor_rich(flow: Command, command: str) -> None:
    flow("run", "true", "--name", "one", "--wait")
    modules = loaded(command, *(["one"] if command != "status" else []))
    assert "click" in modules
    assert {"pydantic", "rich", "yaml", "pathspec"} & modules == set()


def test_help_lists_every_command_with_the_line_it_has_itself(flow: Command) -> None:
    shown = flow("--help").out
    context = click.Context(app.flow)
    for name, (_, line) in app.COMMANDS.items():
        command = app.flow.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert name in shown
        assert line in shown


def test_help_of_the_group_loads_no_command(flow_home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, "--help"], capture_output=True, text=True)
    modules = json.loads(done.stderr.splitlines()[-1])
    assert [m for m in modules if m in {"flow_sdk.cli.run", "flow_sdk.cli.tasks", "flow_sdk.client"}] == []


@pytest.mark.parametrize("command", [*app.COMMANDS, "volume create", "volume list", "volume delete"])
def test_every_command_has_help_and_takes_json(flow: Command, command: str) -> None:
    shown = flow(*command.split(), "--help").out
    assert shown == flow(*command.split(), "-h").out
    if command != "volume":
        assert "--json" in shown
        assert "With --json" in shown


def test_no_arguments_is_help(flow: Command) -> None:
    assert flow().out == flow("--help").out


def test_exit_codes_are_in_the_help_and_are_those_of_the_errors(flow: Command) -> None:
    shown = flow("--help").out
    assert "Exit codes:" in shown
    for line in (
        "0  done",
        "1  failed",
        "2  wrong usage or input",
        "3  key missing or refused",
        "4  no such task",
        "5  no capacity",
        "6  the provider failed",
        "7  out of time",
    ):
        assert line in shown
    codes = {name: getattr(errors, name).exit_code for name in errors.__all__}
    assert codes == {
        "AuthenticationError": 3,
        "ConfigError": 2,
        "FlowError": 1,
        "MountError": 6,
        "NoCapacityError": 5,
        "ProviderError": 6,
        "QuotaExceededError": 5,
        "ResourceNotFoundError": 4,
        "TaskFailedError": 1,
        "UploadTooLargeError": 2,
        "ValidationError": 2,
        "WaitTimeoutError": 7,
    }


@pytest.mark.parametrize(
    ("arguments", "message", "suggestion"),
    [
        (["statsu"], "There is no command 'statsu'.", "Did you mean `flow status`?"),
        (["xyz"], "There is no command 'xyz'.", "`flow --help` lists all commands."),
        (["status", "--al"], "There is no option --al.", "Did you mean --all?"),
        (["run", "python", "x.py", "--epochs", "3"], "There is no option --epochs.", "Put the command in quotes"),
        (["logs"], "Missing argument 'TASK'.", "`flow logs --help` shows how it is used."),
        (["run"], "What shall run?", 'flow run "python train.py" runs a command.'),
        (["cancel"], "Which task?", "flow cancel task-abc123"),
        (["volume"], "Missing command.", "`flow volume --help` shows how it is used."),
        (["volume", "delte", "x"], "No such command 'delte'", "`flow volume --help` shows how it is used."),
        (["run", "-N", "0", "true"], "num_instances must be", "1"),
        (["run", "--max-price-per-hour", "0", "true"], "max_price_per_hour must be", "no limit"),
        (["run", "-i", "a1000", "true"], "Invalid instance type 'a1000'", "Use a100."),
        (["status", "--since", "soon"], "'soon' is no time.", "Write 30min, 2h, 3d"),
        (["status", "--state", "runing"], "'runing' is no task state.", "Did you mean running?"),
        (["logs", "x", "--tail", "-3"], "Invalid value for '-n' / '--tail'", "`flow logs --help`"),
    ],
)
def test_wrong_usage_is_one_sentence_with_suggestions_and_exit_code_2(
    flow: Command, arguments: list[str], message: str, suggestion: str
) -> None:
    done = flow(*arguments, code=2)
    assert done.out == ""
    first, *rest = done.err.splitlines()
    assert first.startswith(f"Error: {message}")
    assert rest
    assert all(line.startswith("  - ") for line in rest)
    assert suggestion in done.err


@pytest.mark.parametrize("command", ["logs", "info", "cancel", "ssh", "status"])
def test_an_unknown_task_is_exit_code_4(flow: Command, command: str) -> None:
    done = flow(command, "task-nix", code=4)
    assert done.err == "Error: There is no task 'task-nix'.\n  - `flow status --all` lists every task.\n"


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (["info", "nix", "--json"], "ResourceNotFoundError", 4),
        (["run", "--json", "-i", "zzz", "true"], "ValidationError", 2),
        (["status", "--json", "--nope"], "UsageError", 2),
        (["cancel", "--json"], "UsageError", 2),
    ],
)
def test_with_json_an_error_is_one_json_line(flow: Command, arguments: list[str], kind: str, code: int) -> None:
    done = flow(*arguments, code=code)
    (found,) = done.json
    assert set(found) == {"error"}
    assert set(found["error"]) == {"type", "message", "suggestions"}
    assert found["error"]["type"] == kind
    assert found["error"]["message"]
    assert done.err == ""


def test_json_of_the_tasks_own_command_is_not_ours(flow: Command) -> None:
    done = flow("run", "--watch", "--", "echo", "--json")
    assert done.out == "--json\n"


def test_nothing_is_coloured_in_a_pipe(flow: Command) -> None:
    flow("run", "exit 3", "--wait", code=3)
    for arguments in (["status"], ["info", ":1"], ["--help"], ["statsu"]):
        done = flow(*arguments, code=None, TERM="xterm-256color")
        assert "\x1b" not in done.out + done.err


def test_colours_on_a_terminal_unless_no_color(flow: Command, terminal) -> None:
    flow("run", "true", "--wait")
    for arguments in (["status"], ["nix"]):
        for environ, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
            child = terminal(*arguments, **environ)
            shown = child.read()
            assert ("\x1b[" in shown.replace("\x1b[0m", "")) is coloured, (arguments, environ, shown)


def test_a_reader_that_goes_away_ends_it_quietly(flow: Command) -> None:
    flow("run", "seq 1000000", "--wait")
    done = subprocess.run(
        ["bash", "-c", f"'{FLOW}' logs :1 | head -n 2; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("1\n2\n141\n", "")


def test_output_that_is_refused_at_the_end_ends_it_quietly_too(flow: Command) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run([FLOW, "status"], stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(flow: Command, closed: str) -> None:
    command = f"'{FLOW}' run 'echo hi' --wait --name closed {closed}"
    assert subprocess.run(["bash", "-c", command], capture_output=True).returncode == 0
    assert flow("logs", "closed").out == "hi\n"


def test_a_full_output_device_is_one_sentence(flow: Command) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([FLOW, "status"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "Error: The output could not be written: No space left on device.\n"


def test_a_terminal_that_knows_no_unicode(flow: Command) -> None:
    flow("run", "echo é", "--wait", "--tag", "é", PYTHONIOENCODING="ascii")
    assert flow("status", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="POSIX").code == 0
    assert "\\xe9" in flow("info", ":1", PYTHONIOENCODING="ascii").out


def test_python_m_is_the_same(flow_home: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "flow_sdk.cli", "status"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "No tasks found\n", "")


def test_each_command_is_where_the_table_says() -> None:
    for name, (module, _) in app.COMMANDS.items():
        command = getattr(import_module(f"flow_sdk.cli.{module}"), name.replace("-", "_"))
        assert isinstance(command, click.Command)
