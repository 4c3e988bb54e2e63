"""What is left when a part of a session is killed in mid-cell, or its disk fills up."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import flow_sdk as flow
from tests.notebook.conftest import notebook, sessions_end  # noqa: F401
from tests.notebook.kernel import Notebook
from tests.notebook.test_cells import cell, data, loaded
from tests.services import Process, processes, wait_for

NUMBERS = """\
import os, time
for number in range(100_000):
    print("line", number)
    if number == 200: open(STARTED, "w").close()
    time.sleep(0.0005)
"""


def process(home: Path, words: str) -> Process:
    """The one process of the home's tasks whose command has these words."""
    (found,) = (one for one in processes() if words in one.command and one.environ.get("FLOW_HOME") == str(home))
    return found


def start_printing(opened: Notebook, folder: Path) -> tuple[object, Path]:
    started = folder / "started"
    cell(opened, f"STARTED = {str(started)!r}")
    running = opened.start(f"%%flow\n{NUMBERS}")
    wait_for(started.exists, 20)
    return running, started


def numbers(text: str) -> list[int]:
    assert re.fullmatch(r"(line \d+\n)*(line \d*)?", text), text[-200:]
    return [int(number) for number in re.findall(r"line (\d+)\n", text)]


def test_the_notebooks_kernel_is_killed(
    sessions_end: None,  # noqa: F811
    project: Path,
    flow_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", str(project / "work.ipynb"))
    with Notebook(project) as opened:
        loaded(opened)
        start_printing(opened, project.parent)
        opened.kill()
        opened.restart()
        (session,) = flow.Session.find()
        journal = session.journal()
        first = opened.run("%load_ext flow_nb")
        assert "still running in it" in first.text
        session.interrupt()
        wait_for(lambda: (journal.last("execute_reply") or {}).get("ename") == "KeyboardInterrupt")
        whole = opened.run("%flow attach")
        shown = re.sub(r"── In.*\n", "", whole.text)
        # Nothing lost, nothing twice.
        assert numbers(shown) == list(range(len(numbers(shown)))) and len(numbers(shown)) > 200
        assert shown.encode() == (flow_home / "tasks" / session.task.task_id / "node-0" / "stdout.log").read_bytes()


def test_the_cell_host_is_killed(notebook: Notebook, project: Path, flow_home: Path) -> None:  # noqa: F811
    loaded(notebook)
    running, _ = start_printing(notebook, project.parent)
    session_id = flow.list_tasks(limit=1)[0].task_id
    os.kill(process(flow_home, f"{session_id}/node-0/cellhost.py").pid, signal.SIGKILL)
    result = running.wait()  # type: ignore[attr-defined]
    assert result.ename == "SessionEnded" and "signal 9" in result.evalue
    assert numbers(result.text) == list(range(len(numbers(result.text)))) and len(numbers(result.text)) > 200
    # The next cell starts anew, and says why.
    after = cell(notebook, "print('anew')")
    assert after.text == "anew\n" and "has ended" in after.errors_text and "signal 9" in after.errors_text


def test_the_kernel_on_the_machine_is_killed(notebook: Notebook, project: Path, flow_home: Path) -> None:  # noqa: F811
    loaded(notebook)
    cell(notebook, "kept = 1")
    result = cell(notebook, "for n in range(100): print('line', n)\nimport os; os.kill(os.getpid(), 9)")
    assert (
        result.ename == "KernelDied" and "ran out of memory" in result.evalue and "variables are gone" in result.evalue
    )
    # Also what it printed in its very last moment.
    assert numbers(result.text) == list(range(100))
    assert cell(notebook, "kept").ename == "NameError"
    assert data(cell(notebook, "1 + 1"))["text/plain"] == "2"
    assert len(flow.Session.find()) == 1


def test_a_crash_of_c_code_shows_what_it_said(notebook: Notebook) -> None:  # noqa: F811
    loaded(notebook)
    result = cell(notebook, "import ctypes\nprint('before')\nctypes.string_at(1)")
    assert result.ename == "KernelDied" and "signal 11" in result.evalue and result.text == "before\n"


def test_the_machine_runs_out_of_disk(
    notebook: Notebook,  # noqa: F811
    project: Path,
    full_disk: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = full_disk("24m")
    notebook.run(f"import os; os.environ['FLOW_HOME'] = {str(home)!r}")
    monkeypatch.setenv("FLOW_HOME", str(home))
    loaded(notebook)
    cell(notebook, "1")
    filler = home / "filler"
    code = f"""\
import errno, os, time
with open({str(filler)!r}, "wb", buffering=0) as file:
    try:
        while True: file.write(bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC
for number in range(20000): print("line", number)
print("end")
"""
    running = notebook.start(f"%%flow\n{code}")
    running.until(lambda one: "disk of the machine is full" in one.errors_text)
    result = running.wait()
    assert result.ename == "DiskFull" and "comes when there is room" in result.evalue
    filler.unlink()
    (session,) = flow.Session.find()
    log = home / "tasks" / session.task.task_id / "node-0" / "stdout.log"
    wait_for(lambda: log.read_bytes().endswith(b"end\n"), 20)
    printed = "".join(f"line {number}\n" for number in range(20000)) + "end\n"
    assert log.read_text() == printed
    wait_for(lambda: journalled(session) == printed, 20)
    shown = notebook.run("%flow attach")
    assert printed in shown.text
    assert data(cell(notebook, "1 + 1"))["text/plain"] == "2"
    notebook.run("%flow stop")


def journalled(session: flow.Session) -> str:
    events = [event for event in session.journal(from_start=True).read() if event["type"] == "stream"]
    return "".join(event["content"]["text"] for event in events if event["content"]["name"] == "stdout")


def test_the_machine_goes_away_between_two_cells(notebook: Notebook, flow_home: Path) -> None:  # noqa: F811
    loaded(notebook)
    cell(notebook, "x = 1")
    (session,) = flow.Session.find()
    session.task.cancel()
    session.task.wait(20)
    result = cell(notebook, "x")
    assert "has ended: stopped" in result.errors_text and result.ename == "NameError"


def test_a_host_that_is_started_again_goes_on(notebook: Notebook, flow_home: Path) -> None:  # noqa: F811
    loaded(notebook)
    assert cell(notebook, "x = 1\nprint('ran once')", "retries=1").text == "ran once\n"
    task = flow.list_tasks(limit=1)[0]
    running = notebook.start("%%flow\nimport time\nprint('begun'); time.sleep(1000)")
    running.until(lambda one: "begun" in one.text)
    behind = flow.Session(task).execute("print('was waiting')")
    os.kill(process(flow_home, f"{task.task_id}/node-0/cellhost.py").pid, signal.SIGKILL)
    result = running.wait()
    assert result.ename == "KernelDied" and "started again" in result.evalue
    assert cell(notebook, "x").ename == "NameError"
    shown = notebook.run("%flow attach").text
    assert shown.count("ran once") == 1 and shown.count("was waiting\n") == 1 and behind
    events = list(flow.Session(task).journal(from_start=True).read())
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
