"""`%flow run analysis.ipynb`: a whole notebook as a task, and its executed copy."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import flow_sdk as flow

COPY_SUFFIX = ".executed.ipynb"
SOURCE = "notebook.json"


def submit(path: Path, config: flow.TaskConfig) -> flow.Task:
    """Runs the code cells of a notebook in order, up to the first that fails.

    Raises:
        ValidationError: it cannot be read, or is no notebook of Python.
    """
    notebook = read(path)
    cells = [
        flow.Cell(f"cell-{number}", "".join(cell["source"]), "raises-exception" in tags(cell))
        for number, cell in enumerate(notebook["cells"])
        if cell["cell_type"] == "code" and "".join(cell["source"]).strip()
    ]
    if not cells:
        raise flow.ValidationError(f"{path} has no code to run.", [])
    if config.name is None:
        name = re.sub(r"[^A-Za-z0-9]+", "-", path.stem).strip("-").lower()[:40] or "notebook"
        config = config.replace(name=f"{name}-{os.urandom(2).hex()}")
    source = {"path": str(path.resolve()), "notebook": notebook}
    return flow.submit_cells(
        config, cells, files={SOURCE: json.dumps(source).encode()}, code_root=path.resolve().parent
    )


def read(path: Path) -> dict[str, Any]:
    try:
        notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise flow.ValidationError(f"{path} cannot be read: {error.strerror}.", ["Check the name."]) from None
    except ValueError:
        raise flow.ValidationError(f"{path} is no notebook: it is not JSON.", []) from None
    if notebook.get("nbformat") != 4:
        raise flow.ValidationError(
            f"{path} has notebook format {notebook.get('nbformat')}.", ["Open and save it in Jupyter: it becomes 4."]
        )
    language = notebook.get("metadata", {}).get("kernelspec", {}).get("language", "python")
    if language != "python":
        raise flow.ValidationError(f"{path} is written in {language}, and the machine's kernel is Python's.", [])
    return notebook


def tags(cell: dict[str, Any]) -> list[str]:
    found: list[str] = cell.get("metadata", {}).get("tags", [])
    return found


def bring_back(task: flow.Task) -> Path | None:
    """Writes the executed copy beside the notebook, also of one that failed; None where the task ran no notebook."""
    session = flow.Session(task)
    source = session.file(SOURCE)
    if source is None:
        return None
    found = json.loads(source)
    path = Path(found["path"])
    copy = path.with_name(path.name.removesuffix(".ipynb") + COPY_SUFFIX)
    executed = with_outputs(found["notebook"], session.journal(from_start=True).read())
    copy.write_text(json.dumps(executed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stderr.write(f"flow: {task.name} {task.status}; the executed copy is {copy.name}.\n")
    return copy


def with_outputs(notebook: dict[str, Any], events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The notebook with the outputs that its cells' events make (nbformat 4)."""
    cells = {f"cell-{number}": cell for number, cell in enumerate(notebook["cells"])}
    for cell in cells.values():
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    displays: dict[str, list[dict[str, Any]]] = {}
    clear_next: set[str] = set()
    for event in events:
        cell = cells.get(event["cell"])
        if cell is None:
            continue
        kind, content = event["type"], event["content"]
        if kind == "execute_input":
            cell["execution_count"] = content["execution_count"]
        elif kind == "clear_output":
            if content.get("wait"):
                clear_next.add(event["cell"])
            else:
                cell["outputs"].clear()
        elif kind == "update_display_data":
            for output in displays.get(content["transient"]["display_id"], []):
                output.update(data=content["data"], metadata=content.get("metadata", {}))
        elif kind in ("stream", "display_data", "execute_result", "error"):
            if event["cell"] in clear_next:
                cell["outputs"].clear()
                clear_next.discard(event["cell"])
            add_output(cell["outputs"], kind, content, displays)
    return notebook


def add_output(
    outputs: list[dict[str, Any]], kind: str, content: dict[str, Any], displays: dict[str, list[dict[str, Any]]]
) -> None:
    if kind == "stream" and outputs and outputs[-1].get("name") == content["name"]:
        outputs[-1]["text"] += content["text"]
        return
    names = {
        "stream": ("name", "text"),
        "error": ("ename", "evalue", "traceback"),
        "display_data": ("data", "metadata"),
        "execute_result": ("data", "metadata", "execution_count"),
    }
    output = {"output_type": kind, **{name: content.get(name, {}) for name in names[kind]}}
    outputs.append(output)
    display_id = (content.get("transient") or {}).get("display_id")
    if display_id:
        displays.setdefault(display_id, []).append(output)
