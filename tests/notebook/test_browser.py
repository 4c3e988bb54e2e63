"""What a person sees in JupyterLab while cells run on the machine, after a reload, and after closing everything."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.notebook.lab import Lab, Page, write_notebook
from tests.services import ROOT, wait_for

LOAD = "%load_ext flow_nb"
OURS = ("flow_nb", "flow_sdk", "cellhost", "cellkernel", "follow_cell")
FLOOD_LINES = 100_000
FROZEN_MS = 10_000
CODE_CELLS = """() =>
  [...document.querySelectorAll(".jp-Cell")].flatMap((cell, at) => (cell.matches(".jp-CodeCell") ? [at] : []))
"""
# The page's longest pause between two turns of its event loop: while it lasts, nothing that a person does is heard.
WATCH_PAUSES = """() => {
  let last = performance.now();
  window.longestPauseMs = 0;
  setInterval(() => {
    const now = performance.now();
    window.longestPauseMs = Math.max(window.longestPauseMs, now - last);
    last = now;
  }, 50);
}"""


def gated(folder: Path, name: str, steps: int) -> str:
    """A cell that prints `NAME 0`, then one line more for each of the files NAME-1, NAME-2, … that appear."""
    return (
        "import os, time\n"
        f"for n in range({steps}):\n"
        f"    while n and not os.path.exists({str(folder / name)!r} + f'-{{n}}'): time.sleep(0.01)\n"
        f"    print('{name}', n)\n"
    )


def open_gate(folder: Path, name: str, step: int) -> None:
    (folder / f"{name}-{step}").touch()


def lines_of(page: Page, index: int, name: str) -> list[str]:
    """The lines of a gated cell among the outputs."""
    return re.findall(rf"^{name} \d+$", page.output_text(index), re.MULTILINE)


def run(page: Page, index: int) -> None:
    page.run_cell(index)
    page.wait_done(index)


def test_quickstart_runs_in_a_browser(page: Page, project: Path) -> None:
    copy = project / "quickstart.ipynb"
    copy.write_bytes((ROOT / "notebooks" / "quickstart.ipynb").read_bytes())
    page.open(copy)
    code = page.raw.evaluate(CODE_CELLS)
    page.raw.locator("#jp-MainMenu .lm-MenuBar-item", has_text=re.compile("^Run$")).click()
    page.raw.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    page.wait_done(code[-1], 90)
    load, first, data, train, figure, local, sessions, stop = code
    assert page.output_text(load) == ""
    assert "This machine has no a100; the task runs on its CPU." in page.output_text(first)
    session = re.search(r"in the session (\S+)", page.output_text(first))
    assert session
    assert "(1000, 2)" in page.output_text(data)
    assert "500/500" in page.output_text(train) and re.search(
        r"loss 0\.\d+, accuracy 9\d\.\d%", page.output_text(train)
    )
    # Both streams are shown in the order in which they were written.
    assert page.output_text(train).index("500/500") < page.output_text(train).index("loss")
    assert (
        page.cell(data).locator(".jp-OutputPrompt").inner_text()
        == page.cell(data).locator(".jp-InputPrompt").inner_text()
    )
    assert is_painted(page, figure)
    assert page.output_text(local).startswith("500 losses came back, from 0.693 to 0.")
    assert session[1] in page.wait_output(sessions, selector="table").inner_text()
    assert f"{session[1]} has ended." in page.output_text(stop)
    page.cell(first).scroll_into_view_if_needed()
    page.screenshot("quickstart-top")
    page.cell(train).evaluate("cell => cell.scrollIntoView({block: 'start'})")
    page.screenshot("quickstart")
    page.cell(stop).evaluate("cell => cell.scrollIntoView({block: 'end'})")
    page.screenshot("quickstart-end")


def is_painted(page: Page, index: int) -> bool:
    """Whether the cell's picture was decoded, and is not only named."""
    return bool(page.wait_output(index, selector="img").evaluate("image => image.complete && image.naturalWidth > 100"))


PLOT = """%%flow
import matplotlib.pyplot as plt
plt.figure(figsize=(5, 2.5))
plt.plot([1, 4, 9, 16])
plt.title("squares")
plt.show()"""
FAIL = """%%flow
def half(x):
    return x / 0

half(4)"""


