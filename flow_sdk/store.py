"""The history of tasks: one row a task in `flow.db` (SQLite, WAL). The task directories are the truth; a database that
is damaged or gone is made again from them."""

from __future__ import annotations

import errno
import itertools
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from flow_sdk import taskdir
from flow_sdk.errors import ConfigError, ResourceNotFoundError, ValidationError
from flow_sdk.files import write_private
from flow_sdk.settings import home, make_home, unwritable

T = TypeVar("T")
BUSY_TIMEOUT_S = 30.0
SCHEMA_VERSION = 1
WRONG_CONTENT = ("no such table", "no such column", "table tasks has", "Could not decode")
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
        instance_type: what it was given to run on, which may not be what it asked for.
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
    instance_type: str | None = None
    note: str | None = None

    @property
    def hardware(self) -> str:
        """What it runs on, in a person's words."""
        asked = self.config.get("instance_type") or self.config.get("gpu")
        if asked and self.instance_type not in (None, asked):
            return f"{self.instance_type} (asked: {asked})"
        return str(asked or self.instance_type or "cpu")


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
_connections: dict[Path, tuple[sqlite3.Connection, int | None]] = {}


def save(record: Record) -> None:
    """Writes task.json and, at its first time, the row. The row is only an index: its loss loses nothing.

    Raises:
        ConfigError: the row could not be written, and the task is not launched yet; one that is stays launched.
        OSError: task.json could not be written.
    """
    path = taskdir.TaskDir(record.task_id).task_json
    data = json.dumps(asdict(record)).encode()
    # A provider on this machine has written it already, for its runner.
    if record.lease is None or not path.exists() or path.read_bytes() != data:
        write_private(path, data)
    write = _write if record.lease is None else _note
    write(lambda db: _insert(db, Row(record, taskdir.PENDING, tags=tuple(record.config.get("tags", ())))))


def recall(task_id: str) -> Record:
    """The record as task.json has it, brought into the row; raises FileNotFoundError where the directory is gone."""
    record = to_record(taskdir.TaskDir(task_id).read_task())
    _note(lambda db: _insert(db, Row(record, taskdir.PENDING, tags=tuple(record.config.get("tags", ())))))
    return record


