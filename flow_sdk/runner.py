"""The program on each node that makes a TaskConfig true.

It reads `task.json`, sets up GPUs, code, mounts, packages and the container, runs the command, and writes the task
directory. It travels as one file: standard library only, Python 3.8 and up, nothing of Flow's imported.

Three kinds of process, each the child of the one before it:

    guard    one a task and machine; holds the task's lock and GPUs; sees a killed runner and ends what it left
    runner   one a rank; prepares, starts the command, copies its output, writes status.json
    command  the user's own process tree; orphans come back to the runner, which is their subreaper

Started as `python -I -S -c "import sys; sys.path.append(DIR); import runner; runner.main()" TASK_DIR LOCK_FD`.
"""

from __future__ import annotations

# Every import here is waiting time of every task. json and signal would load re and enum, and ctypes its classes: twice
# the time of a bare interpreter. Their C halves are all that is needed before the command runs.
import errno
import fcntl
import os
import select
import sys
import time
from _json import encode_basestring_ascii, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn
else:
    import _signal as signal

LINUX = sys.platform == "linux"
HEARTBEAT_S = 30.0
CHUNK_BYTES = 1 << 20
PIPE_BYTES = 1 << 20
STATUS_BYTES = 4096
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
WAITS_FOR_DISK = "The disk is full; the command waits until its output can be written."
LINGER_S = 5.0
DISK_RETRY_S = 0.5
DISK_PATIENCE_S = 30.0
MOUNT_TIMEOUT_S = 60.0
DOWNLOAD_TIMEOUT_S = 60.0
MOST_ENTRIES = 1000
END_STATES = ("completed", "failed", "cancelled", "timed_out", "lost")

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_SLAVE = 1, 32, 4096, 8192, 16384, 1 << 19
F_SETPIPE_SZ = 1031


class Stopped(Exception):
    """The task was told to stop while it was not yet running its command."""


class NotPrepared(Exception):
    """Something the command needs could not be set up; the text is the task's reason."""


def main() -> NoReturn:
    task_dir, lock_fd = sys.argv[1], int(sys.argv[2])
    os.set_inheritable(lock_fd, False)
    os.setsid()
    with open(os.path.join(task_dir, "task.json"), encoding="utf-8") as file:
        spec = from_json(file.read())
    try:
        with open(os.path.join(task_dir, "secrets.json"), encoding="utf-8") as file:
            spec["secrets"] = from_json(file.read())
    except FileNotFoundError:
        spec["secrets"] = {}
    guard = Guard(task_dir, spec)
    # From here on we are signalled; until here, a wish to stop waits in stop.json.
    os.pwrite(lock_fd, b"%d\n" % os.getpid(), 0)
    guard.run()
    os._exit(0)


class Guard:
    """Starts one runner a rank, ends the others when one fails, and outlives a runner that is killed."""

    def __init__(self, task_dir: str, spec: dict[str, Any]) -> None:
        self.task_dir = task_dir
        self.spec = spec
        self.lease = spec["lease"]
        self.runners: dict[int, int] = {}
        self.wake_fd = wake_on_signals()

    def node(self, rank: int) -> Node:
        return Node(self.task_dir, rank)

    def run(self) -> None:
        ranks = list(range(self.lease["nodes"]))
        per_node = self.lease.get("gpus_per_node", 0)
        try:
            if os.path.exists(os.path.join(self.task_dir, "stop.json")):
                raise Stopped
            gpus = self.take_gpus(ranks, per_node * len(ranks)) if per_node else []
        except Stopped:
            for rank in ranks:
                self.node(rank).end("cancelled", stop_reason(self.task_dir)[1])
            return
        become_subreaper()
        for rank in ranks:
            share = gpus[rank * per_node : (rank + 1) * per_node]
            pid = os.fork()
            if pid == 0:
                Runner(self.task_dir, rank, self.spec, share).main()
            self.runners[pid] = rank
        self.watch()

    def take_gpus(self, ranks: list[int], count: int) -> list[dict[str, Any]]:
        nodes = [self.node(rank) for rank in ranks]

        def say(reason: str) -> None:
            for node in nodes:
                node.update(state="pending", reason=reason)

        return take_gpus(self.lease["gpus"], count, self.lease["gpu_locks"], self.wake_fd, say)

    def watch(self) -> None:
        """Waits for the runners; a rank that fails takes the others with it."""
        stopping = False
        poller = select.poll()
        poller.register(self.wake_fd, select.POLLIN)
        while self.runners:
            poller.poll()
            signals = os.read(self.wake_fd, 4096)
            if signal.SIGTERM in signals and not stopping:
                stopping = True
                # For a runner that is just being born and does not hear signals yet.
                write_stop(self.task_dir, *stop_reason(self.task_dir))
                self.signal_runners()
            for pid, wait_status in reap():
                rank = self.runners.pop(pid, None)
                if rank is None:
                    continue
                state = self.after_runner(rank, wait_status)
                if state != "completed" and not stopping and self.runners:
                    stopping = True
                    became = {"failed": "failed", "timed_out": "timed out"}.get(state, f"was {state}")
                    write_stop(self.task_dir, "cancelled", f"Ended because rank {rank} {became}.")
                    self.signal_runners()

    def signal_runners(self) -> None:
        for pid in self.runners:
            os.kill(pid, signal.SIGTERM)

    def after_runner(self, rank: int, wait_status: int) -> str:
        """The state a rank ended in, written here where its runner could not."""
        node = self.node(rank)
        state = node.read().get("state")
        if state in END_STATES:
            return str(state)
        container = container_name(self.spec, rank)
        if container:
            remove_container(self.lease["engine"], container)
        # What the runner left has come to the guard, its next subreaper; other ranks' trees are not touched.
        kill_tree(os.getpid(), spare=set(self.runners))
        unmount_all(node.path("mounts"))
        how = describe_exit(wait_status)
        node.end("lost", f"Its runner {how}; what it had started was ended.")
        return "lost"


def uptime() -> float:
    """Seconds that no change of the clock moves, sleep of the machine included where the system counts it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME if LINUX else time.CLOCK_MONOTONIC)


BORN = time.time() - uptime()


def clock() -> float:
    """Seconds since 1970 by the clock as it was when we started: durations stay true when somebody sets it."""
    return BORN + uptime()


def wake_on_signals() -> int:
    """A descriptor that becomes readable, one byte a signal, when a child ends or we are told to stop."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return read_fd