def test_a_cell_looks_as_a_local_one_while_it_runs(page: Page, project: Path, tmp_path: Path) -> None:
    wait_for_bar = (
        "%%flow\n"
        "import os, time\n"
        "from tqdm.notebook import tqdm\n"
        "for n in tqdm(range(4), desc='train', mininterval=0):\n"
        f"    while not os.path.exists({str(tmp_path / 'bar')!r} + f'-{{n}}'): time.sleep(0.01)"
    )
    cells = [LOAD, "%%flow\n" + gated(tmp_path, "line", 6), PLOT, wait_for_bar, FAIL]
    cells += ["%%flow\nimport time\nkept = 7\nprint('begun')\ntime.sleep(1000)", "%%flow\nprint('then', kept * 6)"]
    page.open(write_notebook(project / "looks.ipynb", cells))
    run(page, 0)

    page.run_cell(1)
    page.wait_output(1, "line 0\n")
    for step in (1, 2, 3):
        open_gate(tmp_path, "line", step)
        page.wait_output(1, f"line {step}\n")
        assert page.is_running(1) and f"line {step + 1}" not in page.output_text(1)
    page.screenshot("streaming")
    for step in (4, 5):
        open_gate(tmp_path, "line", step)
    page.wait_done(1)
    assert lines_of(page, 1, "line") == [f"line {n}" for n in range(6)]

    run(page, 2)
    assert is_painted(page, 2)
    page.screenshot("figure")

    page.run_cell(3)
    for step in (0, 1, 2):
        page.wait_output(3, f"{step}/4")
        wait_for(lambda wanted=25 * step: bar_percent(page, 3) == wanted)
        assert page.is_running(3)
        if step == 2:
            page.screenshot("progress")
        open_gate(tmp_path, "bar", step)
    open_gate(tmp_path, "bar", 3)
    page.wait_done(3)
    page.wait_output(3, "4/4")
    wait_for(lambda: bar_percent(page, 3) == 100)

    run(page, 4)
    shown = page.output_text(4)
    assert re.search(r"Cell In\[\d+\], line 5", shown) and re.search(r"-+> 5 half\(4\)", shown)
    assert re.search(r"-+> 3 +return x / 0", shown) and "ZeroDivisionError: division by zero" in shown
    assert not [name for name in OURS if name in shown]
    page.cell(4).evaluate("cell => cell.scrollIntoView({block: 'end'})")
    page.screenshot("traceback")

    page.run_cell(5)
    page.wait_output(5, "begun")
    page.interrupt()
    page.wait_output(5, "KeyboardInterrupt")
    page.wait_done(5)
    assert "time.sleep(1000)" in page.output_text(5) and not [name for name in OURS if name in page.output_text(5)]
    run(page, 6)
    page.wait_output(6, "then 42")
    page.screenshot("interrupted")
    assert not page.errors


def bar_percent(page: Page, index: int) -> int:
    """How much of the progress bar is filled, as it is drawn."""
    share = page.cell(index).evaluate(
        """cell => {
          const bar = [...cell.querySelectorAll(".jp-OutputArea-child:not([data-old]) .progress-bar")].pop();
          return bar.getBoundingClientRect().width / bar.parentElement.getBoundingClientRect().width;
        }"""
    )
    return round(100 * share)