def _insert(db: sqlite3.Connection, row: Row, if_there: str = "UPDATE SET record = excluded.record") -> None:
    record = row.record
    db.execute(
        "INSERT INTO tasks (task_id, name, state, provider, created_at, started_at, ended_at, exit_code, reason, tags,"
        f" record) VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (task_id) DO {if_there}",
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
    _note(
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
        from difflib import get_close_matches

        near = get_close_matches(text, {row.record.name for row in list_rows(limit=200)}, n=2)
        raise ResourceNotFoundError(
            f"There is no task {text!r}.",
            [*(f"Did you mean {name}?" for name in near), "`flow status --all` lists every task."],
        )
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
        # The newest few are found by their time; the plus keeps SQLite from sorting all tasks of these states.
        where.append(f"{'+' if limit else ''}state IN ({','.join('?' * len(states))})")
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


def newest_ids(since: float) -> list[str]:
    """Ids of all tasks created from then on, newest first: the Nth is what `:N` finds."""
    sql = "SELECT task_id FROM tasks WHERE created_at >= ? ORDER BY created_at DESC, task_id DESC"
    return _look(lambda db: [found[0] for found in db.execute(sql, (since,))])


def count() -> int:
    total: int = _look(lambda db: db.execute("SELECT count(*) FROM tasks").fetchone()[0])
    return total


def _read(sql: str, values: tuple[Any, ...]) -> list[Row]:
    return _look(lambda db: [_row(found) for found in db.execute(sql.format(columns=COLUMNS), values)])


def _row(found: tuple[Any, ...]) -> Row:
    record, state, started_at, ended_at, exit_code, reason, tags = found
    try:
        known = to_record(json.loads(record))
        return Row(known, state, started_at, ended_at, exit_code, reason, tuple(json.loads(tags)))
    except (ValueError, TypeError, AttributeError) as error:
        raise sqlite3.DatabaseError(f"a row cannot be read: {error}") from error


def to_record(data: dict[str, Any]) -> Record:
    """A record from JSON; keys that a newer version wrote are left aside."""
    known = {f.name for f in fields(Record)}
    record = Record(**{name: value for name, value in data.items() if name in known})
    return replace(record, mounts=tuple(record.mounts))


def _look(use: Callable[[sqlite3.Connection], T]) -> T:
    """Reads the history; from the task directories where the database is of no use, as on a full disk."""
    try:
        return _guarded(use)
    except ConfigError:
        if not taskdir.tasks_root().is_dir():
            raise
        with closing(sqlite3.connect(":memory:")) as db:
            _create(db)
            return use(db)


def _write(change: Callable[[sqlite3.Connection], object]) -> None:
    def within(db: sqlite3.Connection) -> None:
        with db:
            change(db)

    _guarded(within)


def _note(change: Callable[[sqlite3.Connection], object]) -> None:
    """Writes what a reader found out; a disk that takes no more keeps nobody from reading, and the next who looks finds
    it out again."""
    try:
        _write(change)
    except ConfigError:
        return


def _guarded(use: Callable[[sqlite3.Connection], T]) -> T:
    """Uses the database; one that turns out damaged is put aside and made again from the task directories."""
    try:
        # One thread at a time: two that used the connection at once would take each other's results.
        with _in_use:
            try:
                return use(_connect())
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                _put_aside()
                return use(_connect())
    except sqlite3.DatabaseError as error:
        path = home() / "flow.db"
        raise unwritable(path.parent, OSError(0, f"{path.name}: {error}")) from error


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the content is wrong, and not just the moment, the disk or the permissions."""
    return not isinstance(error, sqlite3.OperationalError) or str(error).startswith(WRONG_CONTENT)


def _connect() -> sqlite3.Connection:
    path = make_home() / "flow.db"
    if not os.access(path.parent, os.W_OK):
        raise unwritable(path.parent, OSError(errno.EROFS, os.strerror(errno.EROFS)))
    known = _connections.get(path)
    if known is not None:
        db, inode = known
        # A database that was removed or put aside must not be written to.
        if _inode(path) == inode:
            return db
        _connections.pop(path, None)
        db.close()
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    try:
        _prepare(db, path)
    except BaseException:
        db.close()
        raise
    _connections[path] = db, _inode(path)
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    if _version(db) < SCHEMA_VERSION:
        path.chmod(0o600)
        with _making():
            # Another process may have made it meanwhile.
            if _version(db) < SCHEMA_VERSION:
                db.execute("PRAGMA journal_mode = WAL")
                _create(db)
    # What a power cut could damage is made again from the task directories.
    db.execute("PRAGMA synchronous = OFF")
    _take_in_missing(db)


def _version(db: sqlite3.Connection) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version


def _create(db: sqlite3.Connection) -> None:
    """Makes the table, filled from the task directories, in one transaction: nobody sees a part of the history."""
    with db:
        db.execute("BEGIN IMMEDIATE")
        for statement in SCHEMA.split(";"):
            db.execute(statement)
        _take_in(db, _folders())
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _take_in_missing(db: sqlite3.Connection) -> None:
    """Takes in tasks that have a directory and no row: their submitter was killed, or part of the database is gone."""
    if not taskdir.tasks_root().is_dir():
        return
    # A folder has a link from each of its subfolders, on filesystems that count them.
    links = taskdir.tasks_root().stat().st_nlink
    if links - 2 == db.execute("SELECT count(*) FROM tasks").fetchone()[0]:
        return
    missing = _folders() - {task_id for (task_id,) in db.execute("SELECT task_id FROM tasks")}
    if missing:
        with db:
            _take_in(db, missing)


def _folders() -> set[str]:
    return set(os.listdir(taskdir.tasks_root())) if taskdir.tasks_root().is_dir() else set()


def _take_in(db: sqlite3.Connection, task_ids: Iterable[str]) -> None:
    for task_id in task_ids:
        directory = taskdir.TaskDir(task_id)
        try:
            record = to_record(directory.read_task())
            ranks = range(int(record.config.get("num_instances", 1)))
            status = taskdir.combined([directory.status(rank) for rank in ranks])
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, AttributeError):
            # Not a task, or one whose submitter was killed before it was recorded.
            continue
        times = (status.started_at, status.ended_at)
        tags = tuple(record.config.get("tags", ()))
        _insert(db, Row(record, status.state, *times, status.exit_code, status.reason, tags), "NOTHING")


def _put_aside() -> None:
    """Keeps a damaged database under another name, so that the next who connects makes it again."""
    path = home() / "flow.db"
    stale = _connections.pop(path, None)
    if stale is not None:
        stale[0].close()
    with _making():
        if _is_sound(path):
            return
        now = time.strftime("%Y%m%d-%H%M%S")
        names = (f"flow.db.damaged-{now}{'-' * bool(n)}{n or ''}" for n in itertools.count())
        aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
        for suffix in ("", "-wal", "-shm"):
            damaged = Path(f"{path}{suffix}")
            if damaged.exists():
                damaged.rename(f"{aside}{suffix}")


@contextmanager
def _making() -> Iterator[None]:
    """One process at a time makes the database or puts it aside."""
    import fcntl

    with (home() / "flow.db.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_sound(path: Path) -> bool:
    """Whether there is nothing to put aside: all of it can be read, or another process has just done it."""
    if not path.exists():
        return True
    with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as db:
        try:
            if _version(db) == 0 and path.stat().st_size == 0:
                return True
            for found in db.execute(f"SELECT {COLUMNS} FROM tasks"):
                _row(found)
            return bool(db.execute("PRAGMA integrity_check").fetchone()[0] == "ok")
        except sqlite3.DatabaseError as error:
            return not _is_damage(error)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


_in_use = threading.RLock()


def _disconnect() -> None:
    with _in_use:
        while _connections:
            _connections.popitem()[1][0].close()


def _before_fork() -> None:
    """SQLite's locks and shared memory do not survive a fork: a child that inherited a connection, or a lock that some
    other thread held, would ruin the database or wait for ever."""
    _in_use.acquire()
    _disconnect()


os.register_at_fork(before=_before_fork, after_in_parent=_in_use.release, after_in_child=_in_use.release)
