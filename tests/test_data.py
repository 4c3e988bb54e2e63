"""Data and code as the task sees them: every kind of mount, volumes, images, packages, uploads, on the real things."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flow_sdk as flow
from tests.services import ROOT, GitRepo, MotoServer, WebServer, require, wait_for

FAR_S = 120.0


def run(command: str, **fields: object) -> flow.Task:
    return flow.run(command, **fields).wait(FAR_S)


def said(command: str, **fields: object) -> str:
    task = run(command, **fields)
    assert task.status == "completed", f"{task!r}\n{task.logs()}"
    return task.logs(stderr=False)


# Downloads


def test_https_is_downloaded_once_and_seen_as_a_file_or_in_a_folder(
    flow_home: Path, project: Path, https_server: WebServer
) -> None:
    require("mounts")
    https_server.files["/w.bin"] = b"weights"
    digest = hashlib.sha256(b"weights").hexdigest()
    source = f"{https_server.url}/w.bin#sha256={digest}"
    assert said("cat /models/w.bin", mounts={"/models/w.bin": source}) == "weights"
    assert said("ls /data; cat /data/w.bin", mounts=source) == "w.bin\nweights"
    assert len(https_server.requests) == 1, "the second task takes it from the cache"


def test_a_download_that_breaks_off_goes_on_where_it_stopped(
    flow_home: Path, project: Path, https_server: WebServer
) -> None:
    require("mounts")
    content = os.urandom(300_000)
    https_server.files["/big.bin"] = content
    https_server.break_after["/big.bin"] = 100_000
    source = f"{https_server.url}/big.bin#sha256={hashlib.sha256(content).hexdigest()}"
    broken = run("true", mounts=source)
    assert broken.status == "failed"
    assert "100000 of 300000 bytes" in str(broken.reason)
    assert said("sha256sum < /data/big.bin", mounts=source).split()[0] == hashlib.sha256(content).hexdigest()
    assert https_server.requests[-1] == ("/big.bin", "bytes=100000-")


def test_a_wrong_checksum_is_no_file(flow_home: Path, project: Path, https_server: WebServer) -> None:
    require("mounts")
    https_server.files["/x"] = b"something else"
    task = run("echo started", mounts=f"{https_server.url}/x#sha256={'0' * 64}")
    assert task.status == "failed"
    assert "checksum" in str(task.reason)
    assert task.logs() == ""


def test_a_missing_file_is_the_reason(flow_home: Path, project: Path, https_server: WebServer) -> None:
    require("mounts")
    task = run("echo started", mounts=f"{https_server.url}/none")
    assert task.status == "failed"
    assert "404" in str(task.reason)


# Git


def test_git_at_a_tag_a_branch_and_a_commit(flow_home: Path, project: Path, git_repo: GitRepo) -> None:
    require("mounts")
    for ref, text in (("@v1", "one"), ("@main", "two"), (f"@{git_repo.first}", "one"), ("", "two")):
        assert said("cat /code/file.txt", mounts={"/code": git_repo.url + ref}) == text + "\n", ref


def test_an_unknown_ref_is_the_reason(flow_home: Path, project: Path, git_repo: GitRepo) -> None:
    require("mounts")
    task = run("echo started", mounts={"/code": git_repo.url + "@nope"})
    assert task.status == "failed"
    assert "nope" in str(task.reason)


# S3


@pytest.mark.usefixtures("s3fs")
def test_s3_is_read_only_unless_asked(flow_home: Path, project: Path, moto_server: MotoServer) -> None:
    client = moto_server.bucket("data-modes", {"train/a.txt": b"A", "other/b.txt": b"B"})
    task = run("ls /data; cat /data/a.txt; echo x > /data/new", mounts="s3://data-modes/train")
    assert task.logs(stderr=False) == "a.txt\nA"
    assert task.status == "failed"
    assert "Read-only" in task.logs(stderr=True)
    assert said("echo x > /data/new; echo ok", mounts="s3://data-modes/train?mode=rw") == "ok\n"
    wait_for(
        lambda: "train/new" in {found["Key"] for found in client.list_objects_v2(Bucket="data-modes")["Contents"]},
        FAR_S,
    )


@pytest.mark.usefixtures("s3fs")
def test_a_misspelt_prefix_fails_before_the_command(flow_home: Path, project: Path, moto_server: MotoServer) -> None:
    moto_server.bucket("data-misspelt", {"train/a.txt": b"A"})
    task = run("echo started", mounts="s3://data-misspelt/trian")
    assert task.status == "failed"
    assert task.logs() == ""
    assert "s3://data-misspelt/trian" in str(task.reason)


@pytest.mark.usefixtures("s3fs")
def test_aws_keys_are_in_no_readable_file_and_no_command_line(
    flow_home: Path, project: Path, moto_server: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "s3cr3t-of-this-test"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    moto_server.bucket("data-secret", {"a": b"A"})
    out = said("ps axww -o args; ls /data", mounts="s3://data-secret", env={"WANDB_API_KEY": secret})
    assert secret not in out
    for path in flow_home.rglob("*"):
        if path.is_file() and secret.encode() in path.read_bytes():
            assert path.name == "secrets.json"
            assert path.stat().st_mode & 0o777 == 0o600


def test_s3_without_keys_is_refused_before_anything_starts(flow_home: Path, project: Path) -> None:
    with pytest.raises(flow.AuthenticationError, match="AWS_ACCESS_KEY_ID"):
        flow.run("true", mounts="s3://some-bucket")
    assert flow.list_tasks() == []


# Local folders and volumes


def test_mounts_are_private_to_the_task(flow_home: Path, project: Path, tmp_path: Path) -> None:
    require("mounts")
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    mounts = [{"/flow-test-private/deep": str(folder)} for folder in (one, two)]
    tasks = [flow.run("cat /flow-test-private/deep/name; ls -d /etc/passwd", mounts=m) for m in mounts]
    assert [task.wait(FAR_S).logs() for task in tasks] == ["one/etc/passwd\n", "two/etc/passwd\n"]
    assert not Path("/flow-test-private").exists()


def test_a_volume_keeps_its_files_and_its_size(flow_home: Path, project: Path) -> None:
    require("mounts")
    said("echo kept > /ckpt/f", volumes=[{"name": "ckpt", "mount_path": "/ckpt", "size_gb": 7}])
    assert said("cat /elsewhere/f", mounts={"/elsewhere": "volume://ckpt"}) == "kept\n"
    [volume] = flow.list_volumes()
    assert (volume.name, volume.size_gb) == ("ckpt", 7)
    assert said("cat /data/f", mounts=f"volume://{volume.volume_id}") == "kept\n"
    flow.delete_volume("ckpt")
    assert flow.list_volumes() == []


def test_a_volume_in_use_is_not_deleted(flow_home: Path, project: Path) -> None:
    require("mounts")
    task = flow.run("sleep 100", mounts="volume://busy")
    with pytest.raises(flow.ValidationError, match="in use"):
        flow.delete_volume("busy")
    task.cancel().wait(FAR_S)
    flow.delete_volume("busy")


def test_a_volume_is_added_to_a_running_task(flow_home: Path, project: Path) -> None:
    require("root", "mounts")
    volume = flow.create_volume(10, "added")
    task = flow.run("until [ -e /mnt/added/go ]; do sleep 0.02; done; echo seen; echo done > /mnt/added/answer")
    wait_for(lambda: task.status == "running", FAR_S)
    assert flow.mount_volume("added", task.task_id) == "/mnt/added"
    assert not Path("/mnt/added").exists(), "the machine itself stays as it was"
    with pytest.raises(flow.ValidationError, match="in use"):
        flow.mount_volume(volume, task)
    folder = flow_home / "volumes" / "added"
    (folder / "go").touch()
    assert task.wait(FAR_S).logs() == "seen\n"
    assert (folder / "answer").read_text() == "done\n"
    with pytest.raises(flow.ValidationError, match="completed"):
        flow.mount_volume(volume, task)


def test_without_root_bubblewrap_makes_the_mounts(tmp_path: Path) -> None:
    """A whole submit without root's rights: in a user namespace where this user is nobody in particular."""
    require("root", "bubblewrap")
    data = tmp_path / "data"
    data.mkdir()
    (data / "x").write_text("seen")
    code = (
        "import sys, os; sys.path.insert(0, sys.argv[1]); os.chdir(sys.argv[3]); import flow_sdk as flow;"
        "t = flow.run('id -u; cat /data/x; echo kept > /vol/f; cat /vol/f', upload_code=False,"
        " mounts={'/data': sys.argv[2], '/vol': 'volume://mine'}).wait(60);"
        "print(t.logs(), t.reason)"
    )
    as_nobody = ["unshare", "--user", "--map-user=65534", "--map-group=65534", "--"]
    done = subprocess.run(
        [*as_nobody, sys.executable, "-B", "-c", code, str(ROOT), str(data), str(tmp_path)],
        env={**os.environ, "HOME": str(tmp_path), "FLOW_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "65534\nseenkept\n None\n", done.stderr
    assert not Path("/vol").exists()


# Code


def test_the_task_has_its_own_copy_of_the_code(flow_home: Path, project: Path) -> None:
    (project / ".flowignore").write_text("*.ckpt\nbig/\n")
    (project / "a.ckpt").write_text("left out")
    (project / "big").mkdir()
    (project / "empty").mkdir()
    script = "#!/bin/sh\nls -A; echo changed > run.sh\n"
    (project / "run.sh").write_text(script)
    (project / "run.sh").chmod(0o755)
    (project / "link.sh").symlink_to("run.sh")
    assert said("./link.sh") == ".flowignore\nempty\nlink.sh\nrun.sh\n"
    assert (project / "run.sh").read_text() == script


def test_uploaded_code_reaches_a_running_task(flow_home: Path, project: Path) -> None:
    (project / "code.py").write_text("old")
    task = flow.run("until grep -q new code.py; do sleep 0.02; done; cat code.py")
    wait_for(lambda: task.status == "running", FAR_S)
    (project / "code.py").write_text("new")
    flow.upload_code(task)
    assert task.wait(FAR_S).logs() == "new"


def test_a_file_of_the_task_is_downloaded(flow_home: Path, project: Path, tmp_path: Path) -> None:
    task = run("mkdir out; echo weights > out/model.bin")
    assert task.download("out/model.bin", tmp_path).read_text() == "weights\n"
    assert (task.download("/workspace/out", tmp_path / "all") / "model.bin").exists()
    with pytest.raises(flow.ResourceNotFoundError, match=r"nope"):
        task.download("nope")
    with pytest.raises(flow.ValidationError, match="outside"):
        task.download("../../task.json")


# Packages


def test_packages_are_installed_once_beside_those_of_the_users_python(
    flow_home: Path, project: Path, tmp_path: Path
) -> None:
    package = tmp_path / "flow-test-package"
    package.mkdir()
    (package / "pyproject.toml").write_text(
        "[build-system]\nrequires = ['hatchling']\nbuild-backend = 'hatchling.build'\n"
        "[project]\nname = 'flow-test-package'\nversion = '1.0'\n"
        "[tool.hatch.build.targets.wheel]\nonly-include = ['flow_test_package.py']\n"
    )
    (package / "flow_test_package.py").write_text("WHO = 'installed'\n")
    code = "import flow_test_package, pydantic; print(flow_test_package.WHO)"
    pip = [f"flow-test-package @ {package.as_uri()}"]
    assert said(f'python -c "{code}"', pip=pip) == "installed\n"
    [environment] = [path for path in (flow_home / "venvs").iterdir() if path.is_dir()]
    made = environment.stat().st_mtime_ns
    assert said(f'python -c "{code}"', pip=pip) == "installed\n"
    assert environment.stat().st_mtime_ns == made
    missing = run(f'python -c "{code}"')
    assert missing.status == "failed"
    assert "pip=['flow_test_package']" in str(missing.reason)


# Images


def test_an_image_sees_code_mounts_volumes_and_environment(
    flow_home: Path, project: Path, podman_image: str, tmp_path: Path
) -> None:
    (project / "code.txt").write_text("code")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").write_text("data")
    script = (
        "pwd; cat code.txt /data/x; echo; echo $GREETING $FLOW_NODE_RANK; echo kept > /vol/f;"
        " echo '{\"loss\": 0.5}' > $FLOW_RESULT; test ! -e /usr/sbin/sshd && echo not-the-host"
    )
    task = run(
        script,
        image=podman_image,
        env={"GREETING": "hello there"},
        mounts={"/data": str(tmp_path / "data"), "/vol": "volume://v"},
    )
    assert task.status == "completed", task.logs()
    assert task.logs(stderr=False).splitlines()[:3] == ["/workspace", "codedata", "hello there 0"]
    assert task.result() == {"loss": 0.5}
    assert (flow_home / "volumes" / "v" / "f").read_text() == "kept\n"


def test_a_volume_is_added_to_a_running_container(flow_home: Path, project: Path, podman_image: str) -> None:
    flow.create_volume(10, "added")
    task = flow.run("until [ -e /mnt/added/go ]; do sleep 0.02; done; echo seen", image=podman_image)
    wait_for(lambda: task.status == "running", FAR_S)
    flow.mount_volume("added", task)
    (flow_home / "volumes" / "added" / "go").touch()
    assert task.wait(FAR_S).logs(stderr=False) == "seen\n"


def test_cancelling_ends_the_container(flow_home: Path, project: Path, podman_image: str) -> None:
    task = flow.run("echo up; sleep 1000", image=podman_image)
    assert next(task.logs(follow=True, stderr=False)) == "up"
    task.cancel().wait(FAR_S)
    assert task.status == "cancelled"
    names = subprocess.run(["podman", "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True)
    assert task.task_id not in names.stdout


def test_an_image_that_cannot_be_had_is_the_reason(flow_home: Path, project: Path, podman_image: str) -> None:
    task = run("echo started", image="localhost/flow-no-such-image:1")
    assert task.status == "failed"
    assert "localhost/flow-no-such-image:1" in str(task.reason)


def test_no_container_engine_is_an_error_that_says_what_to_install(
    flow_home: Path, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(flow.ProviderError, match="neither podman nor docker") as caught:
        flow.run("true", image="x", upload_code=False)
    assert "podman" in caught.value.suggestions[0]
    monkeypatch.undo()
