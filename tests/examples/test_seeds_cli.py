"""The README's examples of the `flow` command and its YAML files, as they are written."""

from __future__ import annotations

import os
from pathlib import Path

import pexpect
import pytest

import flow_sdk as flow
from flow_sdk import settings
from tests.examples.world import World, completed, port_of_the_example, running, seen_by, shell_output, tasks
from tests.services import require


def states() -> dict[str, str]:
    return {task.name: task.status for task in tasks()}


def end(child: pexpect.spawn) -> int:
    child.expect(pexpect.EOF)
    child.close()
    return int(child.exitstatus)


def test_an_interactive_machine(world: World) -> None:
    world.gpus("8xH100")
    start, _ = world.commands("readme", "Quick Start > 2. Run on GPU", 1)
    printed = world.shell(start)
    [task] = tasks()
    assert task.task_id in printed
    placeholder = {"<task-id>": task.task_id}
    _, ssh = world.commands("readme", "Quick Start > 2. Run on GPU", 1, replace=placeholder)
    terminal = world.terminal(ssh)
    terminal.sendline("echo on $FLOW_TASK_ID; exit 4")
    terminal.expect(f"on {task.task_id}")
    assert end(terminal) == 4
    world.shell(f"flow cancel {task.task_id}")
    assert task.status == "cancelled"


def test_init(world: World) -> None:
    [init] = world.commands("readme", "Authentication", 0)
    terminal = world.terminal(init)
    terminal.expect("Provider.*: ")
    terminal.sendline("")
    terminal.expect("API key.*: ")
    terminal.sendline("fcp-a-key-of-mine")
    terminal.expect("Project.*: ")
    terminal.sendline("my-project")
    terminal.expect("Region.*: ")
    terminal.sendline("us-central1-b")
    terminal.expect("SSH keys.*: ")
    terminal.sendline("")
    if terminal.expect(["Complete words.*: ", pexpect.EOF]) == 0:
        terminal.sendline("n")
        terminal.expect(pexpect.EOF)
    assert "fcp-a-key-of-mine" not in (terminal.before or "")
    terminal.close()
    assert terminal.exitstatus == 0
    path = Path(os.environ["FLOW_HOME"]) / "config.yaml"
    assert path.stat().st_mode & 0o777 == 0o600
    found = settings.load()
    assert (found.api_key, found.project, found.region) == ("fcp-a-key-of-mine", "my-project", "us-central1-b")


def test_settings_from_the_environment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    script = world.text("readme", "Authentication", 1) + "env | grep ^FCP_"
    for line in world.shell(script).splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    assert (settings.load().api_key, settings.load().project) == ("fcp-...", "my-project")
    # With an account in the environment, and no task yet.
    [status] = world.commands("readme", "Authentication", 3)
    assert "No tasks found" in world.shell(world.text("readme", "Authentication", 1) + status)


def test_settings_from_a_file(world: World) -> None:
    home = Path(os.environ["FLOW_HOME"])
    home.mkdir()
    (home / "config.yaml").write_text(world.text("readme", "Authentication", 2))
    found = settings.load()
    assert (found.api_key, found.project, found.region) == ("fcp-...", "my-project", "us-central1-b")
    [status] = world.commands("readme", "Authentication", 3)
    assert "No tasks found" in world.shell(status)
    assert "fcp-..." not in repr(found)


