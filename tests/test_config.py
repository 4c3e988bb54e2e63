"""TaskConfig: what it takes, what it stores, and what each mistake is told."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow_sdk import hardware
from flow_sdk.config import TaskConfig, VolumeSpec
from flow_sdk.errors import ValidationError
from tests.services import ROOT

SECRET = "hunter2-do-not-show"


def refused(**fields: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        TaskConfig(**fields)
    error = caught.value
    assert type(error) is ValidationError
    assert "\n" not in error.message
    assert error.message.endswith((".", "?"))
    return error


# The original documents' examples


def test_the_full_configuration() -> None:
    config = TaskConfig(
        name="distributed-training",
        instance_type="8xa100",
        command=["python", "-m", "torch.distributed.launch", "--nproc_per_node=8", "train.py"],
        volumes=[{"size_gb": 100, "mount_path": "/data"}],
        max_price_per_hour=25.0,
        max_run_time_hours=24.0,
    )
    assert config.command == ["python", "-m", "torch.distributed.launch", "--nproc_per_node=8", "train.py"]
    assert config.volumes == [VolumeSpec(mount_path="/data")]
    assert config.hardware == hardware.parse("a100:8")
    assert (config.max_price_per_hour, config.max_run_time_hours) == (25.0, 24.0)


def test_fields_are_assigned_one_by_one() -> None:
    config = TaskConfig(name="training", instance_type="a100", command="python train.py")
    config.image = "pytorch/pytorch:2.0.0-cuda11.8-cudnn8"
    config.env = {"WANDB_API_KEY": "...", "HF_TOKEN": "...", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    config.working_dir = "/workspace"
    config.volumes = [{"name": "datasets", "mount_path": "/data"}]  # type: ignore[list-item]
    assert config.volumes == [VolumeSpec(name="datasets", mount_path="/data")]
    assert config.to_json() == {
        "name": "training",
        "instance_type": "a100",
        "command": "python train.py",
        "image": "pytorch/pytorch:2.0.0-cuda11.8-cudnn8",
        "env": {"WANDB_API_KEY": "...", "HF_TOKEN": "...", "CUDA_VISIBLE_DEVICES": "0,1,2,3"},
        "working_dir": "/workspace",
        "volumes": [{"name": "datasets", "mount_path": "/data"}],
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "exp-lr-0.001", "instance_type": "a100", "env": {"WANDB_RUN_NAME": "lr_0.001"}},
        {"name": "notebook", "command": "jupyter lab --ip=0.0.0.0 --no-browser", "ports": [8888]},
        {"command": "python train.py", "volumes": [{"volume_id": "vol_abc", "mount_path": "/var/lib/docker"}]},
        {
            "command": "python /code/train.py",
            "volumes": [{"name": "my-code", "mount_path": "/code"}],
            "upload_code": False,
        },
        {"image": "123456789.dkr.ecr.us-east-1.amazonaws.com/my-ml-image:latest", "instance_type": "a100"},
        {"gpu": "h100:8", "image": "pytorch/pytorch:2.0.0", "volumes": {"/data": "training-data"}},
        {"gpu": "a100", "mounts": {"/input": "s3://my-bucket/data/", "/output": "volume://results"}},
        {"instance_type": "cpu-optimized", "mounts": "s3://my-bucket"},
        {"command": "\n        python train.py \\\n            --data /data\n        ", "gpu": "a100:4"},
        {"name": "train-model", "max_run_time_hours": 12},
        {"instance_type": "8xa100", "num_instances": 4, "env": {"FLOW_NODE_RANK": "0", "FLOW_MAIN_IP": "10.0.0.1"}},
    ],
)
def test_other_examples_are_taken(fields: dict[str, Any]) -> None:
    config = TaskConfig(**fields)
    assert TaskConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_the_yaml_example(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        """\
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
    )
    assert TaskConfig.from_yaml(tmp_path / "config.yaml") == TaskConfig(
        name="model-training",
        instance_type="a100:4",
        command="python train.py --epochs 100",
        env={"BATCH_SIZE": "256", "LEARNING_RATE": "0.001"},
        volumes=[{"size_gb": 500, "mount_path": "/data", "name": "training-data"}],
        max_price_per_hour=20,
        max_run_time_hours=72,
        ssh_keys=["my-ssh-key"],
    )


# Defaults and canonical values


def test_defaults() -> None:
    config = TaskConfig()
    assert config.command is None
    assert (config.num_instances, config.upload_code, config.retries) == (1, True, 0)
    assert config.hardware is None
    assert config.to_json() == {}
    assert TaskConfig(**dict.fromkeys(TaskConfig.model_fields)) == config


