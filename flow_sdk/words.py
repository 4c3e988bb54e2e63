"""A task's command and fields as people type them, in the terminal and in a notebook's magic."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flow_sdk.errors import ValidationError

INTERPRETERS = {".py": "python", ".sh": "bash"}
YAML = (".yaml", ".yml")


def command_from_words(words: Sequence[str], no_upload: bool = False) -> str | list[str] | Path:
    """What to run: a shell line, an argv list, or the path of a YAML file.

    Args:
        words: a command of one or several words, or a file and its arguments.
        no_upload: the current folder does not go along, so a file of it is named by its whole path.

    Raises:
        ValidationError: the file is not there, or nobody can tell how to run it.
    """
    word = words[0]
    if len(words) > 1 and os.path.exists(whole := " ".join(words)):
        raise ValidationError(
            f"The file {whole!r} has blanks in its name.", [f"Put it in quotes: {shlex.quote(whole)}."]
        )
    if len(words) > 1:
        interpreter = INTERPRETERS.get(Path(word).suffix) if os.path.isfile(word) else None
        return [*([interpreter] if interpreter else []), *words]
    path = Path(word)
    # Unlike Path.is_file, this is no error for a command too long to be a name.
    is_file = os.path.isfile(word)
    if path.suffix.lower() in YAML and (is_file or not any(c.isspace() for c in word)):
        return path
    if not is_file and path.suffix in INTERPRETERS and len(word.split()) == 1 and not shutil.which(word):
        from difflib import get_close_matches

        here = [entry.name for entry in Path.cwd().iterdir()]
        near = [f"Did you mean {name}?" for name in get_close_matches(word, here, n=2)]
        raise ValidationError(f"There is no file {word} here.", near or ["Check the name, or cd to its folder."])
    if not is_file or (os.sep not in word and shutil.which(word)):
        first = word.split(maxsplit=1)[0] if word.strip() else word
        interpreter = INTERPRETERS.get(Path(first).suffix)
        if interpreter and first != word and os.path.isfile(first) and not os.access(first, os.X_OK):
            return f"{interpreter} {word}"
        return word
    inside = Path(os.path.relpath(path.resolve(), Path.cwd().resolve()))
    if not no_upload and inside.parts[0] == "..":
        raise ValidationError(
            f"{word} is outside of this folder, which is what goes along with the task.",
            [f"cd {shlex.quote(str(path.resolve().parent))}, and run it from there."],
        )
    quoted = shlex.quote(str(path if no_upload else f"./{inside}" if str(inside).startswith("-") else inside))
    if path.suffix in INTERPRETERS:
        return f"{INTERPRETERS[path.suffix]} {quoted}"
    if os.access(path, os.X_OK):
        return quoted if os.sep in quoted else f"./{quoted}"
    raise ValidationError(
        f"Flow cannot tell how to run the file {word}.",
        [f"Say what runs it: flow run {shlex.quote(f'bash {quoted}')}.", f"Or make it a program: chmod +x {quoted}."],
    )


def fields_from_text(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of TaskConfig, where env, mounts and volumes may be lists of texts.

    Args:
        fields: env as ["NAME=VALUE" or "NAME"], mounts as ["TARGET=SOURCE" or "SOURCE"], volumes as ["NAME[:PATH]"].
    """
    readers: dict[str, Callable[[Sequence[str]], Any]] = {
        "env": variables,
        "mounts": parse_mounts,
        "volumes": lambda texts: [volume(text) for text in texts],
    }
    found = dict(fields)
    for name, read in readers.items():
        given = found.get(name)
        if isinstance(given, (list, tuple)) and all(isinstance(text, str) for text in given):
            found[name] = read(given)
    return found


def variables(texts: Sequence[str]) -> dict[str, str]:
    return dict(variable(text) for text in texts)


def variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals and name not in os.environ:
        raise ValidationError(f"The environment variable {name} is not set here.", [f"Write -e {name}=VALUE."])
    return name, value if equals else os.environ[name]


def parse_mounts(texts: Sequence[str]) -> dict[str, str]:
    from flow_sdk import mounts

    return mounts.parse([t if t.startswith("/") and "=" in t else f"{mounts.DEFAULT_TARGET}={t}" for t in texts])


def volume(text: str) -> dict[str, str]:
    name, colon, path = text.removeprefix("volume://").partition(":")
    spec = {"volume_id" if name.startswith("vol_") else "name": name}
    return {**spec, "mount_path": path} if colon else spec
