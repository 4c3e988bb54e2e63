"""A session: a task that stays warm and runs cells one after another, with their variables kept between them.

It is a task like any other, whose command is the cell host. Cells go in by `requests.jsonl` and what they show comes
out by `events.jsonl`, both in the task directory, so any process can take part and a reader that comes back loses
nothing.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flow_sdk import cellkernel, logs, providers, settings, store, taskdir
from flow_sdk.client import Flow, pack_code, submit_config
from flow_sdk.errors import ResourceNotFoundError, ValidationError
from flow_sdk.files import write_private
from flow_sdk.task import Ended, Task, whoami
from flow_sdk.watch import Watch

if TYPE_CHECKING:
    from flow_sdk.config import TaskConfig

Event = dict[str, Any]
TAG = "flow-session"
CELLS_TAG = "flow-cells"
NEEDS = ("ipykernel", "cloudpickle")
HOST_FILES = ("cellhost.py", "cellkernel.py")
COMMAND = ("python3", "$FLOW_NODE_DIR/cellhost.py", "$FLOW_NODE_DIR")
COMMAND_IN_IMAGE = f"""\
python3 -c 'import {", ".join(NEEDS)}' 2>/dev/null || python3 -m pip install --quiet {" ".join(NEEDS)} >&2 || exit 1
exec python3 "$FLOW_NODE_DIR/cellhost.py" "$FLOW_NODE_DIR" \
"""
NOTEBOOKS = b".ipynb"
"""Notebooks are no code of the session: an editor saves them all the time."""
STOPPED = "stopped"
"""What the host says of an end that others know more about."""
LOST_LOG_BYTES = 1 << 20
MOST_WATCHED = 500
LATE = ("stream", "comm_msg", "update_display_data")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Cell(NamedTuple):
    """One cell of a batch.

    Attributes:
        cell_id: names its events in the journal.
        code: IPython source.
        may_fail: go on with the next cell where this one fails.
    """

    cell_id: str
    code: str
    may_fail: bool = False


class Session:
    """A warm machine for cells.

    Args:
        task: the session's task.

    Attributes:
        config: what was submitted.
        own_cells: ids of the cells that were sent through this object.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._directory = taskdir.TaskDir(task.task_id)
        self._folder = self._directory.node(0)
        self._ended = Ended(task, 0)
        self._watch: Watch | None = None
        self._code: tuple[Path, str, Watch] | None = None
        self._noted: tuple[int, dict[str, Any]] | None = None
        self.own_cells: set[str] = set()
        self.config = task.config

    @classmethod
    def start(
        cls,
        config: TaskConfig,
        *,
        idle_s: float | None = None,
        code_root: str | Path | None = None,
        tags: Iterable[str] = (),
    ) -> Session:
        """Starts a session on a machine of its own; returns before it is ready, and cells may be sent at once.

        Args:
            config: what the machine must have; its command is not used.
            idle_s: seconds without a cell after which it ends; 1800 unless given.
            code_root: the folder that travels; the current one unless given.
            tags: to find it by.

        Raises:
            ValidationError: something cannot be right; nothing was started.
            NoCapacityError: nothing fits, or not at that price.
        """
        if config.num_instances != 1:
            raise ValidationError("A session is one machine.", ["For several, submit a task: flow.run(…)."])
        env = dict(config.env)
        if idle_s is not None:
            env["FLOW_IDLE_S"] = f"{idle_s:g}"
        name = config.name or f"session-{os.urandom(2).hex()}"
        config = config.replace(name=name, env=env, tags=[*config.tags, TAG, *tags])
        return cls(submit_host(config, (), code_root, {}))

    @staticmethod
    def is_session(task: Task) -> bool:
        return TAG in task.record.config.get("tags", ())

    @staticmethod
    def has_cells(task: Task) -> bool:
        """Whether what the task shows is a journal of cells: a session, or cells that were submitted."""
        return Session.is_session(task) or CELLS_TAG in task.record.config.get("tags", ())

    @classmethod
    def find(cls, tag: str = TAG) -> list[Session]:
        """The live sessions with that tag, newest first."""
        if not (settings.home() / "flow.db").exists():
            return []
        rows = store.list_rows(tag=tag)
        tasks = [Task(row) for row in rows if row.state not in taskdir.END_STATES]
        return [cls(task) for task in tasks if TAG in task.record.config.get("tags", ()) and not task.is_done]

    @property
    def is_live(self) -> bool:
        return not self._ended()

    @property
    def is_own(self) -> bool:
        """Whether this user started it: only then is anything of it unpickled."""
        return self.task.get_user().username == whoami() and self._directory.path.stat().st_uid == os.getuid()

    @property
    def end_reason(self) -> str:
        """Why it has ended, in a person's words."""
        said = (Journal(self._folder).last("session_ended") or {}).get("reason")
        task = self.task
        if said and said != STOPPED:
            return str(said)
        by_me = task.reason == f"Cancelled by {whoami()}."
        return STOPPED if by_me else str(task.reason or task.status).rstrip(".")

    def execute(
        self,
        code: str,
        *,
        inputs: dict[str, list[str]] | None = None,
        outputs: Sequence[str] = (),
        count: int | None = None,
    ) -> str:
        """Sends a cell; returns its id at once. Cells run in the order they were sent.

        Args:
            code: IPython source.
            inputs: variables to set first: names to the objects they were put as.
            outputs: variables to bring back when the cell has succeeded.
            count: its number, which tracebacks name.

        Raises:
            ResourceNotFoundError: the session has ended.
        """
        cell = secrets.token_hex(8)
        self._request(request(cell, code, inputs or {}, outputs, count))
        self.own_cells.add(cell)
        return cell

    def interrupt(self) -> None:
        """KeyboardInterrupt in the running cell; those that wait behind it are dropped."""
        self._request({"do": "interrupt"})

    def restart(self) -> None:
        """A fresh kernel on the same machine."""
        self._request({"do": "restart"})

    def keep(self, idle_s: float) -> None:
        """From now on the session ends after so many seconds without a cell."""
        self._request({"do": "keep", "idle_s": idle_s})

    def stop(self) -> None:
        """Ends the session and its machine."""
        self.task.cancel()

    def send_code(self, root: str | Path | None = None) -> bool:
        """Brings the machine's copy of the code to what the folder holds now; returns whether there was anything new.

        Args:
            root: the folder; the current one unless given.

        Raises:
            ValidationError, UploadTooLargeError: it cannot be sent.
        """
        try:
            folder = Path(root or Path.cwd())
        except FileNotFoundError:
            raise ValidationError(
                "The folder of the notebook is gone.", ["Make it again, or open the notebook."]
            ) from None
        note = self._directory.path / "code.json"
        sent = self._code_sent(note)
        if self._code is not None and self._code[:2] == (folder, sent["sha256"]) and not self._code[2].has_changed():
            return False
        # Until what has changed there was sent, every cell looks.
        self._forget_watch()
        packed = pack_code(self.config, folder, NOTEBOOKS)
        if packed is None:
            return False
        if sent["sha256"] == packed.sha256:
            self._watch_code(folder, packed.sha256)
            return False
        name = f"{packed.sha256}.tar.gz"
        target = self._folder / "objects" / name
        if not target.exists():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            write_private(target, packed.path.read_bytes())
        self._request({"do": "code", "bundle": name, "before": names_in(sent["path"])})
        write_private(note, json.dumps({"sha256": packed.sha256, "path": str(packed.path)}).encode())
        self._watch_code(folder, packed.sha256)
        return True

    def _forget_watch(self) -> None:
        if self._code is not None:
            self._code[2].close()
        self._code = None

    def _watch_code(self, folder: Path, sha256: str) -> None:
        """Has the kernel tell when something in the folder changes, so that most cells need not look."""
        from flow_sdk import bundle

        below = bundle.folders(folder, settings.home() / "bundles", without=NOTEBOOKS)
        if not 0 < len(below) <= MOST_WATCHED:
            return
        try:
            watch = Watch(below)
        except OSError:
            # A folder that has just gone: the next cell looks again.
            return
        # What changed while the watch was being set up is seen now.
        again = pack_code(self.config, folder, NOTEBOOKS)
        if again is not None and again.sha256 == sha256:
            self._code = folder, sha256, watch
        else:
            watch.close()

    def _code_sent(self, note: Path) -> dict[str, Any]:
        """What the machine has of the code; another notebook may have sent it."""
        try:
            stamp = note.stat().st_mtime_ns
        except FileNotFoundError:
            return {"sha256": self.task.record.bundle_sha256, "path": self.task.record.bundle}
        if self._noted is None or self._noted[0] != stamp:
            self._noted = stamp, json.loads(note.read_bytes())
        return self._noted[1]

    def put(self, data: memoryview, known: str = "") -> str:
        """Places one object by its content, once.

        Args:
            data: its bytes.
            known: the name it has, if it did not change.

        Returns:
            Its name.
        """
        return cellkernel.place(data, str(self._folder / "objects"), known)

    def get(self, name: str) -> Any:
        """An object's content, as a buffer that may be written to without changing the object."""
        return cellkernel.map_copy(str(self._folder / "objects" / name))

    def file(self, name: str) -> bytes | None:
        """A file that lies beside the cell host; None where there is none of that name."""
        path = self._folder / name
        return path.read_bytes() if path.exists() else None

    def journal(self, *, from_start: bool = False) -> Journal:
        """A reader of what comes next, or of all there is."""
        journal = Journal(self._folder)
        if not from_start:
            journal.skip_to_end()
        return journal

    def feed(self, journal: Journal, cell: str | None = None) -> Feed:
        """What a cell shows, or all of them, as it comes.

        Args:
            journal: opened before the cell was sent, so that nothing of it is missed.
            cell: as `execute` gave it; all cells unless given.
        """
        if self._watch is None:
            self._watch = Watch([self._folder])
        return Feed(self._folder, journal, self._ended, cell, self, self._watch)

    def cells(self) -> list[dict[str, Any]]:
        """The cells that were sent so far, in order, as {id, code, count}."""
        try:
            lines = (self._folder / "requests.jsonl").read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in lines if line]
        return [one for one in found if one.get("do") == "execute"]

    def note_shown(self, cell: str) -> None:
        """Notes that a notebook has shown the cell to its end."""
        try:
            with (self._directory.path / "shown").open("a") as file:
                file.write(cell + "\n")
        except OSError as error:
            # On a full disk it is shown once more instead, after the next start of the notebook.
            if error.errno not in DISK_FULL:
                raise

    def unshown(self) -> list[str]:
        """Ids of the cells that no notebook has shown to their end, in order."""
        try:
            shown = set((self._directory.path / "shown").read_text().split())
        except FileNotFoundError:
            shown = set()
        return [cell["id"] for cell in self.cells() if cell["id"] not in shown]

    def _request(self, wish: dict[str, Any]) -> None:
        if not self.is_live:
            raise ResourceNotFoundError(
                f"The session {self.task.name} has ended: {self.end_reason}.", ["The next cell starts a new one."]
            )
        try:
            append_line(self._folder / "requests.jsonl", wish)
        except OSError as error:
            raise settings.unwritable(settings.home(), error) from error


