"""JupyterLab as a person has it: a server, and a browser that clicks and types."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Dialog, Locator, Playwright, TimeoutError, expect

from tests.services import ROOT

ARTIFACTS = ROOT / "tests" / "artifacts"
START_TIMEOUT_S = 60.0
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # Else JupyterLab leaves cells that are out of sight out of the page, where no test finds them.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
INDICATOR = ".jp-Notebook-ExecutionIndicator"
# What an older run left in a cell must not pass for what the next one shows: JupyterLab takes it away at its own time.
START_TRIES, START_TRY_S = 5, 4
FORGET = """cell => {
  for (const output of cell.querySelectorAll(".jp-OutputArea-child")) output.dataset.old = "";
  for (const prompt of cell.querySelectorAll(".jp-InputPrompt")) prompt.textContent = "[ ]:";
}"""
# Until the kernel is connected, JupyterLab shows "idle" and asks which kernel to start when a cell is run.
CONNECTED = """() => {
  const panel = document.querySelector(".jp-NotebookPanel:not(.lm-mod-hidden)");
  const name = panel?.querySelector(".jp-Toolbar-kernelName")?.textContent;
  const status = panel?.querySelector(".jp-Notebook-ExecutionIndicator")?.dataset.status;
  return name && name !== "No Kernel" && ["idle", "busy", "unknown"].includes(status);
}"""
NOTEBOOK_HAS_KEYBOARD = """() =>
  !document.querySelector(".jp-NotebookPanel .jp-Spinner") && document.activeElement?.closest(".jp-Notebook")
