"""The world in which the examples of the original documents run: a project, GPUs, data, images, a user's Python."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pexpect
import pytest

import flow_sdk as flow
from tests import services
from tests.examples.blocks import Block, blocks
from tests.services import ROOT, MotoServer, wait_for

HERE = Path(__file__).parent
DOCUMENTS_FOLDER = ROOT.parent / "shared" / "seeds"
DOCUMENTS = {"guide": "000_b39bf7a136b1294c.txt", "readme": "002_d247b9e7529d033e.txt"}
"""The Data Mounting Guide, and the README of the SDK."""

TASK_TIMEOUT_S = 60
TESTS_PYTHON = sys.executable
STAND_INS = {"torchrun": "torchrun", "uv": "uv", "jupyter": "jupyter", "nvidia-smi": "nvidia_smi"}
# The last is what the NVIDIA container toolkit brings into a container.
MAKE_IMAGE = """
ln -s python3 /usr/bin/python
mkdir /app
printf '#!/bin/sh\\necho "No devices were found"\\n' > /usr/local/bin/nvidia-smi && chmod +x /usr/local/bin/nvidia-smi
"""
IMAGE_NAMES = (
    "docker.io/pytorch/pytorch:2.0.0-cuda11.8-cudnn8",
    "docker.io/mycompany/training:latest",
    "docker.io/myorg/myapp:latest",
    "123456789.dkr.ecr.us-east-1.amazonaws.com/my-ml-image:latest",
)
BUCKETS = {
    "my-bucket": ("datasets/imagenet/train.bin", "datasets/train/t.bin", "datasets/val/v.bin", "data/input.txt"),
    "ml-bucket": ("imagenet/train.bin",),
    "ml-datasets": ("imagenet/imagenet/n01.bin", "imagenet/train/n01.bin", "imagenet/val/n02.bin"),
    "datasets": ("imagenet/n01.bin",),
    "raw-datasets": ("video-frames/frame-1.txt", "video-frames/frame-2.txt"),
    "bucket": ("train/shard-001/part.bin", "data/part.bin"),
    "private-bucket": ("data/private.bin",),
    "your-bucket": ("yours.bin",),
}


class Key(NamedTuple):
    """Where a block stands: document, heading, number under the heading."""

    document: str
    heading: str
    number: int = 0


def document_blocks() -> dict[Key, Block]:
    """Every fenced block of the original documents; skips the test where this checkout has them not beside it."""
    if not DOCUMENTS_FOLDER.is_dir():
        pytest.skip(f"the original documents are not at {os.path.relpath(DOCUMENTS_FOLDER, ROOT)}")
    return {
        Key(name, block.heading, block.number): block
        for name, file in DOCUMENTS.items()
        for block in blocks(DOCUMENTS_FOLDER / file)
    }


def make_user_python(folder: Path) -> Path:
    """A virtual environment as a user has one, with the programs that the examples call; returns its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    shutil.copytree(HERE / "stand_ins" / "torch", Path(packages) / "torch")
    for program, source in STAND_INS.items():
        add_program(folder / "bin" / program, python, HERE / "stand_ins" / f"{source}.py")
    (folder / "bin" / "flow").symlink_to(Path(TESTS_PYTHON).with_name("flow"))
    # This one needs boto3, which the tests have.
    add_program(folder / "bin" / "aws", Path(TESTS_PYTHON), HERE / "stand_ins" / "aws.py")
    return python


def add_program(path: Path, python: Path, script: Path) -> None:
    path.write_text(f'#!/bin/sh\nexec "{python}" "{script}" "$@"\n')
    path.chmod(0o755)


