"""The task directory: the files by which the runner and everyone else talk. Every file name is known here."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from flow_sdk.files import write_private
from flow_sdk.settings import home, unwritable

PENDING, PROVISIONING, PREPARING, RUNNING = "pending", "provisioning", "preparing", "running"
COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
TIMED_OUT, PREEMPTED, LOST = "timed_out", "preempted", "lost"
STATES = (PENDING, PROVISIONING, PREPARING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMED_OUT, PREEMPTED, LOST)
END_STATES = frozenset({COMPLETED, FAILED, CANCELLED, TIMED_OUT, LOST})
STATUS_BYTES = 4096

# A task with ranks in several states is in the first of these that one of its ranks is in.
ONGOING_ORDER = (RUNNING, PREPARING, PREEMPTED, PROVISIONING, PENDING)
END_ORDER = (FAILED, LOST, TIMED_OUT, CANCELLED, COMPLETED)


class NodeStatus(NamedTuple):
    """What a rank's status.json says; times are seconds since 1970 on the node's clock."""

    rank: int
    state: str = PENDING
    pid: int | None = None
    command_pid: int | None = None
    exit_code: int | None = None
    started_at: float | None = None
    ended_at: float | None = None
    heartbeat: float | None = None
    restarts: int = 0
    reason: str | None = None
    gpus: tuple[str, ...] = ()
    result: str | None = None


class TaskDir:
    """The files of one task.

    Args:
        task_id: the task.
        root: the folder of all tasks; `FLOW_HOME/tasks` unless given.
    """

    def __init__(self, task_id: str, root: Path | None = None) -> None:
        self.task_id = task_id
        self.path = (root or tasks_root()) / task_id

    @property
    def task_json(self) -> Path:
        return self.path / "task.json"

    @property
    def secrets_json(self) -> Path:
        """Values of the task's environment and keys; 0600, never mirrored, never shown."""
        return self.path / "secrets.json"

    @property
    def stop_json(self) -> Path:
        return self.path / "stop.json"

    @property
    def lock(self) -> Path:
        """Locked from before the task exists until its last process on this machine has ended."""
        return self.path / "lock"

    @property
    def runner_log(self) -> Path:
        return self.path / "runner.log"

    def node(self, rank: int) -> Path:
        return self.path / f"node-{rank}"

    def log(self, rank: int, stderr: bool) -> Path:
        return self.node(rank) / ("stderr.log" if stderr else "stdout.log")

    def workspace(self, rank: int) -> Path:
        return self.node(rank) / "workspace"

    def status(self, rank: int) -> NodeStatus | None:
        """The rank's status, or None where no runner has written one yet."""
        try:
            found = json.loads((self.node(rank) / "status.json").read_bytes())
        except FileNotFoundError:
            return None
        known = {name: found[name] for name in NodeStatus._fields if name in found}
        known["gpus"] = tuple(known.get("gpus") or ())
        return NodeStatus(**{**known, "rank": rank})

    def read_task(self) -> dict[str, Any]:
        """task.json; raises FileNotFoundError, and ValueError where it is damaged."""
        found = json.loads(self.task_json.read_bytes())
        if not isinstance(found, dict) or "config" not in found:
            raise ValueError(f"{self.task_json} is not a task's record")
        return found

    def read_secrets(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.secrets_json.read_bytes())
        except FileNotFoundError:
            return {}
        return found

    def is_live(self) -> bool:
        """Whether a process still answers for the task: its submitter, its guard or one of its runners."""
        try:
            fd = os.open(self.lock, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def make(self, ranks: int) -> int:
        """Makes the folders and takes the lock: from here on the task has someone who answers for it.

        Returns:
            The lock's descriptor. Whoever inherits it answers for the task too; it is free when the last is gone.
        """
        self.path.mkdir(mode=0o700, parents=True)
        fd = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # The pid will fit, and so will each rank's last word, however full the disk is by then.
            os.write(fd, b"\n")
            for rank in range(ranks):
                self.node(rank).mkdir(mode=0o700)
                (self.node(rank) / ".status.spare").write_bytes(b" " * STATUS_BYTES)
        except OSError:
            os.close(fd)
            raise
        return fd

    def guard_pid(self) -> int | None:
        """The process to signal, once there is one."""
        try:
            text = self.lock.read_text()
        except FileNotFoundError:
            return None
        return int(text) if text.strip() else None

    def request_stop(self, reason: str) -> None:
        """Leaves the wish to stop where the runner finds it, also one that starts later; the first wish counts."""
        if not self.stop_json.exists():
            try:
                write_private(self.stop_json, json.dumps({"state": CANCELLED, "reason": reason}).encode())
            except OSError as error:
                # On a full disk the signal that follows says the same, but for the reason.
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise unwritable(home(), error) from error

    def stop_wish(self) -> tuple[str, str] | None:
        """The (state, reason) that whoever stopped the task left."""
        try:
            wish = json.loads(self.stop_json.read_bytes())
        except FileNotFoundError:
            return None
        return wish["state"], wish["reason"]


def tasks_root() -> Path:
    return home() / "tasks"


def combined(statuses: list[NodeStatus | None]) -> NodeStatus:
    """One status for the whole task: the rank that decides it, with the earliest start and the latest end."""
    known = [s or NodeStatus(rank=rank) for rank, s in enumerate(statuses)]
    ended = all(s.state in END_STATES for s in known)
    order = END_ORDER if ended else ONGOING_ORDER
    deciding = min(known, key=lambda s: order.index(s.state) if s.state in order else len(order))
    if len(known) > 1 and deciding.reason and deciding.state in (FAILED, LOST, TIMED_OUT):
        deciding = deciding._replace(reason=f"Node {deciding.rank}: {deciding.reason}")
    starts = [s.started_at for s in known if s.started_at is not None]
    ends = [s.ended_at for s in known if s.ended_at is not None]
    return deciding._replace(
        started_at=min(starts, default=None),
        ended_at=max(ends, default=None) if ended else None,
        restarts=max(s.restarts for s in known),
    )
