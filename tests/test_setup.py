"""`scripts/setup.sh`: which Python it takes, and what it says to a person whose machine lacks something."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.services import ROOT, require

TOOLS = ["bash", "cat", "dirname", "env", "flock", "mkdir", "rm", "sha256sum", "tail"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without `.venv`, on a machine whose PATH has a few tools and no Python."""
    folder = tmp_path / "a check out"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup.sh", folder / "scripts")
    shutil.copy(ROOT / "pyproject.toml", folder)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (tmp_path / "bin" / tool).symlink_to(found)
    return folder


def program(checkout: Path, name: str, script: str) -> None:
    path = checkout.parent / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def setup(checkout: Path, *parts: str) -> subprocess.CompletedProcess[str]:
    argv = [str(checkout / "scripts" / "setup.sh"), *parts]
    env = {"PATH": str(checkout.parent / "bin"), "LOG": str(checkout.parent / "log")}
    return subprocess.run(argv, env=env, capture_output=True, text=True, cwd="/")


def fake_python(version: str, modules: str = "ensurepip venv") -> str:
    """A Python that answers setup.sh's questions, makes environments out of itself, and logs what pip is asked."""
    asked = "; ".join(
        f'case "$2" in *{name}*) case " {modules} " in *" {name} "*) ;; *) exit 1;; esac;; esac'
        for name in ("ensurepip", "venv")
    )
    return f"""
[ "$1" = --version ] && echo "Python {version}.0"
if [ "$1" = -m ] && [ "$2" = venv ]; then
    mkdir -p "$3/bin"; cat "$0" > "$3/bin/python"; cat "$0" > "$3/bin/flow"; {shutil.which("chmod")} +x "$3"/bin/*
    echo "venv with {version}" >> "$LOG"
fi
[ "$1" = -m ] && [ "$2" = pip ] && echo "$@" >> "$LOG"
if [ "$1" = -c ]; then
    {asked}
    case "$2" in *version_info\\[:2\\]*) echo {version};; *sys.prefix*) echo "$PWD/.venv";; esac
fi
exit 0"""


def log(checkout: Path) -> list[str]:
    path = checkout.parent / "log"
    return path.read_text().splitlines() if path.exists() else []


def test_no_python_is_one_sentence(checkout: Path) -> None:
    done = setup(checkout, "demo")
    assert done.returncode == 1
    assert done.stderr.startswith("setup: Python 3.10 or newer is needed and none was found: install it")
    assert len(done.stderr.splitlines()) == 1


def test_a_python_that_does_not_run_is_passed_over(checkout: Path) -> None:
    program(checkout, "python3.13", "echo 'shim: python3.13 is not installed' >&2; exit 127")
    program(checkout, "python3.12", fake_python("3.12"))
    program(checkout, "python3.11", fake_python("3.11"))
    done = setup(checkout, "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert log(checkout)[0] == "venv with 3.12"


def test_a_python_that_can_make_environments_comes_first(checkout: Path) -> None:
    program(checkout, "python3.13", fake_python("3.13", modules="venv"))
    program(checkout, "python3.11", fake_python("3.11"))
    assert setup(checkout, "demo").returncode == 0
    assert log(checkout)[0] == "venv with 3.11"


def test_without_venv_or_apt_it_says_what_to_install(checkout: Path) -> None:
    program(checkout, "python3", fake_python("3.12", modules="venv"))
    done = setup(checkout, "demo")
    assert done.returncode == 1
    assert done.stderr == (
        "setup: python3 cannot make virtual environments: install python3.12-venv "
        "(sudo apt-get install python3.12-venv) and run this again.\n"
    )


def test_as_root_it_installs_venv_itself(checkout: Path) -> None:
    require("root")
    program(checkout, "python3", fake_python("3.12", modules="venv"))
    better = checkout.parent / "with-ensurepip"
    better.write_text(f"#!/bin/sh\n{fake_python('3.12')}\n")
    bin_folder = checkout.parent / "bin"
    install = f'case "$*" in *install*) cat "{better}" > "{bin_folder}/python3"; echo "apt-get $*" >> "$LOG";; esac'
    program(checkout, "apt-get", install)
    done = setup(checkout, "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert log(checkout)[0].startswith("apt-get ") and log(checkout)[0].endswith("python3.12-venv")
    assert log(checkout)[1] == "venv with 3.12"


def test_a_second_time_does_nothing_until_pyproject_changes(checkout: Path) -> None:
    program(checkout, "python3", fake_python("3.12"))
    assert setup(checkout, "dev").returncode == 0
    first = log(checkout)
    assert first[-1].endswith("install -q -e .[dev]")
    # What tests need includes what the demo and the notebooks need.
    assert {setup(checkout, part).stdout for part in ("dev", "lab", "demo")} == {""}
    assert log(checkout) == first
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert setup(checkout, "dev").returncode == 0
    # The environment itself is kept.
    assert [line for line in log(checkout) if line.startswith("venv")] == ["venv with 3.12"]
    assert log(checkout)[-1] == first[-1]
    assert len(log(checkout)) > len(first)


def test_jupyterlab_is_added_where_the_demo_was_set_up(checkout: Path) -> None:
    program(checkout, "python3", fake_python("3.12"))
    assert setup(checkout, "demo").returncode == 0
    assert "jupyterlab" not in log(checkout)[-1]
    assert setup(checkout, "lab").returncode == 0
    assert [line for line in log(checkout) if line.startswith("venv")] == ["venv with 3.12"]
    assert log(checkout)[-1].endswith(" jupyterlab>=4.2")
    assert setup(checkout, "demo").stdout == ""
    installs = [line for line in log(checkout) if " install " in line]
    assert len(installs) == 2 and all(" numpy>=" in line for line in installs)


def test_a_moved_checkout_gets_a_new_environment(checkout: Path) -> None:
    program(checkout, "python3", fake_python("3.12"))
    assert setup(checkout, "demo").returncode == 0
    moved = checkout.rename(checkout.parent / "moved")
    assert setup(moved, "demo").returncode == 0
    assert [line for line in log(moved) if line.startswith("venv")] == ["venv with 3.12"] * 2


def test_an_unknown_part_is_refused(checkout: Path) -> None:
    done = setup(checkout, "everything")
    assert (done.returncode, done.stderr) == (1, "setup: unknown part 'everything': use demo, lab, dev or system.\n")