class Feed:
    """Events of one cell, or of all of a session, as they come.

    Attributes:
        done: nothing more will come.
        reply: the content of the cell's `execute_reply`, once it is there.
    """

    def __init__(
        self, folder: Path, journal: Journal, ended: Ended, cell: str | None, session: Session, watch: Watch
    ) -> None:
        self._folder = folder
        self._journal = journal
        self._ended = ended
        self._cell = cell
        self._session = session
        self._watch = watch
        self.done = False
        self.reply: dict[str, Any] | None = None

    def available(self) -> Iterator[Event]:
        """What is there and was not given yet. Where the session ends before the cell does, its reply says so."""
        ended = self._ended()
        for event in self._journal.read():
            if self._cell in (None, event["cell"]) or self._is_late(event):
                yield event
            if event["type"] == "execute_reply" and event["cell"] == self._cell:
                self.reply, self.done = event["content"], True
                return
        if ended and not self.done:
            yield from self._last_words()
            self.done = True
            if self._cell is not None:
                evalue = f"the session {self._session.task.name} has ended: {self._session.end_reason}"
                self.reply = {"status": "error", "ename": "SessionEnded", "evalue": evalue, "traceback": []}

    def _is_late(self, event: Event) -> bool:
        """Whether it comes of something that a former cell left running, or tells of the kernel's end between two
        cells, and shows nowhere else."""
        if event["type"] == "kernel_restarted":
            return not event["content"]["told"]
        return event["type"] in LATE and event["cell"] in self._session.own_cells

    def _last_words(self) -> Iterator[Event]:
        """What the command still printed after its last event: it was killed before it could journal that."""
        if self._journal.last("session_ended") is not None:
            return
        for (name, number), start in zip((("stdout", 1), ("stderr", 2)), self._journal.logged, strict=True):
            path = self._folder / logs.NAMES[number]
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(max(start, path.stat().st_size - LOST_LOG_BYTES))
                data = file.read()
                # Where the node is this machine: what the kernel had not even sent.
                tails = (self._journal.last("session") or {}).get("tails", "")
                data += cellkernel.after(os.path.join(tails, name), file.tell())
            text = data.decode(errors="replace")
            if text:
                yield {"seq": 0, "cell": self._cell, "type": "stream", "content": {"name": name, "text": text}}

    def wait(self, timeout_s: float | None = None) -> None:
        """Returns when there may be something new, or when the time is up; at the latest after a second."""
        self._watch.wait(logs.LOOK_AGAIN_S if timeout_s is None else timeout_s)


