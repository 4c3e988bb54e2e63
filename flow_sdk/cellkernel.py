"""What a session adds to its kernel, outside the user's names: variables in and out, and the notebook's own numbers.

It travels with the cell host and is loaded in the kernel, so it needs only what an ipykernel has.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import pickle
import sys
from typing import Any

# More does not fit in a core's cache, and takes several times as long.
COPY_BYTES = 1 << 18
FLUSH_S = 0.05

shell: Any = None
folder = ""
# Name of an object's parts, as they were saved last under a variable's name.
saved: dict[str, list[str]] = {}


def install(ipython: Any, node_folder: str) -> None:
    global shell, folder
    shell, folder = ipython, os.path.join(node_folder, "objects")
    shell.events.register("pre_run_cell", take_count)
    # Of a kernel that is killed, nothing is lost but what it printed in its last moment.
    for stream in (sys.stdout, sys.stderr):
        setattr(stream, "flush_interval", FLUSH_S)  # noqa: B010
    shell.kernel.raw_input = shell.kernel.getpass = refuse_input
    shell.set_custom_exc((NoInput,), show_no_input)


def take_count(info: Any) -> None:
    """Tracebacks say `Cell In[7]` where the notebook does."""
    parent = shell.kernel.get_parent("shell")
    count = (parent.get("metadata") or {}).get("flow_execution_count")
    if count:
        shell.execution_count = count


class NoInput(RuntimeError):
    """input() was called."""


NoInput.__name__ = NoInput.__qualname__ = "StdinNotImplementedError"


def refuse_input(prompt: str = "", *_: Any, **__: Any) -> str:
    raise NoInput("a cell on the machine cannot ask; set a variable in the notebook and send it with -i")


def show_no_input(shell: Any, kind: Any, error: BaseException, trace: Any, tb_offset: Any = None) -> Any:
    """The traceback up to the user's line."""
    last = trace
    while last.tb_next is not None and last.tb_next.tb_next is not None:
        last = last.tb_next
    last.tb_next = None
    lines = shell.InteractiveTB.structured_traceback(kind, error, trace, tb_offset=tb_offset)
    shell._showtraceback(kind, error, lines)
    return lines


def load(names: dict[str, list[str]], python: str | None) -> None:
    """Sets variables that the notebook sent; each is a pickle and the memory beside it."""
    here = "{}.{}.{}".format(*sys.version_info)
    if python and python.split(".")[:2] != here.split(".")[:2]:
        said = f"the notebook runs Python {python} and the machine {here}; functions and classes may not survive that"
        sys.stderr.write(f"flow: {said}.\n")
    for name, (first, *rest) in names.items():
        with open(os.path.join(folder, first), "rb") as file:
            data = file.read()
        # Copied only where they are written to, so a large array that was sent before is there at once.
        buffers = [map_copy(os.path.join(folder, part)) for part in rest]
        shell.user_ns[name] = pickle.loads(data, buffers=buffers)  # noqa: S301


def save(names: list[str]) -> dict[str, list[str]]:
    """Places variables as objects for the notebook; returns their parts."""
    missing = [name for name in names if name not in shell.user_ns]
    if missing:
        raise NameError(f"the cell left no {', '.join(missing)} to bring back")
    import cloudpickle

    found = {}
    for name in names:
        parts: list[pickle.PickleBuffer] = []
        try:
            data = cloudpickle.dumps(shell.user_ns[name], protocol=5, buffer_callback=parts.append)
        except Exception as error:
            raise TypeError(f"{name} cannot be brought back: {type(error).__name__}: {error}") from None
        before = saved.get(name, [])
        views = [memoryview(data), *(part.raw() for part in parts)]
        old = [*before, *[""] * len(views)]
        found[name] = [place(view, folder, known) for view, known in zip(views, old)]  # noqa: B905
        saved[name] = found[name]
    return found


def map_copy(path: str) -> Any:
    size = os.path.getsize(path)
    if size == 0:
        return bytearray()
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def place(data: memoryview, into: str, known: str = "") -> str:
    """Stores one object under the hash of its content; `known` is the name it most likely has already."""
    if known and is_content(os.path.join(into, known), data):
        return known
    digest = hashlib.sha256(data).hexdigest()
    path = os.path.join(into, digest)
    if not os.path.exists(path):
        os.makedirs(into, mode=0o700, exist_ok=True)
        part = f"{path}.{os.getpid()}.part"
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        os.replace(part, path)
    return digest


def is_content(path: str, data: memoryview) -> bool:
    """Whether the file holds just that; reading it is several times faster than hashing."""
    try:
        with open(path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != len(data):
                return False
            block = bytearray(COPY_BYTES)
            for start in range(0, len(data), COPY_BYTES):
                read = file.readinto(block)
                block = block if read == COPY_BYTES else block[:read]
                if block != data[start : start + COPY_BYTES].tobytes():
                    return False
            return True
    except FileNotFoundError:
        return False
