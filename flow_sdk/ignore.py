"""Ignore files, as git reads them (gitignore(5)), for `bundle`.

pathspec turns lines into regular expressions, and is meant to be asked about files at any depth below ignored folders.
Git asks about one folder after the other and does not enter what is ignored: a line is about the path itself, and what
lies below an ignored folder cannot be taken back. `bundle` walks in that way, and asks here.

Paths are bytes, as they are to git: a `?` is one byte, and names need not be UTF-8.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from pathspec import GitIgnoreSpec


class IgnoreFile(NamedTuple):
    """The lines of one ignore file that can match anything."""

    base: int
    """Where paths relative to the file's folder begin in an absolute path."""
    ignores: list[bool]
    """For each line, in order; False for one with an exclamation mark."""
    files: _Names
    folders: _Names
    paths: list[_Path]
    """Lines with a slash, last first."""

    def verdict(self, path: bytes, name: bytes, is_dir: bool) -> bool | None:
        """Whether the last line that matches says to ignore; None where none does.

        Args:
            path: absolute, below the file's folder.
            name: its last component.
        """
        names = self.folders if is_dir else self.files
        match = names.pattern.fullmatch(name) if names.pattern else None
        last = names.lines[match.lastindex - 1] if match and match.lastindex else -1
        for line, only_folders, pattern in self.paths:
            if line < last:
                break
            match = pattern.match(path, self.base) if is_dir or not only_folders else None
            # pathspec sets this group where the line matches a folder above the path and not the path.
            if match and match.groupdict().get("ps_d") is None:
                last = line
                break
        return self.ignores[last] if last >= 0 else None


class _Names(NamedTuple):
    """Lines without a slash: what they match is the last component of a path."""

    pattern: re.Pattern[bytes] | None
    """A group for each line, last first, so that the group that matched is the last line that matches."""
    lines: list[int]


class _Path(NamedTuple):
    line: int
    only_folders: bool
    pattern: re.Pattern[bytes]


def parse(text: bytes, base: int) -> IgnoreFile:
    """Args: the file's content, and the length of its folder's path with the slash at its end."""
    lines = [line for line in map(_parse_line, text.removeprefix(b"\xef\xbb\xbf").split(b"\n")) if line]
    patterns = GitIgnoreSpec.from_lines([line.glob for line in lines]).patterns
    files: list[tuple[int, bytes]] = []
    folders: list[tuple[int, bytes]] = []
    paths: list[_Path] = []
    for number, (line, pattern) in enumerate(zip(lines, patterns, strict=True)):
        regex: Any = pattern.regex
        if regex is None:
            continue
        source: bytes = regex.pattern
        for part in line.parts:
            source = source.replace(b"\0", part, 1)
        # `$` also matches before a newline at the end, which a name may have.
        source = re.sub(rb"(?<=[|?*])\$", rb"\\Z", source)
        if line.has_slash:
            # Matching begins in the middle of an absolute path, where ^ is never true.
            source = source[1:] if source.startswith(b"^") else b".*" + source
            paths.insert(0, _Path(number, line.only_folders, re.compile(source, re.DOTALL)))
            continue
        source = source.replace(b"?P<ps_d>", b"?:")
        folders.insert(0, (number, source))
        if not line.only_folders:
            files.insert(0, (number, source))
    return IgnoreFile(base, [line.ignore for line in lines], _names(files), _names(folders), paths)


def _names(sources: list[tuple[int, bytes]]) -> _Names:
    pattern = re.compile(b"|".join(b"(%s)" % source for _, source in sources), re.DOTALL) if sources else None
    return _Names(pattern, [line for line, _ in sources])


class _Line(NamedTuple):
    ignore: bool
    only_folders: bool
    has_slash: bool
    glob: bytes
    """What pathspec is given: anchored with a slash, and with a zero byte in place of each of `parts`."""
    parts: list[bytes]
    """Regular expressions for what pathspec reads in another way than git."""


_CLASSES = {
    b"alnum": rb"0-9A-Za-z",
    b"alpha": rb"A-Za-z",
    b"blank": rb" \t",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": rb"0-9",
    b"graph": rb"\x21-\x7e",
    b"lower": rb"a-z",
    b"print": rb"\x20-\x7e",
    b"punct": rb"\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e",
    b"space": rb" \t\n\r",
    b"upper": rb"A-Z",
    b"xdigit": rb"0-9A-Fa-f",
}
_CLASS = rb"\[:[^]]*:\]"
_TOKEN = re.compile(
    # A set has one character at least, so a bracket that would close it at once is that character.
    rb"\[(?P<negated>[!^]|(?![!^]))(?P<set>(?:%(class)b|\\.|(?!%(class)b)[^\\])(?:%(class)b|\\.|(?!%(class)b)[^]\\])*)\]"
    rb"|\\?(?P<blank>[\s\x1c-\x1f\x85\xa0])"
    rb"|\\(?P<escaped>.)"
    rb"|(?P<broken>[\[\\])" % {b"class": _CLASS},
    re.DOTALL,
)
_SET_ITEM = re.compile(rb"\[:(?P<class>[^]]*):\]|(?P<first>\\.|[^\\])(?:-(?P<last>\\.|[^\\]))?", re.DOTALL)
_NOTHING = rb"(?!)"


def _parse_line(line: bytes) -> _Line | None:
    """One line, or None if it can match nothing."""
    line = line.split(b"\0")[0].removesuffix(b"\r")
    body = line.rstrip(b" ")
    if body != line and (len(body) - len(body.rstrip(b"\\"))) % 2:
        body += b" "
    if body.startswith(b"#"):
        return None
    ignore = not body.startswith(b"!")
    body = body.removeprefix(b"!")
    only_folders = body.endswith(b"/")
    body = body.removesuffix(b"/")
    has_slash = b"/" in body
    body = body.removeprefix(b"/")
    parts: list[bytes] = []
    glob = _TOKEN.sub(lambda token: _translate(token, parts), body)
    if not glob or glob.endswith(b"/") or _NOTHING in parts:
        return None
    # More than two stars in a row are as good as two, and where there is no slash, two are as good as one.
    glob = re.sub(rb"(?<!\\)\*\*+", b"**" if has_slash else b"*", glob)
    return _Line(ignore, only_folders, has_slash, b"/" + glob, parts)


def _translate(token: re.Match[bytes], parts: list[bytes]) -> bytes:
    if token["escaped"]:
        return b"/" if token["escaped"] == b"/" else token[0]
    if token["set"]:
        # pathspec lets a set match a slash, and knows no escapes and no classes in it.
        parts.append(_translate_set(token["set"], bool(token["negated"])))
    elif token["blank"]:
        # pathspec takes white space off the end, which may be half of a UTF-8 character.
        parts.append(rb"\x%02x" % ord(token["blank"]))
    else:
        parts.append(_NOTHING)
    return b"\0"


def _translate_set(items: bytes, negated: bool) -> bytes:
    """As in git's wildmatch.c: a set with an unknown class matches nothing, a backward range is its start."""
    inside = b""
    for item in _SET_ITEM.finditer(items):
        if item["class"] is None:
            first, last = item["first"][-1:], (item["last"] or b"")[-1:]
            inside += rb"\x%02x-\x%02x" % (ord(first), ord(max(first, last)))
        elif item["class"] in _CLASSES:
            inside += _CLASSES[item["class"]]
        else:
            return _NOTHING
    return rb"[^/%b]" % inside if negated else rb"(?!/)[%b]" % inside
