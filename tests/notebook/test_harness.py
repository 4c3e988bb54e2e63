"""The harness shows a test what a person sees: proven on plain cells, without Flow."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import flow_sdk
from tests.notebook.kernel import KernelDiedError, Notebook
from tests.notebook.lab import Page, write_notebook


def test_a_cell_gives_what_a_front_end_shows(notebook: Notebook, project: Path) -> None:
    done = notebook.run("import os, sys; print(os.getcwd()); print('oh', file=sys.stderr); 6 * 7")
    assert (done.status, done.text, done.errors_text) == ("ok", f"{project}\n", "oh\n")
    assert done.outputs[-1] == {
        "output_type": "execute_result",
        "data": {"text/plain": "42"},
        "metadata": {},
        "execution_count": 1,
    }
    assert done.execution_count == 1
    assert 0 < done.seconds < 60
    big = notebook.run("print('x' * 100_000)")
    assert 100_000 < big.message_bytes < 104_000
    failed = notebook.run("y = 1\n1 / 0")
    assert (failed.status, failed.ename, failed.evalue) == ("error", "ZeroDivisionError", "division by zero")
    assert "----> 2 1 / 0" in failed.traceback and "\x1b" not in failed.traceback
    assert failed.outputs[-1]["output_type"] == "error"
    assert "Prints the values to a stream" in notebook.run("?print").page
    assert "environ" in notebook.complete("os.envi")[0]


def test_outputs_are_cleared_and_updated_as_a_front_end_does(notebook: Notebook) -> None:
    shown = notebook.start("from IPython.display import display, clear_output\nh = display('old', display_id=True)")
    shown.wait()
    assert shown.outputs[0]["data"]["text/plain"] == "'old'"
    assert notebook.run("h.update('new')").outputs == []
    assert shown.outputs[0]["data"]["text/plain"] == "'new'"
    waited = notebook.run("print('first'); clear_output(wait=True)")
    assert waited.text == "first\n", "with wait, nothing goes before something comes"
    assert notebook.run("print('first'); clear_output(wait=True); print('second')").text == "second\n"
    assert notebook.run("print('first'); clear_output()").outputs == []


def test_output_is_there_while_the_cell_runs_and_stops_by_interrupt(notebook: Notebook) -> None:
    cell = notebook.start("import time\nfor i in range(10_000):\n    print(i, flush=True)\n    time.sleep(0.05)")
    cell.until(lambda running: "3\n" in running.text)
    assert not cell.is_done
    notebook.interrupt()
    done = cell.wait(10)
    assert (done.status, done.ename) == ("error", "KeyboardInterrupt")
    assert done.text.startswith("0\n1\n2\n3\n")
    # What a thread prints after its cell's end is that cell's.
    code = "import threading\nthreading.Timer(0.3, lambda: print('late', flush=True)).start()"
    early = notebook.start(code)
    early.wait()
    early.until(lambda running: running.text == "late\n", 10)


def test_input_is_answered_or_refused(notebook: Notebook) -> None:
    done = notebook.run("print(input('name? ') + input('age? '))", answers=["Ada ", "36"])
    assert (done.text, done.prompts) == ("Ada 36\n", ("name? ", "age? "))
    assert notebook.run("input()").ename == "StdinNotImplementedError"


def test_a_killed_kernel_is_said_with_what_it_printed(notebook: Notebook) -> None:
    cell = notebook.start("import signal\nprint('before', flush=True)\nsignal.pause()")
    cell.until(lambda running: running.text)
    notebook.kill()
    with pytest.raises(KernelDiedError, match=r"(?s)the kernel died.*before"):
        cell.wait(10)
    notebook.restart()
    assert cell.text == "before\n"
    assert notebook.run("print('signal' in dir())").text == "False\n"


def test_a_silent_cell_is_given_up_at_its_deadline(notebook: Notebook) -> None:
    with pytest.raises(TimeoutError, match=r"(?s)silent.*soon"):
        notebook.run("import signal\nprint('soon', flush=True)\nsignal.pause()", timeout_s=1)


def test_the_kernel_ends_with_the_notebook(project: Path) -> None:
    with Notebook(project, {"PATH": os.environ["PATH"], "ONLY": "this"}) as notebook:
        assert notebook.run("import os; print(os.environ['ONLY'], 'HOME' in os.environ)").text == "this False\n"
        pid = notebook.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


PLOT = """
import matplotlib.pyplot as plt
plt.figure(figsize=(4, 2))
plt.plot([1, 4, 9, 16])
plt.title("squares")
plt.show()
"""
COUNT = """
import time
for i in range(10_000):
    print("line", i, flush=True)
    time.sleep(0.05)
"""


def test_a_task_of_the_notebook_is_ended_after_it(notebook: Notebook, flow_home: Path) -> None:
    done = notebook.run("import flow_sdk; task = flow_sdk.run('sleep 600')\nprint(task.task_id)")
    # The fixture `flow_home` fails a test that leaves it running.
    assert flow_sdk.get_task(done.text.strip()).is_done is False


def test_a_browser_runs_a_notebook_as_a_person_does(page: Page, project: Path) -> None:
    page.open(write_notebook(project / "plain cells.ipynb", [COUNT, PLOT, "x = 5\nprint('after')", "print(x)"]))
    page.run_cell(2)
    page.wait_output(2, "after")
    page.restart_kernel()
    page.run_cell(3)
    page.wait_output(3, "NameError")
    page.run_all()
    page.wait_output(0, "line 1\n")
    assert page.is_running(0)
    page.interrupt()
    page.wait_output(0, "KeyboardInterrupt")
    page.wait_done(0)
    assert page.output_text(0).startswith("line 0\nline 1\n")
    with pytest.raises(AssertionError, match=r"(?s)did not show never in 0.1 s, but:.*line 1"):
        page.wait_output(0, "never", timeout_s=0.1)


def test_colabs_old_stack_runs_a_cell(colab_python: Path, flow_home: Path, project: Path) -> None:
    with Notebook(project, python=colab_python) as notebook:
        done = notebook.run("import IPython, sys, flow_sdk; print(IPython.__version__, sys.prefix); 1 / 0")
        assert done.text == f"7.34.0 {colab_python.parent.parent}\n"
        assert done.ename == "ZeroDivisionError" and "----> 1 import IPython" in done.traceback
