"""The errors that the README lists: their messages, and that what it advises helps."""

from __future__ import annotations

import os
import re

import flow_sdk as flow
from tests.examples.world import World, completed, tasks

HEADING = "Troubleshooting > Common Errors"


def listed(world: World, index: int) -> str:
    """The listed message without the word in front of it."""
    return world.text("readme", HEADING, index).strip().partition(": ")[2]


def refused(world: World, command: str, code: int) -> str:
    """What `flow` says as it refuses to start something."""
    told = world.shell(f"{command} 2>&1", code=code)
    assert tasks() == []
    return told


def test_no_available_instances(world: World) -> None:
    world.gpus("1xH100")
    message = listed(world, 1)
    told = refused(world, "flow run 'python train.py' -i a100", 5)
    assert told.startswith(f"Error: {message}")
    assert "NVIDIA H100" in told


def test_invalid_instance_type(world: World) -> None:
    listed_type = re.search(r"'(.*)'", listed(world, 3))
    assert listed_type
    # This spelling means what it says now.
    world.gpus("8xA100")
    completed(flow.run("python train.py", instance_type=listed_type[1]))
    assert tasks()[0].config.instance_type == "8xa100"


def test_invalid_instance_type_names_the_right_one(world: World) -> None:
    told = refused(world, "flow run 'python train.py' -i a100-x8", 2)
    assert told.startswith("Error: Invalid instance type 'a100-x8': did you mean 8xa100?")


def test_time_is_up(world: World) -> None:
    message = listed(world, 4)
    told = world.shell("flow run 'sleep 100' --max-run-time-hours 0.0001 --watch 2>&1", code=143)
    assert message in told
    [task] = tasks()
    assert (task.status, task.reason and message in task.reason) == ("timed_out", True)


def test_file_not_found(world: World) -> None:
    world.shell("flow run 'python train.py' --no-upload --watch", code=2)
    [task] = tasks()
    program, _, rest = world.text("readme", HEADING, 5).strip().partition(": ")
    assert program == "python" and rest.startswith("can't open file")
    assert re.search(r"can't open file '.*train.py': .*No such file or directory", task.reason or "")
    completed(flow.run("python train.py"))


def test_module_not_found(world: World) -> None:
    (world.project / "train.py").write_text("import no_such_module_here\n")
    world.shell("flow run 'python train.py' --watch", code=1)
    [task] = tasks()
    expected = world.text("readme", HEADING, 6).strip().replace("torch", "no_such_module_here")
    assert task.reason and expected in task.reason
    assert "pip" in task.reason


def test_upload_size_limit(world: World) -> None:
    (world.project / "model.bin").write_bytes(os.urandom(15_200_000))
    # The size is carried forward from the part that was read.
    expected = re.sub(r"15\\.2MB", r"(about )?15\\.[0-9]MB", re.escape(listed(world, 7)))
    told = refused(world, "flow run 'python train.py'", 2)
    assert re.match(f"Error: {expected}", told), told
    assert "model.bin" in told
    for advice in (".flowignore", "git clone", "image", "s3", "volume"):
        assert advice in told.lower()
    (world.project / ".flowignore").write_text("*.bin\n")
    completed(flow.run("python train.py"))
