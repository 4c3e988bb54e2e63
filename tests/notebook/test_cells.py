"""What a local cell gives, a `%%flow` cell gives."""

from __future__ import annotations

import re
from pathlib import Path

from tests.notebook.kernel import Notebook, Result
from tests.services import wait_for


def loaded(notebook: Notebook) -> Notebook:
    notebook.run("%load_ext flow_nb")
    return notebook


def cell(notebook: Notebook, code: str, line: str = "", timeout_s: float = 60) -> Result:
    return notebook.run(f"%%flow {line}\n{code}", timeout_s=timeout_s)


def data(result: Result, kind: str = "execute_result") -> dict[str, str]:
    """The data of the last output of that type."""
    output = [one for one in result.outputs if one["output_type"] == kind][-1]
    found: dict[str, str] = output["data"]
    return found


def test_later_cells_find_the_variables_of_earlier_ones(notebook: Notebook) -> None:
    loaded(notebook)
    assert cell(notebook, "x = 20").status == "ok"
    assert data(cell(notebook, "x + 1"))["text/plain"] == "21"
    # On the machine, and not here.
    assert notebook.run("x").ename == "NameError"


def test_both_streams_come_as_they_do_here(notebook: Notebook) -> None:
    code = "import sys\nfor n in range(3):\n    print('out', n)\n    print('err', n, file=sys.stderr)"
    here = notebook.run(code)
    there = cell(loaded(notebook), code)
    assert there.text == here.text == "out 0\nout 1\nout 2\n"
    assert there.errors_text.endswith(here.errors_text)
    assert here.errors_text == "err 0\nerr 1\nerr 2\n"


def test_what_programs_and_c_code_print_comes_through(notebook: Notebook) -> None:
    code = (
        "import ctypes, os, subprocess\n"
        "os.system('echo from a shell')\n"
        "subprocess.run(['echo', 'from a program'])\n"
        "libc = ctypes.CDLL(None); libc.puts(b'from C'); libc.fflush(None)\n"
        "!echo from a line\n"
    )
    text = cell(loaded(notebook), code).text
    for line in ("from a shell", "from a program", "from C", "from a line"):
        assert f"{line}\n" in text.replace("\r", "")


def test_magics_and_await_work_on_the_machine(notebook: Notebook) -> None:
    loaded(notebook)
    assert "Wall time" in cell(notebook, "%time sum(range(10))").text
    assert "Wall time" in cell(notebook, "%%time\nsum(range(10))").text
    assert cell(notebook, "%%bash\necho $((20 + 1))").text == "21\n"
    assert data(cell(notebook, "import asyncio\nawait asyncio.sleep(0, 'slept')"))["text/plain"] == "'slept'"
    assert "cells run" in cell(notebook, "print?").text or cell(notebook, "len?").status == "ok"


def test_rich_outputs_are_the_cells_own(notebook: Notebook) -> None:
    loaded(notebook)
    figure = cell(notebook, "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2]);")
    assert data(figure, "display_data")["image/png"].startswith("iVBOR")
    frame = cell(notebook, "import pandas\npandas.DataFrame({'loss': [0.5, 0.25]})")
    assert "<table" in data(frame)["text/html"] and "loss" in data(frame)["text/plain"]
    plot = (
        "from IPython.display import display\n"
        "display({'application/vnd.plotly.v1+json': {'data': [{'y': [1, 2]}], 'layout': {}}}, raw=True)"
    )
    assert data(cell(notebook, plot), "display_data")["application/vnd.plotly.v1+json"]["data"] == [{"y": [1, 2]}]  # type: ignore[index]


def test_outputs_are_cleared_and_updated_in_place(notebook: Notebook) -> None:
    loaded(notebook)
    cleared = cell(
        notebook,
        "from IPython.display import clear_output\n"
        "for n in range(5):\n    clear_output(wait=True)\n    print('step', n)",
    )
    assert cleared.text == "step 4\n"
    # It was the cell that started the session, whose line stays.
    assert "Session " in data(cleared, "display_data")["text/plain"]
    updated = cell(
        notebook,
        "from IPython.display import display, HTML\nshown = display(HTML('one'), display_id=True)\n"
        "shown.update(HTML('two'))",
    )
    assert data(updated, "display_data")["text/html"] == "two"


def test_progress_bars_move_in_both_forms(notebook: Notebook) -> None:
    loaded(notebook)
    text = cell(notebook, "from tqdm import tqdm\nfor _ in tqdm(range(50)): pass")
    assert "50/50" in text.errors_text
    bar = cell(notebook, "from tqdm.notebook import tqdm\nfor _ in tqdm(range(50)): pass")
    shown = data(bar, "display_data")
    assert "application/vnd.jupyter.widget-view+json" in shown


def test_an_error_has_the_machines_traceback_and_the_cells_lines(notebook: Notebook) -> None:
    loaded(notebook)
    cell(notebook, "def half(x):\n    return x / 0")
    result = cell(notebook, "y = 1\nhalf(y)")
    assert (result.status, result.ename, result.evalue) == ("error", "ZeroDivisionError", "division by zero")
    # The magic's own line is the first.
    assert re.search(r"Cell In\[\d+\], line 3", result.traceback)
    assert re.search(r"-+> 3 half\(y\)", result.traceback)
    assert re.search(r"-+> 3 +return x / 0", result.traceback)
    for ours in ("flow_nb", "flow_sdk", "cellhost", "follow_cell"):
        assert ours not in result.traceback


