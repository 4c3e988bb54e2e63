"""`flow ssh`, `flow mount`, `flow upload-code`, `flow download` and `flow volume`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import flow_sdk
from tests.cli.conftest import FLOW, Command, finish
from tests.services import require


@pytest.fixture
def machine(flow: Command) -> Any:
    """The id of a machine to work on; it has been asked for, and may not be there yet."""
    (task,) = flow("run", "-i", "cpu", "--name", "box", "--json").json
    yield task["task_id"]
    flow("cancel", "box")


# flow ssh


def test_a_command(flow: Command, machine: str) -> None:
    assert flow("ssh", machine, "--", "printf", "%s|", "a  b", "$HOME").out == "a  b|$HOME|"
    assert flow("ssh", machine, "echo $FLOW_TASK_ID | tr a-z A-Z").out == f"{machine.upper()}\n"
    done = flow("ssh", "box", "echo out; echo err >&2; exit 5", code=5)
    assert (done.out, done.err) == ("out\n", "err\n")


def test_a_command_reads_what_is_piped_in(flow: Command, machine: str) -> None:
    assert flow("ssh", machine, "tr a-z A-Z", stdin="hello").out == "HELLO"
    assert flow("ssh", machine, stdin="echo from a pipe; exit 3\n", code=3).out == "from a pipe\n"


def test_a_commands_output_comes_as_it_is_written(flow: Command, machine: str) -> None:
    flow("ssh", machine, "true")
    process = subprocess.Popen(
        [FLOW, "ssh", machine, "echo begun; read line; echo got $line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    assert process.communicate("it\n", timeout=30)[0] == "got it\n"


def test_a_shell_on_a_terminal(flow: Command, machine: str, terminal: Any) -> None:
    child = terminal("ssh", machine)
    child.sendline("echo in-$FLOW_TASK_NAME; test -t 0 && echo on-a-terminal; pwd")
    child.expect_exact("in-box\r\n")
    child.expect_exact("on-a-terminal\r\n")
    child.expect_exact("workspace\r\n")
    # In one process, so that the Ctrl-C cannot fall between the two.
    child.sendline("""sh -c "echo s'leepin'g; exec sleep 60" """)
    child.expect_exact("sleeping\r\n")
    child.sendintr()
    # The prompt is back: what is typed before it is thrown away with the Ctrl-C.
    child.expect("[#$] ")
    child.sendline("echo still-$((1 + 1))-here; exit 6")
    child.expect_exact("still-2-here\r\n")
    assert finish(child) == 6
    assert flow_sdk.get_task(machine).status == "running"


def test_json_of_a_command(flow: Command, machine: str) -> None:
    assert flow("ssh", machine, "--json", "echo out; echo err >&2; exit 2", code=2).json == [
        {"exit_code": 2, "stdout": "out\n", "stderr": "err\n"}
    ]
    assert flow("ssh", machine, "--json", code=2).json[0]["error"]["message"] == "A shell has no JSON output."


def test_another_node(flow: Command) -> None:
    flow("run", "sleep 60", "-N", "2", "--name", "two")
    assert flow("ssh", "two", "--node", "1", "--", "sh", "-c", "echo $FLOW_NODE_RANK").out == "1\n"
    assert flow("ssh", "two", "--node", "2", "true", code=2).err.startswith("Error: two has no node 2.")
    flow("cancel", "two")


def test_a_task_that_has_ended_has_no_shell(flow: Command) -> None:
    flow("run", "true", "--name", "over", "--wait")
    task_id = flow_sdk.get_task("over").task_id
    for arguments in (["ssh", "over"], ["upload-code", "over"]):
        done = flow(*arguments, code=2)
        assert done.err.startswith("Error: over has ended (completed), and this needs a running task.")
        assert f"`flow run --from {task_id}` runs it again." in done.err


# flow upload-code, flow download


def test_code_is_brought_into_a_running_task(flow: Command, machine: str, project: Path) -> None:
    flow("ssh", machine, "test ! -e late.py")
    (project / "late.py").write_text("print('late')\n")
    done = flow("upload-code", machine)
    assert done.out == f"The files of {project} are in box ({machine}).\n"
    assert flow("ssh", machine, "python3 late.py").out == "late\n"
    assert flow("upload-code", "box", "--json").json == [{"task_id": machine, "code_root": str(project)}]


def test_files_are_copied_here(flow: Command, project: Path, tmp_path: Path) -> None:
    flow("run", "mkdir -p out/sub; echo 1 > out/a; echo 2 > out/sub/b; echo 3 > c", "--name", "maker", "--wait")
    assert flow("download", "maker", "c").out == "c is in c\n"
    assert (project / "c").read_text() == "3\n"
    flow("download", "maker", "out", str(tmp_path / "here"))
    assert (tmp_path / "here/sub/b").read_text() == "2\n"
    (found,) = flow("download", "maker", "/workspace/out/a", str(tmp_path), "--json").json
    assert found == {"task_id": flow_sdk.get_task("maker").task_id, "path": str(tmp_path / "a")}
    assert (tmp_path / "a").read_text() == "1\n"
    done = flow("download", "maker", "nix", code=4)
    assert done.err == "Error: maker has no file 'nix'.\n  - There is: c, out.\n"


def test_downloading_to_where_one_cannot_write(flow: Command, readonly_dir: Any, tmp_path: Path) -> None:
    flow("run", "echo 1 > a", "--name", "maker", "--wait")
    folder = readonly_dir(tmp_path / "ro")
    assert re.match(r"Error: .*/ro/a: Read-only file system\.", flow("download", "maker", "a", str(folder), code=1).err)


# flow volume, flow mount


def test_volumes(flow: Command, flow_home: Path) -> None:
    assert flow("volume", "list").out == "No volumes found\n"
    made = flow("volume", "create", "--size-gb", "500", "--name", "training-data").out
    (volume,) = flow("volume", "list", "--json").json
    assert set(volume) == {"volume_id", "name", "size_gb", "interface", "region", "created_at"}
    assert (volume["name"], volume["size_gb"], volume["interface"]) == ("training-data", 500, "block")
    assert made.startswith(f"The volume training-data ({volume['volume_id']}) is made: 500 GB.")
    (other,) = flow("volume", "create", "-s", "1", "--interface", "file", "--json").json
    head, first, second = flow("volume", "list").out.splitlines()
    assert head.split() == ["NAME", "ID", "SIZE", "INTERFACE", "REGION", "CREATED"]
    assert first.split()[:5] == [":1", "training-data", volume["volume_id"], "500", "GB"]
    assert second.split()[:2] == [":2", other["name"]]
    assert "is deleted" in flow("volume", "delete", ":2", "--yes").out
    assert flow("volume", "delete", volume["volume_id"], "-y", "--json").json[0]["name"] == "training-data"
    assert flow("volume", "list", "--json").out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create"], "Missing option '-s' / '--size-gb'."),
        (["create", "-s", "0"], "size_gb must be a whole number of GB, not 0."),
        (["create", "-s", "x"], "Invalid value for '-s' / '--size-gb': 'x' is not a valid integer."),
        (["create", "-s", "1", "-n", "Bad Name"], "Invalid volume name 'Bad Name'"),
        (["create", "-s", "1", "--interface", "nfs"], "A volume's interface is 'block' or 'file', not 'nfs'."),
        (["delete"], "Missing argument 'VOLUME...'."),
    ],
)
def test_volumes_that_cannot_be(flow: Command, arguments: list[str], message: str) -> None:
    assert flow("volume", *arguments, code=2).err.startswith(f"Error: {message}")
    assert flow("volume", "list").out == "No volumes found\n"


def test_deleting_asks(flow: Command, terminal: Any) -> None:
    flow("volume", "create", "-s", "1", "-n", "data")
    assert "Add --yes." in flow("volume", "delete", "data", code=2).err
    child = terminal("volume", "delete", "data")
    child.expect_exact("Delete data with all that is in it? [y/N]: ")
    child.sendline("")
    assert finish(child) == 1
    assert flow("volume", "list", "--json").out != ""
    child = terminal("volume", "delete", "data")
    child.expect_exact("[y/N]: ")
    child.sendline("y")
    child.expect_exact("The volume data is deleted.")
    assert finish(child) == 0
    assert flow("volume", "delete", "data", "-y", code=4).err.startswith("Error: There is no volume 'data'.")


def test_one_unknown_volume_deletes_nothing(flow: Command) -> None:
    flow("volume", "create", "-s", "1", "-n", "data")
    flow("volume", "delete", "data", "nix", "--yes", code=4)
    assert len(flow("volume", "list", "--json").json) == 1


def test_a_volume_is_added_to_a_running_task(flow: Command, machine: str) -> None:
    require("root", "mounts")
    flow("volume", "create", "-s", "1", "-n", "first")
    flow("volume", "create", "-s", "1", "-n", "training-data")
    volume_id = flow("volume", "list", "--json").json[1]["volume_id"]
    assert flow("mount", volume_id, machine).out == f"training-data is at /mnt/training-data in box ({machine}).\n"
    flow("ssh", machine, "echo kept > /mnt/training-data/file")
    assert flow("ssh", machine, "cat /mnt/training-data/file").out == "kept\n"
    assert flow("mount", "first", "box", "/mnt/sub/first", "--json").json == [
        {"volume_id": flow("volume", "list", "--json").json[0]["volume_id"], "name": "first", "task_id": machine}
        | {"path": "/mnt/sub/first"}
    ]
    assert not Path("/mnt/training-data").exists()
    assert flow("mount", ":2", ":1", code=2).err.startswith("Error: Mount path /mnt/training-data already in use")
    assert "in use by" in flow("volume", "delete", "first", "--yes", code=2).err


def test_a_path_that_a_running_task_cannot_get(flow: Command, machine: str) -> None:
    require("root", "mounts")
    flow("volume", "create", "-s", "1", "-n", "data")
    done = flow("mount", "data", machine, "/no-such-top-folder", code=6)
    assert "gets no new folder in /" in done.err


def test_a_volume_for_a_task_that_has_ended(flow: Command) -> None:
    flow("volume", "create", "-s", "1", "-n", "data")
    flow("run", "true", "--name", "over", "--wait")
    assert flow("mount", "data", "over", code=2).err.startswith("Error: over has ended")
    assert flow("mount", "nix", "over", code=4).err.startswith("Error: There is no volume 'nix'.")