def reap() -> list[tuple[int, int]]:
    """Every child that has ended, as (pid, wait status)."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, wait_status))


def stop_reason(task_dir: str) -> tuple[str, str]:
    """The (state, reason) that whoever stopped the task left in stop.json."""
    try:
        with open(os.path.join(task_dir, "stop.json"), encoding="utf-8") as file:
            stop = from_json(file.read())
        return stop["state"], stop["reason"]
    except FileNotFoundError:
        return "cancelled", "The runner was told to stop by a signal."


def write_stop(task_dir: str, state: str, reason: str) -> None:
    path = os.path.join(task_dir, "stop.json")
    if not os.path.exists(path):
        try:
            replace_file(path, to_json({"state": state, "reason": reason}).encode())
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise


def take_gpus(
    gpus: list[dict[str, Any]], count: int, locks_dir: str, wake_fd: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Takes `count` of `gpus` for this process and its children, in the order of asking.

    A GPU is held by a lock on its file, so whoever dies gives it back. Closing a file that was open for writing is an
    inotify event, also when the kernel closes it for a killed process: those who wait are woken, not polling.
    """
    queue = os.path.join(locks_dir, "queue")
    os.makedirs(queue, mode=0o700, exist_ok=True)
    ticket, ticket_fd = take_ticket(queue)
    changes = None
    poller = select.poll()
    poller.register(wake_fd, select.POLLIN)
    while True:
        ahead = tickets_ahead(queue, ticket)
        held = lock_free(gpus, locks_dir) if ahead == 0 else []
        if len(held) >= count:
            for _, fd in held[count:]:
                os.close(fd)
            break
        for _, fd in held:
            os.close(fd)
        if changes is None:
            changes = watch_folders([locks_dir, queue])
            poller.register(changes, select.POLLIN)
            continue
        behind = f", behind {ahead} other task{'s' if ahead > 1 else ''}" if ahead else ""
        say(f"Waiting for {count} GPU{'s' if count > 1 else ''}{behind}.")
        for fd, _ in poller.poll(1000):
            if signal.SIGTERM in os.read(fd, 65536) and fd == wake_fd:
                os.unlink(ticket)
                raise Stopped
    for gpu, _ in held[:count]:
        # The bell: closed after the lock, and its closing is what wakes the next in line.
        os.open(gpu_lock(locks_dir, gpu), os.O_WRONLY)
    os.unlink(ticket)
    os.close(ticket_fd)
    if changes is not None:
        os.close(changes)
    return [gpu for gpu, _ in held[:count]]


def gpu_lock(locks_dir: str, gpu: dict[str, Any]) -> str:
    return os.path.join(locks_dir, gpu["uuid"])


