"""The README's Python examples, as they are written."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest

import flow_sdk as flow
from flow_sdk.providers.local import LocalProvider
from tests.examples.world import (
    TASK_TIMEOUT_S,
    TESTS_PYTHON,
    World,
    completed,
    fetch,
    files_of_volume,
    port_of_the_example,
    running,
    seen_by,
    shell_output,
    tasks,
)
from tests.services import GitRepo, MotoServer, require, wait_for


def losses(task: flow.Task) -> list[str]:
    return [line for line in task.logs().splitlines() if "loss:" in line]


def test_submit_a_script(both: World) -> None:
    both.gpus("8xH100")
    task = completed(both.run("readme", "Quick Start > 2. Run on GPU", 2)["task"])
    assert len(losses(task)) == 3
    assert seen_by(task)[0].gpus == 8


def test_python_api(both: World, capsys: pytest.CaptureFixture[str]) -> None:
    both.gpus("8xA100")
    task = both.run("readme", "Basic Usage > Python API")["task"]
    simple, full = map(completed, tasks())
    assert full == task
    assert len(losses(simple)) == 3
    seen = seen_by(full)
    assert sorted(int(one.environ["RANK"]) for one in seen) == list(range(8))
    assert {one.gpus for one in seen} == {8}
    assert all(one.mounts["/data"] == {"files": [], "writable": True} for one in seen)
    [volume] = flow.list_volumes()
    assert volume.size_gb == 100
    assert (full.config.max_price_per_hour, full.config.max_run_time_hours) == (25.0, 24.0)
    out = capsys.readouterr().out
    assert "epoch 3 loss:" in out
    assert re.search(r"^Status: (pending|preparing|running)$", out, re.MULTILINE)
    assert f"Shell: flow ssh {task.task_id}\nCost: 0.0\n" in out


def test_code_upload(both: World, images: None) -> None:
    (both.project / "data.bin").write_bytes(b"x")
    (both.project / ".flowignore").write_text("*.bin\n")
    both.run("readme", "Basic Usage > Code Upload")
    uploaded, prebuilt = map(completed, tasks())
    files = completed(flow.run("ls")).logs().split()
    assert {"train.py", "look.py"} <= set(files)
    assert "data.bin" not in files
    assert seen_by(uploaded)[0].script == "train.py"
    assert seen_by(prebuilt)[0].script == "/app/train.py"
    assert seen_by(prebuilt)[0].folder == "/workspace"
    assert completed(flow.run("ls -A", image="mycompany/training:latest", upload_code=False)).logs() == ""


BACKEND = """
import os, zipfile
NAME = "example_package-{version}"
METADATA = "Metadata-Version: 2.1\\nName: example-package\\nVersion: {version}\\n"
def build_wheel(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(os.path.join(folder, NAME + "-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("example_package.py", "VERSION = '{version}'")
        wheel.writestr(NAME + ".dist-info/METADATA", METADATA)
        wheel.writestr(NAME + ".dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(NAME + ".dist-info/RECORD", "")
    return NAME + "-py3-none-any.whl"
"""


def test_dependencies(both: World, images: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    subprocess.run([both.user_python, "-m", "ensurepip", "--default-pip"], check=True, capture_output=True)
    # A project that pip can install without fetching anything: it builds itself. Its version is of this test alone.
    version = f"1.{time.time_ns()}"
    (both.project / "backend.py").write_text(BACKEND.replace("{version}", version))
    (both.project / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        f'[project]\nname = "example-package"\nversion = "{version}"\n'
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv("PIP_ROOT_USER_ACTION", "ignore")
    both.run("readme", "Basic Usage > Handling Dependencies")
    by_pip, by_uv, by_image, by_ecr = map(completed, tasks())
    for task in (by_pip, by_uv):
        assert f"Successfully installed example-package-{version}" in task.logs()
    shown = completed(flow.run("python -c 'import example_package; print(example_package.VERSION)'"))
    assert shown.logs().strip() == version
    here = [sys.executable, "-c", "import example_package; print(example_package.__file__)"]
    installed = subprocess.run(here, capture_output=True, text=True, check=True).stdout
    assert Path(installed).is_relative_to(both.user_python.parent.parent)
    assert [seen_by(task)[0].folder for task in (by_image, by_ecr)] == ["/workspace"] * 2
    assert seen_by(by_ecr)[0].environ["AWS_SECRET_ACCESS_KEY"] == "a-secret"
    assert "a-secret" not in f"{by_ecr!r} {by_ecr.config!r}"
    assert "AWS_SECRET_ACCESS_KEY" not in seen_by(by_image)[0].environ


def test_time_limit(both: World) -> None:
    both.gpus("1xA100")
    both.run("readme", "Guide for SLURM Users > Migration Examples > Basic GPU Job", 2)
    [task] = map(completed, tasks())
    assert task.config.max_run_time_hours == 12


def test_array_of_jobs(both: World) -> None:
    # Fewer GPUs than jobs: they take turns.
    both.gpus("4xA100")
    both.run("readme", "Guide for SLURM Users > Migration Examples > Array Jobs", 1)
    found = [completed(task) for task in tasks()]
    assert [task.name for task in found] == [f"sweep-{i}" for i in range(1, 11)]
    assert [task.logs().splitlines()[-1] for task in found] == [f"experiment {i}" for i in range(1, 11)]


def test_instance_types(both: World) -> None:
    both.gpus("8xA100")
    steps = both.steps("readme", "Instance Types")
    for count, gpus in ((1, "8xA100"), (4, "8xH100"), (8, "8xH100")):
        next(steps)
        # For the next of the three.
        both.gpus(gpus)
        assert seen_by(completed(tasks()[-1]))[0].gpus == count


def test_task_object(both: World) -> None:
    both.gpus("1xA100")
    # The placeholder is the name of a task here.
    named = flow.run("python train.py", name="task-abc123")
    config = flow.TaskConfig(command="python process.py", instance_type="a100")
    task = both.run("readme", "Task Management > Task Object", config=config)["task"]
    assert task == named
    submitted = completed(tasks()[1])
    assert seen_by(submitted)[0].script == "process.py"
    # It had ended before the example cancelled it, and that stays so.
    assert completed(task).exit_code == 0
    assert re.fullmatch(r"task-[0-9a-f]+", task.task_id)
    assert task.shell_command == f"flow ssh {task.task_id}"
    assert task.cost_per_hour == 0.0
    assert 0 <= time.time() - task.created_at.timestamp() < 120


def test_logging(both: World, capsys: pytest.CaptureFixture[str]) -> None:
    task = flow.run("for i in $(seq 300); do echo line $i; done; python train.py")
    wait_for(lambda: "line 300" in task.logs(), 20, "its first lines")
    names = both.run("readme", "Task Management > Logging", task=task)
    assert len(names["logs"].splitlines()) <= 100
    assert [line[:7] for line in capsys.readouterr().out.splitlines() if line] == ["epoch 1", "epoch 2", "epoch 3"]
    assert completed(task).logs(tail=100).splitlines()[-1] == "done"


SHELL_SCRIPT = """
import sys
from {import_name} import get_task
task = get_task(sys.argv[1])
{block}
"""


def test_ssh_access(both: World, images: None) -> None:
    # In an image, for there the code is at /workspace, as the example has it.
    command = "while :; do echo step >> train.log; sleep 0.1; done"
    task = running(flow.run(command, num_instances=2, image="pytorch/pytorch:2.0.0-cuda11.8-cudnn8"))
    block = both.text("readme", "Task Management > SSH Access")
    script = SHELL_SCRIPT.format(import_name=both.import_name, block=block)
    terminal = both.terminal(shlex.join([TESTS_PYTHON, "-c", script, task.task_id]))
    terminal.expect("[#$] ")
    terminal.sendline("echo rank $FLOW_NODE_RANK in $PWD; exit 3")
    terminal.expect("rank 0 in /workspace")
    terminal.expect("No devices were found")
    # The log is followed until it is ended, here from elsewhere.
    for _ in range(3):
        terminal.expect("step")
    shell_output(task, "for p in /proc/[0-9]*; do grep -q ^tail $p/cmdline && kill ${p#/proc/}; done")
    terminal.expect("[#$] ")
    terminal.sendline("echo rank $FLOW_NODE_RANK; exit")
    terminal.expect("rank 1")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_extended_information(both: World, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(os.environ["HOME"]) / ".gitconfig").write_text("[user]\nemail = user@example.invalid\n")
    task = flow.run("sleep 60", num_instances=2)
    wait_for(lambda: [node.status for node in task.get_instances()] == ["running"] * 2, 30, "both nodes")
    both.run("readme", "Task Management > Extended Information", task=task)
    out = capsys.readouterr().out
    assert re.search(r"^Created by: \w+ \(user@example.invalid\)$", out, re.MULTILINE)
    assert out.count("Public IP: 127.0.0.1") == out.count("Private IP: 127.0.0.1") == out.count("Status: running") == 2


def test_volumes(both: World) -> None:
    both.gpus("1xA100")
    steps = both.steps("readme", "Persistent Storage > Volume Management")
    for _, names in steps:
        if "config" in names:
            # Once with the volume by its id, and at the end by its name.
            config = names["config"].replace(command="python train.py --output /data && ls /data")
            assert completed(flow.run(config)).logs().splitlines()[-1] == "model.json"
    [volume] = flow.list_volumes()
    assert (volume.name, volume.size_gb, volume.interface) == ("datasets", 1000, "block")
    assert volume.volume_id == names["vol"].volume_id
    assert [spec.name for spec in names["config"].volumes] == ["datasets"]
    assert seen_by(tasks()[-1])[0].files("/data") == ["model.json"]


def test_mount_a_volume_on_a_running_task(both: World) -> None:
    require("root")
    flow.create_volume(size_gb=10, name="training-data")
    completed(flow.run("echo kept > /v/file", volumes={"/v": "training-data"}))
    task = running(flow.run("until cat /mnt/training-data/file 2>/dev/null; do sleep 0.05; done"))
    both.run("readme", "Persistent Storage > Dynamic Volume Mounting", 1, task=task)
    # The very command that was running sees it.
    assert completed(task).logs() == "kept\n"


def test_docker_cache(both: World, images: None) -> None:
    names = both.run("readme", "Persistent Storage > Docker Cache Optimization")
    seen = seen_by(completed(names["task"]))[0]
    assert seen.mounts["/var/lib/docker"] == {"files": [], "writable": True}
    [volume] = flow.list_volumes()
    assert (volume.name, volume.size_gb, volume.volume_id) == ("docker-cache", 100, names["cache"].volume_id)


def test_data_mounting(both: World, buckets: MotoServer) -> None:
    both.gpus("8xA100")
    both.run("readme", "Data Mounting > Quick Start")
    one, several = map(completed, tasks())
    assert seen_by(one)[0].mounts["/data"] == {"files": ["train.bin"], "writable": False}
    seen = seen_by(several)[0]
    assert seen.mounts["/datasets"] == {"files": ["train.bin"], "writable": False}
    assert seen.mounts["/models"] == seen.mounts["/outputs"] == {"files": [], "writable": True}
    assert seen.gpus == 4
    assert {v.name: v.size_gb for v in flow.list_volumes()} == {"pretrained-models": 100, "training-outputs": 100}


def test_training_pipeline(both: World, buckets: MotoServer) -> None:
    both.gpus("8xA100")
    secrets = {"aws_key": "from-a-secure-source", "aws_secret": "from-there-too"}
    names = both.run("readme", "Data Mounting > Example: Training Pipeline", get_secret=secrets.__getitem__)
    seen = seen_by(completed(names["task"]))[0]
    assert seen.arguments[:4] == ["--data", "/datasets/train", "--validation", "/datasets/val"]
    assert seen.gpus == 8
    assert files_of_volume("experiment-results") == ["model.json"]


def test_one_node_many_gpus(both: World) -> None:
    both.gpus("8xA100")
    config = both.run("readme", "Distributed Training > Single-Node Multi-GPU (Recommended)")["config"]
    seen = seen_by(completed(flow.run(config)))
    assert sorted(int(one.environ["LOCAL_RANK"]) for one in seen) == list(range(8))
    assert {one.environ["WORLD_SIZE"] for one in seen} == {"8"}


def test_many_nodes(both: World) -> None:
    both.gpus("32xA100")
    config = both.run("readme", "Distributed Training > Multi-Node Training")["config"]
    with port_of_the_example(29500):
        task = completed(flow.run(config))
    assert "all 4 nodes met" in task.logs()
    ranks = []
    for node in range(4):
        seen = seen_by(task, node)
        ranks += [int(one.environ["RANK"]) for one in seen]
        # What the user wrote for one node is right on each: the engine's own values count.
        assert {one.environ["FLOW_NODE_RANK"] for one in seen} == {str(node)}
        assert {one.environ["FLOW_NUM_NODES"] for one in seen} == {"4"}
        assert {one.environ["FLOW_MAIN_IP"] for one in seen} == {"127.0.0.1"}
        assert {one.gpus for one in seen} == {8}
    assert sorted(ranks) == list(range(32))


def test_cost_and_environment(both: World, images: None) -> None:
    config = both.run("readme", "Advanced Features > Cost Optimization")["config"]
    assert (config.max_price_per_hour, config.max_run_time_hours, config.command) == (5.0, 12.0, None)
    both.run("readme", "Advanced Features > Environment Setup")
    assert config.image == "pytorch/pytorch:2.0.0-cuda11.8-cudnn8"
    # It names no command, so it is a machine to work on.
    task = running(flow.run(config))
    seen = json.loads(shell_output(task, "python /app/look.py").removeprefix("saw "))
    assert seen["folder"] == "/workspace"
    assert seen["environ"]["WANDB_API_KEY"] == "..."
    assert seen["environ"]["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert shell_output(task, "echo $HF_TOKEN") == "...\n"
    with pytest.raises(flow.ValidationError, match="was submitted"):
        task.config.image = "other"


def test_data_access(both: World, buckets: MotoServer) -> None:
    both.gpus("1xA100")
    names = both.run("readme", "Advanced Features > Data Access")
    seen = seen_by(completed(flow.run(names["config"])))[0]
    assert seen.environ["AWS_ACCESS_KEY_ID"] == seen.environ["AWS_SECRET_ACCESS_KEY"] == "..."
    seen = seen_by(completed(names["task"]))[0]
    assert seen.files("/input") == ["input.txt"]
    shown = completed(flow.run("cat /output/size_bytes.txt", volumes={"/output": "results"}))
    assert shown.logs() == str(len("content of data/input.txt"))


def test_errors(both: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(config: Any) -> str:
        both.run("readme", "Error Handling", config=config)
        return capsys.readouterr().out

    both.gpus("1xA100")
    config = flow.TaskConfig(command="python train.py", instance_type="a100")
    assert printed(config) == ""
    completed(tasks()[0])
    misspelt = printed({"command": "python train.py", "instance_type": "a1000"})
    assert re.match(r"Configuration error: Invalid instance type 'a1000': did you mean a100.*\n  - Use a100", misspelt)
    none_free = printed(config.replace(instance_type="h100"))
    assert none_free.startswith("Error: ") and "h100" in none_free
    # The engine of this machine knows no quotas; a provider that does says so like this.
    spent = flow.QuotaExceededError("GPU quota exceeded in region us-east-1", ["Try a different region."])

    def refuse(self: LocalProvider, config: flow.TaskConfig) -> list[flow.Offer]:
        raise spent

    monkeypatch.setattr(LocalProvider, "offers", refuse)
    assert printed(config) == (
        "Quota exceeded: GPU quota exceeded in region us-east-1\nSuggestions: ['Try a different region.']\n"
    )
    assert len(tasks()) == 1


def test_jupyter(both: World, capsys: pytest.CaptureFixture[str]) -> None:
    both.gpus("1xA100")
    with port_of_the_example(8888):
        task = both.run("readme", "Common Patterns > Interactive Development > Direct Jupyter Notebooks")["task"]
        found = re.search(r"Access at: (\S+)", capsys.readouterr().out)
        assert found
        answer = wait_for(lambda: fetch(found[1]), 20, "the server")
        assert json.loads(answer) == {"task_id": task.task_id}
        task.cancel().wait(timeout=TASK_TIMEOUT_S)
    assert task.status == "cancelled"


def test_checkpointing(both: World) -> None:
    both.gpus("1xA100")
    config = both.run("readme", "Common Patterns > Checkpointing")["config"]
    first, second = completed(flow.run(config)), completed(flow.run(config))
    assert [line.split()[1] for line in losses(first)] == ["1", "2", "3"]
    assert [line.split()[1] for line in losses(second)] == ["4", "5", "6"]


def test_experiment_sweep(both: World) -> None:
    both.gpus("2xA100")
    both.run("readme", "Common Patterns > Experiment Sweep")
    found = [completed(task) for task in tasks()]
    assert [task.name for task in found] == ["exp-lr-0.001", "exp-lr-0.01", "exp-lr-0.1"]
    assert [losses(task)[0].split()[-1] for task in found] == ["0.001", "0.01", "0.1"]
    assert [seen_by(task)[0].environ["WANDB_RUN_NAME"] for task in found] == ["lr_0.001", "lr_0.01", "lr_0.1"]


def test_code_from_git(both: World, git_repo: GitRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    git_repo.commit({"train.py": "print('cloned')\n"}, "a script")
    # The address stands for this repository.
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{git_repo.path}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/myorg/myrepo.git")
    both.gpus("1xA100")
    both.run("readme", "Troubleshooting > Common Errors", 8)
    [task] = map(completed, tasks())
    assert task.logs().splitlines()[-1] == "cloned"


def test_code_in_the_image(both: World, images: None) -> None:
    both.run("readme", "Troubleshooting > Common Errors", 9)
    [task] = map(completed, tasks())
    assert seen_by(task)[0].script == "/app/train.py"


def test_code_from_s3(both: World, moto_server: MotoServer) -> None:
    archive = subprocess.run(["tar", "-C", str(both.project), "-czf", "-", "."], capture_output=True, check=True).stdout
    moto_server.bucket("mybucket", {"code.tar.gz": archive})
    both.gpus("1xA100")
    both.run("readme", "Troubleshooting > Common Errors", 10)
    [task] = map(completed, tasks())
    assert len(losses(task)) == 3


def test_code_on_a_volume(both: World) -> None:
    both.gpus("1xA100")
    completed(flow.run("cp *.py /code/", volumes=[{"name": "my-code", "mount_path": "/code"}]))
    both.run("readme", "Troubleshooting > Common Errors", 11)
    task = completed(tasks()[-1])
    assert seen_by(task)[0].script == "/code/train.py"