def test_defaults_are_not_shared() -> None:
    TaskConfig().tags.append("x")
    assert TaskConfig().tags == []


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        ("command", "a\nb\n", "a\nb\n"),
        ("command", ["python", "a b.py", "", "--x='1'"], ["python", "a b.py", "", "--x='1'"]),
        ("command", ("python", "x.py", 10, 0.5, True), ["python", "x.py", "10", "0.5", "true"]),
        ("command", "python 'ü \"x\".py'", "python 'ü \"x\".py'"),
        ("instance_type", "A100x8", "8xa100"),
        ("gpu", "A100:4", "4xa100"),
        ("gpu", "a100", "a100"),
        ("num_instances", 4.0, 4),
        ("image", " ubuntu ", "ubuntu"),
        ("image", "localhost:5000/a/b_c__d--e:v1.2", "localhost:5000/a/b_c__d--e:v1.2"),
        ("image", "r.example/a@sha256:" + "0" * 64, "r.example/a@sha256:" + "0" * 64),
        ("env", {"A": True, "B": False, "C": 3, "D": 0.001, "E": "", "F": 1e-05}, None),
        ("env", ["A=1", "B=x=y", "C="], {"A": "1", "B": "x=y", "C": ""}),
        ("mounts", "s3://my-bucket/", {"/data": "s3://my-bucket"}),
        ("mounts", ["/a=volume://b"], {"/a": "volume://b"}),
        ("ports", 8888, [8888]),
        ("ports", (1, 65535), [1, 65535]),
        ("ssh_keys", "my-key", ["my-key"]),
        ("max_price_per_hour", 5, 5.0),
        ("max_run_time_hours", 0.5, 0.5),
        ("pip", "torch numpy", ["torch", "numpy"]),
        ("pip", ["torch >= 2.1", "x; python_version < '3.12'"], ["torch >= 2.1", "x; python_version < '3.12'"]),
        ("pip", ["torch", "torch"], ["torch"]),
        ("tags", "sweep", ["sweep"]),
        ("tags", ["a", "lr=0.1", "a"], ["a", "lr=0.1"]),
        ("region", "us-central1-b", "us-central1-b"),
        ("provider", "local", "local"),
    ],
)
def test_what_is_stored(field: str, value: Any, stored: Any) -> None:
    if stored is None:
        stored = {"A": "true", "B": "false", "C": "3", "D": "0.001", "E": "", "F": "1e-05"}
    config = TaskConfig(**{field: value})
    assert getattr(config, field) == stored
    assert type(getattr(config, field)) is type(stored)
    assert TaskConfig(**{field: stored}) == config


@pytest.mark.parametrize("name", ["a", "A1", "exp-lr-0.001", "sweep_3", "x" * 64, "0", "flow-dev-1"])
def test_names(name: str) -> None:
    assert TaskConfig(name=name).name == name


def test_hardware_of_both_fields() -> None:
    assert TaskConfig(instance_type="h100").hardware == hardware.parse("h100")
    assert TaskConfig(gpu="h100").hardware == hardware.parse("1xh100")
    assert TaskConfig(instance_type="h100", gpu="h100:8").hardware == hardware.parse("8xh100")


def test_mount_values_are_parents_first() -> None:
    config = TaskConfig(mounts={"/data/x": "volume://x", "/data": "s3://my-bucket"})
    assert [(mount.target, mount.kind) for mount in config.mount_values()] == [("/data", "s3"), ("/data/x", "volume")]


# Volumes


@pytest.mark.parametrize(
    ("volumes", "stored"),
    [
        (["training-data"], [{"name": "training-data", "mount_path": "/mnt/training-data"}]),
        ("training-data", [{"name": "training-data", "mount_path": "/mnt/training-data"}]),
        (["vol_abc"], [{"volume_id": "vol_abc", "mount_path": "/mnt/vol_abc"}]),
        (["volume://data"], [{"name": "data", "mount_path": "/mnt/data"}]),
        ({"/data": "training-data"}, [{"name": "training-data", "mount_path": "/data"}]),
        ({"/data/": {"size_gb": 5}}, [{"size_gb": 5, "mount_path": "/data"}]),
        ({"/data": SimpleNamespace(volume_id="vol_x")}, [{"volume_id": "vol_x", "mount_path": "/data"}]),
        ([{"name": "d", "volume_id": None, "mount_path": "/d"}], [{"name": "d", "mount_path": "/d"}]),
        ([{"mount_path": "/scratch"}], [{"mount_path": "/scratch"}]),
        (
            [{"name": "s", "mount_path": "/s", "interface": "FILE"}],
            [{"name": "s", "mount_path": "/s", "interface": "file"}],
        ),
        ([VolumeSpec(name="a", size_gb=7)], [{"name": "a", "size_gb": 7, "mount_path": "/mnt/a"}]),
        ([], []),
    ],
)
def test_volumes(volumes: Any, stored: list[dict[str, Any]]) -> None:
    config = TaskConfig(volumes=volumes)
    assert [volume.to_json() for volume in config.volumes] == stored
    assert config.to_json().get("volumes", []) == stored


