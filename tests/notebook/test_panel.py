"""The line under the cell that started a session."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest
from playwright.sync_api import Locator, expect

import flow_sdk as flow
from tests.notebook.kernel import Notebook
from tests.notebook.lab import Page, write_notebook
from tests.notebook.test_cells import cell, loaded
from tests.services import wait_for

WIDGET = "application/vnd.jupyter.widget-view+json"
# The browser is one for all that is looked at: a session ends itself after this.
IDLE_S = 12


class Front:
    """What a front end knows of the panel, from its messages."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook

    def messages(self) -> list[dict[str, Any]]:
        self.notebook.receive()
        opened = [content["data"]["state"] for kind, content in self.notebook.comms if kind == "comm_open"]
        panel = [state for state in opened if "session_name" in state]
        updates = [content["data"] for kind, content in self.notebook.comms if kind == "comm_msg"]
        return [{"state": state} for state in panel] + [one for one in updates if one["method"] != "echo_update"]

    def states(self) -> list[str]:
        return [one["state"]["state"] for one in self.messages() if "state" in one.get("state", {})]

    def value(self, name: str) -> Any:
        return [one["state"][name] for one in self.messages() if name in one.get("state", {})][-1]

    def press(self, do: str) -> None:
        """As the page's button does, while no cell runs."""
        (comm_id,) = [
            content["comm_id"]
            for kind, content in self.notebook.comms
            if kind == "comm_open" and "session_name" in content["data"]["state"]
        ]
        client = self.notebook._client
        content = {"comm_id": comm_id, "data": {"method": "custom", "content": {"do": do}}}
        before = len(self.done(do))
        client.shell_channel.send(client.session.msg("comm_msg", content))
        wait_for(lambda: len(self.done(do)) > before, 20, do)

    def done(self, do: str) -> list[dict[str, Any]]:
        return [one for one in self.messages() if one.get("content", {}).get("done") == do]


@pytest.fixture
def front(notebook: Notebook) -> Front:
    loaded(notebook)
    return Front(notebook)


def test_a_saved_notebook_has_a_line_of_text(front: Front) -> None:
    result = cell(front.notebook, "x = 1", "session=exploring idle=45m")
    (shown,) = [one["data"] for one in result.outputs if one["output_type"] == "display_data"]
    assert WIDGET in shown
    assert shown["text/plain"].startswith("Session exploring on this machine, started 20")
    assert shown["text/html"] == f"<p>{shown['text/plain']}</p>"


def test_it_follows_the_session(front: Front) -> None:
    cell(front.notebook, "x = 1", "idle=45m")
    # Whether its first cell is seen running is a matter of speed.
    assert front.states()[0] == "starting" and front.states()[-1] == "idle"
    assert front.value("idle_s") == 2700
    assert abs(front.value("idle_at") - time.time() - 2700) < 60
    running = front.notebook.start("%%flow\nimport time; time.sleep(1000)")
    running.until(lambda _: front.states()[-1] == "running")
    assert abs(time.time() - front.value("since")) < 30
    front.notebook.interrupt()
    assert running.wait().ename == "KeyboardInterrupt"
    assert front.states()[-1] == "idle"


def test_only_what_changed_is_sent(front: Front) -> None:
    cell(front.notebook, "x = 1")
    before = len(front.messages())
    for number in range(5):
        assert cell(front.notebook, f"x = {number}").status == "ok"
    # The countdown at most, and that only where it is off by a second.
    sent = front.messages()[before:]
    assert [set(one["state"]) - {"idle_at", "state", "since"} for one in sent] == [set() for _ in sent], sent


def test_what_lines_do_is_shown(front: Front) -> None:
    cell(front.notebook, "x = 1")
    front.notebook.run("%flow keep 2h")
    wait_for(lambda: front.notebook.run("1").status and front.value("idle_s") == 7200, 10, "the new idle time")
    front.notebook.run("%flow stop")
    assert front.states()[-1] == "ended" and front.value("reason") == "stopped"


def test_keep_and_stop_do_what_they_say(front: Front) -> None:
    cell(front.notebook, "x = 1")
    front.press("keep")
    assert front.value("idle_s") == 7200 and front.value("idle_at") > time.time() + 7000
    front.press("stop")
    wait_for(lambda: front.states()[-1] == "ended", 20, "the end")
    assert front.states()[-2:] == ["stopping", "ended"]
    assert flow.list_tasks()[0].status == "cancelled"
    # Nothing is left to be kept, and that is said.
    front.press("keep")
    assert any("has ended" in one.get("content", {}).get("error", "") for one in front.messages())


def test_a_session_that_ends_before_it_is_ready_is_shown_as_ended(front: Front) -> None:
    result = cell(front.notebook, "x = 1", "--pip nothing-of-this-name==0.0.0.999 env=PIP_NO_INDEX=1,UV_OFFLINE=1", 120)
    assert result.status == "error"
    assert front.states()[0] == "starting" and front.states()[-1] == "ended"
    assert front.value("reason")