def build_images(environ: Mapping[str, str]) -> None:
    """Gives a small image every name that the examples use, so that nothing is pulled; it has `python`, and a program
    of its own at /app/train.py. It is kept across runs, as the image below it is."""
    env = {**os.environ, **environ}
    files = [HERE / "project" / name for name in ("train.py", "look.py")]
    with services.locked(services.CACHE / "podman-examples.lock"):
        base = podman(env, "image", "inspect", "--format", "{{.Id}}", services.PODMAN_IMAGE)
        made_of = f"{base}-{services.hash_of(MAKE_IMAGE + ''.join(file.read_text() for file in files))}"
        label = ["image", "inspect", "--format", '{{index .Labels "made-of"}}']
        if all(podman(env, *label, name, check=False) == made_of for name in IMAGE_NAMES):
            return
        podman(env, "rm", "--force", "--ignore", "flow-test-examples")
        podman(env, "run", "--name", "flow-test-examples", services.PODMAN_IMAGE, "sh", "-c", MAKE_IMAGE)
        for file in files:
            podman(env, "cp", str(file), f"flow-test-examples:/app/{file.name}")
        commit = ["commit", "--quiet", "--change", f"LABEL made-of={made_of}", "flow-test-examples"]
        image = podman(env, *commit)
        podman(env, "rm", "flow-test-examples")
        for name in IMAGE_NAMES:
            podman(env, "tag", image, name)


def podman(env: Mapping[str, str], *arguments: str, check: bool = True) -> str:
    done = subprocess.run(["podman", *arguments], env=dict(env), capture_output=True, text=True)
    assert not check or done.returncode == 0, f"podman {arguments[0]} says: {done.stderr}"
    return done.stdout.strip()


def fill_buckets(moto: MotoServer) -> None:
    for name, keys in BUCKETS.items():
        moto.bucket(name, {key: f"content of {key}".encode() for key in keys})


class Seen(NamedTuple):
    """What a script of the project found where it ran."""

    script: str
    arguments: list[str]
    folder: str
    environ: dict[str, str]
    mounts: dict[str, dict[str, Any]]

    def files(self, mount: str) -> list[str]:
        found: list[str] = self.mounts[mount]["files"]
        return found

    @property
    def gpus(self) -> int:
        return len([gpu for gpu in self.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu])


def seen_by(task: flow.Task, node: int = 0) -> list[Seen]:
    """One for each script that ran on the node."""
    # Not from the line's start: what another process of the task was printing may be in front of it.
    return [Seen(**json.loads(found)) for found in re.findall(r"saw (\{.*\})$", task.logs(node=node), re.MULTILINE)]


def completed(task: flow.Task) -> flow.Task:
    """The task, once it has; fails the test with its output where it did otherwise."""
    task.wait(timeout=TASK_TIMEOUT_S)
    assert task.status == "completed", f"{task!r}\n{task.logs()}"
    return task


def running(task: flow.Task) -> flow.Task:
    """The task, once it runs; fails the test where it ended."""
    wait_for(lambda: task.status == "running" or (task.is_done and pytest.fail(repr(task))), 30, f"{task!r} to run")
    return task


def files_of_volume(name: str) -> list[str]:
    """What is in a volume, as a task sees it."""
    task = completed(flow.run("ls -1 /look", mounts={"/look": f"volume://{name}"}, upload_code=False))
    return task.logs().splitlines()


def shell_output(task: flow.Task, command: str) -> str:
    """What `task.shell(command)` prints."""
    script = "import sys, flow_sdk; flow_sdk.get_task(sys.argv[1]).shell(sys.argv[2])"
    argv = [TESTS_PYTHON, "-c", script, task.task_id, command]
    return subprocess.run(argv, capture_output=True, text=True, timeout=TASK_TIMEOUT_S).stdout


