"""Every Python, notebook and shell example of README.md and docs/ runs.

The blocks of a page run in order and share their names and their folder. A block of IPython is a cell of the page's
notebook. A block whose first line is a comment with a file's name is that file. One under `<!-- not run: REASON -->` is
not run, and a cell under `<!-- raises: NAME -->` ends in that exception.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import flow_sdk as flow
from flow_sdk import providers as flow_providers
from tests.examples.blocks import Block, blocks
from tests.examples.world import BUCKETS, HERE, TASK_TIMEOUT_S, end_all, tasks
from tests.notebook.kernel import Notebook
from tests.services import ROOT, MotoServer, require

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")
RAISES = re.compile(r"<!-- raises: (\w+) -->")
FILE_NAME = re.compile(r"# ([\w.-]+\.\w+)\s*\n")


@pytest.fixture
def page_folder(flow_home: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, and `flow` on PATH as in the environment it is installed in."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    for name in ("train.py", "look.py"):
        (project / name).write_text((HERE / "project" / name).read_text())
    return project


@pytest.fixture
def tqdm_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package that a page installs, so that no index is asked."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tqdm-4.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tqdm.py", "__version__ = '4.0'")
        wheel.writestr("tqdm-4.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tqdm\nVersion: 4.0\n")
        wheel.writestr("tqdm-4.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tqdm-4.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


@pytest.fixture
def notebook(page_folder: Path) -> Iterator[Notebook]:
    """A notebook in the page's folder; its sessions end with it."""
    try:
        with Notebook(page_folder) as opened:
            yield opened
    finally:
        end_all()


def run_page(page: str, notebook: Notebook | None = None) -> dict[str, Any]:
    """Runs a page's blocks; returns the Python names it made."""
    names: dict[str, Any] = {}
    for block in blocks(ROOT / page):
        where = f"{page}, line {block.line}"
        if NOT_RUN.fullmatch(block.above):
            continue
        if file := FILE_NAME.match(block.text):
            Path(file[1]).write_text(block.text)
        elif block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, where, "exec"), names)
        elif block.language == "bash":
            run_shell(block, where)
        elif block.language == "ipython":
            assert notebook, f"{where} needs a notebook"
            run_cell(notebook, block, where)
    return names


def run_cell(notebook: Notebook, block: Block, where: str) -> None:
    done = notebook.run(block.text, timeout_s=TASK_TIMEOUT_S)
    raises = RAISES.fullmatch(block.above)
    assert done.ename == (raises[1] if raises else ""), f"{where}:\n{done.traceback}{done.errors_text}"


def run_shell(block: Block, where: str) -> None:
    script = ["bash", "-euo", "pipefail", "-c", block.text]
    done = subprocess.run(script, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TASK_TIMEOUT_S)
    assert done.returncode == 0, f"{where} exited {done.returncode}:\n{done.stdout}{done.stderr}"


def test_every_page_is_run() -> None:
    assert {
        "README.md",
        "docs/getting-started.md",
        "docs/notebooks.md",
        "docs/task-directory.md",
        "docs/write-a-provider.md",
    } == set(PAGES)


def test_readme(page_folder: Path, notebook: Notebook) -> None:
    run_page("README.md", notebook)
    assert {task.status for task in tasks() if not flow.Session.is_session(task)} == {"completed"}
    assert [task.status for task in tasks() if flow.Session.is_session(task)] == ["running"]


def test_notebooks(notebook: Notebook, tqdm_wheel: None) -> None:
    require("mounts" if os.geteuid() == 0 else "bubblewrap")
    run_page("docs/notebooks.md", notebook)
    ended = {task.name: task.status for task in tasks() if not flow.Session.is_session(task)}
    assert ended == {"alone": "completed", "night": "completed"}
    assert {task.status for task in tasks() if flow.Session.is_session(task)} == {"cancelled"}
    assert Path("table.csv").read_text() == "1,2\n"


