"""YAML files that people write: errors name the file and the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flow_sdk.errors import ValidationError


def read_mapping(path: Path, as_written: tuple[str, ...] = ()) -> tuple[dict[Any, Any], dict[str, int]]:
    """A YAML file's top mapping, and the line of each of its keys.

    Args:
        as_written: keys below which plain values stay text, as `0755` and `12:30:00` must.

    Raises:
        ValidationError: the file cannot be read or is no such mapping; the message names file and line.
    """
    import yaml

    text = read_text(path)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise ValidationError(f"{path} is empty.", ["Write at least a command: command: python train.py"])
        if not isinstance(root, yaml.MappingNode):
            raise ValidationError(f"{path} must hold fields such as command: python train.py, and holds none.")
        _refuse_twice(path, root, set())
        lines: dict[str, int] = {}
        for key, value in root.value:
            if isinstance(key.value, str):
                lines[key.value] = key.start_mark.line + 1
            if key.value in as_written:
                _as_written(value)
        values = loader.construct_document(root)
    except yaml.YAMLError as error:
        raise _yaml_error(path, text, error) from None
    finally:
        loader.dispose()
    return values, lines


def read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        from difflib import get_close_matches

        here = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = [f"Did you mean {path.parent / name}?" for name in get_close_matches(path.name, here, n=3)]
        raise ValidationError(f"There is no file {path}.", near or ["Check the path, or write one."]) from None
    except IsADirectoryError:
        raise ValidationError(f"{path} is a folder, not a YAML file.") from None
    except UnicodeDecodeError:
        raise ValidationError(f"{path} is not UTF-8 text.", ["Save it as UTF-8."]) from None
    except OSError as error:
        raise ValidationError(f"{path} cannot be read: {error.strerror}.") from None


def _refuse_twice(path: Path, node: Any, seen: set[int]) -> None:
    """YAML readers keep the last of two equal keys without a word."""
    if id(node) in seen or isinstance(node.value, str):
        return
    seen.add(id(node))
    keys: dict[str, int] = {}
    for item in node.value:
        if isinstance(item, tuple):
            key, child = item
            line = key.start_mark.line + 1
            if isinstance(key.value, str) and key.value != "<<":
                if key.value in keys:
                    raise ValidationError(
                        f"{path}, line {line}: {key.value} is given twice, first on line {keys[key.value]}.",
                        ["Leave one of them out."],
                    )
                keys[key.value] = line
            _refuse_twice(path, child, seen)
        else:
            _refuse_twice(path, item, seen)


def _as_written(node: Any) -> None:
    """Keep plain scalars as text: YAML would make 45000 of 12:30:00 and 493 of 0755."""
    children = [] if isinstance(node.value, str) else node.value
    for item in children:
        child = item[1] if isinstance(item, tuple) else item
        if isinstance(child.value, str) and child.tag != "tag:yaml.org,2002:null":
            child.tag = "tag:yaml.org,2002:str"


def _yaml_error(path: Path, text: str, error: Any) -> ValidationError:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "no valid YAML")
    bad_line = text.splitlines()[mark.line : mark.line + 1] if mark is not None else []
    if any(line.lstrip(" ").startswith("\t") for line in bad_line):
        return ValidationError(f"{where}: indented with a tab, where YAML allows only spaces.", ["Use spaces."])
    if "single document" in str(getattr(error, "context", "")):
        return ValidationError(
            f"{where}: a second document begins, where one task is expected.", ["Use one file a task."]
        )
    return ValidationError(f"{where}: not valid YAML ({problem}).", ["Put text with : or # in it in quotes."])
