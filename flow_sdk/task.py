"""A submitted task, as anyone who has its id can hold it. Everything is read from the task directory."""

from __future__ import annotations

import codecs
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from flow_sdk import logs, providers, store, taskdir
from flow_sdk.errors import FlowError, ResourceNotFoundError, TaskFailedError, ValidationError, WaitTimeoutError
from flow_sdk.providers import Instance, Lease
from flow_sdk.watch import Watch

if TYPE_CHECKING:
    from flow_sdk.config import TaskConfig
    from flow_sdk.transports import Transport

PORT_NAMES = {8888: "jupyter", 6006: "tensorboard", 8787: "dask", 8265: "ray"}
"""What a port is usually for; an endpoint can be asked for by this name too."""


class User(NamedTuple):
    """Who submitted a task."""

    username: str
    email: str | None


class Endpoints(dict[str, str]):
    """Addresses by port or by name: `endpoints[8888]`, `endpoints["8888"]`, `endpoints["jupyter"]`."""

    def __missing__(self, key: object) -> str:
        if isinstance(key, int) and str(key) in self:
            return self[str(key)]
        known = ", ".join(self) or "none; give the task ports=[…]"
        raise ResourceNotFoundError(f"The task has no endpoint {key!r}.", [f"It has: {known}."])


class Task:
    """One submitted task. Made by `run`, `submit`, `get_task` and `list_tasks`; safe to drop at any time.

    Properties that can change are looked up when read, until the task has ended.

    Attributes:
        task_id: unique identifier.
        name: as given, or made from the command.
    """

    def __init__(self, row: store.Row) -> None:
        self._row = row
        self._directory = taskdir.TaskDir(row.record.task_id)

    @property
    def _record(self) -> store.Record:
        return self._row.record

    @property
    def _lease(self) -> Lease | None:
        return self._record.lease

    @property
    def task_id(self) -> str:
        return self._record.task_id

    @property
    def name(self) -> str:
        return self._record.name

    @property
    def provider(self) -> str:
        return self._record.provider

    @property
    def num_instances(self) -> int:
        return int(self._record.config.get("num_instances", 1))

    @property
    def config(self) -> TaskConfig:
        """What was submitted, frozen, with the values of its environment."""
        from flow_sdk.config import TaskConfig

        config = TaskConfig.from_json(self._record.config, self._directory.read_secrets().get("env"))
        return config if config.missing_env else config.frozen_copy()

    @property
    def record(self) -> store.Record:
        """All that was written down at submission: code, commit, host, user, price, lease."""
        return self._record

    @property
    def status(self) -> str:
        """pending, provisioning, preparing, running, completed, failed, cancelled, timed_out, preempted or lost."""
        return self.refresh()._row.state

    @property
    def is_done(self) -> bool:
        return self.status in taskdir.END_STATES

    @property
    def exit_code(self) -> int | None:
        """The command's, 128 + N where signal N ended it; None until then. Of many nodes, that of the deciding one."""
        return self.refresh()._row.exit_code

    @property
    def reason(self) -> str | None:
        """Why the task is in its state, where there is something to say."""
        return self.refresh()._row.reason

    @property
    def created_at(self) -> datetime:
        """When it was submitted (UTC)."""
        return datetime.fromtimestamp(self._record.created_at, timezone.utc)

    @property
    def started_at(self) -> datetime | None:
        """When its command first started (UTC)."""
        return _utc(self.refresh()._row.started_at)

    @property
    def ended_at(self) -> datetime | None:
        return _utc(self.refresh()._row.ended_at)

    @property
    def cost_per_hour(self) -> float | None:
        """USD per hour for the whole task; 0.0 where it is free, None where the provider names no price."""
        return self._record.price_per_hour_usd

    @property
    def shell_command(self) -> str:
        """What to type for a shell where the task runs."""
        return f"flow ssh {self.task_id}"

    @property
    def endpoints(self) -> Endpoints:
        """The addresses of the task's `ports`."""
        found = Endpoints()
        with self._transport(0) as node:
            for port in self._record.config.get("ports", []):
                url = f"http://127.0.0.1:{node.forward(port)}"
                found[str(port)] = url
                if port in PORT_NAMES:
                    found[PORT_NAMES[port]] = url
        return found

    def refresh(self) -> Task:
        """Looks at what became of the task; returns itself."""
        if self._row.state in taskdir.END_STATES:
            return self
        status = self._look()
        if _news(status) != _news(self._row):
            store.update(self.task_id, status)
            self._row = store.Row(
                self._record,
                status.state,
                status.started_at,
                status.ended_at,
                status.exit_code,
                status.reason,
                self._row.tags,
            )
        return self

    def _look(self) -> taskdir.NodeStatus:
        if not self._directory.task_json.exists():
            gone = f"Its files are gone from {self._directory.path}, so nothing more is known of it."
            return taskdir.NodeStatus(0, taskdir.LOST, started_at=self._row.started_at, reason=gone)
        statuses = [self._directory.status(rank) for rank in range(self.num_instances)]
        status = taskdir.combined(statuses)
        if status.state in taskdir.END_STATES:
            return status
        lease = self._lease or self._lease_on_disk() or self._bare_lease()
        found = providers.load(self.provider).poll(lease)
        if found.state in taskdir.END_STATES:
            ended = taskdir.combined([self._directory.status(rank) for rank in range(self.num_instances)])
            if ended.state in taskdir.END_STATES:
                return ended
            # On a full or read-only disk the provider could not note the end that it found.
            return ended._replace(state=found.state, reason=found.reason, ended_at=time.time())
        return status._replace(state=found.state, reason=status.reason or found.reason)

    def _lease_on_disk(self) -> Lease | None:
        """The lease where the submitter was killed between launching and noting it in the history."""
        record = store.recall(self.task_id)
        if record.lease is not None:
            from dataclasses import replace

            self._row = replace(self._row, record=record)
        return record.lease

    def _bare_lease(self) -> Lease:
        """Enough of a lease to ask the provider by the task's id whether it knows the task."""
        return {"task_id": self.task_id, "nodes": self.num_instances, "engine": None}

    def wait(self, timeout: float | None = None, *, check: bool = False) -> Task:
        """Blocks until the task has ended; returns itself.

        Args:
            timeout: seconds to wait at most.
            check: raise where the task did not complete.

        Raises:
            WaitTimeoutError: the time is up; the task goes on.
            TaskFailedError: with `check`, it ended in another state than completed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self.is_done:
            ranks = range(self.num_instances)
            looks = [Ended(self, rank) for rank in ranks]
            with self._watch(ranks) as watch:
                # A busy log wakes us as well; only a new status is worth a look at the whole task.
                while sum(look() for look in looks) < len(looks) or not self.is_done:
                    left = logs.LOOK_AGAIN_S if deadline is None else deadline - time.monotonic()
                    if left <= 0:
                        raise WaitTimeoutError(
                            f"{self.name} is still {self._row.state} after {timeout:g} s.",
                            [f"It goes on; follow it with `flow logs -f {self.task_id}`."],
                        )
                    watch.wait(min(left, logs.LOOK_AGAIN_S))
        if check and self._row.state != taskdir.COMPLETED:
            raise self._failure()
        return self

    def _watch(self, ranks: range) -> Watch:
        return Watch(self._directory.node(rank) for rank in ranks)

    def _failure(self) -> TaskFailedError:
        row = self._row
        message = f"{self.name} ({self.task_id}) {row.state.replace('_', ' ')}: {row.reason or 'no reason was given'}"
        return TaskFailedError(
            message,
            [f"`flow logs {self.task_id}` shows its output.", f"`flow run --from {self.task_id}` runs it again."],
            task_id=self.task_id,
            task_exit_code=row.exit_code,
        )

    def cancel(self) -> Task:
        """Asks the command to stop, and kills its whole process tree after a grace of 10 s; returns itself at once.

        Cancelling a task that has ended changes nothing.
        """
        if not self.is_done:
            self._directory.request_stop(f"Cancelled by {whoami()}.")
            providers.load(self.provider).stop(self._lease or self._bare_lease())
        return self

    @overload
    def logs(
        self, tail: int | None = None, follow: Literal[False] = False, stderr: bool | None = None, node: int = 0
    ) -> str: ...
    @overload
    def logs(
        self, tail: int | None = None, *, follow: Literal[True], stderr: bool | None = None, node: int = 0
    ) -> Iterator[str]: ...

    def logs(
        self, tail: int | None = None, follow: bool = False, stderr: bool | None = None, node: int = 0
    ) -> str | Iterator[str]:
        """The task's output so far, or an iterator of its lines as they come.

        Args:
            tail: only the last so many lines.
            follow: go on until the task has ended, line by line without line ends.
            stderr: True for its error output only, False for its standard output only; both, as written, unless said.
            node: the rank of the node.
        """
        if follow:
            return self._follow_lines(tail, stderr, node)
        chunks = self.log_chunks(tail=tail, stderr=stderr, node=node)
        if stderr is not None:
            return b"".join(data for _, data in chunks).decode(errors="replace")
        return b"".join(lines for _, lines in logs.whole_lines(chunks)).decode(errors="replace")

    def _follow_lines(self, tail: int | None, stderr: bool | None, node: int) -> Iterator[str]:
        chunks = self.log_chunks(tail=tail, follow=True, stderr=stderr, node=node)
        for _, data in logs.whole_lines(chunks):
            text = data.decode(errors="replace")
            yield from text.replace("\r\n", "\n").removesuffix("\n").split("\n")

    def log_chunks(
        self, *, tail: int | None = None, follow: bool = False, stderr: bool | None = None, node: int = 0
    ) -> Iterator[tuple[int, bytes]]:
        """The same as bytes, exactly as written: (1 for stdout or 2 for stderr, at most 1 MiB)."""
        self._check_rank(node)
        if tail is not None and tail < 0:
            raise ValidationError(f"tail counts lines, so it cannot be {tail}.", ["tail=100 is the last 100 lines."])
        streams = logs.BOTH if stderr is None else (logs.STDERR if stderr else logs.STDOUT,)
        return self._chunks(streams, tail, follow, node)

    def _chunks(
        self, streams: tuple[int, ...], tail: int | None, follow: bool, node: int
    ) -> Iterator[tuple[int, bytes]]:
        reader = logs.Reader(self._directory.node(node), streams)
        try:
            if tail is not None:
                reader.skip_to_tail(tail)
            if not follow:
                yield from reader.available()
                return
            with self._watch(range(node, node + 1)) as watch:
                yield from logs.follow(reader, Ended(self, node), watch)
        finally:
            reader.close()

    def _check_rank(self, node: int) -> None:
        if not 0 <= node < self.num_instances:
            raise ValidationError(f"{self.name} has no node {node}.", [f"Its nodes are 0 to {self.num_instances - 1}."])

    def shell(self, command: str | None = None, *, node: int = 0) -> int:
        """A shell where the task runs, on this terminal; or one command there, its output shown as it comes.

        Args:
            command: a shell line, started in the task's folder with its environment.
            node: the rank of the node.

        Returns:
            The shell's or the command's exit code.
        """
        self._check_rank(node)
        with self._transport(node) as transport:
            return _run_shown(*transport.terminal(command))

    def get_user(self) -> User:
        """Who submitted the task."""
        return User(self._record.user, self._record.email)

    def get_instances(self) -> list[Instance]:
        """The machines of the task, by rank."""
        if self._lease is None:
            return []
        return list(providers.load(self.provider).poll(self._lease).instances)

    def download(self, path: str, to: str | Path = ".", *, node: int = 0) -> Path:
        """Copies a file or folder of the task's working directory here; what it is doing is not disturbed.

        Args:
            path: relative to the working directory, or below /workspace.
            to: an existing folder to put it in, or the name it shall have.

        Returns:
            Where it is now.

        Raises:
            ResourceNotFoundError: the task has no such file.
        """
        self._check_rank(node)
        inside = path[len("/workspace") :].lstrip("/") if (path + "/").startswith("/workspace/") else path
        root = self._directory.workspace(node).resolve()
        source = (root / inside).resolve()
        if not source.is_relative_to(root):
            raise ValidationError(f"{path!r} is outside the task's working directory.", ["Name a path within it."])
        if not source.exists():
            there = sorted(entry.name for entry in root.iterdir())[:10] if root.is_dir() else []
            raise ResourceNotFoundError(
                f"{self.name} has no file {path!r}.", [f"There is: {', '.join(there)}."] if there else []
            )
        import shutil

        target = Path(to).expanduser()
        target = target / (source.name if source != root else self.name) if target.is_dir() else target
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)
        return target

    def result(self, timeout: float | None = None) -> Any:
        """Waits, and gives what the command wrote as JSON to the file named by `$FLOW_RESULT`.

        Raises:
            TaskFailedError: the task did not complete.
            ResourceNotFoundError: it wrote no result.
            WaitTimeoutError: the time is up; the task goes on.
        """
        self.wait(timeout, check=True)
        status = self._directory.status(0)
        if status is None or status.result is None:
            raise ResourceNotFoundError(
                f"{self.name} completed, but wrote no result.",
                ["Write JSON to the file that the environment variable FLOW_RESULT names."],
            )
        data = (self._directory.node(0) / "objects" / status.result).read_bytes()
        try:
            return json.loads(data)
        except ValueError as error:
            raise FlowError(f"The result of {self.name} is not JSON: {error}.") from error

    def _transport(self, node: int) -> _Connected:
        if self._lease is None:
            self.refresh()
        if self._lease is None:
            raise ResourceNotFoundError(f"{self.name} has no machine ({self._row.state}).")
        return _Connected(providers.load(self.provider).connect(self._lease, node))

    def __repr__(self) -> str:
        try:
            self.refresh()
        except FlowError:
            # A repr shows what is known.
            pass
        row = self._row
        words = [self.name, row.state]
        if row.exit_code:
            words.append(f"exit code {row.exit_code}")
        start, end = row.started_at, row.ended_at
        if start is not None:
            words.append(f"{max(0.0, (end or time.time()) - start):.1f} s")
        words.append(f"{self._record.hardware} on {self.provider}")
        text = f"<Task {self.task_id}: {', '.join(words)}>"
        return f"{text[:-1]}; {row.reason}>" if row.reason and row.state != taskdir.COMPLETED else text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and other.task_id == self.task_id

    def __hash__(self) -> int:
        return hash(self.task_id)


class Ended:
    """Whether a rank will write nothing more. The status file is read again only when it was replaced, and the lock is
    tried only now and then, so a busy log costs its followers next to nothing."""

    def __init__(self, task: Task, rank: int) -> None:
        self.task = task
        self.rank = rank
        self.path = task._directory.node(rank) / "status.json"
        self.seen: tuple[int, int] | None = None
        self.looked_at = 0.0
        self.ended = False

    def __call__(self) -> bool:
        try:
            found = self.path.stat()
            stamp = (found.st_ino, found.st_mtime_ns)
        except FileNotFoundError:
            stamp = (0, 0)
        now = time.monotonic()
        if stamp == self.seen and now - self.looked_at < logs.LOOK_AGAIN_S:
            return self.ended
        if stamp == self.seen:
            # Nothing new for a while: is there still anyone to write?
            self.task.refresh()
        self.seen, self.looked_at = stamp, now
        status = self.task._directory.status(self.rank)
        # The whole task's end may be noted in no file: on a full disk, or where its files are gone.
        states = (status.state if status else taskdir.PENDING, self.task._row.state)
        self.ended = any(state in taskdir.END_STATES for state in states)
        return self.ended


def _run_shown(argv: list[str], env: dict[str, str]) -> int:
    """Runs a program on this terminal, or where there is none (a notebook, a redirected stream) shows what it prints as
    it comes; returns its exit code."""
    import subprocess

    sys.stdout.flush()
    try:
        on_own_streams = (sys.stdout.fileno(), sys.stderr.fileno()) == (1, 2)
    except (AttributeError, OSError):
        on_own_streams = False
    if on_own_streams:
        return subprocess.run(argv, env=env, check=False).returncode
    process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    errors = threading.Thread(target=_copy, args=(process.stderr, sys.stderr), daemon=True)
    errors.start()
    try:
        _copy(process.stdout, sys.stdout)
        errors.join()
        return process.wait()
    except BaseException:
        # Interrupted: what follows a log would go on for ever.
        process.terminate()
        process.wait()
        raise


def _copy(source: Any, to: Any) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with source:
        while data := os.read(source.fileno(), 65536):
            to.write(decoder.decode(data))
            to.flush()


class _Connected:
    """A transport, closed at the end of a with-block."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def __enter__(self) -> Transport:
        return self.transport

    def __exit__(self, *_: object) -> None:
        self.transport.close()


def _news(found: store.Row | taskdir.NodeStatus) -> tuple[object, ...]:
    """What of a status its row holds too."""
    return found.state, found.started_at, found.ended_at, found.exit_code, found.reason


def _utc(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)


def whoami() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A user id without a name, as in many containers.
        return f"user {os.getuid()}"
