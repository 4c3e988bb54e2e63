"""What tests of notebooks get: a kernel, JupyterLab in a browser, and hosted Colab's Python."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

import flow_sdk
from tests.notebook import colab
from tests.notebook.kernel import Notebook
from tests.notebook.lab import Lab, Page
from tests.services import require, unavailable

VENV_TIMEOUT_S = 900
FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        wanted = getattr(item, "fixturenames", ())
        if "colab_python" in wanted and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(VENV_TIMEOUT_S))
        if "lab" in wanted:
            # Two browsers on two cores make each other late.
            item.add_marker(pytest.mark.xdist_group("browser"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


@pytest.fixture
def sessions_end(flow_home: Path) -> Iterator[None]:
    """Ends the tasks that are still alive: a notebook's sessions go on without it, and `flow_home` would complain."""
    yield
    if (flow_home / "flow.db").exists():
        for task in flow_sdk.list_tasks():
            if not task.is_done:
                task.cancel()


@pytest.fixture
def notebook(sessions_end: None, project: Path) -> Iterator[Notebook]:
    """A kernel in the project's folder, with `flow_nb` not loaded yet; what it started in Flow is ended after it."""
    with Notebook(project) as opened:
        yield opened


@pytest.fixture
def lab(sessions_end: None, project: Path, tmp_path: Path) -> Iterator[Lab]:
    """JupyterLab that serves the project's folder."""
    require("chromium")
    private = tmp_path / "jupyter"
    private.mkdir()
    server = Lab(project, private)
    yield server
    server.close()


@pytest.fixture
def page(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A browser for `lab`; a test that fails leaves a picture of what was to be seen."""
    from playwright.sync_api import sync_playwright

    # One a test: playwright's event loop would stay in this thread, where other tests start their own.
    with sync_playwright() as playwright:
        opened = Page(playwright, lab)
        yield opened
        if request.node.stash.get(FAILED, False):
            opened.screenshot("failed-" + re.sub(r"[^\w-]", "_", request.node.name))
        opened.close()


@pytest.fixture(scope="session")
def colab_python() -> Path:
    """A Python with the packages of hosted Colab, which are older than all else here, and this project."""
    python, reason = colab.make_venv()
    if reason:
        unavailable(reason)
    return python