def fetch(url: str) -> bytes:
    """What the server says; nothing while it is not up yet."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            found: bytes = answer.read()
            return found
    except (ConnectionError, urllib.error.URLError):
        return b""


@contextlib.contextmanager
def port_of_the_example(port: int) -> Iterator[None]:
    """Has a port to itself that the example names, among all tests that this user runs on this machine; skips the test
    where another program has it."""
    with services.locked(Path(tempfile.gettempdir()) / f"flow-test-{os.geteuid()}-port-{port}.lock"):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                services.unavailable(f"port {port} is taken on this machine")
        yield


def tasks() -> list[flow.Task]:
    """All of this home, in the order submitted."""
    return flow.list_tasks()[::-1]


def end_all() -> None:
    """Ends every task of this home."""
    going = [task.cancel() for task in tasks() if not task.is_done]
    for task in going:
        task.wait(timeout=TASK_TIMEOUT_S)


class World:
    """A project folder that is the working directory, a Flow home, and what the test asks for beyond that.

    Attributes:
        project: the folder.
        blocks: the documents'.
    """

    def __init__(
        self,
        project: Path,
        user_python: Path,
        plug_in: Callable[[str], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.project = project
        self.blocks = document_blocks()
        self.user_python = user_python
        self._plug_in = plug_in
        self._monkeypatch = monkeypatch
        self._namespace: dict[str, Any] = {}
        self._terminals: list[pexpect.spawn] = []
        self.import_name = "flow"
        shutil.copytree(HERE / "project", project, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        # The user works in an activated environment; tests of the SDK are programs of that environment.
        # The tests' own environment is not on PATH: what an example installs must not go there.
        own = Path(TESTS_PYTHON).parent
        others = [folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder) != own]
        monkeypatch.setenv("PATH", os.pathsep.join([str(user_python.parent), *others]))
        monkeypatch.setattr(sys, "executable", str(user_python))

    def gpus(self, spec: str) -> None:
        """Puts GPUs into this machine; from here on a task that cannot have the GPUs it asks for is refused."""
        self._plug_in(spec)
        self._monkeypatch.setenv("FLOW_LOCAL_STRICT", "1")

    def text(self, document: str, heading: str, number: int = 0) -> str:
        return self.blocks[Key(document, heading, number)].text

    def run(
        self, document: str, heading: str, number: int = 0, replace: Mapping[str, str] = {}, **names: Any
    ) -> dict[str, Any]:
        """Executes one Python block; returns its names. The names of earlier blocks are there, as in the document.

        Args:
            replace: placeholders to real values.
            **names: what the document supposes that the reader has.
        """
        for _ in self.steps(document, heading, number, replace, **names):
            pass
        return self._namespace

    def steps(
        self, document: str, heading: str, number: int = 0, replace: Mapping[str, str] = {}, **names: Any
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The same, one statement at a time: its source, and the names after it."""
        if not self._namespace:
            self._execute("import os\nimport flow\nfrom flow import Flow, TaskConfig\n", "<what the reader has done>")
        self._namespace.update(names)
        block = self.blocks[Key(document, heading, number)]
        text = block.text
        for placeholder, value in replace.items():
            assert placeholder in text, f"the block has no {placeholder!r}"
            text = text.replace(placeholder, value)
        for statement in ast.parse(text).body:
            source = ast.get_source_segment(text, statement, padded=True) or ""
            self._execute("\n" * (block.line + statement.lineno - 2) + source, f"<{document}: {heading}>")
            yield source, self._namespace

    def commands(self, document: str, heading: str, number: int = 0, replace: Mapping[str, str] = {}) -> list[str]:
        """The command lines of a shell block, without comments."""
        text = self.text(document, heading, number)
        for placeholder, value in replace.items():
            assert placeholder in text, f"the block has no {placeholder!r}"
            text = text.replace(placeholder, value)
        lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
        return [line for line in lines if line]

    def shell(self, command: str, *, code: int = 0) -> str:
        """Runs a command line as on a terminal whose output is kept; returns its standard output."""
        done = subprocess.run(
            ["bash", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TASK_TIMEOUT_S
        )
        assert done.returncode == code, f"{command} exited {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def terminal(self, command: str) -> pexpect.spawn:
        """The command line on a terminal of its own."""
        child = pexpect.spawn("bash", ["-c", command], encoding="utf-8", timeout=TASK_TIMEOUT_S, dimensions=(40, 200))
        self._terminals.append(child)
        return child

    def end(self) -> None:
        """Ends the machines that stay up, and whatever a failed test has left."""
        for terminal in self._terminals:
            terminal.close(force=True)
        end_all()

    def _execute(self, source: str, where: str) -> None:
        if self.import_name != "flow":
            source = re.sub(r"^import flow$", f"import {self.import_name} as flow", source, flags=re.MULTILINE)
            source = re.sub(r"^from flow([ .])", rf"from {self.import_name}\1", source, flags=re.MULTILINE)
        exec(compile(source, where, "exec"), self._namespace)