def test_command_line(world: World) -> None:
    heading = "Basic Usage > Command Line"
    (world.project / "config.yaml").write_text(world.text("readme", "Basic Usage > YAML Configuration"))
    place = "Guide for SLURM Users > Migration Examples > Basic GPU Job"
    (world.project / "job.yaml").write_text(world.text("readme", place, 1))
    # The placeholder is the name of a task here, and one whose name begins as the last pattern says.
    world.gpus("64xA100")
    placeholder = flow.run("python train.py; sleep 100", name="task-abc123")
    flow.run("sleep 100", name="flow-dev-1")
    lines = iter(world.commands("readme", heading))
    for gpus, hardware in (("64xH100", "h100"), ("64xA100", "8xa100"), ("64xA100", "4xa100"), ("64xH100", "h100")):
        world.gpus(gpus)
        world.shell(next(lines))
        task = running(tasks()[-1])
        assert (str(task.config.hardware), task.config.command) == (hardware, None)
        wanted = {"8xa100": 8, "4xa100": 4}.get(hardware, 1)
        assert len(shell_output(task, "nvidia-smi").splitlines()) == wanted
        if task.name != "dev-box":
            task.cancel().wait(timeout=20)
    assert task.name == "dev-box"

    world.gpus("64xA100")
    world.shell(next(lines))
    training = completed(tasks()[-1])
    assert training.name == "model-training"
    seen = seen_by(training)[0]
    assert seen.arguments == ["--epochs", "100"]
    assert (seen.environ["BATCH_SIZE"], seen.environ["LEARNING_RATE"]) == ("256", "0.001")
    assert seen.mounts["/data"] == {"files": [], "writable": True}
    assert seen.gpus == 4
    assert [(v.name, v.size_gb) for v in flow.list_volumes()] == [("training-data", 500)]
    config = training.config
    assert (config.max_price_per_hour, config.max_run_time_hours, config.ssh_keys) == (20.0, 72.0, ["my-ssh-key"])

    watched = world.shell(next(lines))
    assert "epoch 3 loss:" in watched
    assert tasks()[-1].status == "completed"

    listed = world.shell(next(lines))
    assert "task-abc123" in listed and "dev-box" in listed

    follow = world.terminal(next(lines))
    follow.expect("epoch 3 loss:")
    follow.sendintr()
    assert end(follow) == 130
    assert placeholder.status == "running"

    ssh = world.terminal(next(lines))
    ssh.sendline("echo on $FLOW_TASK_NAME; exit")
    ssh.expect("on task-abc123")
    end(ssh)

    world.shell(next(lines))
    assert placeholder.status == "cancelled"

    by_pattern = next(lines)
    refused = world.shell(by_pattern, code=2)
    assert states()["dev-box"] == "running", refused
    asked = world.terminal(by_pattern)
    asked.expect("Cancel")
    asked.sendline("y")
    assert end(asked) == 0
    assert (states()["dev-box"], states()["flow-dev-1"]) == ("cancelled", "running")
    world.shell(next(lines))
    assert states()["flow-dev-1"] == "cancelled"
    assert next(lines, None) is None


def test_logs(world: World) -> None:
    (world.project / "slurm-12345.out").write_text("what SLURM wrote\n")
    completed(flow.run("echo out; echo err >&2", name="task-abc123"))
    printed = [world.shell(line) for line in world.commands("readme", "Guide for SLURM Users > Log Access")]
    assert printed == ["what SLURM wrote\n", "out\nerr\n", "out\nerr\n", "err\n"]


def test_yaml_of_a_job(world: World) -> None:
    world.gpus("1xA100")
    place = "Guide for SLURM Users > Migration Examples > Basic GPU Job"
    (world.project / "job.yaml").write_text(world.text("readme", place, 1))
    task = completed(flow.run(flow.TaskConfig.from_yaml("job.yaml")))
    assert (task.name, task.config.max_run_time_hours) == ("train-model", 12.0)


def test_yaml_of_many_nodes(world: World) -> None:
    world.gpus("32xA100")
    place = "Guide for SLURM Users > Migration Examples > Multi-GPU Training"
    (world.project / "job.yaml").write_text(world.text("readme", place, 1))
    with port_of_the_example(29500):
        assert "all 4 nodes met" in world.shell("flow run job.yaml --watch")
    [task] = tasks()
    ranks = [int(seen.environ["RANK"]) for node in range(4) for seen in seen_by(task, node)]
    assert sorted(ranks) == list(range(32))


def test_yaml_of_an_image(world: World, images: None) -> None:
    image = world.text("readme", "Guide for SLURM Users > Advanced Features", 0)
    (world.project / "job.yaml").write_text(image + "command: python train.py\n")
    world.shell("flow run job.yaml --watch")
    [task] = tasks()
    assert task.config.image == "pytorch/pytorch:2.0.0-cuda11.8-cudnn8"
    assert seen_by(task)[0].folder == "/workspace"


def test_mount_on_a_running_task(world: World) -> None:
    require("root")
    heading = "Persistent Storage > Dynamic Volume Mounting"
    first = flow.create_volume(size_gb=10, name="first")
    flow.create_volume(size_gb=10, name="training-data")
    flow.create_volume(size_gb=10, name="other")
    named = {"vol_abc123": first.volume_id, "<volume>": "other", "<task>": "gpu-job-1"}
    # The newest is :1, as `flow status` lists them.
    started = [running(flow.run("sleep 100", name=name)) for name in ("task_xyz789", "by-index", "gpu-job-1")]
    for line in world.commands("readme", heading, replace=named):
        world.shell(line)
    names = "first", "other", "training-data"
    mounted = {task.name: [n for n in names if shell_output(task, f"mountpoint /mnt/{n}")] for task in started}
    assert mounted == {
        "task_xyz789": ["first"],
        "by-index": ["first"],
        "gpu-job-1": ["other", "training-data"],
    }
