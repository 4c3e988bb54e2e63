"""A Python with what hosted Colab has installed: `%load_ext flow_nb` must work there."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.services import CACHE, ROOT, locked

OLD_STACK = [
    "anywidget>=0.9,<0.10",
    "ipykernel==6.17.1",
    "ipython==7.34.0",
    "ipywidgets==7.7.1",
    "jupyter_client<8",
    "traitlets==5.7.1",
]
VERSIONS = "import IPython, ipykernel, ipywidgets, traitlets as t; print(IPython.__version__, ipykernel.__version__, "
VERSIONS += "ipywidgets.__version__, t.__version__)"
EXPECTED_VERSIONS = "7.34.0 6.17.1 7.7.1 5.7.1"


def requirements() -> list[str]:
    """The old stack, and the project's other dependencies."""
    old = {Requirement(line).name.lower() for line in OLD_STACK}
    ours = [Requirement(line) for line in metadata.requires("flow-nb") or ()]
    return OLD_STACK + sorted(str(one) for one in ours if one.marker is None and one.name.lower() not in old)


def make_venv() -> tuple[Path, str | None]:
    """Makes the environment where it is not there yet; returns its Python, and why there is none, or None.

    Installing takes about a minute, so it is kept across runs.
    """
    folder = CACHE / "colab"
    python = folder / "bin" / "python"
    wanted = requirements()
    # The project's entry points are written down at installation; its code is read where it lies.
    entry_points = sorted(map(str, metadata.distribution("flow-nb").entry_points))
    text = "\n".join([sys.version, str(ROOT), *wanted, *entry_points])
    stamp = hashlib.sha256(text.encode()).hexdigest()
    made_of = folder / "made-of"
    with locked(CACHE / "colab.lock"):
        if made_of.exists() and made_of.read_text() == stamp:
            return python, None
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
        # Without its dependencies, or pip would take newer ones.
        for arguments in (wanted, ["--no-deps", "--editable", str(ROOT)]):
            done = subprocess.run([*pip, *arguments], capture_output=True, text=True)
            if done.returncode != 0:
                return python, f"pip could not make hosted Colab's Python: {_last_error(done.stderr)}"
        found = subprocess.run([str(python), "-W", "ignore", "-c", VERSIONS], capture_output=True, text=True)
        assert found.stdout.strip() == EXPECTED_VERSIONS, f"{found.stdout}{found.stderr}"
        made_of.write_text(stamp)
        return python, None


def _last_error(text: str) -> str:
    errors = [line for line in text.splitlines() if line.startswith("ERROR")]
    return (errors or text.strip().splitlines() or ["it said nothing"])[-1]