class Journal:
    """Reads `events.jsonl` from where it left off, in whole lines.

    Attributes:
        logged: bytes of stdout.log and stderr.log that the events read so far account for.
        session: what the host said of itself last: its Python's version, the idle time and when that is up.
    """

    session: dict[str, Any] | None = None

    def __init__(self, folder: Path) -> None:
        self._path = folder / "events.jsonl"
        self._fd = -1
        self._offset = 0
        self.logged = [0, 0]

    def _open(self) -> bool:
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
        return True

    def read(self) -> Iterator[Event]:
        """The events that are there and were not given yet."""
        if not self._open():
            return
        size = logs.CHUNK_BYTES
        while data := os.pread(self._fd, size, self._offset):
            # A line that is not whole yet is read again: on a full disk its writer takes it back.
            whole = data.rfind(b"\n") + 1
            if not whole:
                if len(data) < size:
                    return
                size *= 4
                continue
            for line in data[:whole].split(b"\n")[:-1]:
                event = json.loads(line)
                self._offset += len(line) + 1
                self.logged = event.get("logs") or self.logged
                if event["type"] == "session":
                    self.session = event["content"]
                yield event

    def skip_to_end(self) -> None:
        """Leaves aside what is there: what is printed from now on is some later cell's."""
        paths = [self._path.with_name(logs.NAMES[number]) for number in logs.BOTH]
        self.logged = [path.stat().st_size if path.exists() else 0 for path in paths]
        if self._open():
            self._offset = os.fstat(self._fd).st_size
            while self._offset and os.pread(self._fd, 1, self._offset - 1) != b"\n":
                self._offset -= 1

    def last(self, kind: str) -> dict[str, Any] | None:
        """The content of the last event of that type, where it is among the last few."""
        if not self._open():
            return None
        size = os.fstat(self._fd).st_size
        start = max(0, size - (1 << 16))
        lines = os.pread(self._fd, size - start, start).split(b"\n")[1 if start else 0 : -1]
        for line in reversed(lines):
            event = json.loads(line)
            if event["type"] == kind:
                content: dict[str, Any] = event["content"]
                return content
        return None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def submit_cells(
    config: TaskConfig,
    cells: Iterable[Cell],
    *,
    inputs: dict[str, list[str]] | None = None,
    outputs: Sequence[str] = (),
    objects: dict[str, bytes] | None = None,
    files: dict[str, bytes] | None = None,
    code_root: str | Path | None = None,
) -> Task:
    """Runs cells as a task of their own, on a fresh kernel, up to the first that fails; returns at once.

    Args:
        config: what the machine must have; its command is not used.
        cells: in order.
        inputs: variables to set before the first: names to their objects.
        outputs: variables to keep after the last, as objects.
        objects: content of the objects by their names.
        files: what else lies beside the cell host, by name.
        code_root: the folder that travels; the current one unless given.
    """
    cells = list(cells)
    lines = []
    for number, cell in enumerate(cells):
        wanted = outputs if number == len(cells) - 1 else ()
        line = request(cell.cell_id, cell.code, (inputs or {}) if number == 0 else {}, wanted, number + 1)
        lines.append(json.dumps({**line, "may_fail": cell.may_fail}))
    placed = {f"objects/{name}": data for name, data in (objects or {}).items()}
    requests = {"requests.jsonl": "".join(line + "\n" for line in lines).encode()}
    config = config.replace(tags=[*config.tags, CELLS_TAG])
    return submit_host(config, ("--once",), code_root, {**requests, **placed, **(files or {})})


