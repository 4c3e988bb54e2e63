"""The user's code as one content-addressed archive.

`pack` walks a project once and leaves `<sha256>.tar.gz` in the bundles folder; the same content is stored once, whichever
machine, clock or user it was packed by.

What is left out: whatever `.flowignore` names, or `.gitignore` where the project's top has no `.flowignore`. Both mean
what they mean to git: files of that name further down count too, and so do `.gitignore` files above the project in the
same repository. `.git` and Flow's own folder never travel. Caches and environments (`LEFT_OUT`, and any folder with a
`pyvenv.cfg`) stay behind unless a line such as `!node_modules/` takes them back.

What travels: regular files with their exec bit, folders also where empty, links that stay inside the project. Owners,
times and the other permission bits do not.
"""

# Names on disk need not be UTF-8, so paths are bytes here, and pathlib has none.
# ruff: noqa: PTH105, PTH110, PTH111, PTH113, PTH115, PTH116, PTH118, PTH119, PTH120, PTH123

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .errors import ConfigError, FlowError, UploadTooLargeError, ValidationError

LIMIT_BYTES = 10 * 1000 * 1000

LEFT_OUT = frozenset({b"__pycache__", b".venv", b"node_modules", b".ipynb_checkpoints", b".DS_Store"})

# A zip file cannot hold a time before 1980, and tasks build wheels and zips from what they were sent.
_MTIME = 946_684_800

# Level 5 costs 1 % of size against gzip's 6 and saves a fifth of its time.
_LEVEL = 5
_CHUNK_BYTES = 256 * 1024
# Deflate never packs tighter than 1032:1 (zlib's technical notes).
_BEST_RATIO = 1032

_ATTEMPTS = 3
# File systems stamp changes with a clock that is coarser than the changes: 10 ms here, 2 s on FAT.
_RACY_NS = 2_000_000_000
_CACHE_FORMAT = 1
_STALE_S = 3600


class Bundle(NamedTuple):
    """One packed project.

    Attributes:
        sha256: names the content; the hash of the tar inside, so that it does not hang on the zlib that compressed it.
        size_bytes: of the archive, compressed.
        file_count: files and links in it.
        path: the archive.
    """

    sha256: str
    size_bytes: int
    file_count: int
    path: Path


class _Row(NamedTuple):
    """What was seen of one path. Two equal rows mean unchanged, unless `digest` says to look again."""

    path: bytes
    mode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    digest: str = ""
    """For a link its target in the archive; for what changed too recently for its times to be trusted, its content."""


class _Tree(NamedTuple):
    rows: list[_Row]
    watched: list[_Row]
    """Not packed, but they decided what is: ignore files, the top folder, environments."""
    above: list[bytes]


class _Changed(Exception):
    """A path is no longer what it was a moment ago."""

    def __init__(self, path: bytes) -> None:
        super().__init__(path)
        self.path = path


def pack(root: Path, into: Path, *, limit_bytes: int = LIMIT_BYTES) -> Bundle:
    """Pack the project at `root` into `into`/<sha256>.tar.gz; a project that did not change is recognised without reading it.

    Safe to call from many processes at once. The archive appears whole or not at all.

    Args:
        root: the project's top folder.
        into: the bundles folder; made where missing. It, and the Flow folder it lies in, are left out of the archive.
        limit_bytes: the most that the archive may measure, compressed.

    Raises:
        ValidationError: `root` is not a folder, is `/` or the home folder, or holds what cannot be sent: a link that leads
            outside, a socket, a file that cannot be read or does not stop changing.
        UploadTooLargeError: the archive would be over the limit. Compression stops there: the size in the message is then
            carried forward from the part that was read.
        ConfigError: `into` cannot be written, or its disk is full.
    """
    top = _top(Path(root))
    into = Path(into)
    try:
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(_ATTEMPTS):
            bundle = _recall(top, into, limit_bytes)
            if bundle is not None:
                return bundle
            try:
                return _pack_once(top, into, limit_bytes)
            except _Changed as change:
                moving = change.path
    except OSError as error:
        raise _storage_error(into, error) from error
    raise ValidationError(
        f"{_shown(moving)} kept changing while it was packed.",
        ["Try again when nothing writes to it.", _leave_out(top, moving)],
    )