def test_a_volume_is_100_gb_unless_said() -> None:
    spec = VolumeSpec(name="data")
    assert (spec.size_gb, spec.interface, spec.mount_path) == (100, "block", "/mnt/data")


def test_a_volume_spec_is_frozen() -> None:
    config = TaskConfig(volumes=["data"])
    with pytest.raises(ValidationError, match="A volume's size_gb cannot change") as caught:
        config.volumes[0].size_gb = 0
    assert caught.value.suggestions == ["Assign config.volumes a new list."]
    assert config.volumes[0].size_gb == 100


@pytest.mark.parametrize(
    ("volumes", "message", "suggestion"),
    [
        ([{"name": "data", "mount_path": "data"}], "mount_path 'data' is not absolute", "Use /data."),
        ([{"size_gb": 5}], "A volume needs a mount_path.", "Add mount_path: /data."),
        ([{"name": "My Data"}], "Invalid volume name 'My Data'", "Name it my-data."),
        ([{"name": "a", "volume_id": "vol_b"}], "not by both (a and vol_b)", "Leave one of them out."),
        ([{"volume_id": "data"}], "Invalid volume_id 'data'", "Use name: data for the volume of that name."),
        ([{"name": "a", "size_gb": 0}], "size_gb must be at least 1, not 0.", "Use size_gb=1 or more."),
        ([{"name": "a", "size_gb": "500"}], "size_gb must be a whole number", "Write 500 without quotes."),
        ([{"name": "a", "interface": "nfs"}], "Invalid interface 'nfs'", "Use block."),
        ([{"name": "a", "size": 5}], "Unknown volume field 'size', did you mean size_gb?", "Use size_gb."),
        ([{"name": "a", "mountpath": "/a"}], "did you mean mount_path?", "Use mount_path."),
        ([{"mount_path": "/etc"}], "mount_path /etc would hide", None),
        (["data:/data"], "name and path are two things", 'Write volumes={"/data": "data"}.'),
        ({"/data": {"mount_path": "/x", "name": "a"}}, "has another mount_path, '/x'", "Leave one out."),
        ([{1: 2}], "A field's name must be text, not 1.", None),
        ([3], "A volume must be a name or a mapping", None),
        (7, "volumes must be a list of volumes", 'Write volumes=[{"name": "training-data", "mount_path": "/data"}].'),
        (["a", {"name": "b", "mount_path": "/mnt/a"}], "Mount path /mnt/a already in use by a.", None),
    ],
)
def test_volumes_that_are_refused(volumes: Any, message: str, suggestion: str | None) -> None:
    error = refused(volumes=volumes)
    assert message in error.message
    if suggestion:
        assert error.suggestions[0] == suggestion


def test_paths_of_volumes_mounts_and_code_are_one_space() -> None:
    error = refused(volumes=[{"name": "a", "mount_path": "/data/"}], mounts="s3://my-bucket")
    assert error.message == "Mount path /data already in use by s3://my-bucket."
    assert error.suggestions == ["Mount a at a path of its own, such as /data2."]
    error = refused(mounts={"/workspace": "volume://code"})
    assert error.message == "Mount path /workspace already in use by the uploaded code."
    assert error.suggestions[-1] == "Use upload_code=False to send no code."
    assert TaskConfig(mounts={"/workspace": "volume://code"}, upload_code=False)
    assert TaskConfig(mounts={"/workspace/data": "volume://code"})


# What is refused