def test_getting_started(
    page_folder: Path, moto_server: MotoServer, s3fs: None, images: None, tqdm_wheel: None
) -> None:
    moto_server.bucket("my-bucket", dict.fromkeys(BUCKETS["my-bucket"], b"content"))
    try:
        run_page("docs/getting-started.md")
    finally:
        end_all()
    ended = {task.name: task.status for task in tasks()}
    assert (ended.pop("long"), ended.pop("busy")) == ("cancelled", "cancelled")
    assert set(ended.values()) == {"completed"}
    assert Path("copy-of-train.py").read_text() == Path("train.py").read_text()


def test_blocks_are_of_a_known_kind_and_files_are_used() -> None:
    for page in PAGES:
        found = list(blocks(ROOT / page))
        assert {block.language for block in found} <= {"", "bash", "ipython", "python", "toml", "yaml"}
        for number, block in enumerate(found):
            if name := FILE_NAME.match(block.text):
                assert any(name[1] in later.text for later in found[number + 1 :]), f"{page} never uses {name[1]}"


def test_task_directory(page_folder: Path) -> None:
    run_page("docs/task-directory.md")


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
            assert (ROOT / page).parent.joinpath(link).exists(), f"{page} links to {link}"


@pytest.fixture
def office(page_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The provider of the page, installed as a package; `office(12)` makes it noon for what is started from here."""
    page = list(blocks(ROOT / "docs/write-a-provider.md"))
    source = next(block.text for block in page if block.language == "python" and "class OfficeHours" in block.text)
    registered = next(block.text for block in page if block.language == "toml")
    found = re.fullmatch(r'\[project\.entry-points\."(.+)"\]\n(\w+) = "(.+)"\n', registered)
    assert found
    packages = tmp_path / "site-packages"
    installed = packages / "my_package-1.0.dist-info"
    installed.mkdir(parents=True)
    (packages / "my_package.py").write_text(source)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[{found[1]}]\n{found[2]} = {found[3]}\n")
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.syspath_prepend(str(packages))
    importlib.invalidate_caches()

    def set_hour(hour: int) -> None:
        # A time zone in which it is that hour now; POSIX counts them westwards.
        monkeypatch.setenv("TZ", f"OFFICE{(time.gmtime().tm_hour - hour + 12) % 24 - 12:+d}")

    return set_hour


def flow_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["flow", *arguments], capture_output=True, text=True, timeout=TASK_TIMEOUT_S)


def test_write_a_provider(office: Callable[[int], None]) -> None:
    run_page("docs/write-a-provider.md")
    office(12)
    done = flow_command("run", "echo at work", "--provider", "office", "--watch")
    assert (done.returncode, done.stdout) == (0, "at work\n"), done.stderr
    [task] = tasks()
    assert (task.provider, task.status) == ("office", "completed")
    # And another process holds it as it holds any task.
    assert flow_command("logs", task.task_id).stdout == "at work\n"
    office(3)
    closed = flow_command("run", "echo at work", "--provider", "office", "--watch")
    assert closed.returncode == flow.NoCapacityError.exit_code
    assert closed.stderr.startswith("Error: The office is closed.\n")
    assert len(tasks()) == 1


def test_what_a_provider_cannot_do_is_refused(office: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_providers.load("office"), "capabilities", frozenset({"ports"}))
    with pytest.raises(flow.ValidationError, match="cannot do what the task asks for: volumes, multi-node"):
        flow.run("echo", provider="office", volumes=["data"], num_instances=2, ports=[8080])
    assert flow.list_tasks() == []
    assert not (Path(os.environ["FLOW_HOME"]) / "bundles").exists()


@pytest.mark.parametrize("way", ["variable", "file"])
def test_a_provider_is_chosen(office: Callable[[int], None], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    office(12)
    if way == "variable":
        monkeypatch.setenv("FLOW_PROVIDER", "office")
    else:
        (Path(os.environ["FLOW_HOME"])).mkdir()
        (Path(os.environ["FLOW_HOME"]) / "config.yaml").write_text("provider: office\n")
    done = flow_command("run", "echo at work", "--watch")
    assert (done.returncode, done.stdout) == (0, "at work\n"), done.stderr
    assert tasks()[0].provider == "office"