def _pack_once(top: bytes, into: Path, limit_bytes: int) -> Bundle:
    import hashlib

    started_ns = time.time_ns()
    tree = _scan(top, _flow_folder(top, into), started_ns)
    total = sum(512 + -(-row.size // 512) * 512 for row in tree.rows)
    if total > limit_bytes * _BEST_RATIO:
        raise _too_large(top, tree, limit_bytes, f"{_megabytes(total)} before compression", "")
    _sweep(into)

    digest = hashlib.sha256()
    checksum = written = read = 0
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    seen: list[_Row] = []
    part = into / f".packing-{os.getpid()}-{os.urandom(6).hex()}"
    try:
        # O_EXCL and 0600: an archive may hold what its owner would not show to others.
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            # No name, no time, and "unknown" for the operating system: zlib's own header tells platforms apart.
            written += out.write(b"\x1f\x8b\x08\0\0\0\0\0\0\xff")
            for piece in _tar(top, tree.rows, seen, started_ns):
                digest.update(piece)
                checksum = zlib.crc32(piece, checksum)
                read += len(piece)
                written += out.write(deflate.compress(piece))
                if written > limit_bytes:
                    break
            else:
                written += out.write(deflate.flush() + struct.pack("<LL", checksum, read & 0xFFFFFFFF))
            if written > limit_bytes:
                size = written * max(total, read) // read
                note = (
                    f" (over the limit after {_megabytes(read)} of {_megabytes(total)}; sizes are before compression)"
                )
                raise _too_large(top, tree, limit_bytes, _megabytes(size), note)
        sha256 = digest.hexdigest()
        os.replace(part, into / f"{sha256}.tar.gz")
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    file_count = sum(not stat.S_ISDIR(row.mode) for row in seen)
    bundle = Bundle(sha256, written, file_count, into / f"{sha256}.tar.gz")
    _remember(top, into, _Tree(seen, tree.watched, tree.above), bundle)
    return bundle


# What is packed


def _top(root: Path) -> bytes:
    try:
        is_folder = stat.S_ISDIR(os.stat(root).st_mode)
        top = os.fsencode(os.path.realpath(root))
    except FileNotFoundError:
        raise ValidationError(f"There is no folder {_shown(os.fsencode(root))} to upload.") from None
    except (OSError, ValueError) as error:
        raise ValidationError(f"{_shown(os.fsencode(root))} cannot be uploaded: {_why(error)}.") from error
    if not is_folder:
        raise ValidationError(
            f"{_shown(os.fsencode(root))} is a file, and code is uploaded as a folder.", ["Give the folder it lies in."]
        )
    elsewhere = ["Go to your project first: cd my-project.", "Or run without your code: upload_code=False."]
    if top == b"/":
        raise ValidationError("This would upload the whole file system, because / is the folder to upload.", elsewhere)
    if top == os.fsencode(os.path.realpath(os.path.expanduser("~"))):
        raise ValidationError(
            f"This would upload your whole home folder, because {_shown(top)} is the folder to upload.", elsewhere
        )
    return top


def _flow_folder(top: bytes, into: Path) -> bytes | None:
    """Where Flow's own folder lies inside the project, if it does: it holds copies of the code, and grows with each task."""
    bundles = os.fsencode(os.path.realpath(into))
    home = os.path.dirname(bundles)
    for folder in (home, bundles):
        if folder.startswith(top + b"/"):
            return folder
    return None


def _scan(top: bytes, flow_folder: bytes | None, started_ns: int) -> _Tree:
    ignore_name, above = _ignore_files(top)
    tree = _Tree([], [], above)
    stack: list[tuple[bytes, list[_IgnoreFile], bool]] = [(top, _rules_above(top, tree, started_ns), True)]
    outside: list[tuple[bytes, bytes]] = []
    while stack:
        folder, rules, asked_for = stack.pop()
        relative = folder[len(top) + 1 :]
        try:
            status = os.lstat(folder)
            with os.scandir(folder) as found:
                entries = list(found)
        except OSError as error:
            raise _unreadable(top, relative, error) from error
        names = {entry.name for entry in entries}
        row = _row(relative, status, started_ns, lambda entries=entries: _listing(entries))  # type: ignore[misc]
        if not relative or (b"pyvenv.cfg" in names and not asked_for):
            tree.watched.append(row)
            if relative:
                continue
        else:
            tree.rows.append(row)
        if ignore_name in names:
            rules = [*rules, *_read_rules(top, folder, ignore_name, tree, started_ns)]
        for entry in entries:
            is_dir = entry.is_dir(follow_symlinks=False)
            if entry.name == b".git" or entry.path == flow_folder:
                continue
            ignored = _ignored(rules, entry.path, entry.name, is_dir)
            if ignored or (ignored is None and entry.name in LEFT_OUT):
                continue
            if is_dir:
                stack.append((entry.path, rules, ignored is False))
                continue
            path = entry.path[len(top) + 1 :]
            try:
                row = _row(path, entry.stat(follow_symlinks=False), started_ns)
                if stat.S_ISLNK(row.mode):
                    target, stays = _link_target(top, path)
                    row = row._replace(digest=os.fsdecode(target))
                    if not stays:
                        outside.append((path, target))
            except OSError as error:
                raise _unreadable(top, path, error) from error
            if not stat.S_ISREG(row.mode) and not stat.S_ISLNK(row.mode):
                raise ValidationError(
                    f"{_shown(path)} is {_kind(row.mode)}, which cannot be sent to another machine.",
                    [_leave_out(top, path)],
                )
            tree.rows.append(row)
    if outside:
        raise _leads_outside(top, sorted(outside))
    tree.rows.sort()
    return tree


def _row(path: bytes, status: os.stat_result, started_ns: int, content: Callable[[], str] | None = None) -> _Row:
    digest = ""
    if content is not None and max(status.st_ctime_ns, status.st_mtime_ns) > started_ns - _RACY_NS:
        digest = content()
    return _Row(path, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, digest)


def _listing(entries: list[os.DirEntry[bytes]]) -> str:
    names = sorted(entry.name + (b"/" if entry.is_dir(follow_symlinks=False) else b"") for entry in entries)
    return _digest(b"\0".join(names))


def _digest(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def _link_target(top: bytes, path: bytes) -> tuple[bytes, bool]:
    """What the link at `path` says in the archive, and whether it stays inside the project."""
    text = os.readlink(os.path.join(top, path))
    folder = os.path.dirname(path)
    target = os.path.realpath(os.path.join(top, path))
    if target != top and not target.startswith(top + b"/"):
        return target, False
    # A link that comes back in by the name of the folder we are in only works under that name.
    if text.startswith(b"/") or os.path.normpath(os.path.join(folder, text)).split(b"/")[0] == b"..":
        return os.path.relpath(target, os.path.join(top, folder)), True
    return text, True


# Ignore files


class _IgnoreFile(NamedTuple):
    """The lines of one ignore file, in git's sense: the last line that matches a path decides."""

    base: int
    """Where paths relative to the file's folder begin in an absolute path."""
    ignores: list[bool]
    files: re.Pattern[bytes] | None
    """Lines without a slash, last first, a group each; they are matched with the last component of a path."""
    files_order: list[int]
    folders: re.Pattern[bytes] | None
    folders_order: list[int]
    paths: list[tuple[int, bool, re.Pattern[bytes]]]
    """Lines with a slash, last first: order, only for folders, pattern."""


def _ignored(rules: list[_IgnoreFile], path: bytes, name: bytes, is_dir: bool) -> bool | None:
    """Whether the innermost ignore file that says something says to ignore; None where all are silent."""
    for rule in reversed(rules):
        last = -1
        pattern, order = (rule.folders, rule.folders_order) if is_dir else (rule.files, rule.files_order)
        if pattern is not None:
            match = pattern.fullmatch(name)
            if match is not None and match.lastindex:
                last = order[match.lastindex - 1]
        for position, only_folders, regex in rule.paths:
            if position < last:
                break
            if only_folders and not is_dir:
                continue
            match = regex.match(path[rule.base :])
            # pathspec matches what lies below an ignored folder, too, and marks it with this group. Git, and we, do not
            # get there, unless a later line took the folder back, and then the line is not about what lies below.
            if match is not None and match.groupdict().get("ps_d") is None:
                last = position
                break
        if last >= 0:
            return rule.ignores[last]
    return None


def _ignore_files(top: bytes) -> tuple[bytes, list[bytes]]:
    """The name that ignore files have here, and the folders above the project, outermost first, whose files count."""
    if os.path.isfile(top + b"/.flowignore"):
        return b".flowignore", []
    above: list[bytes] = []
    folder = top
    while not os.path.lexists(os.path.join(folder, b".git")):
        folder, last = os.path.dirname(folder), folder
        if folder == last:
            return b".gitignore", []
        if os.path.isfile(os.path.join(folder, b".gitignore")):
            above.insert(0, folder)
    return b".gitignore", above


def _rules_above(top: bytes, tree: _Tree, started_ns: int) -> list[_IgnoreFile]:
    rules: list[_IgnoreFile] = []
    for folder in tree.above:
        rules += _read_rules(top, folder, b".gitignore", tree, started_ns)
    path = top
    while rules and len(path) > rules[0].base:
        name = os.path.basename(path)
        if _ignored([rule for rule in rules if rule.base < len(path)], path, name, True):
            # The repository ignores the project as a whole, which says nothing of what in it matters.
            return []
        path = os.path.dirname(path)
    return rules


def _read_rules(top: bytes, folder: bytes, name: bytes, tree: _Tree, started_ns: int) -> list[_IgnoreFile]:
    path = os.path.join(folder, name)
    relative = os.path.relpath(path, top)
    if not os.path.isfile(path):
        return []
    try:
        status = os.stat(path)
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        raise _unreadable(top, relative, error) from error
    tree.watched.append(_row(relative, status, started_ns, lambda: _digest(text)))
    rule = _compile(text, len(folder.rstrip(b"/")) + 1)
    return [rule] if rule.ignores else []


def _compile(text: bytes, base: int) -> _IgnoreFile:
    lines = [line for line in map(_parse_line, text.removeprefix(b"\xef\xbb\xbf").split(b"\n")) if line is not None]
    if not lines:
        return _IgnoreFile(base, [], None, [], None, [], [])
    # Not at the top: it costs as much as all of Flow's own imports, and many projects have no ignore file.
    from pathspec import GitIgnoreSpec

    ignores, paths = [line.ignore for line in lines], []
    files: list[tuple[int, bytes]] = []
    folders: list[tuple[int, bytes]] = []
    for order, (line, pattern) in enumerate(
        zip(lines, GitIgnoreSpec.from_lines([line.glob for line in lines]).patterns, strict=True)
    ):
        compiled: Any = pattern.regex
        if compiled is None:
            continue
        source: bytes = compiled.pattern
        for piece in line.sets:
            source = source.replace(b"\0", piece, 1)
        # `$` also matches before a newline at the end, which a name may have.
        source = re.sub(rb"(?<=[|?*])\$", rb"\\Z", source)
        if line.has_slash:
            paths.append((order, line.only_folders, re.compile(source, re.DOTALL)))
            continue
        source = source.replace(b"?P<ps_d>", b"?:")
        folders.append((order, source))
        if not line.only_folders:
            files.append((order, source))
    return _IgnoreFile(base, ignores, *_alternatives(files), *_alternatives(folders), paths[::-1])


def _alternatives(sources: list[tuple[int, bytes]]) -> tuple[re.Pattern[bytes] | None, list[int]]:
    if not sources:
        return None, []
    last_first = sources[::-1]
    pattern = re.compile(b"|".join(b"(%s)" % source for _, source in last_first), re.DOTALL)
    return pattern, [order for order, _ in last_first]


class _Line(NamedTuple):
    ignore: bool
    only_folders: bool
    has_slash: bool
    glob: bytes
    """For pathspec, anchored with a slash; a zero byte stands for each of `sets`."""
    sets: list[bytes]


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
    rb"\\(?P<escaped>.)"
    rb"|\[(?P<negated>[!^]|(?![!^]))(?P<set>(?:%b|\\.|(?!%b)[^\\])(?:%b|\\.|(?!%b)[^]\\])*)\]"
    rb"|(?P<broken>[\[\\])"
    rb"|(?P<blank>[\s\x1c-\x1f\x85\xa0])" % (_CLASS, _CLASS, _CLASS, _CLASS),
    re.DOTALL,
)
_SET_ITEM = re.compile(rb"\[:(?P<name>[^]]*):\]|\\?(?P<low>.)-\\?(?P<high>.)|\\?(?P<one>.)", re.DOTALL)


def _parse_line(line: bytes) -> _Line | None:
    """One line of an ignore file as git reads it (gitignore(5); wildmatch.c), or None if it can match nothing.

    Sets such as `[!a-c]` are translated here: pathspec lets them match a slash, and does not know escapes and classes
    inside them. White space is, too: pathspec strips it from the end, and it may be half of a UTF-8 character.
    """
    line = line.split(b"\0")[0].removesuffix(b"\r")
    body = line.rstrip(b" ")
    if body != line and (len(body) - len(body.rstrip(b"\\"))) % 2:
        body += b" "
    if body.startswith(b"#"):
        return None
    ignore = not body.startswith(b"!")
    body = body if ignore else body[1:]
    only_folders = body.endswith(b"/")
    body = body.removesuffix(b"/")
    has_slash = b"/" in body
    body = body.removeprefix(b"/")
    if not body or body.endswith(b"/"):
        return None

    sets: list[bytes] = []
    broken = False

    def translate(token: re.Match[bytes]) -> bytes:
        nonlocal broken
        escaped = token["escaped"]
        if token["broken"]:
            broken = True
        elif token["set"]:
            regex = _translate_set(token["set"], bool(token["negated"]))
            broken = broken or regex is None
            sets.append(regex or b"")
        elif token["blank"] or escaped.isspace() or escaped in (b"\x1c", b"\x1d", b"\x1e", b"\x1f", b"\x85", b"\xa0"):
            sets.append(rb"\x%02x" % ord(token["blank"] or escaped))
        else:
            return b"/" if escaped == b"/" else token[0]
        return b"\0"

    # More than two stars in a row are as good as two, and without a slash around, two are as good as one.
    glob = _TOKEN.sub(translate, body)
    glob = re.sub(rb"(?<!\\)\*\*+", b"**" if has_slash else b"*", glob)
    return None if broken else _Line(ignore, only_folders, has_slash, b"/" + glob, sets)


def _translate_set(items: bytes, negated: bool) -> bytes | None:
    regex = b""
    for item in _SET_ITEM.finditer(items):
        if item["name"] is not None:
            if item["name"] not in _CLASSES:
                return None
            regex += _CLASSES[item["name"]]
        elif item["one"]:
            regex += rb"\x%02x" % ord(item["one"])
        elif item["low"] <= item["high"]:
            regex += rb"\x%02x-\x%02x" % (ord(item["low"]), ord(item["high"]))
    if negated:
        return rb"[^/%b]" % regex
    return rb"(?!/)[%b]" % regex if regex else rb"(?!)"


# The archive


def _tar(top: bytes, rows: list[_Row], seen: list[_Row], started_ns: int) -> Iterator[bytes]:
    """The tar of `rows`, in pieces whose sizes follow from the content alone. `seen` gets what each path was when read."""
    for row in rows:
        if stat.S_ISREG(row.mode):
            yield from _tar_file(top, row.path, seen, started_ns)
        elif stat.S_ISLNK(row.mode):
            seen.append(row)
            yield _header(row.path, 0o777, 0, b"2", os.fsencode(row.digest))
        else:
            seen.append(row)
            yield _header(row.path + b"/", 0o755, 0, b"5")
    yield bytes(1024)


def _tar_file(top: bytes, path: bytes, seen: list[_Row], started_ns: int) -> Iterator[bytes]:
    import hashlib

    content = hashlib.sha256()
    try:
        fd = os.open(os.path.join(top, path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(top, path, error) from error
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise _Changed(path)
        racy = max(before.st_ctime_ns, before.st_mtime_ns) > started_ns - _RACY_NS
        header = _header(path, 0o755 if before.st_mode & 0o111 else 0o644, before.st_size, b"0")
        left = before.st_size
        piece = header
        while left:
            chunk = _read(fd, min(left, _CHUNK_BYTES))
            if not chunk:
                raise _Changed(path)
            if racy:
                content.update(chunk)
            left -= len(chunk)
            piece += chunk
            if left:
                yield piece
                piece = b""
        after = os.fstat(fd)
        # A log that grew is sent as it was; anything else may be half of one state and half of another.
        if after.st_size < before.st_size or (
            after.st_size == before.st_size and after.st_ctime_ns != before.st_ctime_ns
        ):
            raise _Changed(path)
    except OSError as error:
        raise _unreadable(top, path, error) from error
    finally:
        os.close(fd)
    seen.append(_row(path, before, started_ns, content.hexdigest))
    yield piece + bytes(-before.st_size % 512)


def _read(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            break
        data += more
    return data


_HEADER = struct.Struct("100s8s8s8s12s12s8ss100s8s32s32s8s8s167s")


def _header(name: bytes, mode: int, size: int, kind: bytes, target: bytes = b"") -> bytes:
    """A header of GNU tar's format, which holds any name in any encoding (tar(5); tar.h of GNU tar)."""
    long = b""
    if len(target) > 100:
        long += _long(b"K", target)
    if len(name) > 100:
        long += _long(b"L", name)
    digits = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    fields = [name, b"%07o\0" % mode, b"0000000\0", b"0000000\0", digits, b"%011o\0" % _MTIME, b" " * 8, kind, target]
    fields += [b"ustar  \0", b"", b"", b"", b"", b""]
    block = _HEADER.pack(*fields)
    return long + block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _long(kind: bytes, name: bytes) -> bytes:
    return _header(b"././@LongLink", 0, len(name) + 1, kind) + name + bytes(1 + -(len(name) + 1) % 512)


def _sweep(into: Path) -> None:
    """Remove what a packer left that was killed."""
    for part in into.glob(".packing-*"):
        try:
            if time.time() - part.stat().st_mtime > _STALE_S:
                part.unlink()
        except FileNotFoundError:
            continue


# Recognising an unchanged project


def _cache_path(top: bytes, into: Path) -> Path:
    return into / "cache" / f"{_digest(top)[:32]}.json"


def _remember(top: bytes, into: Path, tree: _Tree, bundle: Bundle) -> None:
    import json

    record = {
        "format": _CACHE_FORMAT,
        "root": os.fsdecode(top),
        "above": [os.fsdecode(folder) for folder in tree.above],
        "rows": [(os.fsdecode(row.path), *row[1:]) for row in tree.rows],
        "watched": [(os.fsdecode(row.path), *row[1:]) for row in tree.watched],
        "sha256": bundle.sha256,
        "size_bytes": bundle.size_bytes,
        "file_count": bundle.file_count,
    }
    path = _cache_path(top, into)
    part = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(6).hex()}")
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            part.write_text(json.dumps(record))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError:
        # The bundle is there; without this the next one is only slower.
        return


def _recall(top: bytes, into: Path, limit_bytes: int) -> Bundle | None:
    """The bundle of the last time, if it is there and nothing changed since."""
    import json

    now_ns = time.time_ns()
    try:
        record = json.loads(_cache_path(top, into).read_bytes())
        bundle = Bundle(
            record["sha256"], record["size_bytes"], record["file_count"], into / f"{record['sha256']}.tar.gz"
        )
        tree = _Tree(
            [_Row(os.fsencode(path), *rest) for path, *rest in record["rows"]],
            [_Row(os.fsencode(path), *rest) for path, *rest in record["watched"]],
            [os.fsencode(folder) for folder in record["above"]],
        )
        if (
            record["format"] != _CACHE_FORMAT
            or record["root"] != os.fsdecode(top)
            or bundle.size_bytes > limit_bytes
            or bundle.path.stat().st_size != bundle.size_bytes
            or _ignore_files(top)[1] != tree.above
            or not all(_same(top, row, os.stat) for row in tree.watched)
            or not all(_same(top, row, os.lstat) for row in tree.rows)
        ):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    settled = _Tree(_settled(tree.rows, now_ns), _settled(tree.watched, now_ns), tree.above)
    if settled != tree:
        _remember(top, into, settled, bundle)
    return bundle


def _same(top: bytes, row: _Row, look: Callable[[bytes], os.stat_result]) -> bool:
    path = top + b"/" + row.path
    status = look(path)
    if row[1:6] != (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino):
        return False
    if stat.S_ISLNK(row.mode):
        return _link_target(top, row.path) == (os.fsencode(row.digest), True)
    if not row.digest:
        return True
    if stat.S_ISDIR(row.mode):
        with os.scandir(path) as found:
            return _listing(list(found)) == row.digest
    import hashlib

    content = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            content.update(chunk)
    return content.hexdigest() == row.digest


def _settled(rows: list[_Row], now_ns: int) -> list[_Row]:
    """The rows without the digests that are no longer needed."""
    return [
        row._replace(digest="")
        if row.digest and not stat.S_ISLNK(row.mode) and max(row.ctime_ns, row.mtime_ns) <= now_ns - _RACY_NS
        else row
        for row in rows
    ]


# Errors


def _shown(path: bytes) -> str:
    """A path for a person, on one line and printable whatever bytes are in it."""
    text = os.fsdecode(path)
    return text if text.isprintable() else repr(text)


def _why(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _kind(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a named pipe" if stat.S_ISFIFO(mode) else "a device"


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.1f}GB" if size >= 1e9 else f"{size / 1e6:.1f}MB"


def _leave_out(top: bytes, path: bytes) -> str:
    """How to leave `path` out, which depends on the ignore file that is in force."""
    if not os.path.exists(top + b"/.flowignore") and os.path.exists(top + b"/.gitignore"):
        return f"Leave {_shown(path)} out: add it to .gitignore, or to a .flowignore, which is then read instead."
    return f"Leave {_shown(path)} out: add it to .flowignore."


def _unreadable(top: bytes, path: bytes, error: OSError) -> Exception:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ESTALE):
        return _Changed(path)
    name = _shown(path) if path else "The folder to upload"
    return ValidationError(f"{name} cannot be read: {_why(error)}.", [_leave_out(top, path)] if path else [])


def _leads_outside(top: bytes, links: list[tuple[bytes, bytes]]) -> ValidationError:
    path, target = links[0]
    others = f", and so do {len(links) - 1} others" if len(links) > 2 else ", and so does one other"
    return ValidationError(
        f"The link {_shown(path)} leads outside the project, to {_shown(target)}{others if len(links) > 1 else ''}.",
        [_leave_out(top, link) for link, _ in links[:10]]
        + [
            "Put what it leads to into the project.",
            f'Or mount it: mounts={{"/data": "{_shown(target)}"}}.',
        ],
    )


def _too_large(top: bytes, tree: _Tree, limit_bytes: int, size: str, note: str) -> UploadTooLargeError:
    files = sorted((row for row in tree.rows if stat.S_ISREG(row.mode)), key=lambda row: (-row.size, row.path))
    largest = ", ".join(f"{_shown(row.path)} ({_megabytes(row.size)})" for row in files[:10])
    ignore = ".flowignore" if os.path.exists(top + b"/.flowignore") else ".flowignore (same syntax as .gitignore)"
    return UploadTooLargeError(
        f"Project size ({size}) exceeds limit ({limit_bytes / 1e6:g}MB)",
        [
            f"Name what the task does not need (models, datasets, caches) in {ignore}.",
            f"The largest files: {largest}{note}.",
            'Let the task fetch the code: flow.run("git clone https://github.com/you/project.git . && python train.py", '
            "upload_code=False).",
            'Use an image that holds the code: flow.run("python /app/train.py", image="you/project:latest", '
            "upload_code=False).",
            'Fetch an archive from storage: flow.run("aws s3 cp s3://bucket/code.tar.gz . && tar -xzf code.tar.gz && '
            'python train.py", upload_code=False).',
            "Keep the code on a volume, which you fill once with git clone or rsync: "
            'flow.run("python /code/train.py", volumes=[{"name": "my-code", "mount_path": "/code"}], upload_code=False).',
        ],
    )


def _storage_error(into: Path, error: OSError) -> FlowError:
    place = _shown(os.fsencode(into))
    elsewhere = "Or keep Flow's files elsewhere: set FLOW_HOME."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ConfigError(f"The disk that holds {place} is full.", ["Free some space on it.", elsewhere])
    return ConfigError(f"{place} cannot be written to: {_why(error)}.", ["Check who may write to it.", elsewhere])