def take_ticket(queue: str) -> tuple[str, int]:
    counter_fd = os.open(queue + ".counter", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(counter_fd, fcntl.LOCK_EX)
    number = int(os.pread(counter_fd, 32, 0) or b"0") + 1
    os.pwrite(counter_fd, b"%d" % number, 0)
    path = os.path.join(queue, "%016d" % number)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.close(counter_fd)
    return path, fd


def tickets_ahead(queue: str, ticket: str) -> int:
    """How many live tickets are older; those of the dead are thrown away."""
    ahead = 0
    for name in os.listdir(queue):
        if name >= os.path.basename(ticket):
            continue
        path = os.path.join(queue, name)
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        if try_lock(fd):
            unlink_if_there(path)
        else:
            ahead += 1
        os.close(fd)
    return ahead


def lock_free(gpus: list[dict[str, Any]], locks_dir: str) -> list[tuple[dict[str, Any], int]]:
    held = []
    for gpu in gpus:
        # Opened for reading, so that a failed try is no event that wakes the waiters, us among them.
        fd = os.open(gpu_lock(locks_dir, gpu), os.O_RDONLY | os.O_CREAT, 0o600)
        if try_lock(fd):
            held.append((gpu, fd))
        else:
            os.close(fd)
    return held


def try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def watch_folders(folders: list[str]) -> int:
    """A descriptor that becomes readable when something in a folder is closed after writing, or deleted."""
    if not LINUX:
        return os.pipe()[0]
    c = libc()
    fd = int(c.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    for folder in folders:
        close_write, delete = 0x8, 0x200
        if fd < 0 or c.inotify_add_watch(fd, os.fsencode(folder), close_write | delete) < 0:
            return os.pipe()[0]
    return fd


class Node:
    """The files of one rank that others read."""

    def __init__(self, task_dir: str, rank: int) -> None:
        self.rank = rank
        self.dir = os.path.join(task_dir, f"node-{rank}")
        self.spare = self.path(".status.spare")
        os.makedirs(self.path("objects"), mode=0o700, exist_ok=True)
        self.status: dict[str, Any] = {
            "state": "preparing",
            "rank": rank,
            "pid": os.getpid(),
            "exit_code": None,
            "started_at": None,
            "ended_at": None,
            "heartbeat": None,
            "restarts": 0,
            "reason": None,
        }

    def path(self, *names: str) -> str:
        return os.path.join(self.dir, *names)

    def read(self) -> dict[str, Any]:
        try:
            with open(self.path("status.json"), encoding="utf-8") as file:
                found: dict[str, Any] = from_json(file.read())
                return found
        except FileNotFoundError:
            return {}

    def update(self, **changes: Any) -> None:
        self.status.update(changes, heartbeat=clock())
        data = to_json(self.status).encode()
        path = self.path("status.json")
        try:
            replace_file(path, data)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            self.update_on_full_disk(path, data)

    def end(self, state: str, reason: str | None, **changes: Any) -> None:
        self.status.update(self.read())
        self.update(state=state, reason=reason, ended_at=clock(), **changes)
        unlink_if_there(self.spare)

    def reserve(self) -> None:
        """Sets one block aside, so that the last word can be written on a full disk; the submitter does it too."""
        if not os.path.exists(self.spare):
            with open(self.spare, "wb") as file:
                file.write(b" " * STATUS_BYTES)

    def update_on_full_disk(self, path: str, data: bytes) -> None:
        padded = data.ljust(STATUS_BYTES)
        if os.path.exists(self.spare):
            overwrite_file(self.spare, padded)
            os.rename(self.spare, path)
        elif os.path.exists(path):
            overwrite_file(path, padded)


class Runner:
    """One rank: prepares, runs the command, writes what happened."""

    def __init__(self, task_dir: str, rank: int, spec: dict[str, Any], gpus: list[dict[str, Any]]) -> None:
        self.task_dir = task_dir
        self.spec = spec
        self.config = spec["config"]
        self.lease = spec["lease"]
        self.gpus = gpus
        self.node = Node(task_dir, rank)
        self.rank = rank
        self.grace_s = float(self.lease.get("grace_s", 10.0))
        self.container = container_name(spec, rank)
        self.workspace = self.node.path("workspace")
        self.mounted: list[tuple[str, str, bool]] = []
        self.private_mounts = False

    def main(self) -> NoReturn:
        self.wake_fd = wake_on_signals()
        try:
            become_subreaper()
            self.run()
        except Stopped:
            self.finish(*stop_reason(self.task_dir))
        except NotPrepared as error:
            self.finish("failed", str(error))
        except BaseException as error:
            import traceback

            traceback.print_exc()
            self.finish("failed", f"Flow's runner failed: {type(error).__name__}: {error}")
        os._exit(0)

    def run(self) -> None:
        self.node.status["pid"] = os.getpid()
        # All that is started from here on can be found by it.
        os.environ["FLOW_TASK_ID"] = self.spec["task_id"]
        os.makedirs(self.workspace, mode=0o700, exist_ok=True)
        self.node.reserve()
        if os.path.exists(os.path.join(self.task_dir, "stop.json")):
            raise Stopped
        if self.gpus:
            self.node.status["gpus"] = [gpu["uuid"] for gpu in self.gpus]
        slow = self.spec.get("bundle") or self.lease.get("mounts") or self.config.get("pip") or self.container
        if slow:
            self.node.update(state="preparing")
        self.prepare()
        self.check_working_dir()
        env = self.environment()
        deadline = None
        if self.config.get("max_run_time_hours"):
            deadline = time.monotonic() + self.config["max_run_time_hours"] * 3600
        restarts = 0
        while True:
            env["FLOW_RESTART_COUNT"] = str(restarts)
            output = Output(self.node)
            pid = self.start(self.command(env), env, output)
            now = clock()
            self.node.update(
                state="running",
                command_pid=pid,
                restarts=restarts,
                reason=None,
                started_at=self.node.status["started_at"] or now,
            )
            wait_status, stopped = self.supervise(pid, output, deadline)
            left = 0 if stopped else self.linger(output)
            self.end_tree()
            output.finish(wait_s=DISK_PATIENCE_S)
            if stopped or wait_status == 0 or restarts >= self.config.get("retries", 0):
                break
            restarts += 1
        self.finish(*stopped or self.verdict(wait_status, output, left), exit_code=exit_code(wait_status))

    def linger(self, output: Output) -> int:
        """The command has ended, but what it left may still be writing, as `tee` in `exec > >(tee log)` does: it gets a
        moment to close the output. Returns how many processes did not."""
        poller = select.poll()
        poller.register(self.wake_fd, select.POLLIN)
        streams = output.register(poller)
        deadline = time.monotonic() + LINGER_S
        while output.readers and not output.held and (left_s := deadline - time.monotonic()) > 0:
            for fd, _ in poller.poll(left_s * 1000):
                if fd != self.wake_fd:
                    output.copy(fd, streams[fd], poller)
                elif signal.SIGTERM in os.read(fd, 4096):
                    deadline = 0.0
            reap()
        return len(descendants(os.getpid())) if output.readers else 0

    def finish(self, state: str, reason: str | None, **changes: Any) -> None:
        self.end_tree()
        unmount_all(self.node.path("mounts"))
        result = self.node.path("objects", "result")
        if os.path.exists(result):
            digest = file_sha256(result)
            os.replace(result, self.node.path("objects", digest))
            changes["result"] = digest
        self.node.end(state, reason, **changes)

    def verdict(self, wait_status: int, output: Output, left: int) -> tuple[str, str | None]:
        if output.lost_bytes:
            full = f"The disk is full: the last {output.lost_bytes} bytes of output could not be written."
            return "failed", full
        if wait_status == 0:
            return "completed", f"What the command left running was ended after {LINGER_S:g} s." if left else None
        reason = f"The command {describe_exit(wait_status)}"
        last = last_line(self.node.path("stderr.log"))
        reason += f": {last}" if last else "."
        reason += self.disk_note()
        if last.startswith("ModuleNotFoundError: No module named"):
            module = last.split("'")[1].split(".")[0]
            reason += f" (Add it with pip=[{module!r}] or --pip {module}.)"
        return "failed", reason

    def disk_note(self) -> str:
        return " (The disk is full.)" if os.statvfs(self.node.dir).f_bavail == 0 else ""

    def start(self, argv: list[str], env: dict[str, str], output: Output | None, cwd: str | None = None) -> int:
        """Forks and executes `argv` in a session of its own; its output goes to `output`, or to prepare.log."""
        streams = output.pipes() if output else self.prepare_log()
        cwd = cwd or self.working_dir()
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
                    signal.signal(number, signal.SIG_DFL)
                # Ignored by CPython, and by the shell for what it starts with "&"; executing would pass that on.
                for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGQUIT):
                    signal.signal(number, signal.SIG_DFL)
                stdin = os.open(os.devnull, os.O_RDONLY)
                for fd, source in enumerate((stdin, *streams)):
                    os.dup2(source, fd)
                os.chdir(cwd)
                os.execvpe(argv[0], argv, env)
            except OSError as error:
                what = cwd if error.filename == cwd else argv[0][:200]
                os.write(2, f"flow: cannot run {what}: {error.strerror}\n".encode(errors="replace"))
                os._exit(127 if error.errno == errno.ENOENT else 126)
            except ValueError as error:
                os.write(2, f"flow: cannot run {argv[0]}: {error}\n".encode(errors="replace"))
            finally:
                os._exit(126)
        for fd in streams:
            os.close(fd)
        return pid

    def supervise(self, pid: int, output: Output | None, deadline: float | None) -> tuple[int, tuple[str, str] | None]:
        """Copies output until `pid` ends; returns its wait status and, if we ended it, the (state, reason) why."""
        poller = select.poll()
        poller.register(self.wake_fd, select.POLLIN)
        streams = output.register(poller) if output else {}
        stopped: tuple[str, str] | None = None
        kill_at: float | None = None
        disk_full = False
        beat_at = time.monotonic() + HEARTBEAT_S
        while True:
            now = time.monotonic()
            retry_at = now + DISK_RETRY_S if output and output.held else None
            times = [t for t in (deadline if not stopped else None, kill_at, beat_at, retry_at) if t is not None]
            timeout_ms = max(0.0, min(times) - now) * 1000 + 1
            for fd, _ in poller.poll(timeout_ms):
                if fd == self.wake_fd:
                    if signal.SIGTERM in os.read(fd, 4096) and not stopped:
                        stopped = stop_reason(self.task_dir)
                elif output:
                    output.copy(fd, streams[fd], poller)
            if output and output.held:
                output.retry(poller)
            if output and bool(output.held) != disk_full:
                disk_full = not disk_full
                self.node.update(reason=WAITS_FOR_DISK if disk_full else None)
            for ended, wait_status in reap():
                if ended == pid:
                    return wait_status, stopped
            now = time.monotonic()
            if deadline is not None and now >= deadline and not stopped:
                hours = self.config["max_run_time_hours"]
                stopped = "timed_out", f"Task exceeded max_run_time_hours limit of {hours:g}."
            if stopped and kill_at is None:
                kill_at = now + self.grace_s
                self.signal_tree(signal.SIGTERM)
            elif kill_at is not None and now >= kill_at:
                kill_at = now + 1.0
                self.signal_tree(signal.SIGKILL)
            if now >= beat_at:
                beat_at = now + HEARTBEAT_S
                self.node.update()

    def signal_tree(self, number: int) -> None:
        if self.container:
            run_quietly([self.lease["engine"], "kill", "--signal", str(int(number)), self.container])
            return
        for pid in descendants(os.getpid()):
            send_signal(pid, number)

    def end_tree(self) -> None:
        if self.container:
            remove_container(self.lease["engine"], self.container)
        kill_tree(os.getpid())

    def command(self, env: dict[str, str]) -> list[str]:
        given = self.config.get("command")
        if given is None:
            argv = ["sleep", "infinity"]
        elif isinstance(given, str):
            shell = "bash" if self.container or find_program("bash", env) else "sh"
            argv = [shell, "-c", given]
        else:
            argv = [expand_flow_names(word, env) for word in given]
        if self.container:
            return self.container_command(argv, env)
        return bubblewrap(self.mounted) + argv if self.mounted and not self.private_mounts else argv

    def container_command(self, argv: list[str], env: dict[str, str]) -> list[str]:
        """`podman run` or `docker run`; env values stay out of the command line."""
        engine, image = self.lease["engine"], self.config["image"]
        name = os.path.basename(engine)
        run = [engine, "run", "--rm", "--name", str(self.container), "--network=host", "--workdir"]
        run += [self.container_dir(), "--volume", f"{self.workspace}:/workspace"]
        run += ["--volume", f"{self.node.dir}:/run/flow"]
        for source, target, read_only in self.mounted:
            run += ["--volume", f"{source}:{target}:{'ro' if read_only else 'rw'}"]
        if name == "docker" or any(map(os.path.exists, ("/usr/libexec/podman/catatonit", "/usr/bin/catatonit"))):
            # Without an init, the command is process 1 and SIGTERM does nothing to it.
            run += ["--init"]
        uuids = [gpu["uuid"] for gpu in self.gpus]
        if uuids and name == "docker":
            run += ["--gpus", '"device=' + ",".join(uuids) + '"']
        for uuid in uuids if name != "docker" else []:
            run += ["--device", f"nvidia.com/gpu={uuid}"]
        for variable in sorted(env.keys() & self.container_names):
            run += ["--env", variable]
        if self.config.get("pip"):
            install = 'python3 -m pip install --quiet --no-input "$@" >&2 || exit 1'
            packages = " ".join(shell_quote(p) for p in self.config["pip"])
            script = f"set -- {packages}; {install}; exec " + " ".join(shell_quote(a) for a in argv)
            argv = ["sh", "-c", script]
        elif argv[0] == "bash":
            # Small images have no bash.
            argv = ["sh", "-c", 'command -v bash >/dev/null && exec bash -c "$0"; exec sh -c "$0"', argv[2]]
        return [*run, "--entrypoint", argv[0], image, *argv[1:]]

    def working_dir(self) -> str:
        wanted = self.config.get("working_dir") or ""
        if self.container:
            return self.workspace
        if wanted == "/workspace" or wanted.startswith("/workspace/"):
            wanted = wanted[len("/workspace/") :]
        return os.path.join(self.workspace, wanted)

    def check_working_dir(self) -> None:
        wanted = self.config.get("working_dir") or ""
        inside = wanted == "/workspace" or wanted.startswith("/workspace/") or not wanted.startswith("/")
        path = os.path.join(self.workspace, wanted[len("/workspace/") :] if wanted.startswith("/") else wanted)
        if inside and not os.path.isdir(path):
            raise NotPrepared(f"The working_dir {wanted!r} is not a folder of the code that was sent.")

    def container_dir(self) -> str:
        return os.path.join("/workspace", self.config.get("working_dir") or "")

    def environment(self) -> dict[str, str]:
        own = dict(self.spec["secrets"].get("env", {}))
        folder = "/run/flow" if self.container else self.node.dir
        given = {
            "FLOW_TASK_ID": self.spec["task_id"],
            "FLOW_TASK_NAME": self.spec["name"],
            "FLOW_NODE_RANK": str(self.rank),
            "FLOW_NUM_NODES": str(self.lease["nodes"]),
            "FLOW_NODE_COUNT": str(self.lease["nodes"]),
            "FLOW_MAIN_IP": self.lease["main_ip"],
            "FLOW_NODE_DIR": folder,
            "FLOW_RESULT": os.path.join(folder, "objects", "result"),
            "MASTER_ADDR": self.lease["main_ip"],
            "MASTER_PORT": str(self.lease["master_port"]),
        }
        if self.gpus:
            given["CUDA_VISIBLE_DEVICES"] = ",".join(gpu["uuid"] for gpu in self.gpus)
        elif "CUDA_VISIBLE_DEVICES" not in own:
            # GPUs are handed out, never just found.
            given["CUDA_VISIBLE_DEVICES"] = ""
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **own, **given}
        env.setdefault("FLOW_RESTART_COUNT", "0")
        self.container_names = {*own, *given, "PYTHONUNBUFFERED", "FLOW_RESTART_COUNT"}
        if not self.container:
            env["PATH"] = self.search_path(env.get("PATH", os.defpath))
        return env

    def search_path(self, path: str) -> str:
        before, after = self.lease.get("path_before"), self.lease.get("path_after")
        venv = os.path.join(self.venv, "bin") if self.config.get("pip") else None
        return os.pathsep.join(part for part in (venv, before, path, after) if part)

    def prepare(self) -> None:
        if os.geteuid() == 0 and not self.container and LINUX:
            # Also for a task without mounts: one can be added while it runs.
            self.private_mounts = private_mount_namespace()
        if self.spec.get("bundle"):
            # In the workspace, which is named by no argument: tar takes a backslash in one for an escape.
            self.call(["tar", "-xzpf", self.spec["bundle"]], "The code could not be unpacked")
        mounts = self.lease.get("mounts", [])
        if mounts:
            self.prepare_mounts(mounts)
        if self.config.get("pip") and not self.container:
            self.prepare_packages(self.config["pip"])
        if self.container:
            self.prepare_image()

    def prepare_log(self) -> tuple[int, int]:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        return os.open(self.node.path("prepare.log"), flags, 0o600), os.open(
            self.node.path("prepare.log"), flags, 0o600
        )

    def call(self, argv: list[str], what: str, env: dict[str, str] | None = None) -> None:
        """Runs one step of the preparation; its output goes to prepare.log, and a failure is the task's reason."""
        pid = self.start(argv, env or dict(os.environ), None, cwd=self.workspace)
        self.wait_step(pid, what)

    def call_python(self, step: Callable[[], None], what: str) -> None:
        """The same for a function: in a child, so that it can be stopped at any point and leaves no memory behind."""
        streams = self.prepare_log()
        pid = os.fork()
        if pid == 0:
            if LINUX:
                # It would keep the task's lock for a runner that is killed.
                call_libc("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.dup2(streams[0], 1)
            os.dup2(streams[1], 2)
            try:
                step()
            except Exception as error:
                os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="replace"))
                os._exit(1)
            os._exit(0)
        for fd in streams:
            os.close(fd)
        self.wait_step(pid, what)

    def wait_step(self, pid: int, what: str) -> None:
        wait_status, stopped = self.supervise(pid, None, None)
        if stopped:
            raise Stopped
        if wait_status != 0:
            last = last_line(self.node.path("prepare.log"))
            raise NotPrepared(f"{what}: {last or describe_exit(wait_status)}{self.disk_note()}")

    def prepare_image(self) -> None:
        engine, image = self.lease["engine"], self.config["image"]
        if run_quietly([engine, "image", "inspect", image]) != 0:
            self.node.update(state="preparing", reason=f"Pulling the image {image}.")
            self.call([engine, "pull", image], f"The image {image!r} could not be had")

    def prepare_packages(self, packages: list[str]) -> None:
        """A virtual environment for this set of packages on top of the user's Python, kept for the next task."""
        import hashlib

        env = dict(os.environ, PATH=self.search_path_without_venv())
        python = find_program("python3", env) or find_program("python", env)
        if python is None:
            raise NotPrepared("pip packages were asked for, but there is no Python on this machine's PATH.")
        key = hashlib.sha256(to_json([os.path.realpath(python), python, sorted(packages)]).encode()).hexdigest()
        self.venv = os.path.join(self.lease["venvs"], key[:24])
        ready = os.path.join(self.venv, ".ready")
        os.makedirs(self.lease["venvs"], mode=0o700, exist_ok=True)
        self.node.update(state="preparing", reason="Installing " + ", ".join(packages) + ".")
        lock_fd = os.open(self.venv + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        self.call_python(lambda: fcntl.flock(lock_fd, fcntl.LOCK_EX), "The package lock could not be taken")
        # The child locked the file description that this process shares, so the lock is held here as well.
        if not os.path.exists(ready):
            make = [python, "-m", "venv", "--clear", "--without-pip", self.venv]
            self.call(make, "A virtual environment could not be made", env)
            venv_python = os.path.join(self.venv, "bin", "python")
            # The packages of the Python the user works with stay visible, also where it is itself an environment.
            link = (
                "import sysconfig, pathlib, subprocess, sys;"
                "ask = 'import sys; print(chr(10).join(p for p in sys.path if p.endswith(\"-packages\")))';"
                "paths = subprocess.run([sys.argv[1], '-c', ask], capture_output=True, text=True, check=True).stdout;"
                "pathlib.Path(sysconfig.get_path('purelib'), 'flow_outer.pth').write_text(paths)"
            )
            self.call([venv_python, "-c", link, python], "A virtual environment could not be linked", env)
            # The pip of that Python works in here as well; a copy of its own would take longer than most packages.
            have_pip = '{ "$0" -c "import pip" 2>/dev/null || "$0" -m ensurepip; }'
            install = f'{have_pip} && exec "$0" -m pip install --no-input --disable-pip-version-check "$@"'
            argv = ["sh", "-c", install, venv_python, *packages]
            if find_program("uv", env):
                argv = ["uv", "pip", "install", "--python", venv_python, *packages]
            self.call(argv, "The packages could not be installed", env)
            open(ready, "wb").close()
        os.close(lock_fd)

    def search_path_without_venv(self) -> str:
        before, after = self.lease.get("path_before"), self.lease.get("path_after")
        return os.pathsep.join(part for part in (before, os.environ.get("PATH", os.defpath), after) if part)

    def prepare_mounts(self, mounts: list[dict[str, Any]]) -> None:
        for number, mount in enumerate(mounts):
            self.node.update(state="preparing", reason=f"Mounting {mount['source']} at {mount['target']}.")
            source = self.fetch(mount, self.node.path("mounts", str(number)))
            target = mount["target"]
            if not self.container and (target + "/").startswith("/workspace/"):
                target = self.workspace + target[len("/workspace") :]
                os.makedirs(target, exist_ok=True)
            self.mounted.append((source, target, bool(mount.get("read_only"))))
        if os.geteuid() == 0 and not self.private_mounts and not self.container:
            raise NotPrepared("The kernel refused a private mount namespace, which mounts need; use image= instead.")
        if self.private_mounts:
            try:
                place_mounts(self.mounted, self.node.path("mounts"))
            except OSError as error:
                raise NotPrepared(f"The mounts could not be placed: {error}") from error

    def fetch(self, mount: dict[str, Any], at: str) -> str:
        """Brings a source to this machine; returns the path to bind at the target."""
        what = f"{mount['source']} could not be mounted at {mount['target']}"
        kind = mount["kind"]
        if kind == "bind":
            return str(mount["path"])
        if kind == "s3":
            return self.mount_s3(mount, at, what)
        os.makedirs(os.path.dirname(at), mode=0o700, exist_ok=True)
        if kind == "git":
            self.call_git(mount, at, what)
            return at
        os.makedirs(at, mode=0o700, exist_ok=True)
        name = mount["url"].split("#")[0].split("?")[0].rstrip("/").rsplit("/", 1)[-1] or "download"
        cached = os.path.join(self.lease["cache"], "https", text_sha256(mount["url"]))
        self.call_python(lambda: download(mount["url"], cached, mount.get("sha256")), what)
        # A target with the file's own suffix is the file; any other is a folder that holds it.
        suffix = os.path.splitext(name)[1]
        if suffix and mount["target"].endswith(suffix):
            return cached
        link_or_copy(cached, os.path.join(at, name))
        return at

    def call_git(self, mount: dict[str, Any], at: str, what: str) -> None:
        env = dict(os.environ, GIT_TERMINAL_PROMPT="0")
        ref = mount.get("ref")
        clone = ["git", "clone", "--quiet"]
        if ref is None:
            self.call([*clone, "--depth=1", "--", mount["url"], at], what, env)
            return
        self.call([*clone, "--no-checkout", "--filter=blob:none", "--", mount["url"], at], what, env)
        # A branch is only known as origin's; a tag or a commit is known as itself.
        find = 'git checkout --quiet --detach "origin/$1" 2>/dev/null || git checkout --quiet --detach "$1"'
        self.call(["sh", "-c", f'cd "$0" && {find}', at, ref], what, env)

    def mount_s3(self, mount: dict[str, Any], at: str, what: str) -> str:
        os.makedirs(at, mode=0o700, exist_ok=True)
        cache = os.path.join(self.lease["cache"], "s3")
        os.makedirs(cache, mode=0o700, exist_ok=True)
        bucket = mount["bucket"] + (":/" + mount["prefix"].strip("/") if mount.get("prefix") else "")
        options = ["-o", "ro"] if mount.get("read_only", True) else []
        options += ["-o", f"use_cache={cache}", "-o", "retries=2", "-o", "connect_timeout=10"]
        if s3fs_knows("compat_dir"):
            # From 1.92 on, folders that are only part of a key are not seen without it; before, the option is unknown.
            options += ["-o", "compat_dir"]
        aws = {**os.environ, **self.spec["secrets"].get("env", {}), **self.spec["secrets"].get("aws", {})}
        endpoint = aws.get("AWS_ENDPOINT_URL_S3") or aws.get("AWS_ENDPOINT_URL")
        region = aws.get("AWS_REGION") or aws.get("AWS_DEFAULT_REGION")
        if endpoint:
            options += ["-o", f"url={endpoint}", "-o", "use_path_request_style"]
        elif region:
            options += ["-o", f"url=https://s3.{region}.amazonaws.com", "-o", f"endpoint={region}"]
        if self.container:
            options += ["-o", "allow_other"]
        # s3fs takes the keys from its environment, so they are in no file and on no command line.
        names = {
            "AWS_ACCESS_KEY_ID": "AWSACCESSKEYID",
            "AWS_SECRET_ACCESS_KEY": "AWSSECRETACCESSKEY",
            "AWS_SESSION_TOKEN": "AWSSESSIONTOKEN",
        }
        env = {**os.environ, **{ours: aws[theirs] for theirs, ours in names.items() if aws.get(theirs)}}
        pid = self.start(["s3fs", bucket, at, "-f", *options], env, None, cwd=self.workspace)
        deadline = time.monotonic() + MOUNT_TIMEOUT_S
        poller = select.poll()
        poller.register(self.wake_fd, select.POLLIN)
        while not os.path.ismount(at):
            # FUSE has no event for "mounted"; the child's end and a stop do wake this.
            for fd, _ in poller.poll(20):
                if signal.SIGTERM in os.read(fd, 4096):
                    raise Stopped
            if any(ended == pid for ended, _ in reap()) or time.monotonic() > deadline:
                raise NotPrepared(f"{what}: {s3fs_complaint(self.node.path('prepare.log')) or 's3fs ended'}")
        try:
            empty = not os.listdir(at)
        except OSError as error:
            # It mounts first and looks for the bucket then.
            complaint = s3fs_complaint(self.node.path("prepare.log"))
            raise NotPrepared(f"{what}: {complaint or error.strerror}") from error
        if empty and mount.get("read_only", True):
            # A misspelt prefix looks like this, and hours later like a model that has learned nothing.
            raise NotPrepared(f"{what}: there is nothing under it.")
        return at


class Output:
    """Copies a command's two streams to stdout.log and stderr.log, and notes in stdio.index how they interleave.

    Each line of the index is "N OUT ERR": from here on stream N (1 or 2) was written, when the files had OUT and ERR
    bytes. On a full disk a chunk is held and its pipe no longer read, so the command waits and nothing is lost.
    """

    def __init__(self, node: Node) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self.files = {
            1: os.open(node.path("stdout.log"), flags, 0o600),
            2: os.open(node.path("stderr.log"), flags, 0o600),
        }
        self.sizes = {number: os.fstat(fd).st_size for number, fd in self.files.items()}
        self.index = os.open(node.path("stdio.index"), flags, 0o600)
        self.last = 0
        self.note = b""
        self.held: dict[int, tuple[int, bytes]] = {}
        self.readers: dict[int, int] = {}
        self.lost_bytes = 0

    def pipes(self) -> tuple[int, int]:
        """The command's ends of two new pipes."""
        writers = []
        for number in (1, 2):
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            if LINUX:
                try:
                    fcntl.fcntl(reader, F_SETPIPE_SZ, PIPE_BYTES)
                except OSError as error:
                    # A user over the limit for pipe memory gets the kernel's default size.
                    if error.errno != errno.EPERM:
                        raise
            self.readers[reader] = number
            writers.append(writer)
        return writers[0], writers[1]

    def register(self, poller: select.poll) -> dict[int, int]:
        for reader in self.readers:
            poller.register(reader, select.POLLIN)
        return dict(self.readers)

    def copy(self, reader: int, number: int, poller: select.poll) -> None:
        try:
            data = os.read(reader, CHUNK_BYTES)
        except BlockingIOError:
            return
        if not data:
            poller.unregister(reader)
            self.close_reader(reader)
        elif rest := self.write(number, data):
            self.held[reader] = (number, rest)
            poller.unregister(reader)

    def close_reader(self, reader: int) -> None:
        del self.readers[reader]
        os.close(reader)

    def write(self, number: int, data: bytes) -> bytes:
        """Writes what fits; returns the rest, which is empty unless the disk is full."""
        try:
            self.write_note()
            if number != self.last:
                self.note = b"%d %d %d\n" % (number, self.sizes[1], self.sizes[2])
                self.last = number
                self.write_note()
            while data:
                written = os.write(self.files[number], data)
                self.sizes[number] += written
                data = data[written:]
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
        return data

    def write_note(self) -> None:
        """Writes what is left of the index's last line, of which only a part may have fitted on the disk."""
        while self.note:
            self.note = self.note[os.write(self.index, self.note) :]

    def retry(self, poller: select.poll | None = None) -> None:
        for reader, (number, data) in list(self.held.items()):
            rest = self.write(number, data)
            if rest:
                self.held[reader] = (number, rest)
                continue
            del self.held[reader]
            if poller is not None:
                poller.register(reader, select.POLLIN)

    def finish(self, wait_s: float) -> None:
        """Takes what is left in the pipes; waits a while for room on a full disk."""
        deadline = time.monotonic() + wait_s
        while self.readers:
            self.retry()
            for reader, number in list(self.readers.items()):
                if reader in self.held:
                    continue
                data = read_ready(reader)
                if not data:
                    self.close_reader(reader)
                elif rest := self.write(number, data):
                    self.held[reader] = (number, rest)
            if self.held:
                if time.monotonic() > deadline:
                    break
                time.sleep(DISK_RETRY_S)
        self.lost_bytes = sum(len(data) for _, data in self.held.values())
        for reader in self.readers:
            while data := read_ready(reader):
                self.lost_bytes += len(data)
        for fd in (*self.readers, *self.files.values(), self.index):
            os.close(fd)


def read_ready(reader: int) -> bytes:
    """What a pipe holds now; nothing where it is at its end or empty."""
    try:
        return os.read(reader, CHUNK_BYTES)
    except BlockingIOError:
        return b""


_libc: Any = None


def libc() -> Any:
    global _libc
    if _libc is None:
        import ctypes

        _libc = ctypes.CDLL(None, use_errno=True)
    return _libc


def become_subreaper() -> None:
    """Orphans of our tree come to us, so that even a child that called setsid is found at the end."""
    if LINUX:
        call_libc("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def call_libc(name: str, *arguments: int | bytes | None) -> int:
    """Calls a C function with ints, char pointers and NULLs, without loading all of ctypes."""
    import _ctypes

    itself: Any = None
    return int(_ctypes.call_function(_ctypes.dlsym(_ctypes.dlopen(itself, 0), name), arguments))


def descendants(root: int) -> list[int]:
    """Every process below `root`, parents first, but for tasks of their own that were submitted from below it."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents():
        children.setdefault(parent, []).append(pid)
    found = []
    waiting = children.get(root, [])
    while waiting:
        pid = waiting.pop()
        if is_guard(pid):
            continue
        found.append(pid)
        waiting.extend(children.get(pid, ()))
    return found


def parents() -> Iterable[tuple[int, int]]:
    if not LINUX:
        import subprocess

        table = subprocess.run(["ps", "-axo", "pid=,ppid="], stdout=subprocess.PIPE, check=True).stdout
        return [(int(line.split()[0]), int(line.split()[1])) for line in table.splitlines()]
    pairs = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The name in parentheses may hold anything; the fields after it are fixed: state, ppid.
                    pairs.append((int(name), int(file.read().rpartition(b")")[2].split()[1])))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return pairs


def is_guard(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    # Anywhere among them: the shell that is about to become the guard has the same words after its own. Our own forks
    # have ours.
    return any(word.endswith(b"runner.main()") for word in words) and os.fsencode(sys.argv[1]) not in words


def has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def kill_tree(root: int, spare: Iterable[int] = ()) -> None:
    """Kills everything below `root` but `spare` and what is below it; new children born meanwhile too."""
    spared = set(spare)
    while has_children():
        kept = set(spared)
        for pid in spared:
            kept.update(descendants(pid))
        doomed = [pid for pid in descendants(root) if pid not in kept]
        if not doomed:
            return
        for pid in doomed:
            send_signal(pid, signal.SIGKILL)
        for pid in doomed:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                # Not our own child: it comes to us when its parent, which is killed too, is gone.
                continue


def send_signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def run_quietly(argv: list[str]) -> int:
    """The exit code of a short command whose output nobody needs."""
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        try:
            os.execvp(argv[0], argv)
        except OSError:
            os._exit(127)
    return exit_code(os.waitpid(pid, 0)[1])


def exit_code(wait_status: int) -> int:
    """A wait status as a shell gives it: 128 + N for signal N."""
    if os.WIFSIGNALED(wait_status):
        return 128 + os.WTERMSIG(wait_status)
    return os.WEXITSTATUS(wait_status)


def describe_exit(wait_status: int) -> str:
    code = exit_code(wait_status)
    if not os.WIFSIGNALED(wait_status):
        return f"ended with exit code {code}"
    number = os.WTERMSIG(wait_status)
    import signal as names

    known = {s.value: s.name for s in names.Signals}
    hint = " (often the kernel, out of memory)" if number == signal.SIGKILL else ""
    return f"was killed by signal {number} {known.get(number, '')}{hint}".rstrip()


def container_name(spec: dict[str, Any], rank: int) -> str | None:
    return f"flow-{spec['task_id']}-{rank}" if spec["config"].get("image") else None


def remove_container(engine: str, name: str) -> None:
    """Ends the container too where its processes are no children of ours, as docker's are."""
    run_quietly([engine, "rm", "--force", name])


def find_program(name: str, env: dict[str, str]) -> str | None:
    for folder in env.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return None


def expand_flow_names(word: str, env: dict[str, str]) -> str:
    """Replaces $FLOW_… and the rendezvous variables in one word of an argv list; anything else stays as written."""
    import re

    names = r"FLOW_[A-Z_]+|MASTER_ADDR|MASTER_PORT"
    return re.sub(rf"\$(?:\{{({names})\}}|({names}))", lambda m: env.get(m[1] or m[2], m[0]), word)


def shell_quote(word: str) -> str:
    return "'" + word.replace("'", "'\"'\"'") + "'"


def private_mount_namespace() -> bool:
    """Mounts made after this are seen by this process and its children only, and are gone with them. False where the
    kernel refuses it, as in a container without the privilege."""
    if call_libc("unshare", CLONE_NEWNS) != 0:
        return False
    call_libc("mount", b"none", b"/", None, MS_REC | MS_SLAVE, None)
    return True


def mount_call(source: str, target: str, flags: int, kind: str | None = None) -> None:
    import ctypes

    names = [os.fsencode(source), os.fsencode(target), os.fsencode(kind) if kind else None]
    if libc().mount(*names, ctypes.c_ulong(flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def place_mounts(mounts: list[tuple[str, str, bool]], scratch: str) -> None:
    """Binds each source at its target in this mount namespace; the machine itself stays untouched."""
    for room in missing_rooms([target for _, target, _ in mounts]):
        make_room(room, scratch)
    for source, target, read_only in mounts:
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if not os.path.exists(target):
                open(target, "ab").close()
        mount_call(source, target, MS_BIND | MS_REC)
        if read_only:
            mount_call("none", target, MS_BIND | MS_REMOUNT | MS_RDONLY)


def unmount_all(folder: str) -> None:
    """Takes away what was mounted for a container; private mounts are gone by themselves."""
    if os.path.isdir(folder):
        for name in sorted(os.listdir(folder)):
            if os.path.ismount(os.path.join(folder, name)):
                run_quietly(["umount", "-l", os.path.join(folder, name)])


def attach(pid: int, source: str, target: str, container: bool, scratch: str) -> None:
    """Binds `source` at `target` in the mount namespace of `pid`, a process of a running task.

    With the mount calls of Linux 5.2: a clone of the source is taken along to where the source may not be visible. Who
    is not root first enters the task's user namespace, in which bubblewrap made the mounts, and sees the source there.
    """
    root = os.geteuid() == 0
    open_tree, move_mount = 428, 429
    at_cwd, clone, empty_path = -100, 0x1 | os.O_CLOEXEC | 0x8000, 0x4
    tree = checked_call("syscall", open_tree, at_cwd, os.fsencode(source), clone) if root else -1
    spaces = [f"/proc/{pid}/ns/{name}" for name in (("mnt",) if root else ("user", "mnt"))]
    for fd in [os.open(space, os.O_RDONLY) for space in spaces]:
        checked_call("setns", fd, 0)
    if not container:
        for room in missing_rooms([target]):
            if room == "/":
                # A process keeps the root it has, so the running command would never see another one.
                raise OSError("a running task gets no new folder in /; choose a path below one that is there.")
            make_room(room, scratch)
    os.makedirs(target, exist_ok=True)
    if not root:
        mount_call(source, target, MS_BIND | MS_REC)
        return
    checked_call("syscall", move_mount, tree, b"", at_cwd, os.fsencode(target), empty_path)


def checked_call(name: str, *arguments: int | bytes) -> int:
    import ctypes

    result = int(getattr(libc(), name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def missing_rooms(targets: list[str]) -> list[str]:
    """The folders that exist but lack the next part of a target: they are rebuilt privately with room for it."""
    rooms = []
    for target in targets:
        if os.path.exists(target):
            continue
        room = os.path.dirname(target)
        while not os.path.isdir(room):
            room = os.path.dirname(room)
        if room not in rooms and not any(room == t or room.startswith(t + "/") for t in targets):
            rooms.append(room)
    for room in rooms:
        if len(os.listdir(room)) > MOST_ENTRIES:
            raise NotPrepared(f"{room} has too many entries to mount below it; make the mount's folder there first.")
    return sorted(rooms)


def make_room(room: str, scratch: str) -> None:
    """Puts a private folder in place of `room` that shows the same entries and takes new ones."""
    os.makedirs(scratch, mode=0o700, exist_ok=True)
    mode = os.stat(room).st_mode & 0o7777
    if room == "/":
        fresh = os.path.join(scratch, "root")
        os.makedirs(fresh, exist_ok=True)
        mount_call("flow", fresh, 0, "tmpfs")
        show_entries("/", fresh)
        os.chmod(fresh, mode)
        os.chdir(fresh)
        mount_call(".", "/", MS_MOVE)
        os.chroot(".")
        return
    under = os.path.join(scratch, "under-" + text_sha256(room)[:12])
    os.makedirs(under, exist_ok=True)
    mount_call(room, under, MS_BIND | MS_REC)
    mount_call("flow", room, 0, "tmpfs")
    show_entries(under, room)
    os.chmod(room, mode)


def show_entries(source: str, at: str) -> None:
    for entry in os.scandir(source):
        place = os.path.join(at, entry.name)
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), place)
            continue
        if entry.is_dir():
            os.mkdir(place)
        else:
            open(place, "wb").close()
        mount_call(entry.path, place, MS_BIND | MS_REC)


def bubblewrap(mounts: list[tuple[str, str, bool]]) -> list[str]:
    """The same view without root: bwrap's own root is empty, so every entry is bound into it."""
    argv = ["bwrap", "--die-with-parent"]
    for room in ["/", *(r for r in missing_rooms([t for _, t, _ in mounts]) if r != "/")]:
        argv += ["--tmpfs", room] if room != "/" else []
        for entry in sorted(os.scandir(room), key=lambda e: e.name):
            if entry.is_symlink():
                argv += ["--symlink", os.readlink(entry.path), entry.path]
            else:
                argv += ["--dev-bind", entry.path, entry.path]
    for source, target, read_only in mounts:
        argv += ["--ro-bind" if read_only else "--bind", source, target]
    return [*argv, "--"]


def download(url: str, path: str, sha256: str | None) -> None:
    """Fetches `url` to `path`, going on where an earlier try stopped; one download at a time for a path."""
    import urllib.error
    import urllib.request

    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    part = path + ".part"
    with open(part, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(path) and (sha256 is None or file_sha256(path) == sha256):
            return
        request = urllib.request.Request(url.split("#")[0])
        start = os.path.getsize(part)
        if start:
            request.add_header("Range", f"bytes={start}-")
        try:
            answer = urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not start:
                raise
            # The part is already whole, or the file has changed: take it again from the start.
            file.truncate(0)
            answer = urllib.request.urlopen(url.split("#")[0], timeout=DOWNLOAD_TIMEOUT_S)
        with answer:
            if start and answer.status != 206:
                file.truncate(0)
            expected = answer.headers.get("Content-Length")
            received = 0
            for chunk in iter(lambda: answer.read(CHUNK_BYTES), b""):
                file.write(chunk)
                received += len(chunk)
        file.flush()
        if expected is not None and received < int(expected):
            raise OSError(f"the connection ended after {received} of {expected} bytes; the next try goes on from there")
        digest = file_sha256(part)
        if sha256 is not None and digest != sha256.lower():
            file.truncate(0)
            raise OSError(f"the checksum is {digest}, not {sha256}")
        os.replace(part, path)


class JsonContext:
    """What the C scanner asks for: plain JSON, no hooks."""

    strict = True
    object_hook = object_pairs_hook = parse_constant = None
    parse_float, parse_int = float, int


def from_json(text: str) -> Any:
    context: Any = JsonContext
    return make_scanner(context)(text, 0)[0]


def to_json(value: Any) -> str:
    if isinstance(value, str):
        return str(encode_basestring_ascii(value))
    if isinstance(value, dict):
        return "{%s}" % ", ".join(f"{to_json(key)}: {to_json(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "[%s]" % ", ".join(map(to_json, value))
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def replace_file(path: str, data: bytes) -> None:
    """Readers see the old content or the new, never a part."""
    temporary = f"{path}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    os.rename(temporary, path)


def overwrite_file(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, data, 0)
    os.close(fd)


def unlink_if_there(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def link_or_copy(source: str, target: str) -> None:
    unlink_if_there(target)
    try:
        os.link(source, target)
    except OSError:
        import shutil

        shutil.copyfile(source, target)


def text_sha256(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: str) -> str:
    import hashlib

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def s3fs_knows(option: str) -> bool:
    import subprocess

    shown = subprocess.run(["s3fs", "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode()
    return any(line.split()[:1] == [option] for line in shown.splitlines())


def s3fs_complaint(path: str) -> str:
    """What s3fs wrote last that is more than information, without its time and place in the source."""
    with open(path, errors="replace") as file:
        lines = [line.strip() for line in file if line.strip() and "[INF]" not in line]
    return lines[-1].split("): ", 1)[-1][:300] if lines else ""


def last_line(path: str) -> str:
    """The last line of a log that says something, at most 300 characters of it."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
