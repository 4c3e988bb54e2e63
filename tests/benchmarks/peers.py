"""The other tools, from the package index, each in an environment of its own beside ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = {"flow-compute": "flow-compute==3.28.*", "submitit": "submitit", "ipyparallel": "ipyparallel numpy"}
INSTALL_TIMEOUT_S = 600.0


class Peer(NamedTuple):
    """A tool to compare with.

    Attributes:
        bin: its environment's programs; None where it could not be installed.
        label: its name with the version.
        why_not: the reason where it could not be installed.
    """

    name: str
    bin: Path | None
    label: str
    why_not: str = ""

    @property
    def python(self) -> Path:
        assert self.bin is not None
        return self.bin / "python"


def install(name: str) -> Peer:
    """The peer, installed where it is not yet."""
    folder = ROOT / f".venv-bench-{name}"
    stamp = folder / "installed"
    requirement = REQUIREMENTS[name]
    if not stamp.exists() or stamp.read_text() != requirement:
        print(f"installing {requirement} into {folder.name}", file=sys.stderr)
        pip: list[str | Path] = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
        steps: list[list[str | Path]] = [
            [sys.executable, "-m", "venv", "--clear", folder],
            [*pip, "--disable-pip-version-check", *requirement.split()],
        ]
        for step in steps:
            problem = _problem(step)
            if problem:
                return Peer(name, None, name, f"{requirement} could not be installed: {problem}")
        stamp.write_text(requirement)
    ask = f"from importlib.metadata import version; print(version({name!r}))"
    version = subprocess.run([folder / "bin" / "python", "-c", ask], capture_output=True, text=True, check=True).stdout
    return Peer(name, folder / "bin", f"{name} {version.strip()}")


def _problem(step: list[str | Path]) -> str:
    try:
        done = subprocess.run(step, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return ([line for line in done.stderr.splitlines() if line.strip()] or ["no message"])[-1]


def environment(home: Path) -> dict[str, str]:
    """For a peer: a home of its own, its local engine without images, and no way out of this machine."""
    nowhere = "http://127.0.0.1:9"
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "HOME": str(home),
        "FLOW_PROVIDER": "local",
        "FLOW_LOCAL_USE_DOCKER": "false",
        "FLOW_UPDATE_CHECK": "0",
        "FLOW_TELEMETRY": "0",
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "ALL_PROXY": nowhere,
    }