def submit_host(
    config: TaskConfig, options: Sequence[str], code_root: str | Path | None, files: dict[str, bytes]
) -> Task:
    provider = config.provider or Flow().provider
    if config.image:
        config = config.replace(command=COMMAND_IN_IMAGE + " ".join(options))
    else:
        packages = [*config.pip, *missing_packages(provider)]
        config = config.replace(command=[*COMMAND, *options], pip=packages)
    here = Path(__file__).parent
    files = {**{name: (here / name).read_bytes() for name in HOST_FILES}, **files}
    root = Path(code_root) if code_root else None
    return submit_config(config, provider, root, files=files, without=NOTEBOOKS)


def missing_packages(provider: str) -> list[str]:
    """What the cell host needs and the Python that will run it lacks, as far as that can be known from here."""
    if "this-python" not in providers.load(provider).capabilities:
        return list(NEEDS)
    return [need for need in NEEDS if importlib.util.find_spec(need) is None]


def request(
    cell: str, code: str, inputs: dict[str, list[str]], outputs: Sequence[str], count: int | None
) -> dict[str, Any]:
    import platform

    found: dict[str, Any] = {"do": "execute", "id": cell, "code": code, "count": count}
    if inputs:
        found |= {"inputs": inputs, "python": platform.python_version()}
    if outputs:
        found["outputs"] = list(outputs)
    return found


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Adds a line in one write, so that those of several notebooks do not mix; on a full disk none of it."""
    data = json.dumps(line).encode() + b"\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        end = os.fstat(fd).st_size
        written = os.write(fd, data)
        if written < len(data):
            os.ftruncate(fd, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)


def names_in(bundle: str | None) -> list[str]:
    """The files of a bundle; none where it is gone or was empty."""
    import tarfile

    if bundle is None or not Path(bundle).exists():
        return []
    with tarfile.open(bundle) as archive:
        return [member.name for member in archive if not member.isdir()]
