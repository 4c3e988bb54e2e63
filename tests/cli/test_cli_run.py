"""`flow run` without following: what it takes, what it starts, what it says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import flow_sdk
from flow_sdk.taskdir import TaskDir
from tests.cli.conftest import Command
from tests.services import require

TASK_KEYS = {
    "task_id",
    "name",
    "state",
    "hardware",
    "num_instances",
    "provider",
    "created_at",
    "started_at",
    "ended_at",
    "duration_s",
    "exit_code",
    "reason",
    "price_per_hour_usd",
    "cost_usd",
    "tags",
}


def output(flow: Command, *arguments: str, **environ: str) -> str:
    """What the task wrote that `flow run` with these arguments starts."""
    return flow("run", "--watch", *arguments, **environ).out


def config_of(flow: Command, *arguments: str, code: int = 0) -> dict[str, object]:
    return flow("run", "--dry-run", "--json", *arguments, code=code).json[0]["config"]


# The command


def test_a_shell_line(flow: Command) -> None:
    assert output(flow, "echo a && echo $((1 + 2)) | tr 3 x") == "a\nx\n"


def test_a_script_of_several_lines(flow: Command) -> None:
    assert output(flow, "x=1\nfor i in a b; do\n  echo $x$i\ndone") == "1a\n1b\n"


def test_a_long_shell_line(flow: Command) -> None:
    assert output(flow, f"echo {'x' * 50_000} | wc -c") == "50001\n"


def test_words_behind_dashes_are_taken_as_they_are(flow: Command) -> None:
    assert output(flow, "--", "printf", "%s|", "a  b", "$HOME", "--json", "*") == "a  b|$HOME|--json|*|"


@pytest.mark.parametrize(
    ("name", "content", "shown"),
    [
        ("train.py", "import sys; print('py', sys.argv)", "py ['train.py']\n"),
        ("my train.py", "print('space')", "space\n"),
        ("-dash.py", "print('dash')", "dash\n"),
        ("job.sh", "echo sh $0", "sh job.sh\n"),
        ("sub/deep.py", "import os; print(os.path.basename(os.getcwd()))", "workspace\n"),
    ],
)
def test_a_script_is_run_by_its_interpreter(flow: Command, name: str, content: str, shown: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(content)
    assert output(flow, "--", name) == shown


def test_an_executable_file_runs_itself(flow: Command) -> None:
    Path("tool").write_text("#!/bin/sh\necho tool\n")
    Path("tool").chmod(0o755)
    assert output(flow, "tool") == "tool\n"


def test_a_command_wins_over_a_file_of_its_name(flow: Command) -> None:
    Path("uname").write_text("no program")
    assert output(flow, "uname") == f"{os.uname().sysname}\n"


def test_a_file_that_nothing_runs_is_an_error(flow: Command) -> None:
    Path("job.slurm").write_text("#SBATCH --nodes=2\n")
    done = flow("run", "job.slurm", code=2)
    assert done.err.startswith("Error: Flow cannot tell how to run the file job.slurm.")
    assert "flow run 'bash job.slurm'" in done.err
    assert flow("status").out == "No tasks found\n"


def test_a_file_outside_of_the_folder_is_an_error(flow: Command, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print(1)")
    done = flow("run", "../train.py", code=2)
    assert "is outside of this folder" in done.err
    assert f"cd '{tmp_path}'" in done.err or f"cd {tmp_path}" in done.err
    assert output(flow, "--no-upload", str(tmp_path / "train.py")) == "1\n"


def test_an_absolute_path_within_the_folder_is_the_uploaded_file(flow: Command, project: Path) -> None:
    (project / "where.py").write_text("import os; print(os.path.abspath(__file__))")
    shown = output(flow, str(project / "where.py"))
    assert shown.endswith("workspace/where.py\n")
    assert str(project) not in shown


def test_nothing_to_run_starts_nothing(flow: Command) -> None:
    assert "What shall run?" in flow("run", "--name", "x", code=2).err
    assert flow("run", "", code=2).err.startswith("Error: ")
    assert flow("status").out == "No tasks found\n"


# Options


def test_options_become_the_config(flow: Command) -> None:
    options = (
        *("-i", "A100x8", "-n", "exp-1", "-N", "2", "--pip", "numpy", "--pip", "torch>=2", "--port", "8888"),
        *("--tag", "a", "--tag", "b", "--max-price-per-hour", "5", "--max-run-time-hours", "0.5", "--retries", "2"),
        *("--working-dir", "src", "--no-upload", "--provider", "local", "--region", "local"),
        *("--volume", "data:/data", "--volume", "models", "--mount", "/input=volume://in"),
    )
    assert config_of(flow, "python train.py", *options) == {
        "command": "python train.py",
        "instance_type": "8xa100",
        "name": "exp-1",
        "num_instances": 2,
        "pip": ["numpy", "torch>=2"],
        "ports": [8888],
        "tags": ["a", "b"],
        "max_price_per_hour": 5.0,
        "max_run_time_hours": 0.5,
        "retries": 2,
        "working_dir": "src",
        "upload_code": False,
        "provider": "local",
        "region": "local",
        "volumes": [{"name": "data", "mount_path": "/data"}, {"name": "models", "mount_path": "/mnt/models"}],
        "mounts": {"/input": "volume://in"},
    }


def test_environment_by_value_and_from_here(flow: Command) -> None:
    shown = output(flow, 'echo "$A|$B|$C"', "-e", "A=x=y z", "--env", "B", "-e", "C=", B="from here")
    assert shown == "x=y z|from here|\n"


def test_a_variable_that_is_not_set_here_is_an_error(flow: Command) -> None:
    done = flow("run", "true", "-e", "NOT_SET_HERE", code=2)
    assert (
        done.err == "Error: The environment variable NOT_SET_HERE is not set here.\n  - Write -e NOT_SET_HERE=VALUE.\n"
    )


def test_a_bare_source_is_mounted_at_data(flow: Command, tmp_path: Path) -> None:
    assert config_of(flow, "true", "--mount", "volume://datasets")["mounts"] == {"/data": "volume://datasets"}
    assert config_of(flow, "true", "--mount", str(tmp_path))["mounts"] == {"/data": str(tmp_path)}


def test_two_mounts_at_one_path_are_refused(flow: Command) -> None:
    done = flow("run", "true", "--mount", "volume://a", "--mount", "volume://b", code=2)
    assert done.err.startswith("Error: Mount path /data already in use")


def test_the_env_is_never_shown(flow: Command) -> None:
    secret = "hunter2-secret"
    task_id = flow("run", "true", "-e", f"TOKEN={secret}", "--json", "--name", "t").json[0]["task_id"]
    flow("run", "true", "--wait", "--name", "u")
    shown = [
        flow("run", "true", "-e", f"TOKEN={secret}", "--dry-run"),
        flow("run", "true", "-e", f"TOKEN={secret}", "--dry-run", "--json"),
        flow("run", "--from", task_id, "--dry-run"),
        flow("info", task_id),
        flow("info", task_id, "--json"),
        flow("status", "--json"),
    ]
    for done in shown:
        assert secret not in done.out + done.err
    assert all("TOKEN" in done.out for done in shown[:5])


# YAML


YAML = """\
name: model-training
instance_type: 4xa100
command: echo "$BATCH_SIZE $LEARNING_RATE"
env:
  BATCH_SIZE: "256"
  LEARNING_RATE: "0.001"