@pytest.mark.parametrize(
    ("fields", "message", "suggestion"),
    [
        ({"name": ""}, "name is empty.", "Give one such as train-1, or leave name out."),
        ({"name": "my run"}, "Invalid name 'my run'", "Use my-run."),
        ({"name": "-x"}, "Invalid name '-x'", "Use x."),
        ({"name": "lr=0.1/é"}, "Invalid name", "Use lr-0.1."),
        ({"name": "x" * 65}, "use 1 to 64", "Use " + "x" * 64 + "."),
        ({"name": "a\n"}, "Invalid name 'a\\n'", "Use a."),
        ({"name": 123}, "name must be text such as train-1, not a number.", 'Put it in quotes: "123".'),
        ({"command": ""}, "command is empty.", "Give one such as python train.py, or leave command out."),
        ({"command": " \n"}, "command is empty.", None),
        ({"command": []}, "command is an empty list.", "Leave command out for a machine that stays up."),
        ({"command": ["", "x"]}, "the program, is empty.", None),
        ({"command": ["python", None]}, "Each part of command must be text or a number, not nothing.", None),
        ({"command": {"a": 1}}, "command must be text such as python train.py, not a mapping.", None),
        ({"command": "a\0b"}, "command has a NUL character in it.", None),
        ({"command": "caf\udce9"}, "command has bytes in it that are no UTF-8 text.", None),
        ({"instance_type": "a1000"}, "Invalid instance type 'a1000': did you mean a100", "Use a100."),
        ({"instance_type": ""}, "The instance type is empty", None),
        ({"gpu": 4}, "Invalid gpu 4", "Write 4xa100 for that many A100s."),
        ({"gpu": "cpu"}, "Invalid gpu 'cpu': it names no GPU.", "Use instance_type='cpu' and leave gpu out."),
        ({"gpu": "a100", "instance_type": "8xa100"}, "ask for different hardware.", "Leave gpu out to get 8xa100."),
        ({"num_instances": 0}, "num_instances must be at least 1, not 0.", "Use num_instances=1 or more."),
        ({"num_instances": -3}, "num_instances must be at least 1, not -3.", None),
        ({"num_instances": "4"}, "num_instances must be a whole number, not text.", "Write 4 without quotes."),
        ({"num_instances": 1.5}, "num_instances must be a whole number, not 1.5.", None),
        ({"num_instances": True}, "num_instances must be a whole number, not true or false.", None),
        ({"num_instances": math.inf}, "num_instances must be a whole number, not inf.", None),
        ({"image": ""}, "image is empty.", None),
        ({"image": "my image"}, "Invalid image 'my image'", "Use one such as pytorch/pytorch:latest."),
        ({"image": "PyTorch/PyTorch:Latest"}, "Invalid image", "Use pytorch/pytorch:latest."),
        ({"image": "-v/:/x"}, "Invalid image '-v/:/x'", None),
        ({"image": "docker://ubuntu:22.04"}, "not a URL.", "Use ubuntu:22.04."),
        ({"env": "A=1"}, "env must be a mapping", 'Write env={"BATCH_SIZE": "256"}.'),
        ({"env": ["A"]}, "or a list of NAME=VALUE.", None),
        ({"env": ["A=1", "A=2"]}, "The environment variable A is given twice.", "Leave one of them out."),
        ({"env": {"A": None}}, "The environment variable A has no value.", "Is A set where you run this?"),
        ({"env": {"A": [1]}}, "The environment variable A must be text or a number, not a list.", "Put it in quotes."),
        ({"env": {"A": "x\0"}}, "The environment variable A has a NUL character in it.", None),
        ({"env": {"1A": "x"}}, "Invalid environment variable name '1A'", "Use A."),
        ({"env": {"MY-KEY": "x"}}, "Invalid environment variable name 'MY-KEY'", "Use MY_KEY."),
        ({"env": {"": "x"}}, "Invalid environment variable name ''", "Use a name such as BATCH_SIZE."),
        ({"env": {3: "x"}}, "Invalid environment variable name 3", None),
        ({"working_dir": ""}, "working_dir is empty.", None),
        ({"working_dir": 3}, "working_dir must be text such as /workspace, not a number.", None),
        ({"mounts": "s3://B"}, "Invalid S3 bucket name 'B'", None),
        ({"mounts": {"data": "volume://x"}}, "Mount path 'data' is not absolute", "Use /data."),
        ({"ports": [0]}, "Each of ports must be between 1 and 65535, not 0.", None),
        ({"ports": [65536]}, "between 1 and 65535, not 65536.", None),
        ({"ports": [80, 80]}, "Port 80 is given twice in ports.", "Leave one of them out."),
        ({"ports": ["8080:80"]}, "Each of ports must be a whole number, not '8080:80'.", "Use ports=[80]."),
        ({"ports": "8888"}, "Each of ports must be a whole number", "Use ports=[8888]."),
        ({"ports": [True]}, "Each of ports must be a whole number", None),
        ({"ssh_keys": [""]}, "Each of ssh_keys is empty.", None),
        ({"ssh_keys": [3]}, "Each of ssh_keys must be text", None),
        ({"upload_code": "no"}, "upload_code must be true or false, not text.", "Use upload_code=False."),
        ({"max_price_per_hour": 0}, "max_price_per_hour must be more than 0 and finite, not 0.", None),
        (
            {"max_price_per_hour": -1.5},
            "more than 0 and finite, not -1.5.",
            "Leave max_price_per_hour out for no limit.",
        ),
        (
            {"max_price_per_hour": "$25"},
            "max_price_per_hour must be a number of USD, not '$25'.",
            "Use max_price_per_hour=25.",
        ),
        ({"max_price_per_hour": math.nan}, "more than 0 and finite, not nan.", None),
        ({"max_run_time_hours": math.inf}, "more than 0 and finite, not inf.", None),
        ({"max_run_time_hours": 10**400}, "more than 0 and finite, not 1000", None),
        (
            {"max_run_time_hours": "12h"},
            "max_run_time_hours must be a number of hours, not '12h'.",
            "Use max_run_time_hours=12.",
        ),
        ({"max_run_time_hours": True}, "must be a number of hours, not true or false.", None),
        ({"pip": ["-r requirements.txt"]}, "pip takes packages, not options such as '-r'.", None),
        ({"pip": ["--index-url=https://x"]}, "not options such as '--index-url'.", None),
        ({"pip": [""]}, "Each of pip is empty.", None),
        ({"pip": "  "}, "Each of pip is empty.", None),
        ({"pip": ["$(reboot)"]}, "Invalid pip package '$(reboot)'.", None),
        ({"retries": -1}, "retries must be at least 0, not -1.", None),
        ({"tags": ["a b"]}, "Invalid tag 'a b'", "Use a-b."),
        ({"tags": ["-x"]}, "Invalid tag '-x'", "Use x."),
        ({"tags": {"a": 1}}, "tags must be a list of texts such as baseline, not a mapping.", None),
        ({"provider": "my cloud"}, "Invalid provider 'my cloud'", None),
        ({"region": ""}, "region is empty.", None),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str, suggestion: str | None) -> None:
    error = refused(**fields)
    assert message in error.message
    if suggestion is not None:
        assert error.suggestions[0] == suggestion


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("comand", "command"),
        ("Name", "name"),
        ("num-instances", "num_instances"),
        ("nodes", "num_instances"),
        ("instance", "instance_type"),
        ("gpus", "gpu"),
        ("environment", "env"),
        ("workdir", "working_dir"),
        ("requirements", "pip"),
        ("max_price", "max_price_per_hour"),
        ("timeout", "max_run_time_hours"),
        ("volume", "volumes"),
        ("script", "command"),
    ],
)
def test_an_unknown_field_is_told_the_known_one(name: str, meant: str) -> None:
    error = refused(**{name: "x"})
    assert error.message == f"Unknown field '{name}', did you mean {meant}?"
    assert error.suggestions[0] == f"Use {meant}."
    assert error.suggestions[-1].startswith("Known fields: name, command")


