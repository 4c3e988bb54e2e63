"""The history of tasks: one row a task in `flow.db` (SQLite, WAL). The task directories are the truth; a database that
is damaged or gone is made again from them."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from flow_sdk import taskdir
from flow_sdk.errors import FlowError, ResourceNotFoundError, ValidationError
from flow_sdk.files import write_private
from flow_sdk.settings import home, make_home, unwritable

T = TypeVar("T")
BUSY_TIMEOUT_S = 30.0
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (
    task_id TEXT PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL, provider TEXT NOT NULL,
    created_at REAL NOT NULL, started_at REAL, ended_at REAL, exit_code INTEGER, reason TEXT,
    tags TEXT NOT NULL, record TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tasks_by_time ON tasks (created_at DESC);
CREATE INDEX IF NOT EXISTS tasks_by_name ON tasks (name, created_at DESC);
CREATE INDEX IF NOT EXISTS tasks_by_state ON tasks (state, created_at DESC);
"""


@dataclass(frozen=True)
class Record:
    """What was submitted and where it went: the content of task.json.

    Attributes:
        config: the TaskConfig as JSON, its env values left out.
        lease: what the provider holds; None until the launch was asked for.
        mounts: the config's mounts, read once, as the runner takes them.
        bundle: path of the code's archive, named by its hash; None without code.
        price_per_hour_usd: of the whole task; None where the provider names none.
        created_at: seconds since 1970.
    """

    task_id: str
    name: str
    provider: str
    config: dict[str, Any]
    created_at: float
    lease: dict[str, Any] | None = None
    mounts: tuple[dict[str, Any], ...] = ()
    bundle: str | None = None
    bundle_sha256: str | None = None
    code_root: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None
    host: str = ""
    user: str = ""
    email: str | None = None
    price_per_hour_usd: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Row:
    """A record with what is known of its end; `state` may be behind the task directory until someone looks."""

    record: Record
    state: str
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    reason: str | None = None
    tags: tuple[str, ...] = field(default=())


COLUMNS = "record, state, started_at, ended_at, exit_code, reason, tags"
_connections: dict[tuple[int, Path], sqlite3.Connection] = {}


def save(record: Record) -> None:
    """Writes task.json and, at its first time, the row. The row is only an index: its loss loses nothing."""
    directory = taskdir.TaskDir(record.task_id)
    data = asdict(record)
    write_private(directory.task_json, json.dumps(data).encode())
    _write(lambda db: _insert(db, Row(record, taskdir.PENDING, tags=tuple(record.config.get("tags", ())))))


def _insert(db: sqlite3.Connection, row: Row) -> None:
    record = row.record
    db.execute(
        "INSERT INTO tasks VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (task_id) DO UPDATE SET record = excluded.record",
        (
            record.task_id,
            record.name,
            row.state,
            record.provider,
            record.created_at,
            row.started_at,
            row.ended_at,
            row.exit_code,
            row.reason,
            json.dumps(row.tags),
            json.dumps(asdict(record)),
        ),
    )


def update(task_id: str, status: taskdir.NodeStatus) -> None:
    """Takes a task's combined status into its row; an end that was noted is never taken back."""
    ends = ",".join(f"'{state}'" for state in sorted(taskdir.END_STATES))
    values = (status.state, status.started_at, status.ended_at, status.exit_code, status.reason, task_id)
    _write(
        lambda db: db.execute(
            "UPDATE tasks SET state = ?, started_at = ?, ended_at = ?, exit_code = ?, reason = ?"
            f" WHERE task_id = ? AND state NOT IN ({ends})",
            values,
        )
    )


def get(task_id: str) -> Row | None:
    rows = _read("SELECT {columns} FROM tasks WHERE task_id = ?", (task_id,))
    return rows[0] if rows else None


def find(text: str) -> Row:
    """The task that `text` names: an id, the beginning of one, a name (its newest task), or `:N`, the Nth newest.

    Raises:
        ResourceNotFoundError: there is none.
        ValidationError: the beginning of an id fits several.
    """
    row = get(text)
    if row:
        return row
    if text.startswith(":") and text[1:].isdigit() and int(text[1:]) > 0:
        rows = _read(
            "SELECT {columns} FROM tasks ORDER BY created_at DESC, task_id DESC LIMIT 1 OFFSET ?", (int(text[1:]) - 1,)
        )
    else:
        rows = _read("SELECT {columns} FROM tasks WHERE name = ? ORDER BY created_at DESC LIMIT 1", (text,))
        if not rows and len(text) > 2:
            pattern = "".join(f"[{c}]" if c in "*?[" else c for c in text) + "*"
            rows = _read(
                "SELECT {columns} FROM tasks WHERE task_id GLOB ? OR task_id GLOB ? LIMIT 3",
                (pattern, "task-" + pattern),
            )
    if len(rows) > 1:
        ids = [row.record.task_id for row in rows]
        raise ValidationError(f"{text!r} is the beginning of several task ids.", [f"Say which: {', '.join(ids)}"])
    if not rows:
        raise ResourceNotFoundError(f"There is no task {text!r}.", ["`flow status --all` lists every task."])
    return rows[0]


