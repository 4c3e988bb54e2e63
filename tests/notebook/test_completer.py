"""Tab on a line of the magic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebook.kernel import Notebook


@pytest.fixture(params=["new", "colab"])
def completing(request: pytest.FixtureRequest, sessions_end: None, project: Path) -> Iterator[Notebook]:
    """A notebook with the magic loaded: here, and with hosted Colab's IPython."""
    python = request.getfixturevalue("colab_python") if request.param == "colab" else None
    (project / "train.py").touch()
    (project / "data").mkdir()
    with Notebook(project, python=python) as notebook:
        assert notebook.run("%load_ext flow_nb\n%config Completer.use_jedi = False").status == "ok"
        yield notebook


def tails(notebook: Notebook, line: str) -> set[str]:
    """What Tab puts in place of the line's last word; IPython 7 gives less of the word back than 8 does."""
    return {found.strip() for found in notebook.complete(line)}


def is_old(notebook: Notebook) -> bool:
    return notebook.run("import IPython; print(IPython.__version__)").text.startswith("7.")


def test_what_fits_is_offered(completing: Notebook) -> None:
    completing.run("batch_size = 32")
    code = "import flow_sdk; task = flow_sdk.run('sleep 600', name='long-training'); print(task.task_id)"
    task_id = completing.run(code).text.strip()
    assert {"gpu=", "session=", "max_run_time_hours=", "--submit"} <= tails(completing, "%%flow ")
    assert tails(completing, "%%flow pip=x gp") == {"gpu="}
    assert tails(completing, "%%flow gpu=a1") == {"a10", "a100", "a10g", "a16"}
    assert any(found.endswith("8") for found in tails(completing, "%%flow gpu=a100:"))
    assert tails(completing, "%%flow --gpu h20") == {"h200"}
    assert "--max-price-per-hour" in tails(completing, "%%flow --max-p")
    assert tails(completing, "%%flow -i batch") == {"batch_size"}
    assert tails(completing, "%%flow --outputs x,batch") == {"batch_size"}
    assert tails(completing, "%flow can") == {"cancel"}
    assert tails(completing, "%flow cancel long") == {"long-training"}
    assert tails(completing, f"%flow logs {task_id[:8]}") >= {task_id}
    if not is_old(completing):
        # Its hooks see what a line begins with, and no more.
        assert tails(completing, "t = %flow info long") == {"long-training"}
    assert tails(completing, "%flow run tr") == {"train.py"}
    assert tails(completing, "%flow run da") == {"data/"}
    assert tails(completing, "%%flow --requirements tr") == {"train.py"}


def test_other_lines_are_left_alone(completing: Notebook) -> None:
    for line in ("gpu", "x = 'flow gpu=", "%%flow gpu=a100\ngp", "%%time gp", "%flowers gp"):
        assert not {"gpu=", "a100"} & tails(completing, line)
    completing.run("import os")
    found = completing.complete("%%flow gpu=a100\nos.envi")
    assert "environ" in {one.rpartition(".")[2] for one in found}


def test_no_error_reaches_the_user(completing: Notebook, flow_home: Path) -> None:
    flow_home.write_text("a file where the folder should be")
    cell = completing.run("1")
    assert tails(completing, "%flow logs nothing_like_this") == set()
    assert tails(completing, "%flow run no/such/folder/x") == set()
    assert (cell.status, cell.errors_text) == ("ok", "")
    flow_home.unlink()


def test_only_what_can_be_sent_is_offered(notebook: Notebook) -> None:
    notebook.run("%load_ext flow_nb\nbatch_size = 32\nimport json as batch_module\n_batch = 1")
    assert tails(notebook, "%%flow -i batch") == {"batch_size"}
    assert not {"In", "get_ipython", "exit"} & tails(notebook, "%%flow -i ")


def test_a_sessions_name_is_offered(notebook: Notebook) -> None:
    notebook.run("%load_ext flow_nb")
    assert notebook.run("%%flow session=exploring\nx = 1").status == "ok"
    assert tails(notebook, "%flow stop ex") == {"exploring"}
    assert tails(notebook, "%flow keep 2h ex") == {"exploring"}
    assert tails(notebook, "%%flow session=ex") == {"exploring"}


def test_unloading_takes_it_away(completing: Notebook) -> None:
    completing.run("%unload_ext flow_nb")
    assert not {"gpu="} & tails(completing, "%%flow gp")
