"""Who imports whom, and what an import costs: the direction of imports, the lazy package, the runner's independence."""

from __future__ import annotations

import ast
import glob
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import ROOT

PACKAGE = "flow_sdk"

# From the top down: a module imports from its own row and the rows below it.
ROWS = [
    {"cli", "__main__"},
    {"", "client", "task", "session", "functions", "dev", "connect"},
    {"providers", "keeper"},
    {"transports"},
    {"runner", "cellhost", "cellkernel"},
    {
        "bundle",
        "config",
        "errors",
        "files",
        "hardware",
        "ignore",
        "logs",
        "mounts",
        "settings",
        "store",
        "taskdir",
        "watch",
        "wording",
        "words",
        "yaml_file",
    },
]

# What a value has no use for: the network, and processes.
NETWORK_AND_PROCESSES = {"asyncio", "http", "httpx", "multiprocessing", "paramiko", "requests", "socket", "subprocess"}
HEAVY = {
    "IPython",
    "asyncio",
    "boto3",
    "click",
    "httpx",
    "paramiko",
    "pathspec",
    "pydantic",
    "rich",
    "sqlite3",
    "yaml",
}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name to file, of every module of the package."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Each module that the file imports, anywhere in it, with the line; `from package import module` is that module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in known else base), node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"importlib.import_module", "import_module"}:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value, node.lineno


def row_of(name: str) -> int | None:
    top = name.removeprefix(PACKAGE).lstrip(".").split(".")[0]
    return next((number for number, row in enumerate(ROWS) if top in row), None)


def wrong_arrows(root: Path = ROOT) -> list[str]:
    known = modules(root)
    wrong = []
    for name, path in known.items():
        if row_of(name) is None:
            wrong.append(f"{name} is in no row")
            continue
        for target, line in imports(name, path, known):
            where = f"{path.relative_to(root)}:{line}: {name} imports {target}"
            ours = target.split(".")[0] == PACKAGE
            if name == f"{PACKAGE}.runner" and target.split(".")[0] not in sys.stdlib_module_names:
                wrong.append(f"{where}, but it must run where only Python is")
            elif ours and (row_of(target) is None or row_of(target) < row_of(name)):  # type: ignore[operator]
                wrong.append(f"{where}, which is above it")
            elif row_of(name) == len(ROWS) - 1 and target.split(".")[0] in NETWORK_AND_PROCESSES:
                wrong.append(f"{where}, but values use no network and start no processes")
            elif target.split(".")[0] in {"flow", "tests"}:
                wrong.append(f"{where}, which is not part of the package")
    return wrong


def test_imports_point_down() -> None:
    assert wrong_arrows() == []