"""


class Lab:
    """A JupyterLab server on loopback that reads nothing of the user's.

    Args:
        folder: what it serves.
        private: an empty folder for its settings, its runtime files and its log.

    Attributes:
        url, token: where it is, and what it wants to see.
        log: the file with all that it said.
    """

    def __init__(self, folder: Path, private: Path) -> None:
        self.token = secrets.token_hex(16)
        self.folder = folder
        self.log = private / "lab.log"
        for name, values in SETTINGS.items():
            path = private / "config" / "lab" / "user-settings" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        environ = {
            **os.environ,
            "JUPYTER_CONFIG_DIR": str(private / "config"),
            "JUPYTER_DATA_DIR": str(private / "data"),
            "JUPYTER_RUNTIME_DIR": str(private / "runtime"),
            "IPYTHONDIR": str(private / "ipython"),
            "PYTHONUNBUFFERED": "1",
        }
        options = [
            "--no-browser",
            "--allow-root",
            "--ServerApp.ip=127.0.0.1",
            "--ServerApp.port=0",
            f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={folder}",
            "--LabApp.extension_manager=readonly",
        ]
        argv = [sys.executable, "-m", "jupyterlab", *options]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._process = subprocess.Popen(argv, cwd=folder, env=environ, text=True, **pipes)  # type: ignore[call-overload]
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        if not self._listening.wait(START_TIMEOUT_S) or not hasattr(self, "url"):
            self.close()
            raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()}")

    def _read_log(self) -> None:
        with self.log.open("w") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                found = re.search(r"(http://127\.0\.0\.1:\d+)/lab\?token=", line)
                if found and not self._listening.is_set():
                    self.url = found[1]
                    self._listening.set()
        self._listening.set()

    def close(self) -> None:
        """Ends the server, which ends its kernels."""
        self._process.terminate()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            self._process.stdout.close()


def write_notebook(path: Path, cells: Sequence[str]) -> Path:
    """A notebook file with these code cells and no outputs."""
    empty: dict[str, object] = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    content = {
        "cells": [{**empty, "id": f"cell-{index}", "source": source} for index, source in enumerate(cells)],
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(content))
    return path


class Page:
    """A browser with one notebook of `lab` open; cells are counted from 0.

    Attributes:
        errors: exceptions of the page's own code, and what it logged as an error.
        raw: playwright's page, for what is not here.
    """

    def __init__(self, playwright: Playwright, lab: Lab) -> None:
        self.errors: deque[str] = deque(maxlen=200)
        self._lab = lab
        self._browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
        self.raw = self._browser.new_page(viewport={"width": 1280, "height": 1000})
        self.raw.set_default_timeout(30_000)
        self.raw.on("pageerror", lambda error: self.errors.append(str(error)))
        self.raw.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        # A notebook that was not saved asks before it is left.
        self.raw.on("dialog", _accept)

    def open(self, notebook: Path, timeout_s: float = 60) -> None:
        """Opens a notebook below the server's folder in a fresh workspace and waits for its kernel."""
        path = quote(notebook.relative_to(self._lab.folder).as_posix())
        self.raw.goto(f"{self._lab.url}/lab/tree/{path}?reset&token={self._lab.token}")
        self._wait_loaded(timeout_s)
        self.wait_kernel("idle", timeout_s)

    def wait_kernel(self, state: str, timeout_s: float = 60) -> None:
        """Waits until the notebook's kernel is "idle" or "busy"."""
        self.raw.locator(f"{INDICATOR}[data-status={state}]").wait_for(timeout=timeout_s * 1000)

    def cell(self, index: int) -> Locator:
        return self._cells().nth(index)

    def _cells(self) -> Locator:
        return self.raw.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook .jp-Cell")

    def run_cell(self, index: int) -> None:
        """Selects the cell and presses Ctrl+Enter; waits for its start, not for its end."""
        self.cell(index).evaluate(FORGET)
        prompt = self.cell(index).locator(".jp-InputPrompt")
        before = prompt.text_content()
        for _ in range(START_TRIES):
            prompt.click()
            self.raw.keyboard.press("Escape")
            self.raw.keyboard.press("Control+Enter")
            try:
                expect(prompt).not_to_have_text(before or "", timeout=START_TRY_S * 1000)
                return
            except AssertionError:
                # A page that is busy loses keys; one that took them shows [*] at once.
                continue
        self._wait_started(index)

    def run_all(self) -> None:
        for cell in self._cells().all():
            cell.evaluate(FORGET)
        self._menu("Run", "runmenu:run-all")
        # Cells of text never start.
        expect(self.raw.locator(".jp-CodeCell .jp-InputPrompt").first).not_to_have_text("[ ]:", timeout=10_000)

    def _wait_started(self, index: int) -> None:
        expect(self.cell(index).locator(".jp-InputPrompt")).not_to_have_text("[ ]:", timeout=10_000)

    def interrupt(self) -> None:
        """Presses the stop button."""
        self.raw.locator('.jp-NotebookPanel-toolbar [data-jp-item-name="interrupt"]').click()

    def restart_kernel(self, timeout_s: float = 60) -> None:
        """Restarts the kernel by the menu, says yes, and waits for the new one."""
        self._menu("Kernel", "kernelmenu:restart")
        with self.raw.expect_response(re.compile("/api/kernels/.*/restart"), timeout=timeout_s * 1000):
            self.raw.locator(".jp-Dialog .jp-mod-accept").click()
        self.wait_kernel("idle", timeout_s)

    def save(self) -> None:
        with self.raw.expect_response(lambda answer: answer.request.method == "PUT" and "/api/contents/" in answer.url):
            self.raw.keyboard.press("Control+s")

    def reload(self, timeout_s: float = 60) -> None:
        """Loads the page anew, as after a closed laptop; the notebook shows what was saved.

        JupyterLab learns a kernel's state from its answer: while a cell runs, the state is "unknown".
        """
        self.raw.reload()
        self._wait_loaded(timeout_s)

    def _wait_loaded(self, timeout_s: float) -> None:
        # While the spinner is there, it has the keyboard.
        self.raw.wait_for_function(NOTEBOOK_HAS_KEYBOARD, timeout=timeout_s * 1000)
        self.raw.wait_for_function(CONNECTED, timeout=timeout_s * 1000)

    def is_running(self, index: int) -> bool:
        return "[*]" in self.cell(index).locator(".jp-InputPrompt").inner_text()

    def wait_done(self, index: int, timeout_s: float = 60) -> None:
        """Waits until the cell has a number in its `[n]:`."""
        expect(self.cell(index).locator(".jp-InputPrompt")).to_have_text(
            re.compile(r"\[\d+\]"), timeout=timeout_s * 1000
        )

    def wait_output(
        self, index: int, text: str | re.Pattern[str] | None = None, *, selector: str = "", timeout_s: float = 60
    ) -> Locator:
        """Waits until an output of the cell's newest run shows `text`, or holds what the CSS `selector` finds."""
        found = self._outputs(index)
        if selector:
            found = found.locator(selector)
        if text is not None:
            found = found.filter(has_text=text)
        try:
            found.first.wait_for(timeout=timeout_s * 1000)
        except TimeoutError as error:
            wanted = " with ".join(str(one) for one in (selector, text) if one)
            shown = self.output_text(index)
            raise AssertionError(f"cell {index} did not show {wanted} in {timeout_s:g} s, but:\n{shown}") from error
        return found.first

    def output_text(self, index: int) -> str:
        """All text of the outputs of the cell's newest run, as it is shown."""
        return "\n".join(self._outputs(index).locator(".jp-OutputArea-output").all_inner_texts())

    def _outputs(self, index: int) -> Locator:
        return self.cell(index).locator(".jp-OutputArea-child:not([data-old])")

    def screenshot(self, name: str) -> Path:
        """Keeps a picture of the page in tests/artifacts."""
        ARTIFACTS.mkdir(exist_ok=True)
        path = ARTIFACTS / f"{name}.png"
        self.raw.screenshot(path=path)
        return path

    def close(self) -> None:
        self._browser.close()

    def _menu(self, menu: str, command: str) -> None:
        self.raw.locator("#jp-MainMenu .lm-MenuBar-item", has_text=re.compile(f"^{menu}$")).click()
        self.raw.locator(f'.lm-Menu-item[data-command="{command}"]').click()


def _accept(dialog: Dialog) -> None:
    dialog.accept()
