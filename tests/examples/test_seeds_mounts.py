"""The Data Mounting Guide's examples, as they are written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import flow_sdk as flow
from tests.examples.world import World, completed, fetch, files_of_volume, port_of_the_example, seen_by, tasks
from tests.services import MotoServer, wait_for


def volumes() -> dict[str, int]:
    return {volume.name: volume.size_gb for volume in flow.list_volumes()}


def test_quick_start(both: World, buckets: MotoServer) -> None:
    both.gpus("8xA100")
    both.run("guide", "Quick Start")
    one, several = map(completed, tasks())
    assert seen_by(one)[0].arguments == ["--data", "/data"]
    assert seen_by(one)[0].mounts["/data"] == {"files": ["train.bin"], "writable": False}
    assert seen_by(one)[0].gpus == 1
    seen = seen_by(several)[0]
    assert seen.mounts["/datasets"] == {"files": ["train.bin"], "writable": False}
    assert seen.mounts["/models"] == seen.mounts["/cache"] == {"files": [], "writable": True}
    assert seen.gpus == 4
    assert volumes() == {"pretrained-models": 100, "build-cache": 100}


def test_s3_sources(both: World, buckets: MotoServer) -> None:
    expected = [
        {"/data": ["data", "datasets"]},
        {"/data": ["t.bin"]},
        {"/train": ["t.bin"], "/val": ["v.bin"], "/test": ["test.bin"]},
    ]
    buckets.client().put_object(Bucket="my-bucket", Key="datasets/test/test.bin", Body=b"test")
    steps = both.steps("guide", "Supported Data Sources > 1. S3 Buckets")
    for (_, names), mounts in zip(steps, expected, strict=True):
        seen = seen_by(completed(flow.submit("python process.py", mounts=names["mounts"])))[0]
        assert {path: seen.files(path) for path in mounts} == mounts
        assert not any(seen.mounts[path]["writable"] for path in mounts)


def test_s3_needs_credentials(both: World, buckets: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    mounts = both.run("guide", "Supported Data Sources > 1. S3 Buckets")["mounts"]
    with pytest.raises(flow.AuthenticationError, match="AWS_SECRET_ACCESS_KEY is not set"):
        flow.submit("python process.py", mounts=mounts)
    assert flow.list_tasks() == []


def test_volume_sources(both: World) -> None:
    made = flow.create_volume(size_gb=20, name="made-before")
    steps = both.steps("guide", "Supported Data Sources > 2. Volumes", replace={"vol_abc123def456": made.volume_id})
    expected = [["/data"], ["/data"], ["/datasets", "/checkpoints", "/outputs"]]
    for (_, names), paths in zip(steps, expected, strict=True):
        command = "python process.py && " + " && ".join(f"touch {path}/kept" for path in paths)
        seen = seen_by(completed(flow.submit(command, mounts=names["mounts"])))[0]
        assert all(seen.mounts[path] == {"files": [], "writable": True} for path in paths)
    fresh = dict.fromkeys(["my-datasets", "training-data", "model-checkpoints", "results"], 100)
    assert volumes() == {"made-before": 20, **fresh}
    assert [files_of_volume(name) for name in volumes()] == [["kept"]] * 5


def test_local_sources(both: World, tmp_path: Path) -> None:
    (tmp_path / "user/datasets/imagenet").mkdir(parents=True)
    (tmp_path / "user/datasets/imagenet/n01.bin").write_text("n01")
    heading = "Supported Data Sources > 3. Local Files (Development)"
    placeholder = {"/home/user": str(tmp_path / "user")}
    one, several = (dict(names) for _, names in both.steps("guide", heading, replace=placeholder))
    seen = seen_by(completed(flow.submit("python process.py", mounts=one["mounts"])))[0]
    assert seen.files("/data") == ["n01.bin"]
    # One of the folders is not there yet.
    with pytest.raises(flow.ValidationError, match="user/configs"):
        flow.submit("python process.py", mounts=several["mounts"])
    (tmp_path / "user/configs").mkdir()
    seen = seen_by(completed(flow.submit("python process.py", mounts=several["mounts"])))[0]
    assert (seen.files("/data"), seen.files("/config")) == (["imagenet"], [])


def test_training_with_s3(both: World, buckets: MotoServer) -> None:
    both.gpus("8xA100")
    task = completed(both.run("guide", "Examples > Training with S3 Dataset")["task"])
    seen = seen_by(task)[0]
    assert seen.arguments == ["--data-dir", "/datasets/imagenet", "--output-dir", "/outputs", "--epochs", "90"]
    assert seen.gpus == 8
    assert "epoch 90 " in task.logs()
    assert files_of_volume("training-outputs") == ["model.json"]


def test_distributed_training(both: World, buckets: MotoServer) -> None:
    both.gpus("32xA100")
    task = completed(both.run("guide", "Examples > Distributed Training with Shared Storage")["task"])
    gpus = set()
    for rank in range(4):
        seen = seen_by(task, rank)
        assert sorted(int(one.environ["LOCAL_RANK"]) for one in seen) == list(range(8))
        assert {one.environ["FLOW_NODE_RANK"] for one in seen} == {str(rank)}
        assert all(one.files("/data") == ["n01.bin"] for one in seen)
        gpus.update(seen[0].environ["CUDA_VISIBLE_DEVICES"].split(","))
    assert len(gpus) == 32
    assert len(files_of_volume("ddp-checkpoints")) == 32


def test_model_serving(both: World) -> None:
    both.gpus("8xA100")
    flow.create_volume(size_gb=10, name="model-zoo")
    completed(flow.run("touch /models/bert.bin", volumes={"/models": "model-zoo"}))
    with port_of_the_example(8080):
        task = both.run("guide", "Examples > Model Serving with Cached Models")["task"]
        url = task.endpoints[8080]
        assert wait_for(lambda: fetch(url), 20) == b'["bert.bin"]'
        task.cancel().wait(timeout=20)
    assert task.status == "cancelled"


def test_preprocessing(both: World, buckets: MotoServer) -> None:
    task = completed(both.run("guide", "Examples > Data Preprocessing Pipeline")["task"])
    seen = seen_by(task)[0]
    assert seen.files("/raw-data") == ["frame-1.txt", "frame-2.txt"]
    shown = completed(flow.run("cat /d/frame-2.txt", mounts={"/d": "volume://processed-datasets"}))
    assert shown.logs() == "CONTENT OF VIDEO-FRAMES/FRAME-2.TXT"


def test_mount_only_what_is_needed(both: World, buckets: MotoServer) -> None:
    steps = both.steps("guide", "Best Practices > 2. Optimize Performance")
    for (_, names), files in zip(steps, [["part.bin"], ["data", "train"]], strict=True):
        seen = seen_by(completed(flow.submit("python process.py", mounts=names["mounts"])))[0]
        assert seen.files("/data") == files


def test_credentials_from_the_environment(both: World, buckets: MotoServer) -> None:
    task = completed(both.run("guide", "Best Practices > 3. Handle Credentials Securely")["task"])
    assert os.environ["AWS_ACCESS_KEY_ID"] == "your-key"
    assert seen_by(task)[0].files("/data") == ["private.bin"]
    # The keys are for the mount; the command does not get them from it.
    written = (Path(os.environ["FLOW_HOME"]) / "tasks" / task.task_id / "task.json").read_text()
    assert "your-key" not in written and '"secret"' not in written


def test_descriptive_names(both: World) -> None:
    for _, names in both.steps("guide", "Best Practices > 4. Use Descriptive Names"):
        seen = seen_by(completed(flow.submit("python process.py", mounts=names["mounts"])))[0]
        assert set(names["mounts"]) <= set(seen.mounts)
    named = ["imagenet-2012-train", "resnet50-pretrained", "experiment-42-results", "stuff", "more-stuff"]
    assert volumes() == dict.fromkeys(named, 100)


def test_s3_access_denied(both: World, buckets: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    both.run("guide", "Troubleshooting > S3 Access Denied")
    task = flow.submit("python process.py", mounts="s3://no-such-bucket-here").wait(timeout=60)
    assert task.status == "failed"
    refused = "s3://no-such-bucket-here could not be mounted at /data: bucket or key not found"
    assert (task.reason or "").startswith(refused)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(AssertionError, match="Missing AWS_ACCESS_KEY_ID"):
        both.run("guide", "Troubleshooting > S3 Access Denied")
    with pytest.raises(flow.AuthenticationError, match="AWS_ACCESS_KEY_ID is not set"):
        flow.submit("python train.py", mounts="s3://your-bucket")


def test_volume_not_found(both: World) -> None:
    steps = iter(both.steps("guide", "Troubleshooting > Volume Not Found"))
    next(steps)
    completed(tasks()[-1])
    assert volumes() == {"my-data": 100}
    with pytest.raises(flow.ValidationError, match="There is a volume 'my-data' already"):
        next(steps)
    flow.delete_volume("my-data")
    volume = both.run("guide", "Troubleshooting > Volume Not Found", replace={"volume://my-data": "volume://other"})[
        "volume"
    ]
    assert (volume.name, volume.size_gb) == ("my-data", 500)
    completed(tasks()[-1])


def test_mount_path_conflicts(both: World, buckets: MotoServer) -> None:
    mounts = both.run("guide", "Troubleshooting > Mount Path Conflicts")["mounts"]
    seen = seen_by(completed(flow.submit("python process.py", mounts=mounts)))[0]
    assert (seen.files("/datasets"), seen.files("/cache")) == (["part.bin"], [])
    with pytest.raises(flow.ValidationError, match="Mount path /cache already in use"):
        flow.submit("python process.py", mounts=mounts, volumes={"/cache": "another"})


def test_dynamic_volume_selection(both: World) -> None:
    heading = "Advanced Usage > Dynamic Volume Selection"
    completed(both.run("guide", heading)["task"])
    assert volumes() == {"cache-new": 100}
    # From now on there is one whose name fits, and it is taken by its id.
    names = both.run("guide", heading)
    seen = seen_by(completed(names["task"]))[0]
    assert names["mounts"] == {"/cache": f"volume://{flow.get_volume('cache-new').volume_id}"}
    assert seen.mounts["/cache"] == {"files": [], "writable": True}
    assert list(volumes()) == ["cache-new"]


def test_conditional_mounting(both: World, buckets: MotoServer) -> None:
    both.gpus("8xA100")
    heading = "Advanced Usage > Conditional Mounting"
    seen = seen_by(completed(both.run("guide", heading)["task"]))[0]
    assert seen.script == "training.py"
    assert {"/models", "/datasets", "/checkpoints"} <= set(seen.mounts)
    assert seen.files("/datasets") == ["imagenet", "train", "val"]
    (both.project / "inference.py").write_text("import look; look.look()\n")
    other = both.run("guide", heading, replace={'job_type = "training"  # or "inference"': 'job_type = "inference"'})
    seen = seen_by(completed(other["task"]))[0]
    assert {"/models", "/outputs"} <= set(seen.mounts)
    assert "/datasets" not in seen.mounts