def test_the_notebook_side_uses_only_public_names_and_its_own() -> None:
    import flow_sdk

    for path in sorted((ROOT / "flow_nb").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                for alias in node.names:
                    assert not alias.name.startswith("flow_sdk."), f"{where} reaches into {alias.name}"
            elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == PACKAGE:
                assert node.module == PACKAGE, f"{where} reaches into {node.module}"
                assert {alias.name for alias in node.names} <= {"wording", *flow_sdk.__all__}, where
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "flow":
                assert node.attr in flow_sdk.__all__, f"{where} uses {node.attr}"
            elif isinstance(node, ast.Attribute):
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                own = ast.unparse(node.value) in ("self", "cls", "super()") or node.attr.startswith("_repr_")
                assert not private or own, f"{where} uses {node.attr}"


def test_loading_the_magic_loads_nothing_heavy() -> None:
    script = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
before = set(sys.modules)
shell.run_line_magic("load_ext", "flow_nb")
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""
    loaded = python(script)
    assert isinstance(loaded, list) and "flow_nb" in loaded
    assert {"anywidget", "boto3", "cloudpickle", "click", "httpx", "numpy", "pandas", "paramiko", "pydantic"} & set(
        loaded
    ) == set()


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("errors.py", "from flow_sdk.client import run", "flow_sdk.errors imports flow_sdk.client, which is above it"),
        ("errors.py", "def f():\n    from . import task", "errors.py:2: flow_sdk.errors imports flow_sdk.task, which"),
        ("errors.py", "import subprocess", "but values use no network and start no processes"),
        ("errors.py", "from flow_sdk import run", "flow_sdk.errors imports flow_sdk, which is above it"),
        ("providers/local.py", "from ..client import x", "flow_sdk.providers.local imports flow_sdk.client, which"),
        ("runner.py", "import flow_sdk.errors", "but it must run where only Python is"),
        ("runner.py", "import yaml", "but it must run where only Python is"),
        ("task.py", "import importlib\nimportlib.import_module('flow_sdk.cli')", "flow_sdk.task imports flow_sdk.cli"),
        ("helpers.py", "", "flow_sdk.helpers is in no row"),
        ("client.py", "import flow", "which is not part of the package"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path: Path, file: str, text: str, complaint: str) -> None:
    for name in ("__init__", "cli", "client", "errors", "runner", "task", "providers/__init__", "providers/local"):
        path = tmp_path / PACKAGE / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from __future__ import annotations\n")
    assert wrong_arrows(tmp_path) == []
    (tmp_path / PACKAGE / file).write_text(text)
    found = wrong_arrows(tmp_path)
    assert len(found) == 1
    assert complaint in found[0]


def python(script: str) -> object:
    """What a fresh interpreter, started outside of the checkout, prints as JSON."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["flow_sdk", "flow"])
def test_import_loads_nothing_heavy(name: str) -> None:
    loaded = python(f"import {name}, json, sys; print(json.dumps(sorted(sys.modules)))")
    assert isinstance(loaded, list)
    assert HEAVY & {module.split(".")[0] for module in loaded} == set()


def test_every_public_name_is_importable_and_every_importable_name_is_public() -> None:
    script = """
import json, types
import flow_sdk
star = {}
exec("from flow_sdk import *", star)
own = {name for name, value in vars(flow_sdk).items() if not isinstance(value, types.ModuleType)}
print(json.dumps({
    "listed": flow_sdk.__all__,
    "resolved": [name for name in flow_sdk.__all__ if hasattr(flow_sdk, name)],
    "starred": sorted(star),
    "shown": dir(flow_sdk),
    "own": [name for name in own if not name.startswith("_") and name not in ("annotations", "TYPE_CHECKING")],
}))
"""
    found = python(script)
    assert isinstance(found, dict)
    listed = set(found["listed"])
    assert len(listed) == len(found["listed"])
    assert set(found["resolved"]) == listed
    assert listed <= set(found["starred"])
    assert listed <= set(found["shown"])
    assert set(found["own"]) <= listed
    assert {"run", "submit", "get_task", "list_tasks", "cancel", "Flow", "Task", "TaskConfig", "FlowError"} <= listed


def test_flow_is_flow_sdk() -> None:
    script = """
import json
import flow, flow_sdk
from flow.errors import FlowError
import flow.errors, flow_sdk.errors
import flow_sdk as again
same = [flow is flow_sdk, FlowError is flow_sdk.errors.FlowError, flow.errors is flow_sdk.errors]
same += [getattr(flow, name) is getattr(flow_sdk, name) for name in flow_sdk.__all__]
print(json.dumps(all(same)))
"""
    assert python(script) is True


def test_an_unknown_name_is_an_attribute_error() -> None:
    script = """
import json
import flow_sdk
try:
    flow_sdk.rnu
except AttributeError as error:
    print(json.dumps(str(error)))
"""
    assert "rnu" in str(python(script))


def old_python() -> str | None:
    """A Python 3.8, the oldest that a node may have, where this machine has one."""
    candidates = [
        shutil.which("python3.8"),
        *glob.glob(f"{os.environ.get('PYENV_ROOT', '')}/versions/3.8*/bin/python3.8"),
    ]
    for candidate in candidates:
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return None


@pytest.mark.parametrize("name", ["runner", "cellkernel", "cellhost"])
def test_what_runs_on_nodes_is_python_3_8(name: str) -> None:
    path = ROOT / PACKAGE / f"{name}.py"
    source = path.read_text()
    ast.parse(source, str(path), feature_version=(3, 8))
    if old := old_python():
        # Loading it also finds what 3.8 lacks in the standard library, and in annotations that are evaluated.
        script = """
import importlib.util, os, sys
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(sys.argv[1]))
spec = importlib.util.spec_from_file_location("runner", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""
        done = subprocess.run([old, "-W", "error", "-c", script, str(path)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
