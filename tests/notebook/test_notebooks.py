"""The notebooks that come with the project: each runs as a person runs it, and shows what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

import flow_sdk as flow
from tests.notebook.kernel import ANSI_CODE
from tests.services import ROOT, require

NAMES = ("quickstart", "variables", "files-and-mounts", "sweep", "long-training-and-reattach")
FOLDER = ROOT / "notebooks"
TIMEOUT_S = 120


class Executed:
    """An executed notebook, its cells found by what is in their source."""

    def __init__(self, path: Path) -> None:
        notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        self.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]

    def outputs(self, part: str) -> list[Any]:
        """Of the only cell that has `part` in its source."""
        (cell,) = [cell for cell in self.cells if part in cell.source]
        found: list[Any] = cell.outputs
        return found

    def text(self, part: str, name: str = "stdout") -> str:
        return "".join(output.text for output in self.outputs(part) if output.get("name") == name)

    def data(self, part: str) -> dict[str, str]:
        """What the cell's displays and its result hold, by type."""
        found: dict[str, str] = {}
        for output in self.outputs(part):
            found |= output.get("data", {})
        return found

    def number(self, part: str, pattern: str) -> float:
        found = re.search(pattern, self.text(part))
        assert found, f"{pattern!r} is not in {self.text(part)!r}"
        return float(found[1])


def command(*arguments: str) -> None:
    """Runs a command of Jupyter's."""
    argv = [str(Path(sys.executable).with_name(arguments[0])), *arguments[1:]]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, ANSI_CODE.sub("", done.stderr)


def need_mounts() -> None:
    require("mounts" if os.geteuid() == 0 else "bubblewrap")


def is_png(data: dict[str, str]) -> bool:
    return data["image/png"].startswith("iVBORw0KGgo")


@pytest.fixture
def copies(sessions_end: None, project: Path) -> Path:
    """The notebooks in a folder of the test's own."""
    left_out = shutil.ignore_patterns("*.executed.ipynb", ".ipynb_checkpoints", "__pycache__")
    shutil.copytree(FOLDER, project, ignore=left_out, dirs_exist_ok=True)
    return project


@pytest.fixture
def execute(copies: Path) -> Callable[[str], Executed]:
    def run(name: str) -> Executed:
        before = set(copies.rglob("*"))
        command("jupyter-execute", f"{name}.ipynb", "--inplace")
        after = {path for path in copies.rglob("*") if "__pycache__" not in path.parts}
        left = {path.relative_to(copies).as_posix() for path in after - before}
        assert left <= {"helpers/report.executed.ipynb"}, f"{name} left {left} behind"
        assert not [task.name for task in flow.list_tasks() if not task.is_done]
        assert not flow.list_volumes()
        return Executed(copies / f"{name}.ipynb")

    return run


def test_they_are_saved_as_git_wants_them() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)
    for path in FOLDER.rglob("*.ipynb"):
        if path.match("*.executed.ipynb") or ".ipynb_checkpoints" in path.parts:
            continue
        notebook: Any = nbformat.read(path, as_version=nbformat.NO_CONVERT)  # type: ignore[no-untyped-call]
        nbformat.validate(notebook)
        assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
        assert notebook.metadata.kernelspec.name == "python3"
        for cell in notebook.cells:
            assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None), path.name
            for link in re.findall(r"\]\(([^)#:]+)\)", cell.source):
                assert (path.parent / link).exists(), f"{path.name} links to {link}"


def test_quickstart(execute: Callable[[str], Executed]) -> None:
    shown = execute("quickstart")
    assert "This machine has no a100; the task runs on its CPU." in shown.text("gpu=a100", "stderr")
    session = re.search(r"in the session (\S+)", shown.text("gpu=a100"))
    assert session
    assert shown.data("import numpy")["text/plain"] == "(1000, 2)"
    assert "500/500" in shown.text("tqdm", "stderr")
    assert shown.number("tqdm", r"accuracy ([\d.]+)%") > 95
    assert is_png(shown.data("contourf"))
    last = shown.number("tqdm", r"loss ([\d.]+)")
    assert shown.text("came back") == f"500 losses came back, from 0.693 to {last:.3f}\n"
    assert session[1] in shown.data("%flow sessions")["text/plain"]
    assert shown.text("%flow stop") == f"{session[1]} has ended.\n"


def test_nbconvert_executes_quickstart(copies: Path) -> None:
    command("jupyter-nbconvert", "--execute", "--to", "html", "--output", "copy", "quickstart.ipynb")
    page = (copies / "copy.html").read_text()
    assert "data:image/png;base64,iVBORw0KGgo" in page
    assert re.search(r"^in the session session-\w+$", page, re.MULTILINE)
    assert re.search(r"^<pre>500 losses came back, from 0\.693 to 0\.0\d\d$", page, re.MULTILINE)