tags: [base]
retries: 3
"""


def test_a_yaml_file(flow: Command) -> None:
    Path("config.yaml").write_text(YAML)
    assert output(flow, "config.yaml") == "256 0.001\n"


def test_options_win_over_the_yaml_file(flow: Command) -> None:
    Path("job.yml").write_text(YAML)
    assert "retries" not in config_of(flow, "job.yml", "--retries", "0")
    found = config_of(
        flow, "job.yml", "--gpu", "h100", "-n", "other", "-e", "BATCH_SIZE=1", "-e", "NEW=2", "--tag", "more"
    )
    assert found["gpu"] == "h100"
    assert "instance_type" not in found
    assert found["name"] == "other"
    assert found["env"] == ["BATCH_SIZE", "LEARNING_RATE", "NEW"]
    assert found["tags"] == ["base", "more"]
    assert output(flow, "job.yml", "-e", "BATCH_SIZE=1") == "1 0.001\n"


def test_a_yaml_file_that_is_not_there(flow: Command) -> None:
    Path("config.yaml").write_text(YAML)
    done = flow("run", "confg.yaml", code=2)
    assert done.err == "Error: There is no file confg.yaml.\n  - Did you mean config.yaml?\n"


def test_a_mistake_in_the_yaml_file_names_its_line(flow: Command) -> None:
    Path("config.yaml").write_text("command: true\ninstance_typ: a100\n")
    done = flow("run", "config.yaml", code=2)
    assert "config.yaml, line 2" in done.err
    assert "instance_type" in done.err


# What it says


def test_what_it_says_is_what_to_type_next(flow: Command) -> None:
    done = flow("run", "true", "--name", "one")
    first, *rest = done.out.splitlines()
    task_id = flow("status", "--json").json[0]["task_id"]
    assert first == f"one is submitted: {task_id}, on this machine."
    assert [line.split()[:4] for line in rest] == [
        ["flow", "logs", "-f", task_id],
        ["flow", "status", task_id, "see"],
        ["flow", "cancel", task_id, "end"],
    ]
    for line in rest:
        typed = line.split("  ")[1].split()[1:]
        assert flow(*typed).code == 0


def test_a_missing_gpu_is_said_once_in_one_line(flow: Command) -> None:
    done = flow("run", "true", "-i", "h100", "--wait")
    assert done.err.count("has no h100") == 1


def test_an_interactive_machine(flow: Command) -> None:
    done = flow("run", "--instance-type", "h100")
    task_id = flow("status", "--json").json[0]["task_id"]
    assert f"flow ssh {task_id}" in done.out
    assert flow("ssh", task_id, "--", "echo", "inside").out == "inside\n"
    assert "ready: flow ssh" in flow("run", "-i", "cpu", "--watch").err
    assert len(flow("cancel", "-n", "machine-*", "--yes").out.splitlines()) == 2


def test_json(flow: Command) -> None:
    (task,) = flow("run", "sleep 0.1; echo hi", "--name", "j", "--tag", "t", "--json").json
    assert set(task) == {*TASK_KEYS, "note"}
    assert (task["name"], task["hardware"], task["tags"]) == ("j", "cpu", ["t"])
    flow_sdk.get_task(task["task_id"]).wait(20)


def test_json_with_watch_is_task_lines_task(flow: Command) -> None:
    first, *lines, last = flow("run", "--watch", "--json", "echo out; sleep 0.1; echo err >&2; exit 4", code=4).json
    assert lines == [
        {"task_id": first["task_id"], "stream": "stdout", "line": "out"},
        {"task_id": first["task_id"], "stream": "stderr", "line": "err"},
    ]
    assert set(last) == TASK_KEYS
    assert (last["task_id"], last["state"], last["exit_code"]) == (first["task_id"], "failed", 4)


# Dry runs


def test_a_dry_run_starts_nothing(flow: Command) -> None:
    Path("train.py").write_text("print(1)\n")
    done = flow("run", "train.py", "--gpu", "a100:4", "-e", "TOKEN=x", "--dry-run")
    assert "command: python train.py" in done.out
    assert "gpu: 4xa100" in done.out
    assert "TOKEN" in done.out
    assert "1 file, " in done.out
    assert done.out.endswith("Nothing was started.\n")
    assert flow("status").out == "No tasks found\n"


def test_a_dry_run_as_json(flow: Command) -> None:
    (plan,) = flow("run", "true", "--dry-run", "--json").json
    assert set(plan) == {"config", "offer", "code"}
    assert set(plan["offer"]) == {"instance_type", "region", "note", "price_per_hour_usd"}
    assert plan["offer"]["price_per_hour_usd"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["true", "--region", "mars"], 2, "Error: The local engine has no region 'mars'."),
        (["true", "--provider", "nix"], 2, "Error: There is no provider 'nix' here."),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(flow: Command, arguments: list[str], code: int, message: str) -> None:
    for dry in ([], ["--dry-run"]):
        assert flow("run", *arguments, *dry, code=code).err.startswith(message)
    assert flow("status").out == "No tasks found\n"


def test_a_dry_run_asks_for_aws_keys_as_a_run_does(flow: Command) -> None:
    require("s3fs")
    for dry in ([], ["--dry-run"]):
        done = flow("run", "true", "--mount", "s3://bucket", *dry, code=3)
        assert done.err.startswith("Error: An s3:// mount needs AWS credentials")


def test_a_project_over_the_limit_starts_nothing(flow: Command, project: Path) -> None:
    (project / "big.bin").write_bytes(os.urandom(11_000_000))
    for dry in ([], ["--dry-run"]):
        done = flow("run", "true", *dry, code=2)
        assert "exceeds limit (10MB)" in done.err
        assert "big.bin" in done.err
    assert flow("status").out == "No tasks found\n"


# Again


def test_from_runs_the_same_code_and_config_again(flow: Command) -> None:
    Path("train.py").write_text("import os; print('first', os.environ['LR'])\n")
    flow("run", "train.py", "--name", "first", "-e", "LR=1", "--tag", "t", "--wait")
    Path("train.py").write_text("print('changed')\n")
    assert output(flow, "--from", "first") == "first 1\n"
    assert output(flow, "--from", "first", "-e", "LR=2") == "first 2\n"
    again, _ = flow("status", "--json", "--limit", "2").json
    assert again["tags"] == ["t"]
    assert output(flow, "--from", "first", "echo other") == "other\n"
    plan = flow("run", "--from", "first", "--dry-run").out
    assert "as task-" in plan


def test_from_with_a_yaml_file_is_refused(flow: Command) -> None:
    flow("run", "true", "--name", "first", "--wait")
    Path("config.yaml").write_text(YAML)
    assert "takes no YAML file" in flow("run", "--from", "first", "config.yaml", code=2).err


def test_from_asks_for_values_that_were_not_kept(flow: Command) -> None:
    flow("run", "echo $TOKEN", "--name", "first", "-e", "TOKEN=x", "--wait")
    TaskDir(flow_sdk.get_task("first").task_id).secrets_json.unlink()
    done = flow("run", "--from", "first", code=2)
    assert done.err == (
        "Error: The values of TOKEN were not kept with the task.\n  - Give them again: -e TOKEN=VALUE.\n"
    )
    assert output(flow, "--from", "first", "-e", "TOKEN=y") == "y\n"


def test_from_a_task_that_is_not_there(flow: Command) -> None:
    assert flow("run", "--from", "nix", code=4).err.startswith("Error: There is no task 'nix'.")