def test_an_unknown_field_that_is_near_to_nothing() -> None:
    error = refused(zzz=1)
    assert error.message == "Unknown field 'zzz'."
    assert error.suggestions == [f"Known fields: {', '.join(TaskConfig.model_fields)}."]


def test_several_problems_come_in_one_error() -> None:
    error = refused(num_instances=0, gpu="a1000", comand="x", retries=1)
    assert error.message == "num_instances must be at least 1, not 0."
    assert error.suggestions[0] == "Use num_instances=1 or more."
    also = [s for s in error.suggestions if s.startswith("Also: ")]
    assert len(also) == 2
    assert also[0].startswith("Also: Invalid gpu 'a1000'")
    assert also[1] == "Also: Unknown field 'comand', did you mean command?"
    assert "Use command." in error.suggestions


@pytest.mark.parametrize("values", [None, 3, "x", ["command"]])
def test_from_dict_wants_a_mapping(values: Any) -> None:
    with pytest.raises(ValidationError, match="must be a mapping of fields"):
        TaskConfig.from_dict(values)


def test_from_dict() -> None:
    assert TaskConfig.from_dict({"gpu": "a100"}) == TaskConfig(gpu="a100")
    with pytest.raises(ValidationError, match="A field's name must be text, not 1"):
        TaskConfig.from_dict({1: 2})  # type: ignore[dict-item]


# Assignment, frozen copies


def test_a_refused_assignment_changes_nothing() -> None:
    config = TaskConfig(instance_type="8xa100", volumes=["a"])
    for field, value in [("num_instances", 0), ("gpu", "h100"), ("mounts", {"/mnt/a": "volume://b"}), ("gpus", "a100")]:
        before = config.to_json()
        with pytest.raises(ValidationError):
            setattr(config, field, value)
        assert config.to_json() == before
    with pytest.raises(ValidationError, match="did you mean image"):
        config.imagee = "x"
    with pytest.raises(ValidationError, match="cannot be deleted"):
        del config.name


def test_assignment_makes_values_canonical() -> None:
    config = TaskConfig()
    config.gpu = "A100x8"
    config.mounts = "s3://my-bucket/"  # type: ignore[assignment]
    assert (config.gpu, config.mounts) == ("8xa100", {"/data": "s3://my-bucket"})
    config.gpu = None
    assert config.to_json() == {"mounts": {"/data": "s3://my-bucket"}}


def test_a_frozen_copy_refuses_assignment() -> None:
    config = TaskConfig(name="a", env={"A": "1"})
    submitted = config.frozen_copy()
    assert submitted == config
    with pytest.raises(ValidationError) as caught:
        submitted.image = "ubuntu"
    assert caught.value.message == "This config was submitted, so its image cannot change."
    assert caught.value.suggestions == ["Make a new one: config.replace(image=...)."]
    assert submitted.image is None
    config.env["B"] = "2"
    config.name = "b"
    assert (submitted.name, submitted.env) == ("a", {"A": "1"})
    for copied in (copy.copy(submitted), copy.deepcopy(submitted), pickle.loads(pickle.dumps(submitted))):
        assert copied == submitted
        with pytest.raises(ValidationError, match="submitted"):
            copied.name = "c"


