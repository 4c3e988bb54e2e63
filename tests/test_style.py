"""`make lint`, as tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.services import ROOT


# Without git, ruff would read the test image's own Python too.
@pytest.mark.parametrize(
    "command",
    ["ruff check --extend-exclude .cache .", "ruff format --check --extend-exclude .cache .", "mypy"],
)
def test_lint(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} says:\n{done.stdout}{done.stderr}"
