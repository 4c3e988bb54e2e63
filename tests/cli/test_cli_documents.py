"""The original documents' examples of the command line, as they are written there."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import flow_sdk
from tests.cli.conftest import Command
from tests.services import require, wait_for

CONFIG = """\
# config.yaml
name: model-training
instance_type: 4xa100
command: python train.py --epochs 100
env:
  BATCH_SIZE: "256"
  LEARNING_RATE: "0.001"
volumes:
  - size_gb: 500
    mount_path: /data
    name: training-data
max_price_per_hour: 20.0
max_run_time_hours: 72.0
ssh_keys:
  - my-ssh-key
"""

TRAIN = """\
import os, sys
open("/data/seen", "w").write("x")
print(sys.argv[1:], os.environ["BATCH_SIZE"], os.environ["LEARNING_RATE"])
"""


def typed(flow: Command, line: str, code: int = 0) -> str:
    """Types a line of the documents, with its comment, and gives its output."""
    program, *words = shlex.split(line, comments=True)
    assert program == "flow"
    return flow(*words, code=code).out


@pytest.fixture
def gone(flow: Command) -> Iterator[None]:
    """Ends at last whatever a test has started."""
    yield
    flow("cancel", "--name-pattern", "*", "--yes")


def test_verify_setup(flow: Command) -> None:
    assert typed(flow, 'flow status\n# Should show "No tasks found" if authenticated') == "No tasks found\n"


def test_flow_version(flow: Command) -> None:
    assert typed(flow, "flow --version").startswith("flow ")


@pytest.mark.parametrize(
    ("line", "hardware"),
    [
        ("flow run --instance-type h100              # Launch H100 instance", "h100"),
        ("flow run -i 8xa100                         # 8x A100 GPUs", "8xa100"),
        ("flow run -i 4xa100                         # 4x A100 GPUs", "4xa100"),
        ("flow run -i h100 --name dev-box           # Named instance", "h100"),
    ],
)
def test_quick_interactive_instances(flow: Command, gone: None, line: str, hardware: str) -> None:
    typed(flow, line)
    (task,) = flow("status", "--json").json
    assert task["hardware"] == hardware
    assert flow("ssh", task["task_id"], "--", "echo", "ready").out == "ready\n"
    if "--name" in line:
        assert task["name"] == "dev-box"


def test_submit_tasks_from_config(flow: Command) -> None:
    require("mounts")
    Path("train.py").write_text(TRAIN)
    Path("config.yaml").write_text(CONFIG)
    Path("job.yaml").write_text(CONFIG)
    typed(flow, "flow run config.yaml                       # From YAML file")
    task = flow_sdk.get_task("model-training").wait(30)
    assert (task.status, task.logs()) == ("completed", "['--epochs', '100'] 256 0.001\n")
    shown = typed(flow, "flow run job.yaml --watch                  # Watch progress")
    assert shown == "['--epochs', '100'] 256 0.001\n"
    (volume,) = flow("volume", "list", "--json").json
    assert (volume["name"], volume["size_gb"]) == ("training-data", 500)


def test_monitor_and_manage_tasks(flow: Command, gone: None) -> None:
    (task,) = flow("run", "echo loss; echo oops >&2; sleep 60", "--json").json
    task_id = task["task_id"]
    wait_for(lambda: "oops" in flow_sdk.get_task(task_id).logs(), what="the output")

    def typed_of_it(line: str) -> str:
        return typed(flow, line.replace("task-abc123", task_id).replace("<task_id>", task_id))

    assert task_id in typed_of_it("flow status                                # List all tasks")
    assert typed_of_it("flow logs task-abc123") == "loss\noops\n"
    assert typed_of_it("flow logs task-abc123 --stderr     # Error output") == "oops\n"
    assert task_id in typed_of_it("flow info <task_id>")
    assert flow("ssh", task_id, stdin="echo $FLOW_TASK_ID\n").out == f"{task_id}\n"
    assert "cancelled" in typed_of_it("flow cancel task-abc123                    # Stop execution")
    assert typed_of_it("flow logs task-abc123 -f                   # Stream logs") == "loss\noops\n"
    assert typed_of_it("flow logs task-abc123 --follow    # Like tail -f") == "loss\noops\n"


def test_cancel_by_pattern(flow: Command, gone: None) -> None:
    for name in ("dev-1", "flow-dev-1", "prod"):
        flow("run", "-i", "cpu", "--name", name)
    # Without a terminal nobody can be asked.
    typed(flow, 'flow cancel --name-pattern "dev-*"         # Cancel all tasks starting with "dev-"', code=2)
    typed(flow, 'flow cancel -n "flow-dev-*" --yes          # Cancel matching tasks without confirmation')
    states = {task["name"]: task["state"] for task in flow("status", "--json").json}
    assert states.pop("flow-dev-1") == "cancelled"
    assert set(states.values()).isdisjoint({"cancelled", "failed", "lost"})


def test_mounting_volumes_into_running_tasks(flow: Command, gone: None) -> None:
    require("root", "mounts")
    flow("volume", "create", "--size-gb", "1", "--name", "other")
    flow("volume", "create", "--size-gb", "1", "--name", "training-data")
    for name in ("gpu-job-1", "gpu-job-2"):
        flow("run", "-i", "cpu", "--name", name)
    typed(flow, "flow mount training-data gpu-job-1      # By names")
    flow("ssh", "gpu-job-1", "echo here > /mnt/training-data/file")
    volume_id = flow("volume", "list", "--json").json[1]["volume_id"]
    task_id = flow_sdk.get_task("gpu-job-2").task_id
    by_ids = "flow mount vol_abc123 task_xyz789      # By IDs"
    typed(flow, by_ids.replace("vol_abc123", volume_id).replace("task_xyz789", task_id))
    assert flow("ssh", "gpu-job-2", "cat /mnt/training-data/file").out == "here\n"
    # The second of the tasks, newest first, gets the first of the volumes.
    typed(flow, "flow mount :1 :2                        # By indices")
    assert flow("ssh", "gpu-job-1", "ls /mnt").out.split().count("other") == 1


def test_uploading_code_again(flow: Command, gone: None, project: Path) -> None:
    flow("run", "-i", "cpu", "--name", "box")
    (project / "new.txt").write_text("new")
    typed(flow, f"flow upload-code {flow_sdk.get_task('box').task_id}  # Upload code changes")
    assert flow("ssh", "box", "cat new.txt").out == "new"


def test_configure(flow: Command, flow_home: Path) -> None:
    # As in a script; the questions of the wizard need a terminal.
    assert flow("init", code=2).err.startswith("Error: ")
    assert not (flow_home / "config.yaml").exists()


def test_an_invalid_instance_type(flow: Command) -> None:
    done = flow("run", "true", "-i", "a100y8", code=2)
    assert done.err.startswith("Error: Invalid instance type 'a100y8'")
    assert "\n  - " in done.err


def test_what_a_failed_task_says(flow: Command) -> None:
    flow("run", "-w", "python train.py", "--no-upload", code=2)
    assert "No such file or directory" in flow("status").out
    done = flow("run", "-w", "python -c 'import torch_of_nobody'", code=1)
    assert "No module named 'torch_of_nobody'" in done.err
    assert "--pip torch_of_nobody" in done.err
    flow("run", "--wait", "sleep 60", "--max-run-time-hours", "0.0001", code=143)
    assert "max_run_time_hours" in flow("info", ":1").out