def test_a_frozen_copy_checks_what_was_changed_in_place() -> None:
    config = TaskConfig()
    config.tags.append("sweep")
    config.env["A"] = 3  # type: ignore[assignment]
    assert config.frozen_copy().to_json() == {"tags": ["sweep"], "env": {"A": "3"}}
    config.ports.append(99999)
    with pytest.raises(ValidationError, match="between 1 and 65535"):
        config.frozen_copy()


def test_replace_gives_a_checked_new_one() -> None:
    submitted = TaskConfig(name="a", gpu="a100", volumes=["data"]).frozen_copy()
    new = submitted.replace(name="b", gpu=None)
    assert new.to_json() == {"name": "b", "volumes": [{"name": "data", "mount_path": "/mnt/data"}]}
    new.name = "c"
    assert submitted.name == "a"
    assert submitted.model_copy(update={"name": "b", "gpu": None}).name == "b"
    with pytest.raises(ValidationError, match="num_instances must be at least 1"):
        submitted.model_copy(update={"num_instances": 0})


# JSON and secrets


@pytest.mark.parametrize("secrets", [True, False])
def test_round_trip_with_everything(secrets: bool, tmp_path: Path) -> None:
    config = TaskConfig(
        name="all",
        command=["python", "x.py"],
        instance_type="a100-40gb",
        gpu="a100-40gb:4",
        num_instances=2,
        image="ubuntu:22.04",
        env={"A": "1", "B": "two"},
        working_dir="sub dir",
        volumes=[{"name": "v", "size_gb": 5, "interface": "file"}, {"mount_path": "/scratch"}],
        mounts={"/data": "s3://my-bucket?mode=rw", "/local": str(tmp_path)},
        ports=[8080],
        ssh_keys=["k"],
        upload_code=False,
        max_price_per_hour=3,
        max_run_time_hours=1.5,
        pip=["torch"],
        retries=2,
        tags=["t"],
        provider="local",
        region="here",
    )
    text = json.dumps(config.to_json(secrets=secrets))
    assert list(json.loads(text)) == list(TaskConfig.model_fields)
    again = TaskConfig.from_json(json.loads(text), env=None if secrets else {"A": "1", "B": "two"})
    assert again == config
    assert again.to_json() == config.to_json()
    assert again.model_dump() == config.model_dump()


def test_json_does_not_share_the_configs_lists() -> None:
    config = TaskConfig(tags=["a"], env={"A": "1"})
    found = config.to_json()
    found["tags"].append("b")
    found["env"]["B"] = "2"
    assert config.to_json() == {"tags": ["a"], "env": {"A": "1"}}


def test_values_that_were_not_kept_are_missing_and_known() -> None:
    stored = TaskConfig(name="a", env={"KEY": SECRET, "B": "2"}).to_json(secrets=False)
    assert stored == {"name": "a", "env": {"KEY": None, "B": None}}
    config = TaskConfig.from_json(stored, env={"B": "2"})
    assert (config.env, config.missing_env) == ({"B": "2"}, ("KEY",))
    assert config.to_json(secrets=False) == stored
    assert "KEY" in repr(config)
    with pytest.raises(ValidationError) as caught:
        config.frozen_copy()
    assert caught.value.message == "The values of KEY were not kept with the task."
    assert caught.value.suggestions == ["Give them again with env={...}."]
    with pytest.raises(ValidationError, match="KEY"):
        config.replace(name="b").frozen_copy()
    config.name = "c"
    assert config.missing_env == ("KEY",)
    assert config.replace(env={"KEY": "x"}).frozen_copy().env == {"KEY": "x"}
    config.env = {"KEY": "y"}
    assert config.frozen_copy().env == {"KEY": "y"}


def test_a_stored_config_outlives_its_local_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    stored = TaskConfig(mounts=str(tmp_path / "data")).to_json()
    (tmp_path / "data").rmdir()
    config = TaskConfig.from_json(stored)
    assert config.mounts == {"/data": str(tmp_path / "data")}
    for again in (config.frozen_copy, config.mount_values, config.replace):
        with pytest.raises(ValidationError, match="does not exist"):
            again()


def test_a_damaged_stored_config_is_one_clear_error() -> None:
    with pytest.raises(ValidationError, match="num_instances must be at least 1"):
        TaskConfig.from_json({"num_instances": 0})
    with pytest.raises(ValidationError, match="Unknown field"):
        TaskConfig.from_json({"from_the_future": 1})


def test_nothing_printed_holds_the_values_of_env() -> None:
    config = TaskConfig(name="a", env={"WANDB_API_KEY": SECRET})
    for text in (repr(config), str(config), f"{config}", repr([config]), repr(config.frozen_copy())):
        assert SECRET not in text
        assert "WANDB_API_KEY" in text
    assert SECRET not in json.dumps(config.to_json(secrets=False))


