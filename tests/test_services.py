"""The services that other tests stand on do what they promise."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import services
from tests.services import GitRepo, MotoServer, WebServer, require, wait_for

GPU_NAMES = "import pynvml as n; n.nvmlInit(); d = n.nvmlDeviceGetHandleByIndex; c = n.nvmlDeviceGetCount(); "


def test_podman_runs_the_test_image(podman_image: str, tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text("import json, os; print(json.dumps(os.environ['GREETING']))")
    options = ["--rm", "-v", f"{tmp_path}:/workspace", "-w", "/workspace", "-e", "GREETING=hello"]
    argv = ["podman", "run", *options, podman_image, "python3", "hello.py"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ('"hello"\n', "", 0)


def test_moto_keeps_what_a_bucket_is_given(moto_server: MotoServer) -> None:
    client = moto_server.bucket("kept-by-moto", {"data/a.txt": b"one"})
    assert client.get_object(Bucket="kept-by-moto", Key="data/a.txt")["Body"].read() == b"one"
    assert os.environ["AWS_ENDPOINT_URL"] == moto_server.url


def test_s3fs_mounts_a_bucket(moto_server: MotoServer, s3fs: None, tmp_path: Path) -> None:
    moto_server.bucket("mounted-by-s3fs", {"data/a.txt": b"one"})
    passwd = tmp_path / "passwd"
    passwd.write_text(f"{os.environ['AWS_ACCESS_KEY_ID']}:{os.environ['AWS_SECRET_ACCESS_KEY']}")
    passwd.chmod(0o600)
    target = tmp_path / "mounted"
    target.mkdir()
    options = f"url={moto_server.url},use_path_request_style,ro,passwd_file={passwd}"
    subprocess.run(["s3fs", "mounted-by-s3fs:/data", str(target), "-o", options], check=True)
    try:
        assert wait_for(lambda: [entry.name for entry in target.iterdir()]) == ["a.txt"]
        assert (target / "a.txt").read_bytes() == b"one"
    finally:
        services.unmount(target)


def test_https_server_resumes_where_it_broke_off(https_server: WebServer) -> None:
    https_server.files["/model.bin"] = content = os.urandom(100_000)
    https_server.break_after["/model.bin"] = 30_000
    context = ssl.create_default_context(cafile=str(https_server.ca_file))
    url = f"{https_server.url}/model.bin"
    with urllib.request.urlopen(url, context=context) as answer:
        got = b"".join(iter(lambda: answer.read1(65536), b""))
    assert got == content[:30_000]
    rest = urllib.request.Request(url, headers={"Range": f"bytes={len(got)}-"})
    with urllib.request.urlopen(rest, context=context) as answer:
        assert answer.status == 206
        got += answer.read()
    assert got == content
    assert https_server.requests == [("/model.bin", None), ("/model.bin", "bytes=30000-")]


def test_git_repo_has_a_tag_and_a_branch(git_repo: GitRepo) -> None:
    assert git_repo.git("show", "v1:file.txt") == "one"
    assert git_repo.git("rev-parse", "main") == git_repo.second != git_repo.first


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ("4xA100", ["NVIDIA A100-SXM4-80GB"] * 4),
        ("H100", ["NVIDIA H100 80GB HBM3"]),
        ("2xA100-40GB", ["NVIDIA A100-SXM4-40GB"] * 2),
        ("0", []),
    ],
)
def test_fake_gpus_are_seen_by_nvidia_ml_py(fake_nvml: Callable[[str], None], gpus: str, expected: list[str]) -> None:
    import pynvml

    fake_nvml(gpus)
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    assert [pynvml.nvmlDeviceGetName(handle) for handle in handles] == expected
    assert len({pynvml.nvmlDeviceGetUUID(handle) for handle in handles}) == len(expected)
    for handle in handles:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        assert memory.free + memory.used == memory.total >= 40 * 1024**3
        assert pynvml.nvmlDeviceGetUtilizationRates(handle).gpu == 0
        assert pynvml.nvmlDeviceGetComputeRunningProcesses(handle) == []
    with pytest.raises(pynvml.NVMLError, match="Invalid Argument"):
        pynvml.nvmlDeviceGetHandleByIndex(len(expected))
    pynvml.nvmlShutdown()
    script = GPU_NAMES + "print([n.nvmlDeviceGetName(d(i)) for i in range(c)])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (str(expected), "")


def test_a_full_disk_takes_no_more_than_its_size(full_disk: Callable[[str], Path]) -> None:
    disk = full_disk("1m")
    with pytest.raises(OSError, match="No space left"), (disk / "file").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65536)
    assert (disk / "file").stat().st_size == 1024 * 1024


def test_a_readonly_folder_is_so_for_root_too(readonly_dir: Callable[[Path], Path], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("kept")
    folder = readonly_dir(tmp_path / "folder")
    with pytest.raises(OSError):
        (folder / "new").write_text("lost")
    assert (folder / "old").read_text() == "kept"


def test_a_missing_service_skips_or_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(services.PROGRAMS, "podman", "no-such-program")
    monkeypatch.delenv("FLOW_TEST_REQUIRE_ALL", raising=False)
    with pytest.raises(pytest.skip.Exception, match="podman is not installed"):
        require("podman")
    monkeypatch.setenv("FLOW_TEST_REQUIRE_ALL", "1")
    with pytest.raises(pytest.fail.Exception, match="podman is not installed"):
        require("podman")


LEAKY = """
import os, subprocess, sys
def test_leaks(flow_home):
    (flow_home / "tasks" / "task_1").mkdir(parents=True)
    argv = [sys.executable, "-c", "import os, signal; os.setsid(); print('up', flush=True); signal.pause()"]
    process = subprocess.Popen(argv, env={**os.environ, "FLOW_TASK_ID": "task_1"}, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\\n"
    process.stdout.close()
    with open(os.environ["PID_FILE"], "w") as file:
        file.write(str(process.pid))
    process.returncode = 0
"""


def test_a_leaked_task_fails_its_test_and_is_ended(tmp_path: Path) -> None:
    (tmp_path / "test_leaky.py").write_text(LEAKY)
    pid_file = tmp_path / "pid"
    options = ["-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "temporary")]
    argv = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", *options, str(tmp_path / "test_leaky.py")]
    env = {**os.environ, "PID_FILE": str(pid_file)}
    done = subprocess.run(argv, capture_output=True, text=True, cwd=services.ROOT, env=env)
    assert "the test left task processes alive" in done.stdout, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1 passed, 1 failed, 0 skipped"
    assert done.returncode == 1
    assert int(pid_file.read_text()) not in {process.pid for process in services.processes()}