def test_variables(execute: Callable[[str], Executed]) -> None:
    shown = execute("variables")
    assert shown.data('config["rate"] / 2')["text/plain"] == "0.15"
    (error,) = [output for output in shown.outputs("%%flow\nlen(names)") if output.output_type == "error"]
    assert (error.ename, error.evalue) == ("NameError", "name 'names' is not defined")
    assert "Hint: 'names' exists in the notebook; -i names sends it to the machine." in "\n".join(error.traceback)
    assert shown.data("%%flow -i names\n")["text/plain"] == "2"
    # By the three-sigma rule, 270 of 100,000 lie beyond.
    clipped = re.fullmatch(
        r"\[Score\(name='control', clipped=(\d+)\), Score\(name='treated', clipped=(\d+)\)\] True\n",
        shown.text("isinstance"),
    )
    assert clipped and all(200 < int(count) < 350 for count in clipped.groups())
    twice = [cell.outputs for cell in shown.cells if "%%flow -i images" in cell.source]
    assert len(twice) == 2
    for outputs in twice:
        assert re.fullmatch(r"spread (0\.99|1\.00)\d\d\n", outputs[0].text)
        assert "Wall time" in outputs[-1].text
    here, back = shown.text("here still").splitlines()
    assert float(here.rpartition(" ")[2]) < 10
    assert back == "brought back (50, 100000), at most 3.00"


def test_files_and_mounts(execute: Callable[[str], Executed]) -> None:
    need_mounts()
    shown = execute("files-and-mounts")
    assert shown.data("scale([1, 2, 3])")["text/plain"] == "[2, 4, 6]"
    assert shown.data("scale([1, 2, 4])")["text/plain"] == "[0.25, 0.5, 1.0]"
    assert shown.text("session=summary mounts") == "monday 4.0\ntuesday 7.0\n\n"
    assert "notebook-results" in shown.data("%flow volumes")["text/plain"]
    assert shown.data("session=report mounts")["text/plain"] == "{'monday': '4.0', 'tuesday': '7.0'}"
    assert shown.text("%flow download") == "the best day was tuesday\n\n"


def test_sweep(execute: Callable[[str], Executed]) -> None:
    shown = execute("sweep")
    status = shown.data("%flow status")["text/plain"]
    rates = ["0.003", "0.03", "0.3", "3.0"]
    assert all(f"rate-{rate}" in status for rate in rates)
    rows = [re.split(r" *\| *", line)[1:-1] for line in shown.data("Markdown")["text/markdown"].splitlines()[2:]]
    assert [rate for rate, _, _ in rows] == rates
    losses = [float(loss) for _, loss, _ in rows]
    assert losses == sorted(losses, reverse=True) and 0.4 < losses[0] < 0.7 and losses[-1] < 0.1
    assert is_png(shown.data("semilogy"))
    assert [line.split()[1] for line in shown.text("%flow logs").splitlines()] == ["50", "100", "150", "200"]
    longer = shown.number("longer = _", r"loss ([\d.]+) after 400 steps")
    best = max(rows, key=lambda row: float(row[2].rstrip("%")))
    assert longer < float(best[1])
    assert flow.get_task(f"longer-{best[0]}").status == "completed"


def test_long_training_and_reattach(execute: Callable[[str], Executed], copies: Path) -> None:
    need_mounts()
    shown = execute("long-training-and-reattach")
    trained = shown.text("idle=10m")
    assert [line.split()[1] for line in trained.splitlines()[:4]] == ["50", "100", "150", "200"]
    assert shown.text("%flow keep") == "training ends when nothing ran in it for 2h.\n"
    # The heading names the cell that is shown again.
    assert shown.text("%flow attach training").partition("\n")[2] == trained
    went_on = shown.text("%%flow session=training\n")
    assert went_on.startswith("going on after step 200\nstep  250")
    assert shown.text("%flow attach night") == "".join(trained.splitlines(keepends=True)[:4])
    assert re.fullmatch(r"completed 9\d\.\d%\n", shown.text('get_task("night")'))
    assert shown.text("name=night-2") == went_on
    assert is_png(shown.data("%flow run helpers/report.ipynb"))
    assert "report.executed.ipynb" in shown.data("FileLink")["text/html"]
    report = Executed(copies / "helpers" / "report.executed.ipynb")
    assert is_png(report.data("semilogy"))
    assert report.text("train(rate=0.3, steps=150)") == "".join(trained.splitlines(keepends=True)[:3])
