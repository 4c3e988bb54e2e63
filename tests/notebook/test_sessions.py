"""Sessions from the notebook: which one a cell runs in, what is sent, how long it lives, and finding it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import flow_sdk as flow
from tests.notebook.kernel import Notebook
from tests.notebook.test_cells import cell, data, loaded
from tests.services import unavailable, wait_for


def sessions() -> list[flow.Session]:
    return flow.Session.find()


def test_cells_with_the_same_settings_share_a_session(notebook: Notebook) -> None:
    loaded(notebook)
    assert cell(notebook, "x = 1", "gpu=a100").status == "ok"
    assert data(cell(notebook, "x", "--gpu a100"))["text/plain"] == "1"
    # Without settings it is the session that is there.
    assert data(cell(notebook, "x"))["text/plain"] == "1"
    assert len(sessions()) == 1
    # Another machine is another session.
    assert cell(notebook, "x", "gpu=h100").ename == "NameError"
    assert len(sessions()) == 2


def test_named_sessions_are_kept_apart(notebook: Notebook) -> None:
    loaded(notebook)
    cell(notebook, "x = 'one'", "session=one")
    cell(notebook, "x = 'two'", "session=two")
    assert data(cell(notebook, "x", "session=one"))["text/plain"] == "'one'"
    assert data(cell(notebook, "x", "session=two"))["text/plain"] == "'two'"
    assert {session.task.name for session in sessions()} == {"one", "two"}
    conflict = cell(notebook, "x", "session=two gpu=a100")
    assert conflict.ename == "ValidationError" and "other settings: gpu" in conflict.evalue
    assert "%flow stop two" in conflict.evalue


def test_without_a_name_it_is_the_only_session_there_is(notebook: Notebook) -> None:
    loaded(notebook)
    cell(notebook, "x = 'one'", "session=one")
    assert data(cell(notebook, "x"))["text/plain"] == "'one'"
    cell(notebook, "x = 'two'", "session=two")
    unclear = cell(notebook, "x")
    assert unclear.ename == "ValidationError" and "session=two or session=one" in unclear.evalue
    assert len(sessions()) == 2


def test_settings_that_a_running_session_cannot_get_are_refused(notebook: Notebook) -> None:
    loaded(notebook)
    cell(notebook, "1", "env=COLOR=red")
    assert data(cell(notebook, "import os; os.environ['COLOR']", "env=COLOR=red"))["text/plain"] == "'red'"
    refused = cell(notebook, "1", "env=COLOR=blue")
    assert refused.ename == "ValidationError" and "env" in refused.evalue
    assert len(sessions()) == 1


def test_defaults_count_for_all_cells(notebook: Notebook) -> None:
    loaded(notebook)
    shown = notebook.run("%flow defaults env=COLOR=red idle=5m")
    assert "idle=5m" in shown.text
    assert data(cell(notebook, "import os; os.environ['COLOR']"))["text/plain"] == "'red'"
    assert notebook.run("%flow defaults gpuu=a100").ename == "ValidationError"


def test_a_mistake_starts_nothing(notebook: Notebook, flow_home: Path) -> None:
    loaded(notebook)
    for line, said in (
        ("gpuu=a100", "Did you mean gpu"),
        ("gpu=a10O", "a100"),
        ("num_instances=two", "must be a number"),
        ("-i nothing_of_the_name", "no variable 'nothing_of_the_name'"),
        ("env={undefined_name}", "undefined_name"),
        ("session='open", "not closed"),
        ("idle=never", "no time"),
        ("num_instances=2", "one machine"),
        ("--requirements nowhere.txt", "cannot be read"),
    ):
        result = cell(notebook, "1", line)
        assert result.status == "error" and said in result.evalue, (line, result.evalue)
        assert "flow_nb" not in result.traceback
    assert not (flow_home / "tasks").exists() or not os.listdir(flow_home / "tasks")


def test_values_of_the_line_come_from_the_notebook(notebook: Notebook) -> None:
    loaded(notebook)
    notebook.run("color, sizes = 'deep red', {'SIZE': '4'}")
    code = "import os; os.environ['COLOR'], os.environ['SIZE']"
    line = '''session={"a" + "b"} env="COLOR=$color,SIZE={sizes["SIZE"]}"'''
    assert data(cell(notebook, code, line))["text/plain"] == "('deep red', '4')"
    assert sessions()[0].task.name == "ab"


def test_variables_go_there_and_back(notebook: Notebook) -> None:
    loaded(notebook)
    notebook.run(
        "import numpy as np, pandas as pd\n"
        "class Model:\n    def __init__(self, w): self.w = w\n    def double(self): return scale(self.w)\n"
        "def scale(x): return x * 2\n"
        "model, frame, array, empty = Model(3), pd.DataFrame({'a': [1, 2]}), np.arange(10.0), np.zeros(0)"
    )
    sent = cell(
        notebook,
        "array[0] = 100; total = array.sum(); doubled = model.double(); frame['b'] = frame.a * 10; model.w = 4\n"
        "len(empty)",
        "-i model,frame,array -i empty -o total,doubled,frame,model",
    )
    assert sent.status == "ok", sent.traceback
    back = notebook.run("print(total, doubled, list(frame.b), model.w, type(model) is Model, array[0])")
    # What is written to there changes nothing here.
    assert back.text == "145.0 6 [10, 20] 4 True 0.0\n" or back.text == "145.0 6 [10, 20] 4 False 0.0\n"
    again = notebook.run("frame.loc[0, 'b'] = 5; array[1] = 7; print(model.double())")
    assert again.text == "8\n"


def test_an_unchanged_variable_is_not_sent_again(notebook: Notebook, flow_home: Path) -> None:
    loaded(notebook)
    notebook.run("import numpy as np\nbig = np.arange(1_000_000.0)")
    cell(notebook, "big.sum()", "-i big -o big")
    (objects,) = flow_home.glob("tasks/*/node-0/objects")
    before = {entry.name: entry.stat().st_ino for entry in objects.iterdir()}
    assert data(cell(notebook, "big.sum()", "-i big -o big"))["text/plain"].endswith("499999500000.0)")
    assert {entry.name: entry.stat().st_ino for entry in objects.iterdir()} == before
    notebook.run("big = big.copy(); big[0] = 1")
    assert data(cell(notebook, "big.sum()", "-i big"))["text/plain"].endswith("499999500001.0)")
    assert len(list(objects.iterdir())) > len(before)


def test_what_cannot_travel_is_said_before_the_cell_runs(notebook: Notebook) -> None:
    loaded(notebook)
    notebook.run("import threading; lock = threading.Lock()")
    refused = cell(notebook, "print('ran')", "-i lock")
    assert refused.ename == "ValidationError" and "'lock' cannot be sent" in refused.evalue
    missing = cell(notebook, "print('ran')", "-o nobody_made_this")
    assert missing.ename == "ValidationError" and "nobody_made_this" in missing.evalue
    # The cell itself has run.
    assert missing.text == "ran\n"
    failed = cell(notebook, "kept = 1\n1/0", "-o kept")
    assert failed.ename == "ZeroDivisionError" and notebook.run("kept").ename == "NameError"


def test_another_python_is_said_before_anything_is_unpickled(notebook: Notebook) -> None:
    loaded(notebook)
    notebook.run("import platform; platform.python_version = lambda: '3.2.1'\nx = [1]")
    result = cell(notebook, "x", "-i x")
    assert "the notebook runs Python 3.2.1 and the machine 3." in result.errors_text
    back = cell(notebook, "y = 1", "-o y")
    assert "and the notebook 3.2.1" in back.errors_text


def test_a_strangers_session_is_never_unpickled(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(notebook)
    notebook.run("import flow_sdk; flow_sdk.Session.is_own = property(lambda self: False)")
    refused = cell(notebook, "x = 1", "-o x")
    assert refused.ename == "ValidationError" and "only variables of your own sessions" in refused.evalue
    assert notebook.run("x").ename == "NameError"


def test_the_notebooks_folder_is_there_and_kept_up_to_date(notebook: Notebook, project: Path) -> None:
    loaded(notebook)
    (project / "helper.py").write_text("VALUE = 1\n")
    (project / "old.py").write_text("")
    (project / "notes.ipynb").write_text("{}")
    code = "%load_ext autoreload\n%autoreload 2\nimport helper, os\nhelper.VALUE, sorted(os.listdir())"
    first = data(cell(notebook, code))["text/plain"]
    assert first == "(1, ['__pycache__', 'helper.py', 'old.py'])" or first == "(1, ['helper.py', 'old.py'])"
    cell(notebook, "open('made_there.txt', 'w').write('kept')")
    (project / "helper.py").write_text("VALUE = 2\n")
    (project / "old.py").unlink()
    (project / "new").mkdir()
    (project / "new" / "part.py").write_text("X = 5\n")
    after = cell(notebook, "import new.part\nhelper.VALUE, new.part.X, sorted(f for f in os.listdir() if '.' in f)")
    assert data(after)["text/plain"] == "(2, 5, ['helper.py', 'made_there.txt'])"


def test_code_that_cannot_be_sent_is_said_and_the_session_goes_on(notebook: Notebook, project: Path) -> None:
    loaded(notebook)
    cell(notebook, "x = 1")
    (project / "big.bin").write_bytes(os.urandom(11_000_000))
    assert cell(notebook, "x").ename == "UploadTooLargeError"
    (project / "big.bin").unlink()
    assert data(cell(notebook, "x"))["text/plain"] == "1"


def package(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / f"{name}.py").write_text("WHO = 'me'\n")
    (folder / name / "pyproject.toml").write_text(
        f"[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n[project]\nname = '{name}'\n"
    )
    (folder / name / "backend.py").write_text(
        "import zipfile\n"
        "def build_wheel(into, *_, **__):\n"
        f"    name = '{name}-1.0-py3-none-any.whl'\n"
        "    with zipfile.ZipFile(into + '/' + name, 'w') as wheel:\n"
        f"        wheel.write('{name}.py')\n"
        f"        info = '{name}-1.0.dist-info/'\n"
        f"        wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n')\n"
        "        wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n"
        "        wheel.writestr(info + 'RECORD', '')\n"
        "    return name\n"
    )
    return folder / name


def test_packages_are_there_and_kept_for_the_next_session(notebook: Notebook, tmp_path: Path, flow_home: Path) -> None:
    loaded(notebook)
    source = package(tmp_path / "sources", "tinypackage")
    line = f"--pip {source.as_uri()}"
    assert data(cell(notebook, "import tinypackage; tinypackage.WHO", line, 170))["text/plain"] == "'me'"
    # The running session does not get new ones.
    refused = cell(notebook, "1", "--pip einops")
    assert refused.ename == "ValidationError" and "pip" in refused.evalue
    notebook.run("%flow stop")
    (environment,) = (entry for entry in (flow_home / "venvs").iterdir() if entry.is_dir())
    made_at = (environment / ".ready").stat().st_mtime_ns
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"# what it needs\n{source.as_uri()}  # tiny\n\n")
    again = cell(notebook, "import tinypackage; tinypackage.WHO", f"--requirements '{requirements}'")
    assert data(again)["text/plain"] == "'me'"
    assert (environment / ".ready").stat().st_mtime_ns == made_at


def test_an_unused_session_ends_itself_and_the_next_cell_says_so(notebook: Notebook) -> None:
    loaded(notebook)
    # A running cell counts as use, however long it takes.
    assert cell(notebook, "import time; time.sleep(2.5); x = 1", "idle=1s").status == "ok"
    task = flow.list_tasks(limit=1)[0]
    assert not task.is_done
    wait_for(lambda: task.is_done, 20)
    assert task.status == "completed"
    result = cell(notebook, "x", "idle=1m")
    assert "nothing ran in it for 1 s" in result.errors_text and result.ename == "NameError"


def test_keep_changes_how_long_an_unused_session_lives(notebook: Notebook) -> None:
    loaded(notebook)
    cell(notebook, "x = 1", "idle=30m")
    task = flow.list_tasks(limit=1)[0]
    assert "2h" in notebook.run("%flow keep 2h").text
    journal = flow.Session(task).journal()
    wait_for(lambda: (journal.last("session") or {}).get("idle_s") == 7200.0)
    assert "1s" in notebook.run("%flow keep 1s").text
    wait_for(lambda: task.is_done, 20)


def test_stop_interrupt_and_restart(notebook: Notebook) -> None:
    loaded(notebook)
    cell(notebook, "x = 1", "session=a")
    cell(notebook, "x = 1", "session=b")
    assert "fresh kernel" in notebook.run("%flow restart a").text
    assert cell(notebook, "x", "session=a").ename == "NameError"
    notebook.run("%flow stop a")
    assert [session.task.name for session in sessions()] == ["b"]
    assert notebook.run("%flow stop nothing").ename == "ResourceNotFoundError"
    notebook.run("%flow stop")
    assert sessions() == []
    assert "no session" in notebook.run("%flow stop").evalue


def test_a_cell_is_submitted_as_a_task_of_its_own(notebook: Notebook) -> None:
    loaded(notebook)
    cell(notebook, "x = 1")
    notebook.run("factor = 3")
    result = cell(
        notebook,
        "import matplotlib.pyplot as plt\nprint('batch'); plt.plot([1]); plt.show()\nproduct = factor * 7",
        "--submit -i factor -o product name=one-cell",
    )
    assert result.status == "ok" and result.text == "batch\n" and "image/png" in data(result, "display_data")
    assert "<Task task-" in data(result)["text/plain"] and "completed" in data(result)["text/plain"]
    assert notebook.run("print(product, _.name if hasattr(_, 'name') else '')").text.startswith("21")
    # A fresh machine, so without the session's variables.
    assert cell(notebook, "x", "--submit").ename == "NameError"
    assert flow.list_tasks(limit=1)[0].exit_code == 1


def test_in_the_background_it_returns_at_once(notebook: Notebook) -> None:
    loaded(notebook)
    result = cell(notebook, "import time; print('begun'); time.sleep(1000)", "--submit --bg name=later")
    assert result.status == "ok" and "<Task task-" in data(result)["text/plain"]
    attached = notebook.start("%flow attach later")
    attached.until(lambda one: "begun" in one.text)
    notebook.interrupt()
    assert "The task goes on" in attached.wait().errors_text
    assert flow.get_task("later").status == "running"
    notebook.run("%flow cancel later")
    assert flow.get_task("later").wait(20).status == "cancelled"


def test_files_commands_and_notebooks_are_submitted(notebook: Notebook, project: Path) -> None:
    loaded(notebook)
    (project / "train.py").write_text("import os, sys\nprint('trained', sys.argv[1:], os.environ['RATE'])\n")
    ran = notebook.run("%flow run train.py env=RATE=0.1")
    assert ran.text == "trained [] 0.1\n" and "completed" in data(ran)["text/plain"]
    assert notebook.run('%flow run "python train.py a b" env=RATE=1').text == "trained ['a', 'b'] 1\n"
    failed = notebook.run('%flow run "echo before; exit 3"')
    assert failed.text == "before\n" and failed.ename == "TaskFailedError" and "exit code 3" in failed.evalue
    assert "no file nothing.py" in notebook.run("%flow run nothing.py").evalue
    source = {
        "cells": [
            {"cell_type": "markdown", "metadata": {}, "source": ["# Title"]},
            {"cell_type": "code", "metadata": {}, "source": ["x = 2\n", "print('in', x)"], "outputs": []},
            {"cell_type": "code", "metadata": {"tags": ["raises-exception"]}, "source": "1/0", "outputs": []},
            {"cell_type": "code", "metadata": {}, "source": "x * 4", "outputs": []},
            {"cell_type": "code", "metadata": {}, "source": "undefined", "outputs": []},
            {"cell_type": "code", "metadata": {}, "source": "print('never')", "outputs": []},
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 4,
    }
    (project / "analysis.ipynb").write_text(json.dumps(source))
    whole = notebook.run("%flow run analysis.ipynb")
    assert whole.ename == "TaskFailedError"
    assert "in 2\n" in whole.text and "analysis.executed.ipynb" in whole.errors_text
    executed = json.loads((project / "analysis.executed.ipynb").read_text())
    outputs = [one.get("outputs") for one in executed["cells"]]
    assert outputs[1] == [{"output_type": "stream", "name": "stdout", "text": "in 2\n"}]
    assert outputs[2][0]["ename"] == "ZeroDivisionError" and outputs[3][0]["data"] == {"text/plain": "8"}
    assert outputs[4][0]["ename"] == "NameError" and outputs[5] == []
    import nbformat

    nbformat.validate(executed)
    assert json.loads((project / "analysis.ipynb").read_text()) == source


def test_any_notebook_attaches_to_a_session_and_works_on_in_it(notebook: Notebook, project: Path) -> None:
    loaded(notebook)
    cell(notebook, "x = 5\nprint('first')", "session=shared")
    cell(notebook, "1/0", "session=shared")
    running = notebook.start("%%flow session=shared\nimport time\nprint('second'); time.sleep(1000)")
    running.until(lambda one: "second" in one.text)
    with Notebook(project) as other:
        loaded(other)
        attached = other.start("%flow attach shared")
        attached.until(lambda one: "second" in one.text)
        notebook.interrupt()
        result = attached.wait()
        assert running.wait().ename == "KeyboardInterrupt"
        # Everything, once, in order; an error of another cell does not fail this one.
        assert [result.text.count(word) for word in ("first", "second")] == [1, 1]
        errors = [one["ename"] for one in result.outputs if one["output_type"] == "error"]
        assert result.status == "ok" and errors == ["ZeroDivisionError", "KeyboardInterrupt"]
        assert data(cell(other, "x", "session=shared"))["text/plain"] == "5"
        again = other.run("%flow attach shared")
        assert again.text.count("first") == 1
        assert "echo" in other.run("%flow run 'echo echo'").text
        assert other.run(f"%flow attach {flow.list_tasks(limit=1)[0].task_id}").text == "echo\n"


def test_a_notebook_whose_kernel_was_restarted_finds_its_sessions(
    sessions_end: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", str(project / "work.ipynb"))
    with Notebook(project) as notebook:
        loaded(notebook)
        cell(notebook, "x = 5\nprint('seen')")
        running = notebook.start("%%flow\nimport time\nprint('part'); time.sleep(1); print('end')")
        running.until(lambda one: "part" in one.text)
        notebook.kill()
        notebook.restart()
        session = sessions()[0]
        wait_for(lambda: done(session))
        found = notebook.run("%load_ext flow_nb")
        # What was missed, once; what had been shown to its end is not shown again.
        assert f"the session {session.task.name} is still there" in found.text
        assert "part\nend\n" in found.text and "seen" not in found.text
        assert "part" not in notebook.run("%reload_ext flow_nb").text
        assert data(cell(notebook, "x"))["text/plain"] == "5"
        assert len(sessions()) == 1
        whole = notebook.run("%flow attach")
        assert whole.text.count("seen") == 1 and whole.text.count("part") == 1


def done(session: flow.Session) -> bool:
    ended = [event for event in session.journal(from_start=True).read() if event["type"] == "execute_reply"]
    return len(ended) == 2


def test_a_cell_that_outlives_its_kernel_is_followed_by_attach(
    sessions_end: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", str(project / "work.ipynb"))
    with Notebook(project) as notebook:
        loaded(notebook)
        code = "import os, time\nprint('begun')\nwhile not os.path.exists(GO): time.sleep(.01)"
        go = project.parent / "go"
        running = notebook.start(f"%%flow\nGO = {str(go)!r}\n{code}\nprint('finished')")
        running.until(lambda one: "begun" in one.text)
        notebook.kill()
        notebook.restart()
        found = notebook.run("%load_ext flow_nb")
        assert "begun" in found.text and "still running" in found.text
        attached = notebook.start("%flow attach")
        attached.until(lambda one: "begun" in one.text)
        go.touch()
        assert attached.wait().text.count("finished") == 1


def test_a_flood_neither_stalls_nor_fills_anything(notebook: Notebook, flow_home: Path) -> None:
    loaded(notebook)
    cell(notebook, "1")
    result = cell(notebook, "for n in range(1_000_000): print(n, 'x' * 80)", timeout_s=120)
    assert result.text.startswith("0 xxxx") and "999999 xxx" in result.text
    assert "characters are left out here" in result.errors_text
    assert 12_000_000 <= len(result.text) < 14_000_000
    (log,) = flow_home.glob("tasks/*/node-0/stdout.log")
    assert log.read_bytes() == b"".join(b"%d %s\n" % (n, b"x" * 80) for n in range(1_000_000))
    host = next(pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if "cellhost" in command(pid))
    peak_kb = next(int(line.split()[1]) for line in status(host) if line.startswith("VmHWM"))
    assert peak_kb < 300_000


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def status(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/status").read_text().splitlines()


def test_a_server_that_drops_floods_gets_them_at_its_pace(
    sessions_end: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", str(project / "work.ipynb"))
    with Notebook(project) as notebook:
        loaded(notebook)
        result = cell(notebook, "for n in range(100_000): print(n, 'x' * 80)\nprint('the end')")
        assert result.text.startswith("0 xxx") and result.text.endswith("the end\n")
        assert "characters are left out here; `%flow logs" in result.errors_text
        # It drops what comes faster than 1 MB/s within 3 s.
        assert result.message_bytes < 2_000_000 + 500_000 * result.seconds


@pytest.mark.timeout(900)
def test_a_session_in_an_image(podman_image: str, notebook: Notebook) -> None:
    # The image has Python and nothing more; what is installed here fits it where both are of one minor version.
    image_python = subprocess.run(
        ["podman", "run", "--rm", podman_image, "python3", "-c", "import sys; print(sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    )
    if image_python.stdout.strip() != str(sys.version_info[:2]):
        unavailable("needs the image's version of Python")
    packages = sysconfig.get_path("purelib")
    loaded(notebook)
    line = f"image={podman_image} mounts='/packages={packages}' env=PYTHONPATH=/packages"
    result = cell(notebook, "import os, sys\nx = 6\nos.path.exists('/run/flow'), sys.executable", line)
    assert data(result)["text/plain"] == "(True, '/usr/bin/python3')", result.traceback
    notebook.run("y = 7")
    assert data(cell(notebook, "x * y", "-i y"))["text/plain"] == "42"
    running = notebook.start("%%flow\nimport time\nprint('started'); time.sleep(1000)")
    running.until(lambda one: "started" in one.text)
    notebook.interrupt()
    assert running.wait().ename == "KeyboardInterrupt"
    # The engine takes its time to remove a container.
    assert notebook.run("%flow stop").status == "ok"


def test_code_that_was_refused_is_refused_until_it_can_be_sent(notebook: Notebook, project: Path) -> None:
    loaded(notebook)
    (project / "mod.py").write_text("F = 1\n")
    assert cell(notebook, "%load_ext autoreload\n%autoreload 2\nimport mod; print(mod.F)").text == "1\n"
    cell(notebook, "1")
    (project / "big.bin").write_bytes(os.urandom(11_000_000))
    (project / "mod.py").write_text("F = 2222\n")
    for _ in range(3):
        assert cell(notebook, "print(mod.F)").ename == "UploadTooLargeError"
    (project / "big.bin").unlink()
    assert cell(notebook, "print(mod.F)").text == "2222\n"


def test_stop_while_the_session_starts_is_not_lost(notebook: Notebook) -> None:
    loaded(notebook)
    running = notebook.start("%%flow\nprint('ran')\nimport time; time.sleep(1000)")
    running.until(lambda one: flow.list_tasks())
    notebook.interrupt()
    result = running.wait()
    assert result.ename == "KeyboardInterrupt"
    assert data(cell(notebook, "1 + 1"))["text/plain"] == "2"


def test_reloading_the_extension_keeps_the_sessions(notebook: Notebook) -> None:
    loaded(notebook)
    cell(notebook, "x = 5")
    notebook.run("%reload_ext flow_nb")
    assert data(cell(notebook, "x"))["text/plain"] == "5"
    assert len(sessions()) == 1


def test_exit_ends_nothing_and_a_kernel_that_ends_is_told_of(notebook: Notebook, flow_home: Path) -> None:
    loaded(notebook)
    cell(notebook, "x = 5")
    assert "%flow restart" in cell(notebook, "exit()").errors_text
    assert data(cell(notebook, "x"))["text/plain"] == "5"
    cell(notebook, "import os, threading\nthreading.Timer(0.2, os._exit, [3]).start()")
    journal = flow.Session(flow.list_tasks(limit=1)[0]).journal(from_start=True)
    wait_for(lambda: journal.last("kernel_restarted"), 20)
    after = cell(notebook, "x")
    assert "exit code 3" in after.errors_text and after.ename == "NameError"
    assert "exit code 3" not in cell(notebook, "1").errors_text


def test_idle_counts_for_the_session_that_is_there_and_is_always_checked(notebook: Notebook) -> None:
    loaded(notebook)
    cell(notebook, "1")
    assert cell(notebook, "1", "idle=rubbish").ename == "ValidationError"
    journal = flow.Session(flow.list_tasks(limit=1)[0]).journal()
    assert cell(notebook, "1", "idle=20m").status == "ok"
    wait_for(lambda: (journal.last("session") or {}).get("idle_s") == 1200.0)


def test_what_people_mistype(notebook: Notebook, project: Path) -> None:
    loaded(notebook)
    notebook.run("a, none = 1, None")
    assert data(cell(notebook, "a, none", "-i a, none"))["text/plain"] == "(1, None)"
    assert "goes with --submit" in cell(notebook, "1", "--bg").evalue
    assert "no variable's name" in cell(notebook, "1", "-o x-y").evalue
    assert "within the %%flow" in cell(notebook, "%%flow\n1").evalue
    assert "There is no session 'nope'" in notebook.run("%flow stop nope").evalue
    assert 'goes in quotes: %flow run "train.py --lr 0.1"' in notebook.run("%flow run train.py --lr 0.1").evalue
    (project / "my file.py").write_text("print('mine')")
    assert "has blanks in its name" in notebook.run("%flow run my file.py").evalue
    (project / "train.py").write_text("import sys; print(sys.argv[1:])")
    assert notebook.run('%flow run "train.py --lr 0.1"').text == "['--lr', '0.1']\n"
    assert "%flow attach" in notebook.run("%flow help").text
    notebook.run("%flow defaults env=A=1")
    assert "no defaults" in notebook.run("%flow defaults clear").text
    captured = notebook.run("%%capture got\n%%flow\nprint(1)\n8")
    assert not [one for one in captured.outputs if "8" in str(one.get("data", ""))]
    assert notebook.run("print(len(got.outputs))").text.strip() in ("1", "2")


def test_keep_and_stop_in_a_flood_lose_nothing_of_its_end(notebook: Notebook, project: Path) -> None:
    loaded(notebook)
    printed = project.parent / "printed"
    code = (
        "import time\nfor n in range(160_000): print(n, 'x' * 90)\nprint('the end', flush=True)\n"
        f"time.sleep(0.2)\nopen({str(printed)!r}, 'w').close()\ntime.sleep(1000)"
    )
    running = notebook.start(f"%%flow\n{code}")
    wait_for(printed.exists, 60)
    (session,) = sessions()
    journal = session.journal()
    session.keep(3600)
    wait_for(lambda: (journal.last("session") or {}).get("idle_s") == 3600.0)
    session.stop()
    result = running.wait()
    assert result.ename == "SessionEnded" and result.text.endswith("the end\n")
    assert "characters are left out here" in result.errors_text