def test_colabs_widgets_show_it(colab_python: Path, sessions_end: None, project: Path) -> None:
    with Notebook(project, python=colab_python) as notebook:
        front = Front(loaded(notebook))
        result = cell(notebook, "x = 1")
        (shown,) = [one["data"] for one in result.outputs if one["output_type"] == "display_data"]
        assert WIDGET in shown and "on this machine" in shown["text/html"]
        assert result.status == "ok", result.traceback
        assert front.states()[-1] == "idle"
        front.press("stop")
        wait_for(lambda: front.states()[-1] == "ended", 20, "the end")


def test_a_terminal_gets_a_line(sessions_end: None, project: Path) -> None:
    environ = {**os.environ, "TERM": "dumb", "NO_COLOR": "1"}
    argv = ["--no-banner", "--simple-prompt", "--colors=NoColor", "--no-confirm-exit"]
    with (project / "terminal.log").open("w") as log:
        shell = pexpect.spawn(
            sys.executable, ["-m", "IPython", *argv], env=environ, encoding="utf-8", timeout=60, logfile=log
        )
        shell.expect_exact("In [1]: ")
        shell.sendline("%load_ext flow_nb")
        shell.expect_exact("In [2]: ")
        shell.sendline("get_ipython().run_cell_magic('flow', 'session=exploring', 'print(6 * 7)')")
        shell.expect(r"flow: Session exploring on this machine, started [\d: -]+\. %flow stop exploring ends it\.")
        shell.expect_exact("42")
        shell.sendline("import sys; print('ipywidgets' in sys.modules)")
        shell.expect_exact("False")
        shell.sendline("exit")
        shell.expect(pexpect.EOF)
        shell.close()


def panel_of(page: Page, index: int) -> Locator:
    return page.wait_output(index, selector=".flow-panel")


def button(panel: Locator, name: str) -> Locator:
    return panel.locator("button:visible", has_text=name)


def use_dark_theme(page: Page) -> None:
    page.raw.locator("#jp-MainMenu .lm-MenuBar-item", has_text="Settings").click()
    page.raw.locator(".lm-Menu-item", has_text="Theme").first.hover()
    page.raw.locator(".lm-Menu-item", has_text="JupyterLab Dark").first.click()
    expect(page.raw.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    expect(page.raw.locator("#jupyterlab-splash")).to_have_count(0)


def test_a_browser_shows_it_and_its_buttons_work(page: Page, project: Path) -> None:
    cells = [
        "%load_ext flow_nb",
        "%%flow session=exploring\nx = 1",
        "%%flow session=exploring\nimport time; time.sleep(1000)",
        "print('here')",
    ]
    page.open(write_notebook(project / "panel.ipynb", cells))
    page.run_cell(0)
    page.wait_done(0)
    page.run_cell(1)
    panel = panel_of(page, 1)
    status = panel.get_by_role("status")
    page.wait_done(1)
    expect(status).to_have_text("idle")
    expect(panel.get_by_role("timer")).to_have_text("ends in 30 min")
    expect(panel).to_contain_text("exploring on this machine")
    page.screenshot("panel-idle")
    button(panel, "Keep 2 h").click()
    expect(panel.get_by_role("timer")).to_have_text("ends in 2 h")
    page.run_cell(2)
    expect(status).to_have_text("running")
    page.screenshot("panel-running")
    button(panel, "Interrupt").click()
    page.wait_output(2, "KeyboardInterrupt")
    expect(status).to_have_text("idle")
    button(panel, "Stop").click()
    expect(panel).to_contain_text("End it with its variables?")
    page.screenshot("panel-asking")
    page.raw.keyboard.press("Escape")
    expect(button(panel, "Stop")).to_be_focused()
    button(panel, "Stop").click()
    button(panel, "End it").click()
    expect(status).to_contain_text("ended: stopped", timeout=20_000)
    expect(panel.locator("button:visible")).to_have_count(0)
    page.screenshot("panel-ended")
    use_dark_theme(page)
    page.screenshot("panel-ended-dark")
    page.run_cell(3)
    page.wait_output(3, "here")
    assert not [error for error in page.errors if "flow" in error.lower()]


def test_a_browser_counts_down_to_the_end(page: Page, project: Path) -> None:
    page.open(write_notebook(project / "idle.ipynb", ["%load_ext flow_nb", f"%%flow idle={IDLE_S}s\nx = 1"]))
    page.run_cell(0)
    page.wait_done(0)
    page.run_cell(1)
    panel = panel_of(page, 1)
    expect(panel.get_by_role("timer")).to_have_text(re.compile(r"ends in [1-6] s"), timeout=20_000)
    use_dark_theme(page)
    page.screenshot("panel-idle-dark")
    expect(panel.get_by_role("status")).to_contain_text(f"ended: nothing ran in it for {IDLE_S} s", timeout=20_000)
    wait_for(lambda: flow.list_tasks()[0].is_done, 20, "the end that was shown")
    expect(panel).to_have_attribute("data-state", "ended")