def test_rich_prints_no_values_of_env() -> None:
    import io

    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=200).print(TaskConfig(name="a", env={"KEY": SECRET}))
    assert SECRET not in out.getvalue()
    assert "KEY" in out.getvalue()


@pytest.mark.parametrize(
    "fields",
    [
        {"env": {"A": SECRET, "B": None}},
        {"env": {"A": SECRET}, "num_instances": 0},
        {"env": {"A": SECRET + "\0"}},
        {"env": {"A": SECRET + "\udce9"}},
        {"env": {"A": [SECRET]}},
        {"env": {"A": {SECRET: 1}}},
        {"env": {"A": SECRET.encode()}},
        {"env": SECRET},
        {"env": ["A=" + SECRET, SECRET]},
        {"env": [SECRET]},
        {"mounts": f"https://u:{SECRET}@h.example/x"},
        {"mounts": f"https://h.example/x?token={SECRET}"},
        {"pip": [f"git+https://{SECRET}@h.example/x"]},
        {"pip": [f"pkg @ https://u:{SECRET}@h.example/x.whl"]},
        {"image": f"user:{SECRET}@registry.example/x"},
        {"image": f"https://user:{SECRET}@registry.example/x"},
        {"ssh_keys": [f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n"]},
    ],
)
@pytest.mark.parametrize("make", [lambda f: TaskConfig(**f), TaskConfig.from_dict, TaskConfig.model_validate])
def test_no_error_holds_a_secret(fields: dict[str, Any], make: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        make(fields)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error} {error!r}"
        error = error.__context__


# pydantic's own doors


def test_pydantics_own_doors_lead_here() -> None:
    assert TaskConfig.model_validate({"gpu": "A100:8"}).gpu == "8xa100"
    config = TaskConfig(name="a", volumes=["v"])
    assert TaskConfig.model_validate(config) is config
    assert TaskConfig.model_validate(config.model_dump()) == config
    assert set(TaskConfig.model_json_schema()["properties"]) == set(TaskConfig.model_fields)
    with pytest.raises(ValidationError, match="not from text"):
        TaskConfig.model_validate("x")


def test_equality() -> None:
    assert TaskConfig(gpu="a100:8") == TaskConfig(gpu="8xa100")
    assert TaskConfig(gpu="a100") != TaskConfig(gpu="h100")
    assert TaskConfig() != {}
    assert TaskConfig(name=None) == TaskConfig()


# YAML


def yaml_error(tmp_path: Path, text: str | bytes) -> tuple[ValidationError, Path]:
    path = tmp_path / "job.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValidationError) as caught:
        TaskConfig.from_yaml(path)
    assert "\n" not in caught.value.message
    return caught.value, path


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("name: a\nnum_instances: 0\n", ", line 2: ", "num_instances must be at least 1, not 0."),
        ("name: a\n\ncomand: x\n", ", line 3: ", "Unknown field 'comand', did you mean command?"),
        ("volumes:\n  - size: 5\n", ", line 1: ", "Unknown volume field 'size', did you mean size_gb?"),
        ("name: a\nname: b\n", ", line 2: ", "name is given twice, first on line 1."),
        ("env:\n  A: 1\n  B: 2\n  A: 3\n", ", line 4: ", "A is given twice, first on line 2."),
        ("volumes:\n- name: a\n  name: b\n", ", line 3: ", "name is given twice, first on line 2."),
        ("env:\n\tA: 1\n", ", line 2: ", "indented with a tab, where YAML allows only spaces."),
        ("name: a\n\tgpu: b\n", ", line 2: ", "indented with a tab, where YAML allows only spaces."),
        ("name: [a\n", ", line 2: ", "not valid YAML (did not find expected ',' or ']')."),
        ("command: python: x\n", ", line 1: ", "not valid YAML (mapping values are not allowed in this context)."),
        ("name: a\n---\nname: b\n", ", line 2: ", "a second document begins, where one task is expected."),
        ("name: !!python/object:os.system x\n", ", line 1: ", "not valid YAML"),
        ("name: *x\n", ", line 1: ", "not valid YAML (found undefined alias)."),
        ("env:\n  A:\n", ", line 1: ", "The environment variable A has no value."),
        ("name: 2024-01-01\n", ", line 1: ", "name must be text such as train-1, not a date."),
        ("name: a\ninstance_type: a100\ngpu: h100\n", ", line 3: ", "ask for different hardware."),
        ("", " ", "is empty."),
        ("# only a comment\n", " ", "is empty."),
        ("- a\n- b\n", " ", "must hold fields such as command: python train.py, and holds none."),
        ("python train.py\n", " ", "must hold fields"),
        ("3: x\n", ": ", "A field's name must be text, not 3."),
        ("? [a]\n: x\n", "", "not valid YAML"),
        (b"name: \xff\xfe\n", " ", "is not UTF-8 text."),
        (b"name: a\x01b\n", "", "not valid YAML"),
    ],
)
def test_yaml_errors_name_file_and_line(tmp_path: Path, text: str | bytes, where: str, message: str) -> None:
    error, path = yaml_error(tmp_path, text)
    assert error.message.startswith(f"{path}{where}")
    assert message in error.message


