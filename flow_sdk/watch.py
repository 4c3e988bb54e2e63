"""Waiting for a change in a folder: inotify where it works, brief polling elsewhere (network filesystems, macOS)."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

POLL_S = 0.05
NETWORK_FILESYSTEMS = ("nfs", "lustre", "cifs", "smb", "9p", "gpfs", "beegfs", "ceph", "afs", "fuse")
IN_MODIFY, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x2, 0x8, 0x40, 0x80, 0x100, 0x200
ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\"))
"""How the kernel writes a mount point (`mangle_path` in fs/seq_file.c), in the order to undo it."""
MASK = IN_MODIFY | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE


class Watch:
    """Wakes when something in one of the folders changes. What changed is for the woken to find out from the files.

    Args:
        folders: existing folders; what lies in their subfolders is not watched.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        paths = [os.fsencode(folder) for folder in folders]
        self._fd = -1
        self._watches: list[int] = []
        if sys.platform == "linux" and not any(on_network(os.fsdecode(path)) for path in paths):
            self._open(paths)
        self._poller = select.poll()
        if self._fd >= 0:
            self._poller.register(self._fd, select.POLLIN)

    def _open(self, paths: list[bytes]) -> None:
        """Takes an inotify descriptor; none where the kernel or the user's limits refuse."""
        self._fd = take_inotify()
        for path in paths if self._fd >= 0 else []:
            number = int(libc().inotify_add_watch(self._fd, path, MASK))
            if number < 0:
                self.close()
                return
            self._watches.append(number)

    def wait(self, timeout_s: float) -> None:
        """Returns at a change since the last wait, or when the time is up; where it must poll, within 50 ms."""
        if self._fd < 0:
            time.sleep(min(POLL_S, timeout_s))
        elif self._poller.poll(timeout_s * 1000):
            os.read(self._fd, 1 << 16)

    def has_changed(self) -> bool:
        """Whether there was a change since the last look; also where that cannot be known."""
        if self._fd >= 0 and not self._poller.poll(0):
            return False
        self.wait(0.0)
        return True

    def close(self) -> None:
        if self._fd < 0:
            return
        for number in self._watches:
            libc().inotify_rm_watch(self._fd, number)
        # Closing one waits some 10 ms in the kernel, so it is kept for the next.
        _unused.append((os.getpid(), self._fd))
        self._fd, self._watches = -1, []

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_unused: list[tuple[int, int]] = []
"""Inotify descriptors without a watch, each with the process that made it: a fork shares them, and may not use them."""


def take_inotify() -> int:
    """A descriptor without watches, or -1 where there is none to be had."""
    while _unused:
        pid, fd = _unused.pop()
        if pid != os.getpid():
            continue
        try:
            # What the former watches still had to say.
            while os.read(fd, 1 << 16):
                pass
        except BlockingIOError:
            return fd
    return int(libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))


@cache
def libc() -> Any:
    import ctypes

    return ctypes.CDLL(None)


def on_network(path: str) -> bool:
    """Whether the folder is on a filesystem that other machines write to, which inotify does not see."""
    real = os.path.realpath(path)
    kind, longest = "", -1
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape", newline="\n") as mounts:
        for line in mounts:
            _, at, found, *_ = line.split(" ")
            for code, character in ESCAPES:
                at = at.replace(code, character)
            if len(at) > longest and (at == "/" or real == at or real.startswith(at + "/")):
                kind, longest = found, len(at)
    return kind.startswith(NETWORK_FILESYSTEMS)
