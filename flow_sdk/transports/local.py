"""Reaching a task on this machine: its folder, its mounts, its container."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flow_sdk.errors import ProviderError
from flow_sdk.files import write_private
from flow_sdk.taskdir import END_STATES, TaskDir
from flow_sdk.transports import Completed
from flow_sdk.watch import Watch

CHUNK_BYTES = 1 << 20
CONTAINER_TIMEOUT_S = 60.0


class LocalTransport:
    """One rank of a task of the local engine.

    Args:
        directory: the task's files.
        rank: which of its nodes.
        container: the container's name, for a task with an image.
        engine: the container engine's path.
    """

    def __init__(self, directory: TaskDir, rank: int, container: str | None = None, engine: str | None = None) -> None:
        self.directory = directory
        self.rank = rank
        self.container = container
        self.engine = engine
        self.workspace = directory.workspace(rank)

    def run(self, command: Sequence[str] | str, input: bytes | Path | None = None) -> Completed:
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        words, env = self._inside(interactive=False)
        if isinstance(input, Path):
            with input.open("rb") as file:
                done = subprocess.run([*words, *argv], stdin=file, capture_output=True, env=env, check=False)
        else:
            done = subprocess.run([*words, *argv], input=input or b"", capture_output=True, env=env, check=False)
        return Completed(done.returncode, done.stdout, done.stderr)

    def put(self, path: str, data: bytes | Path) -> None:
        target = self._path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, bytes):
            write_private(target, data)
            return
        import shutil

        part = target.with_name(target.name + ".part")
        shutil.copyfile(data, part)
        part.replace(target)

    def read(self, path: str, offset: int = 0, *, follow: bool = False) -> Iterator[bytes]:
        target = self._path(path)
        with target.open("rb") as file, Watch([target.parent]) as watch:
            file.seek(offset)
            while True:
                ended = not follow or self._ended()
                while data := file.read(CHUNK_BYTES):
                    yield data
                if ended:
                    return
                watch.wait(1.0)

    def forward(self, remote_port: int) -> int:
        return remote_port

    def terminal(self, command: str | None = None) -> tuple[list[str], dict[str, str]]:
        words, env = self._inside(interactive=True)
        if self.container:
            return [*words, "sh", "-c", command or "exec $(command -v bash || echo sh)"], env
        inner = ["sh", "-c", command] if command else [env.get("SHELL") or "sh"]
        # The command's own variables, with what the terminal needs.
        return [*words, *inner], {**env, "TERM": os.environ.get("TERM", "dumb")}

    def close(self) -> None:
        return

    def mount_arguments(self) -> list[str]:
        """For adding a mount: a process that sees the task's mounts, whether in a container, and a scratch folder.

        Raises:
            ProviderError: the task is not running.
        """
        self.environment()
        status = self.directory.status(self.rank)
        assert status is not None
        scratch = str(self.directory.node(self.rank) / "mounts")
        if not (self.container and self.engine):
            return [self._inner_pid(), "plain", scratch]
        return [self._container_pid(), "container", scratch]

    def _container_pid(self) -> str:
        """The container's first process; waits for it, for the engine makes the container a moment after the task is
        said to run."""
        ask = [str(self.engine), "container", "inspect", "--format", "{{.State.Pid}}", str(self.container)]
        deadline = time.monotonic() + CONTAINER_TIMEOUT_S
        while (pid := subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()) in ("", "0"):
            self.environment()
            if time.monotonic() > deadline:
                raise ProviderError(f"The container {self.container} did not start within {CONTAINER_TIMEOUT_S:g} s.")
            time.sleep(0.05)
        return pid

    def environment(self) -> dict[str, str]:
        """The environment of the task's command, as it runs."""
        status = self.directory.status(self.rank)
        if status is None or status.command_pid is None or status.state in END_STATES:
            raise self._not_running(status.state if status else "pending")
        try:
            found = Path(f"/proc/{status.command_pid}/environ").read_bytes()
        except OSError:
            return dict(os.environ)
        pairs = (os.fsdecode(entry).partition("=") for entry in found.split(b"\0") if b"=" in entry)
        return {name: value for name, _, value in pairs}

    def _inside(self, interactive: bool) -> tuple[list[str], dict[str, str]]:
        """The words that put a command where the task's own command is, and the environment to start them with."""
        env = self.environment()
        status = self.directory.status(self.rank)
        assert status is not None
        if self.container and self.engine:
            self._container_pid()
            terminal = ["--interactive", "--tty"] if interactive and os.isatty(0) else ["--interactive"]
            return [self.engine, "exec", *terminal, self.container], dict(os.environ)
        pid = self._inner_pid()
        folder = ["sh", "-c", 'cd "$0" && exec "$@"', str(self.workspace)]
        if same_mounts(pid):
            return folder, env
        if os.geteuid() == 0:
            return ["nsenter", "--target", pid, "--mount", "--root", *folder], env
        return ["nsenter", "--target", pid, "--user", "--mount", "--root", "--preserve-credentials", *folder], env

    def _inner_pid(self) -> str:
        """A process that sees the task's mounts: the command, or where that is bubblewrap, the child it waits for."""
        status = self.directory.status(self.rank)
        assert status is not None
        pid = str(status.command_pid)
        try:
            if os.path.basename(os.readlink(f"/proc/{pid}/exe")) == "bwrap":
                return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        except (OSError, IndexError):
            # No /proc here, or the command has just ended: then there is nothing more to see than from outside.
            return pid
        return pid

    def _ended(self) -> bool:
        status = self.directory.status(self.rank)
        return (status is not None and status.state in END_STATES) or not self.directory.is_live()

    def _path(self, path: str) -> Path:
        """A path on the node: absolute, below /workspace, or relative to it."""
        if path == "/workspace" or path.startswith("/workspace/"):
            path = path.removeprefix("/workspace").lstrip("/")
        return self.workspace / path

    def _not_running(self, state: str) -> ProviderError:
        name = self.directory.task_id
        if state in END_STATES:
            return ProviderError(
                f"The task {name} has ended ({state}), so there is nothing to enter.",
                [f"Its files are in {shlex.quote(str(self.workspace))}.", f"`flow run --from {name}` runs it again."],
            )
        return ProviderError(
            f"The task {name} is not running yet ({state}).", [f"`flow status {name}` says what it waits for."]
        )


def same_mounts(pid: str) -> bool:
    """Whether a process sees the same mounts as we do; where there is no /proc, there are no private mounts."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    except OSError:
        return True
