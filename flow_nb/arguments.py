"""The line of a magic: `gpu=a100 --pip "torch einops" -i df,cfg -o model --submit`, with `$name` and `{expr}` from the
notebook. People know `--gpu a100` and like `gpu=a100`, so both are taken everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import flow_sdk as flow

FLAGS = ("submit", "bg", "plain")
OWN = ("session", "idle", "inputs", "outputs", "requirements", *FLAGS)
SHORT = {"i": "inputs", "o": "outputs", "n": "name", "N": "num_instances", "e": "env"}
SINGULAR = {"mount": "mounts", "volume": "volumes", "port": "ports", "tag": "tags"}
LISTS = ("pip", "ports", "tags", "ssh_keys", "volumes", "mounts", "env")
NUMBERS: dict[str, type[float]] = {
    "num_instances": int,
    "retries": int,
    "max_price_per_hour": float,
    "max_run_time_hours": float,
}
SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


class Line(NamedTuple):
    """A magic's line, read.

    Attributes:
        words: what is not an option.
        fields: TaskConfig fields.
        own: options of the magic itself.
    """

    words: list[str]
    fields: dict[str, Any]
    own: dict[str, Any]

    def over(self, defaults: Line) -> Line:
        """This line, with what it leaves open taken from `defaults`."""
        return Line(self.words, {**defaults.fields, **self.fields}, {**defaults.own, **self.own})


class Expression(NamedTuple):
    """A piece of a word that the notebook shall evaluate."""

    source: str


Word = list["str | Expression"]


def read(line: str, names: Mapping[str, Any]) -> Line:
    """Reads a line.

    Args:
        line: what stands behind the magic's name.
        names: the notebook's variables, for `$name` and `{expr}`.

    Raises:
        ValidationError: an option that does not exist, a quote that is not closed, an expression that fails.
    """
    found = Line([], {}, {})
    waiting = iter(split_words(line))
    for word in waiting:
        key, value = as_option(word)
        if key is None:
            found.words.append(str(evaluate(word, names)))
            continue
        name = option(key)
        if name in FLAGS:
            found.own[name] = value is None or str(evaluate(value, names)).lower() not in ("0", "false", "no", "off")
            continue
        if value is None:
            value = next(waiting, None)
        while value is not None and name in ("inputs", "outputs") and value[-1:] == [","]:
            # People put a blank behind a comma.
            value = [*value, *next(waiting, [])]
            if value[-1] == ",":
                break
        if value is None:
            raise flow.ValidationError(f"The option {key!r} needs a value.", [f"For example {key}=…"])
        put(found, name, evaluate(value, names))
    if "requirements" in found.own:
        add_requirements(found)
    return found


def split_words(line: str) -> Iterator[Word]:
    """The words of a line. Blanks in quotes or braces do not split it; single quotes keep `$` and `{` as they are."""
    word: Word | None = None
    at = 0
    while at < len(line):
        char = line[at]
        if char.isspace():
            if word is not None:
                yield word
            word, at = None, at + 1
            continue
        word = [] if word is None else word
        if char in "'\"":
            end = closing_quote(line, at)
            inner = line[at + 1 : end]
            word += [inner] if char == "'" else pieces(inner)
            at = end + 1
        elif char == "{":
            end = closing_brace(line, at)
            word.append(Expression(line[at + 1 : end]))
            at = end + 1
        elif char == "\\" and at + 1 < len(line):
            word.append(line[at + 1])
            at += 2
        elif found := re.match(r"\$(\w+)", line[at:]):
            word.append(Expression(found[1]))
            at += found.end()
        else:
            word.append(char)
            at += 1
    if word is not None:
        yield word


def pieces(text: str) -> Word:
    found: Word = []
    at = 0
    for match in re.finditer(r"\$(\w+)|\{", text):
        if match.start() < at:
            continue
        found.append(text[at : match.start()])
        end = match.end() if match[1] else closing_brace(text, match.start()) + 1
        found.append(Expression(match[1] or text[match.start() + 1 : end - 1]))
        at = end
    return [*found, text[at:]]


def closing_quote(text: str, start: int) -> int:
    """Where the quote that opens at `start` is closed; those within braces of double quotes do not close it."""
    quote, at = text[start], start + 1
    while at < len(text) and text[at] != quote:
        at = closing_brace(text, at) + 1 if quote == '"' and text[at] == "{" else at + 1
    if at >= len(text):
        raise flow.ValidationError(f"The quote {text[start : start + 20]!r} is not closed.", ["Close every quote."])
    return at


def closing_brace(text: str, start: int) -> int:
    """Where the brace that opens at `start` is closed; quotes inside are respected."""
    depth, quote = 0, ""
    for at in range(start, len(text)):
        char = text[at]
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "{}":
            depth += 1 if char == "{" else -1
            if depth == 0:
                return at
    raise flow.ValidationError(f"The brace {text[start : start + 20]!r} is not closed.", ["Close every brace."])


def as_option(word: Word) -> tuple[str | None, Word | None]:
    """The option's name and its value, where they are in one word; (None, None) where the word is no option."""
    plain = 0
    while plain < len(word) and isinstance(word[plain], str):
        plain += 1
    head, rest = "".join(str(piece) for piece in word[:plain]), word[plain:]
    dashed = re.fullmatch(r"--([A-Za-z][\w-]*)(=(.*))?", head, re.DOTALL) or re.fullmatch(
        r"-([A-Za-z])(=?(.+))?", head, re.DOTALL
    )
    if dashed and (dashed[2] or not rest):
        return dashed[1], [dashed[3] or "", *rest] if dashed[2] or rest else None
    named = re.fullmatch(r"([A-Za-z_]\w*)=(.*)", head, re.DOTALL)
    if named and (named[1] in known() or named[1] in SINGULAR):
        return named[1], [named[2], *rest]
    return None, None


