"""`make lint`, as tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.services import ROOT


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_lint(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} says:\n{done.stdout}{done.stderr}"