def list_rows(
    *,
    states: tuple[str, ...] = (),
    name_pattern: str | None = None,
    tag: str | None = None,
    since: float | None = None,
    limit: int | None = None,
) -> list[Row]:
    """Rows, newest first.

    Args:
        states: only tasks noted in one of these.
        name_pattern: only names that fit this pattern with `*` and `?`.
        tag: only tasks with this tag.
        since: only tasks created after this time, in seconds since 1970.
        limit: at most so many.
    """
    where, values = ["1"], list[Any]()
    if states:
        where.append(f"state IN ({','.join('?' * len(states))})")
        values += states
    if name_pattern is not None:
        where.append("name GLOB ?")
        values.append(name_pattern)
    if tag is not None:
        where.append("EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)")
        values.append(tag)
    if since is not None:
        where.append("created_at >= ?")
        values.append(since)
    order = "ORDER BY created_at DESC, task_id DESC LIMIT ?"
    return _read(f"SELECT {{columns}} FROM tasks WHERE {' AND '.join(where)} {order}", (*values, limit or -1))


def count() -> int:
    total: int = _guarded(lambda db: db.execute("SELECT count(*) FROM tasks").fetchone()[0])
    return total


def _read(sql: str, values: tuple[Any, ...]) -> list[Row]:
    return [_row(found) for found in _guarded(lambda db: db.execute(sql.format(columns=COLUMNS), values).fetchall())]


def _row(found: tuple[Any, ...]) -> Row:
    record, state, started_at, ended_at, exit_code, reason, tags = found
    return Row(to_record(json.loads(record)), state, started_at, ended_at, exit_code, reason, tuple(json.loads(tags)))


def to_record(data: dict[str, Any]) -> Record:
    """A record from JSON; keys that a newer version wrote are left aside."""
    known = {f.name for f in fields(Record)}
    record = Record(**{name: value for name, value in data.items() if name in known})
    return replace(record, mounts=tuple(record.mounts))


def _write(change: Callable[[sqlite3.Connection], object]) -> None:
    def within(db: sqlite3.Connection) -> None:
        with db:
            change(db)

    _guarded(within)


def _guarded(use: Callable[[sqlite3.Connection], T]) -> T:
    """Uses the database; one that turns out damaged is put aside, made again from the task directories and used again."""
    try:
        return use(_connect())
    except sqlite3.OperationalError as error:
        raise _operational(error) from error
    except sqlite3.DatabaseError:
        rebuild()
        return use(_connect())


def _operational(error: sqlite3.OperationalError) -> FlowError:
    path = home() / "flow.db"
    return unwritable(path.parent, OSError(0, f"{path.name}: {error}"))


def _connect() -> sqlite3.Connection:
    path = make_home() / "flow.db"
    # A connection must not be used across a fork, and a removed database must not be written to.
    key = (os.getpid(), path)
    known = _connections.get(key)
    if known is not None and path.exists():
        return known
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    new = os.stat(path).st_size == 0
    path.chmod(0o600)
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version < SCHEMA_VERSION:
        db.execute("PRAGMA journal_mode = WAL")
        with db:
            db.executescript(SCHEMA + f"PRAGMA user_version = {SCHEMA_VERSION};")
    db.execute("PRAGMA synchronous = NORMAL")
    _connections[key] = db
    if new:
        _fill_from_directories(db)
    return db


def rebuild() -> None:
    """Puts a damaged database aside and makes it again from the task directories."""
    path = home() / "flow.db"
    stale = _connections.pop((os.getpid(), path), None)
    if stale is not None:
        stale.close()
    with _rebuild_lock():
        if _is_sound(path):
            return
        aside = path.with_name(f"flow.db.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        for suffix in ("", "-wal", "-shm"):
            damaged = Path(f"{path}{suffix}")
            if damaged.exists():
                damaged.rename(f"{aside}{suffix}")
        _connect()


@contextmanager
def _rebuild_lock() -> Iterator[None]:
    import fcntl

    with (home() / "flow.db.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_sound(path: Path) -> bool:
    try:
        with sqlite3.connect(path) as db:
            db.execute("SELECT count(*) FROM tasks").fetchone()
            return bool(db.execute("PRAGMA quick_check").fetchone()[0] == "ok")
    except sqlite3.DatabaseError:
        return False


def _fill_from_directories(db: sqlite3.Connection) -> None:
    with db:
        for folder in taskdir.tasks_root().iterdir():
            directory = taskdir.TaskDir(folder.name)
            try:
                record = to_record(directory.read_task())
            except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
                # Not a task, or one whose submitter was killed before it was recorded.
                continue
            _insert(db, Row(record, taskdir.PENDING, tags=tuple(record.config.get("tags", ()))))