def test_yaml_names_the_line_of_every_problem(tmp_path: Path) -> None:
    error, path = yaml_error(tmp_path, "num_instances: 0\nname: a\ngpu: a1000\n")
    assert error.message.startswith(f"{path}, line 1: num_instances")
    assert any(s.startswith(f"Also: {path}, line 3: Invalid gpu") for s in error.suggestions)


def test_yaml_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: a\n")
    with pytest.raises(ValidationError) as caught:
        TaskConfig.from_yaml(tmp_path / "confg.yaml")
    assert caught.value.message == f"There is no file {tmp_path}/confg.yaml."
    assert caught.value.suggestions == [f"Did you mean {tmp_path}/config.yaml?"]
    with pytest.raises(ValidationError, match="There is no file"):
        TaskConfig.from_yaml(tmp_path / "no-folder" / "x.yaml")
    with pytest.raises(ValidationError, match="is a folder, not a YAML file"):
        TaskConfig.from_yaml(tmp_path)
    with pytest.raises(ValidationError, match="cannot be read"):
        TaskConfig.from_yaml(tmp_path / ("x" * 300))


def test_yaml_keeps_env_and_argv_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        """\
command: [python, train.py, --lr, 1e-3, --mode, 0755, --at, 12:30:00, --on, yes]
env: {LR: 1e-3, MODE: 0755, AT: 12:30:00, DEBUG: yes, DAY: 2024-01-01, BIG: 1_000, EMPTY: "", F: 0.10}
"""
    )
    config = TaskConfig.from_yaml(path)
    assert config.command == ["python", "train.py", "--lr", "1e-3", "--mode", "0755", "--at", "12:30:00", "--on", "yes"]
    assert config.env == {
        "LR": "1e-3",
        "MODE": "0755",
        "AT": "12:30:00",
        "DEBUG": "yes",
        "DAY": "2024-01-01",
        "BIG": "1_000",
        "EMPTY": "",
        "F": "0.10",
    }


def test_yaml_with_anchors_merges_block_text_and_bom(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(
        """\
\ufeffvolumes:
  - &base {size_gb: 5, mount_path: /a}
  - {<<: *base, mount_path: /b}
command: |
  torchrun --nproc_per_node=8 \\
    train.py
""".encode()
    )
    config = TaskConfig.from_yaml(str(path))
    assert config.command == "torchrun --nproc_per_node=8 \\\n  train.py\n"
    assert [(v.mount_path, v.size_gb) for v in config.volumes] == [("/a", 5), ("/b", 5)]


def test_yaml_that_contains_itself(tmp_path: Path) -> None:
    error, _ = yaml_error(tmp_path, "env: &e\n  A: *e\n")
    assert "A must be text or a number, not a mapping" in error.message


def test_yaml_without_the_c_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    if hasattr(yaml, "CSafeLoader"):
        monkeypatch.delattr(yaml, "CSafeLoader")
    (tmp_path / "job.yaml").write_text("name: a\nenv: {A: 010}\n")
    assert TaskConfig.from_yaml(tmp_path / "job.yaml").env == {"A": "010"}
    error, path = yaml_error(tmp_path, "env:\n\tA: 1\n")
    assert error.message == f"{path}, line 2: indented with a tab, where YAML allows only spaces."


# Properties

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*TaskConfig.model_fields, "comand"]), _json, max_size=4))
def test_any_values_are_a_config_that_round_trips_or_one_clear_error(values: dict[str, Any]) -> None:
    try:
        config = TaskConfig(**values)
    except ValidationError as error:
        assert "\n" not in error.message
        assert error.message.endswith((".", "?"))
    else:
        stored = json.loads(json.dumps(config.to_json()))
        assert TaskConfig.from_json(stored) == config
        assert TaskConfig.from_json(stored).to_json() == stored


@given(
    st.dictionaries(
        st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]*\Z"), st.text(st.characters(codec="utf-8", exclude_characters="\0"))
    )
)
def test_env_keeps_any_text(env: dict[str, str]) -> None:
    config = TaskConfig(env=env)
    assert config.env == env
    assert TaskConfig.from_json(json.loads(json.dumps(config.to_json()))).env == env


# Cost


def test_building_a_config_loads_nothing_it_does_not_need() -> None:
    code = """
import sys
from flow_sdk.config import TaskConfig
TaskConfig(command="x", gpu="a100:8", env={"A": "1"}, mounts="s3://my-bucket", volumes=["a"]).frozen_copy().to_json()
print(*sorted({"yaml", "difflib", "importlib.metadata", "email", "pydantic.networks", "asyncio"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""
