"""`%%flow` without a browser: nbclient, nbconvert, IPython in a terminal, and hosted Colab's old packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pexpect
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import flow_sdk as flow
from tests.notebook.kernel import Notebook
from tests.notebook.lab import write_notebook
from tests.notebook.test_cells import cell, data, loaded

# Colours, moves of the cursor, and the window's title.
ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\].*?\x07)")
CELLS = [
    "%load_ext flow_nb",
    "%%flow\nprint('printed', 6 * 7)\nimport pandas\npandas.DataFrame({'loss': [0.5]})",
    "%%flow\nimport matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()",
    "%%flow\ny = 1\ny / 0",
    "%flow stop",
    "print('after')",
]


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def plain(text: str) -> str:
    return re.sub(ESCAPES, "", text)


def test_nbclient_executes_cells_of_the_machine(sessions_end: None, project: Path) -> None:
    executed = read(write_notebook(project / "cells.ipynb", CELLS))
    NotebookClient(executed, allow_errors=True, timeout=60).execute()
    nbformat.validate(executed)
    _, table, figure, failed, _, after = [one.outputs for one in executed.cells]
    assert [one.text for one in table if one.get("name") == "stdout"] == ["printed 42\n"]
    assert "<table" in table[-1].data["text/html"] and table[-1].execution_count == 2
    assert figure[-1].data["image/png"].startswith("iVBOR")
    assert (failed[-1].ename, failed[-1].evalue) == ("ZeroDivisionError", "division by zero")
    assert "----> 3 y / 0" in plain("\n".join(failed[-1].traceback))
    assert after[-1].text == "after\n"


def test_nbclient_stops_at_an_error_of_the_machine(sessions_end: None, project: Path) -> None:
    executed = read(write_notebook(project / "cells.ipynb", CELLS))
    with pytest.raises(CellExecutionError, match="division by zero") as caught:
        NotebookClient(executed, timeout=60).execute()
    assert caught.value.ename == "ZeroDivisionError" and "flow_nb" not in plain(str(caught.value))
    assert executed.cells[-1].outputs == []


def test_nbconvert_executes_and_writes_a_page(sessions_end: None, project: Path) -> None:
    write_notebook(project / "cells.ipynb", CELLS)
    argv = [sys.executable, "-m", "nbconvert", "--execute", "--to", "markdown", "cells.ipynb"]
    stopped = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert stopped.returncode == 1 and "ZeroDivisionError: division by zero" in plain(stopped.stderr)
    done = subprocess.run([*argv, "--allow-errors"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    page = (project / "cells.md").read_text()
    for part in ("printed 42", "<th>loss</th>", "----> 3 y / 0", "ZeroDivisionError: division by zero", "after"):
        assert part in plain(page), part
    (figure,) = re.findall(r"!\[png\]\((\S+)\)", page)
    assert (project / figure).read_bytes().startswith(b"\x89PNG")
    # Where no widget is drawn, the session is a line of text.
    assert re.search(r"<p>Session session-\w+ on this machine, started ", page)


class Terminal:
    """IPython as it starts in a terminal, with its own prompt and keys."""

    def __init__(self, folder: Path, private: Path) -> None:
        environ = {
            **os.environ,
            "IPYTHONDIR": str(private / "ipython"),
            "TERM": "xterm",
            # Nobody answers where the cursor is.
            "PROMPT_TOOLKIT_NO_CPR": "1",
        }
        argv = ["-m", "IPython", "--no-banner", "--no-confirm-exit", "--colors=NoColor"]
        self.child = pexpect.spawn(
            sys.executable, argv, cwd=str(folder), env=environ, dimensions=(50, 160), encoding="utf-8", timeout=20
        )
        self.number = 0
        self.wait_prompt()

    def wait_prompt(self) -> str:
        """Waits until the next cell can be typed; returns what was shown since the last was."""
        self.number += 1
        self.child.expect_exact(f"In [{self.number}]:")
        return plain(self.child.before)

    def type(self, code: str) -> None:
        # Two empty lines end the cell of a cell magic.
        lines = [*code.splitlines(), "", ""] if code.startswith("%%") else [code]
        for line in lines:
            self.child.send(line + "\r")

    def run(self, code: str) -> str:
        self.type(code)
        return self.wait_prompt()

    def close(self) -> int | None:
        self.child.sendline("exit")
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus


@pytest.fixture
def terminal(sessions_end: None, project: Path, tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(project, tmp_path)
    yield opened
    opened.child.close(force=True)


def test_a_terminal_shows_what_a_cell_prints_and_raises(terminal: Terminal) -> None:
    terminal.run("%load_ext flow_nb")
    shown = terminal.run("%%flow\nx = 6\nprint('printed', x * 7)\n'result'.upper()")
    assert "printed 42" in shown and "'RESULT'" in shown
    assert re.search(r"flow: Session session-\w+ on this machine, started .* ends it", shown)
    failed = terminal.run("%%flow\ny = x - 6\nx / y")
    assert "ZeroDivisionError: division by zero" in failed and "----> 3 x / y" in failed
    assert not [name for name in ("flow_nb", "flow_sdk", "cellhost") if name in failed]
    terminal.type("%%flow\nimport time\nprint('begun', x + 1)\ntime.sleep(1000)")
    terminal.child.expect("begun 7")
    terminal.child.sendintr()
    stopped = terminal.wait_prompt()
    assert "KeyboardInterrupt" in stopped and "time.sleep(1000)" in stopped
    assert "still 6" in terminal.run("%%flow\nprint('still', x)")
    sessions = terminal.run("%flow sessions")
    assert "SESSION" in sessions and "session-" in sessions and "<table" not in sessions
    task = flow.list_tasks(limit=1)[0]
    assert terminal.close() == 0
    assert task.status == "running", "leaving the terminal ends no session"


def test_colabs_old_stack_runs_cells(colab_python: Path, sessions_end: None, project: Path) -> None:
    with Notebook(project, python=colab_python) as notebook:
        found = notebook.run("%load_ext flow_nb")
        assert (found.status, found.errors_text) == ("ok", "")
        versions = "import sys, IPython, ipykernel\n(sys.prefix, IPython.__version__, ipykernel.__version__)"
        first = cell(notebook, versions)
        # The machine's kernel is of the old stack, too.
        assert data(first)["text/plain"] == f"('{colab_python.parent.parent}', '7.34.0', '6.17.1')"
        # Its widget, or else a line.
        assert re.search(r"Session session-\w+ on this machine", data(first, "display_data")["text/plain"])
        notebook.run("count, names = 20, ['a', 'b']")
        sent = cell(
            notebook, "total = count + 1 + len(names)\nprint('on the machine', total)", "-i count,names -o total"
        )
        assert sent.text == "on the machine 23\n", sent.traceback
        assert notebook.run("print(total)").text == "23\n"
        failed = cell(notebook, "y = 1\ny / 0")
        assert failed.ename == "ZeroDivisionError" and re.search(r"-+> 3 y / 0", failed.traceback)
        assert not [name for name in ("flow_nb", "flow_sdk", "cellhost") if name in failed.traceback]
        assert cell(notebook, "input()").ename == "StdinNotImplementedError"
        assert cell(notebook, "!echo from a line").text.replace("\r", "") == "from a line\n"
        assert data(cell(notebook, "import asyncio\nawait asyncio.sleep(0, 'slept')"))["text/plain"] == "'slept'"
        # What Colab has besides is borrowed from this Python.
        packages = sysconfig.get_path("purelib")
        plot = f"import sys; sys.path.append({packages!r})\nimport matplotlib.pyplot as plt\nplt.plot([1, 3, 2]);"
        assert data(cell(notebook, plot), "display_data")["image/png"].startswith("iVBOR")
        table = data(notebook.run("%flow sessions"))
        assert "<table" in table["text/html"] and flow.list_tasks()[0].name in table["text/plain"]


def test_colabs_old_stack_stops_and_attaches(colab_python: Path, sessions_end: None, project: Path) -> None:
    with Notebook(project, python=colab_python) as notebook:
        loaded(notebook)
        running = notebook.start("%%flow session=old\nkept = 5\nimport time\nprint('begun')\ntime.sleep(1000)")
        running.until(lambda one: "begun" in one.text)
        notebook.interrupt()
        stopped = running.wait()
        assert stopped.ename == "KeyboardInterrupt" and "time.sleep(1000)" in stopped.traceback
        assert data(cell(notebook, "kept"))["text/plain"] == "5"
        bars = "from ipywidgets import IntProgress\nIntProgress(value=3, max=4)"
        assert "application/vnd.jupyter.widget-view+json" in data(cell(notebook, bars), "display_data")
        again = notebook.run("%flow attach old")
        assert again.text.count("begun") == 1
        assert cell(notebook, "kept + 1", "--submit").ename == "NameError"
        assert "session=" in "".join(notebook.complete("%%flow ses"))
        stop = notebook.run("%flow stop")
        assert stop.text == "old has ended.\n", stop.traceback
