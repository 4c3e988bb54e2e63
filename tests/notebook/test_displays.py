"""Tables of tasks, sessions, volumes and offers, in the notebook and as text."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

import flow_sdk as flow
from flow_nb import displays
from flow_sdk import wording
from tests.notebook.kernel import Notebook
from tests.notebook.test_cells import data, loaded

HOSTILE = '<script>alert("x")</script>'


class Tags(HTMLParser):
    """The elements and the text of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


@pytest.fixture
def failed(flow_home: Path, project: Path) -> flow.Task:
    """A task whose command and reason are HTML."""
    return flow.run(f"echo '{HOSTILE}' >&2; exit 3", name="broken").wait()


def test_a_task_table_is_aligned_text_html_and_the_tasks(failed: flow.Task) -> None:
    done = flow.run("true", name="fine").wait()
    shown = displays.task_table([done, failed])
    assert list(shown) == [done, failed] and shown[1].exit_code == 3 and shown[:1] == [done]
    head, first, second = repr(shown).splitlines()
    assert head.split() == ["TASK", "NAME", "STATE", "HARDWARE", "CREATED", "DURATION", "REASON"]
    for line, task, state in ((first, done, "completed"), (second, failed, "failed")):
        assert line.index(task.task_id) == head.index("TASK") and line.index(task.name) == head.index("NAME")
        assert line.index(state) == head.index("STATE")
        assert "s ago" in line
    found = Tags(shown._repr_html_())
    assert found.tags == {"table", "thead", "tbody", "tr", "th", "td", "span"}
    assert HOSTILE in (failed.reason or "")
    assert HOSTILE in found.text and "failed" in found.text and done.task_id in found.text


def test_details_name_all_and_hide_values(failed: flow.Task) -> None:
    task = flow.run(["python3", "-c", "print('a b')"], env={"API_KEY": "very-secret"}).wait()
    text = repr(displays.task_details(task))
    for said in (task.task_id, "completed", "API_KEY", """python3 -c 'print('"'"'a b'"'"')'""", "runs on"):
        assert said in text
    assert "very-secret" not in text + displays.task_details(task)._repr_html_()
    found = Tags(displays.task_details(failed)._repr_html_())
    assert HOSTILE in found.text and found.tags == {"table", "tbody", "tr", "th", "td", "span"}
    assert displays.task_details(failed)[0].exit_code == 3


def test_nothing_says_what_to_do() -> None:
    tables = [displays.task_table([]), displays.session_table([]), displays.volume_table([]), displays.offer_table([])]
    for shown, advice in zip(tables, ("%flow run", "%%flow", "create_volume", "ask for less"), strict=True):
        assert advice in repr(shown) and advice in shown._repr_html_() and len(shown) == 0


def test_volumes_and_offers(flow_home: Path, project: Path) -> None:
    volume = flow.create_volume(10, name="data")
    assert "data" in repr(displays.volume_table([volume])) and "10 GB" in repr(displays.volume_table([volume]))
    offers = [flow.Offer("8xa100", "eu", 12.5, 3), flow.Offer("a100", "us", None, None, "shared")]
    head, first, second = repr(displays.offer_table(offers)).splitlines()
    assert first.split() == ["8xa100", "eu", "$12.50", "3"] and second.split() == ["a100", "us", "shared"]
    assert head.split("  ")[0] == "INSTANCE TYPE"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (1800, "30 min"), (250, "4 min 10 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h")],
)
def test_durations_are_said_as_people_do(seconds: float, words: str) -> None:
    assert wording.duration(seconds) == words


def test_text_that_steers_a_terminal_is_taken_out() -> None:
    shown = displays.Shown([], ("name",), [["a\x1b[31mred\nb"]])
    assert "\x1b" not in repr(shown) + shown._repr_html_() and len(repr(shown).splitlines()) == 2


def test_the_notebook_shows_them_by_itself(notebook: Notebook) -> None:
    loaded(notebook)
    code = "import flow_sdk; task = flow_sdk.run('true', name='shown-task').wait(); task"
    assert "<table>" in data(notebook.run(code))["text/html"]
    several = data(notebook.run("[task, task]"))["text/html"]
    assert several.count("shown-task") == 2
    assert "text/html" not in data(notebook.run("[task, 1]")) and "text/html" not in data(notebook.run("[]"))
    volume = data(notebook.run("flow_sdk.create_volume(10, name='shown-volume')"))
    assert "shown-volume" in volume["text/html"]
    status = data(notebook.run("%flow status"))
    assert "shown-task" in status["text/html"] and status["text/plain"].startswith("TASK")
    assert notebook.run("t = %flow status\nprint(t[0].name)").text == "shown-task\n"
    assert "shown-task" in data(notebook.run("%flow info shown-task"))["text/plain"]


def test_a_session_is_shown_with_what_ends_it(notebook: Notebook) -> None:
    loaded(notebook)
    assert notebook.run("%%flow session=exploring idle=45m\nx = 1").status == "ok"
    shown = data(notebook.run("%flow sessions"))
    assert "exploring" in shown["text/plain"] and "after 45 min without a cell" in shown["text/plain"]
    alone = data(notebook.run("found = %flow sessions\nfound[0]"))
    assert "exploring" in alone["text/html"] and "running" in alone["text/plain"]


def test_loading_loads_nothing_of_it_and_unloading_takes_it_away(notebook: Notebook) -> None:
    code = "import sys\n%load_ext flow_nb\nprint({'pydantic', 'sqlite3', 'ipywidgets'} & set(sys.modules))"
    before = notebook.run("import sys\nprint({'pydantic', 'sqlite3', 'ipywidgets'} & set(sys.modules))").text
    assert notebook.run(code).text == before
    notebook.run("import flow_sdk; task = flow_sdk.run('true').wait(); task")
    notebook.run("%unload_ext flow_nb")
    assert "text/html" not in data(notebook.run("task")) and "text/html" not in data(notebook.run("[task]"))