def test_a_reloaded_page_and_a_second_notebook_show_a_running_cell(page: Page, project: Path, tmp_path: Path) -> None:
    first = write_notebook(
        project / "first.ipynb",
        [
            LOAD,
            "%%flow session=train\n" + gated(tmp_path, "early", 3),
            "%flow attach train",
            "%%flow session=train\n" + gated(tmp_path, "late", 3),
        ],
    )
    second = write_notebook(project / "second.ipynb", [LOAD, "%flow attach train", "%%flow\nn"])
    page.open(first)
    run(page, 0)
    page.run_cell(1)
    page.wait_output(1, "early 0\n")
    page.save()
    page.reload()
    assert "early 0" in page.output_text(1)
    # It waits in the kernel until the running cell is over.
    page.run_cell(2)
    page.screenshot("reloaded")
    for step in (1, 2):
        open_gate(tmp_path, "early", step)
    page.wait_output(2, "early 2\n")
    page.wait_done(2)
    assert lines_of(page, 2, "early") == ["early 0", "early 1", "early 2"]
    assert "In [2]: import os, time" in page.output_text(2), "the number is the cell's own"
    page.screenshot("reattached")

    page.run_cell(3)
    page.wait_output(3, "late 0\n")
    page.open(second)
    run(page, 0)
    page.run_cell(1)
    page.wait_output(1, "late 0\n")
    open_gate(tmp_path, "late", 1)
    page.wait_output(1, "late 1\n")
    assert page.is_running(1) and "late 2" not in page.output_text(1)
    page.screenshot("attached-elsewhere")
    open_gate(tmp_path, "late", 2)
    page.wait_output(1, "late 2\n")
    page.wait_done(1)
    assert lines_of(page, 1, "early") == ["early 0", "early 1", "early 2"]
    assert lines_of(page, 1, "late") == ["late 0", "late 1", "late 2"]
    # The session is the second notebook's, too.
    run(page, 2)
    page.wait_output(2, "2")
    assert not page.errors


@pytest.fixture
def visit() -> Iterator[Callable[[Lab], Page]]:
    """Opens a browser for a server; several servers may follow one another."""
    opened: list[Page] = []
    with sync_playwright() as playwright:

        def visit(server: Lab) -> Page:
            opened.append(Page(playwright, server))
            return opened[-1]

        yield visit
        for page in opened:
            page.close()


def test_closing_everything_loses_nothing(
    lab: Lab, visit: Callable[[Lab], Page], project: Path, tmp_path: Path
) -> None:
    cells = [
        LOAD,
        "%%flow session=night\n" + gated(tmp_path, "step", 4) + "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2]);",
    ]
    page = visit(lab)
    page.open(write_notebook(project / "evening.ipynb", cells))
    run(page, 0)
    page.run_cell(1)
    page.wait_output(1, "step 0\n")
    page.close()
    lab.close()
    for step in (1, 2, 3):
        open_gate(tmp_path, "step", step)

    private = tmp_path / "jupyter-2"
    private.mkdir()
    server = Lab(project, private)
    try:
        page = visit(server)
        later = [LOAD, "%flow attach night", "%%flow session=night\nprint('still', n)"]
        page.open(write_notebook(project / "morning.ipynb", later))
        run(page, 0)
        run(page, 1)
        page.wait_output(1, "step 3\n", timeout_s=10)
        assert is_painted(page, 1)
        assert lines_of(page, 1, "step") == ["step 0", "step 1", "step 2", "step 3"]
        run(page, 2)
        page.wait_output(2, "still 3")
        page.screenshot("attached-later")
    finally:
        server.close()


def test_a_flood_of_lines_leaves_the_page_alive(page: Page, lab: Lab, project: Path) -> None:
    flood = f"%%flow\nfor n in range({FLOOD_LINES}): print('row', n)\nprint('the end')"
    page.open(write_notebook(project / "flood.ipynb", [LOAD, "%%flow\nx = 5", flood, "%%flow\nx + 1"]))
    run(page, 0)
    run(page, 1)
    page.raw.evaluate(WATCH_PAUSES)
    page.run_cell(2)
    page.wait_done(2, 90)
    wait_for(lambda: tail(page, 2).endswith("the end\n"), 60)
    assert f"row {FLOOD_LINES - 1}\nthe end\n" in tail(page, 2)
    run(page, 3)
    page.wait_output(3, "6")
    page.screenshot("flood")
    longest_ms = page.raw.evaluate("window.longestPauseMs")
    assert longest_ms < FROZEN_MS, f"the page stood still for {longest_ms:.0f} ms"
    log = lab.log.read_text()
    # What the server says where it drops outputs.
    assert "IOPub" not in log and "rate exceeded" not in log, log[-2000:]
    assert not page.errors


def tail(page: Page, index: int) -> str:
    """The end of what the cell printed, as it stands in the page."""
    script = "cell => cell.querySelector('.jp-OutputArea').textContent.slice(-2000)"
    return str(page.cell(index).evaluate(script))