def test_an_error_numbers_the_cell_as_the_notebook_does(notebook: Notebook) -> None:
    loaded(notebook)
    for _ in range(3):
        notebook.run("1")
    number = notebook.run("1").execution_count
    assert number
    assert f"Cell In[{number + 1}], line 2" in notebook.run("%%flow\n1/0").traceback
    # Also where cells of the notebook came between.
    notebook.run("1")
    assert f"Cell In[{number + 3}], line 2" in notebook.run("%%flow\n1/0").traceback


def test_a_syntax_error_is_shown_as_one(notebook: Notebook) -> None:
    result = cell(loaded(notebook), "x = = 1")
    assert result.ename == "SyntaxError" and "line 2" in result.traceback


def test_asking_fails_at_once_with_what_to_do(notebook: Notebook) -> None:
    loaded(notebook)
    result = cell(notebook, "name = input('Who? ')")
    assert result.ename == "StdinNotImplementedError" and "-i" in result.evalue
    assert "> 2 name = input('Who? ')" in result.traceback and "cellkernel" not in result.traceback
    assert cell(notebook, "import getpass\ngetpass.getpass()").ename == "StdinNotImplementedError"


def test_a_name_that_only_the_notebook_has_is_explained(notebook: Notebook) -> None:
    loaded(notebook)
    notebook.run("batch_size = 32")
    result = cell(notebook, "print(batch_size)")
    assert result.ename == "NameError" and "-i batch_size" in result.traceback
    assert "-i" not in cell(notebook, "print(nobody_has_this)").traceback


def test_the_stop_button_stops_the_cell_and_not_the_notebook(notebook: Notebook) -> None:
    loaded(notebook)
    notebook.run("here = 1")
    running = notebook.start("%%flow\nkept = 5\nimport time\nprint('started')\ntime.sleep(1000)")
    running.until(lambda one: "started" in one.text)
    notebook.interrupt()
    result = running.wait()
    assert result.ename == "KeyboardInterrupt" and "time.sleep(1000)" in result.traceback
    assert data(notebook.run("here"))["text/plain"] == "1"
    assert data(cell(notebook, "kept"))["text/plain"] == "5"


def test_a_program_that_a_cell_started_is_stopped_with_it(notebook: Notebook) -> None:
    loaded(notebook)
    running = notebook.start("%%flow\nimport subprocess\nprint('started')\nsubprocess.run(['sleep', '1000'])")
    running.until(lambda one: "started" in one.text)
    notebook.interrupt()
    assert running.wait().ename == "KeyboardInterrupt"
    assert cell(notebook, "!pgrep -P $PPID sleep || echo none").status == "ok"


STUBBORN = (
    "%%flow\nimport signal\nsignal.signal(signal.SIGINT, lambda *_: print('not now'))\n"
    "import time\nprint('started')\nend = time.monotonic() + 1000\nwhile time.monotonic() < end: time.sleep(0.01)"
)


def test_a_second_press_offers_to_end_the_session(notebook: Notebook) -> None:
    loaded(notebook)
    running = notebook.start(STUBBORN, answers=["y"])
    running.until(lambda one: "started" in one.text)
    notebook.interrupt()
    running.until(lambda one: "not now" in one.text)
    notebook.interrupt()
    result = running.wait()
    assert result.ename == "SessionEnded" and "has ended: stopped" in result.evalue


def test_where_nobody_can_answer_a_third_press_lets_the_cell_go_on(notebook: Notebook) -> None:
    loaded(notebook)
    running = notebook.start(STUBBORN)
    running.until(lambda one: "started" in one.text)
    notebook.interrupt()
    running.until(lambda one: "not now" in one.text)
    notebook.interrupt()
    running.until(lambda one: "%flow stop" in one.errors_text)
    notebook.interrupt()
    assert running.wait().ename == "KeyboardInterrupt"
    assert "running" in cell_status(notebook)


def cell_status(notebook: Notebook) -> str:
    return str(notebook.run("print([task.status for task in __import__('flow_sdk').list_tasks()])").text)


def test_loading_takes_nothing_heavy_and_unloading_takes_it_away(notebook: Notebook, project: Path) -> None:
    # The thread that loads what the first cell needs is for later.
    notebook.run("import sys\nbefore = set(sys.modules)\n%load_ext flow_nb\nadded = set(sys.modules) - before")
    heavy = notebook.run(
        "print(sorted({name.split('.')[0] for name in added} & {'httpx', 'paramiko', 'boto3', 'rich'}))"
    )
    assert heavy.text == "[]\n"
    assert "Cells on a GPU machine" in notebook.run("%flow?").text or notebook.run("%%flow?").status == "ok"
    notebook.run("%unload_ext flow_nb")
    assert "not found" in notebook.run("%flow sessions").errors_text
    assert notebook.run("%%flow\n1").status == "error"
    assert notebook.run("%reload_ext flow_nb").status == "ok"
    assert cell(notebook, "1").status == "ok"


def test_what_a_thread_prints_later_is_shown_by_the_next_cell(notebook: Notebook, project: Path) -> None:
    loaded(notebook)
    printed = project.parent / "printed"
    cell(notebook, f"import os, threading, time\nGO, PRINTED = {str(project.parent / 'go')!r}, {str(printed)!r}")
    cell(
        notebook,
        "def later():\n    while not os.path.exists(GO): time.sleep(0.01)\n"
        "    print('from the thread', flush=True); open(PRINTED, 'w').close()\n"
        "threading.Thread(target=later).start()",
    )
    (project.parent / "go").touch()
    wait_for(printed.exists)
    assert cell(notebook, "print('from the cell')").text == "from the thread\nfrom the cell\n"