def known() -> list[str]:
    return [*(name for name in flow.TaskConfig.model_fields if name != "command"), *OWN]


def option(key: str) -> str:
    name = SHORT.get(key) or key.replace("-", "_")
    name = SINGULAR.get(name, name)
    if name in known():
        return name
    raise no_option(key)


class NoOption(flow.ValidationError):
    """An option that does not exist."""


NoOption.__name__ = NoOption.__qualname__ = "ValidationError"


def no_option(word: str) -> NoOption:
    name = re.split("[=\\s]", word.lstrip("-"))[0].replace("-", "_")
    near = [f"Did you mean {one}=…?" for one in get_close_matches(name, known(), n=2)]
    return NoOption(f"There is no option {word!r}.", near or ["%%flow? lists all options."])


def put(line: Line, name: str, value: Any) -> None:
    if name in ("inputs", "outputs"):
        names = value if isinstance(value, (list, tuple)) else re.split(r"[,\s]+", str(value).strip(", "))
        wrong = [one for one in names if not str(one).isidentifier()]
        if wrong:
            raise flow.ValidationError(f"{wrong[0]!r} is no variable's name.", ["For example -i df,cfg"])
        line.own[name] = [*line.own.get(name, []), *names]
    elif name in OWN:
        line.own[name] = value
    elif name in LISTS and isinstance(value, str):
        items = value.split() if name == "pip" else [item for item in value.split(",") if item]
        before = line.fields.get(name, [])
        if isinstance(before, dict):
            raise flow.ValidationError(f"{name} is given as a mapping and as text.", ["Give it once."])
        line.fields[name] = [*before, *items]
    elif name in NUMBERS and isinstance(value, str):
        line.fields[name] = number(name, value)
    elif name == "upload_code":
        line.fields[name] = str(value).lower() not in ("0", "false", "no", "off")
    else:
        line.fields[name] = value


def number(name: str, text: str) -> int | float:
    try:
        return int(text) if NUMBERS[name] is int else float(text)
    except ValueError:
        raise flow.ValidationError(f"{name} must be a number, not {text!r}.", [f"For example {name}=2."]) from None


def add_requirements(line: Line) -> None:
    """The packages of a requirements file, as pip packages."""
    path = Path(str(line.own.pop("requirements"))).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise flow.ValidationError(f"{path} cannot be read: {error.strerror}.", ["Check the file's name."]) from None
    packages = [text for text in (re.sub(r"(^|\s)#.*", "", one).strip() for one in lines) if text]
    options = [text for text in packages if text.startswith("-")]
    if options:
        raise flow.ValidationError(
            f"{path} has the line {options[0]!r}, and only packages are taken from it.", ["Remove the line."]
        )
    line.fields["pip"] = [*line.fields.get("pip", []), *packages]


def evaluate(word: Word, names: Mapping[str, Any]) -> Any:
    """The word's text; a word that is one expression keeps that value's type."""
    full = [piece for piece in word if piece != ""]
    if len(full) == 1 and isinstance(full[0], Expression):
        return look_up(full[0].source, names)
    return "".join(str(look_up(p.source, names)) if isinstance(p, Expression) else p for p in word)


def look_up(source: str, names: Mapping[str, Any]) -> Any:
    """The value of the notebook's own expression, typed by its user; `{"a": 1}` is the mapping that it looks like."""
    try:
        try:
            code = compile(source.strip(), "<flow>", "eval")
        except SyntaxError:
            code = compile(f"{{{source}}}", "<flow>", "eval")
        return eval(code, dict(names))
    except Exception as error:
        raise flow.ValidationError(
            f"{source!r} in the line cannot be evaluated: {type(error).__name__}: {error}.",
            ["A name must be defined in the notebook; put single quotes around a literal $ or {."],
        ) from None


def duration_s(value: object) -> float:
    """Seconds of "30m", "2h", "90s", "1d"; a number alone is minutes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|d)?\s*", str(value))
    if not found or float(found[1]) <= 0:
        raise flow.ValidationError(f"{value!r} is no time.", ["For example 30m, 2h or 1d."])
    return float(found[1]) * SECONDS[found[2] or "m"]
