"""The user's code as one content-addressed archive.

`pack` walks a project once and leaves `<sha256>.tar.gz` in the bundles folder; the same content is stored once, whoever
packed it, wherever and whenever.

What is left out: whatever `.flowignore` names, or `.gitignore` where the project's top has no `.flowignore`. Both mean
what they mean to git: files of that name further down count too, and so do `.gitignore` files above the project in the
same repository. `.git` and Flow's own folder never travel. Caches and environments (`LEFT_OUT`, and any folder with a
`pyvenv.cfg`) stay behind unless a line such as `!node_modules/` takes them back.

What travels: regular files with their exec bit, folders also where empty, links that stay inside the project. Owners,
times and the other permission bits do not.
"""

# Names on disk need not be UTF-8, so paths are bytes here, and pathlib has none.

from __future__ import annotations

import errno
import os
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from flow_sdk.errors import ConfigError, FlowError, UploadTooLargeError, ValidationError
from flow_sdk.files import write_private

if TYPE_CHECKING:
    from flow_sdk.ignore import IgnoreFile

LIMIT_BYTES = 10 * 1000 * 1000

LEFT_OUT = frozenset({b"__pycache__", b".venv", b"node_modules", b".ipynb_checkpoints", b".DS_Store"})

# A zip file cannot hold a time before 1980, and tasks build wheels and zips from what they were sent.
_MTIME = 946_684_800

# Against gzip's 6 it costs 1 % in size and saves a fifth of the time.
_LEVEL = 5
_CHUNK_BYTES = 256 * 1024
# Deflate never packs tighter than 1032:1 (zlib's technical notes).
_BEST_RATIO = 1032
_MANY_FILES = 100_000

_ATTEMPTS = 3
# File systems stamp changes with a clock that is coarser than the changes: 10 ms here, 2 s on FAT.
_RACY_NS = 2_000_000_000
_CACHE_FORMAT = 1
_PART = ".packing-"
_PART_MAX_AGE_S = 24 * 3600


class Bundle(NamedTuple):
    """One packed project.

    Attributes:
        sha256: names the content; the hash of the tar inside, so that it does not hang on the zlib that compressed it.
        size_bytes: of the archive, compressed.
        file_count: files and links in it.
        folder_count: folders in it.
        path: the archive.
    """

    sha256: str
    size_bytes: int
    file_count: int
    folder_count: int
    path: Path


class _Row(NamedTuple):
    """What was seen of one path. Equal rows mean unchanged, unless there is a `digest`: then the content decides."""

    path: bytes
    """Relative to the project's top."""
    mode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    digest: str = ""
    """Of what changed too recently for its times to show the next change; for a link, what it says in the archive."""


class _Tree(NamedTuple):
    packed: list[_Row]
    watched: list[_Row]
    """Not packed, but they decide what is: ignore files, the top folder, environments."""
    above: list[bytes]
    """The folders above the project whose ignore files count, outermost first."""


class _Changed(Exception):
    """A path is no longer what it was a moment ago."""

    def __init__(self, path: bytes) -> None:
        super().__init__(path)
        self.path = path


def pack(root: Path, into: Path, *, limit_bytes: int = LIMIT_BYTES, without: bytes = b"") -> Bundle:
    """Pack the project at `root` into `into`/<sha256>.tar.gz; one that did not change is recognised without reading it.

    Safe to call from many processes at once. The archive appears whole or not at all.

    Args:
        root: the project's top folder.
        into: the bundles folder; made where missing. It, and the Flow folder it lies in, are left out of the archive.
        limit_bytes: the most that the archive may measure, compressed.
        without: files whose name ends so are left out; none unless given.

    Raises:
        ValidationError: `root` is not a folder, is `/` or the home folder, or holds what cannot be sent: a link that
            leads outside, a socket, a file that cannot be read or does not stop changing.
        UploadTooLargeError: the archive would be over the limit. Compression stops there, and the size in the message
            is carried forward from the part that was read.
        ConfigError: `into` cannot be written, or its disk is full.
    """
    top = _top(Path(root))
    into = Path(into)
    moving = b""
    try:
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = _recall(top, into, limit_bytes, without)
        if known is not None:
            return known
        for _ in range(_ATTEMPTS):
            try:
                return _pack_once(top, into, limit_bytes, without)
            except _Changed as change:
                moving = change.path
    except OSError as error:
        raise _storage_error(into, error) from error
    raise ValidationError(
        f"{_name(moving)} kept changing while it was packed.",
        ["Try again when nothing writes to it.", *_leave_out(top, moving)],
    )


def folders(root: Path, into: Path, *, without: bytes = b"") -> list[Path]:
    """The folders that were packed the last time, the project's top first; empty where that is not known."""
    import json

    top = _top(Path(root))
    try:
        packed = json.loads(_cache_path(top, Path(into), without).read_bytes())["packed"]
        below = [Path(os.fsdecode(top), path) for path, mode, *_ in packed if stat.S_ISDIR(mode)]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return [Path(os.fsdecode(top)), *below]


def _pack_once(top: bytes, into: Path, limit_bytes: int, without: bytes) -> Bundle:
    started_ns = time.time_ns()
    tree, total_bytes = _scan(top, _flow_folder(top, into), without, started_ns, limit_bytes * _BEST_RATIO)
    if total_bytes > limit_bytes * _BEST_RATIO:
        raise _too_large(top, tree, limit_bytes, f"{_megabytes(total_bytes)} before compression")
    _sweep(into)
    part = into / f"{_PART}{os.getpid()}-{os.urandom(6).hex()}"
    seen: list[_Row] = []
    try:
        # An archive may hold what its owner would not show to others.
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            sha256, read, written, whole = _compress(_tar(top, tree.packed, seen, started_ns), out, limit_bytes)
        if not whole:
            size_bytes = written * max(total_bytes, read) // read
            where = f"; before compression, {_megabytes(read)} of {_megabytes(total_bytes)} were over the limit"
            raise _too_large(top, tree, limit_bytes, _megabytes(size_bytes), where)
        folder_count = sum(stat.S_ISDIR(row.mode) for row in seen)
        bundle = Bundle(sha256, written, len(seen) - folder_count, folder_count, into / f"{sha256}.tar.gz")
        part.replace(bundle.path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _remember(top, into, without, tree._replace(packed=seen), bundle)
    return bundle


def _compress(pieces: Iterator[bytes], out: BinaryIO, limit_bytes: int) -> tuple[str, int, int, bool]:
    """The hash of what was read, the bytes read and written, and whether all of it was within the limit."""
    import hashlib

    digest = hashlib.sha256()
    checksum = read = 0
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    # No name, no time, "unknown" for the system (RFC 1952): the header that zlib writes tells platforms apart.
    written = out.write(b"\x1f\x8b\x08\0\0\0\0\0\0\xff")
    for piece in pieces:
        digest.update(piece)
        checksum = zlib.crc32(piece, checksum)
        read += len(piece)
        written += out.write(deflate.compress(piece))
        if written > limit_bytes:
            return "", read, written + len(deflate.flush()), False
    written += out.write(deflate.flush() + struct.pack("<LL", checksum, read & 0xFFFFFFFF))
    return digest.hexdigest(), read, written, written <= limit_bytes


# What is packed


def _top(root: Path) -> bytes:
    name = _shown(os.fsencode(root))
    try:
        is_folder = stat.S_ISDIR(os.stat(root).st_mode)
        top = os.fsencode(os.path.realpath(root))
    except FileNotFoundError:
        raise ValidationError(f"There is no folder {name} to upload.") from None
    except (OSError, ValueError) as error:
        raise ValidationError(f"{name} cannot be uploaded: {_why(error)}.") from error
    if not is_folder:
        raise ValidationError(f"{name} is not a folder, and code is uploaded as one.", ["Give the folder it lies in."])
    elsewhere = ["Go to your project first: cd my-project.", "Or run without your code: upload_code=False."]
    if top == b"/":
        raise ValidationError("This would upload the whole disk: the folder to upload is /.", elsewhere)
    if top == os.fsencode(os.path.realpath(os.path.expanduser("~"))):
        raise ValidationError(f"This would upload your whole home folder, {_shown(top)}.", elsewhere)
    return top


def _flow_folder(top: bytes, into: Path) -> bytes | None:
    """Where Flow's own folder lies inside the project, if it does: it holds copies of the code, more with each task."""
    bundles = os.fsencode(os.path.realpath(into))
    for folder in (os.path.dirname(bundles), bundles):
        if folder.startswith(top + b"/"):
            return folder
    return None


def _scan(
    top: bytes, flow_folder: bytes | None, without: bytes, started_ns: int, enough_bytes: int
) -> tuple[_Tree, int]:
    """The tree, and about what its tar will measure; with very many files, only as much of it as is `enough_bytes`."""
    total_bytes = 0
    ignore_name, above = _ignore_files(top)
    tree = _Tree([], [], above)
    outside: list[_Row] = []
    stack: list[tuple[bytes, list[IgnoreFile], bool]] = [(top, _rules_above(top, tree, started_ns), False)]
    while stack and (len(tree.packed) < _MANY_FILES or total_bytes <= enough_bytes):
        folder, rules, taken_back = stack.pop()
        relative = folder[len(top) + 1 :]
        try:
            row = _row(relative, os.lstat(folder))
            with os.scandir(folder) as found:
                entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
        except OSError as error:
            raise _unreadable(top, relative, error) from error
        if _is_racy(row, started_ns):
            row = row._replace(digest=_listing(entries))
        names = {name for name, _ in entries}
        if not relative:
            tree.watched.append(row)
        elif b"pyvenv.cfg" in names and not taken_back:
            tree.watched.append(row)
            continue
        else:
            tree.packed.append(row)
        if ignore_name in names:
            rules = rules + _read_rules(top, folder, ignore_name, tree, started_ns)
        for name, is_dir in entries:
            path = folder + b"/" + name
            if name == b".git" or path == flow_folder:
                continue
            ignored = _is_ignored(rules, path, name, is_dir)
            if ignored or (ignored is None and name in LEFT_OUT):
                continue
            if is_dir:
                stack.append((path, rules, ignored is False))
                continue
            if without and name.endswith(without):
                continue
            row, stays = _leaf(top, path[len(top) + 1 :])
            (tree.packed if stays else outside).append(row)
            total_bytes += 512 + (-(-row.size // 512) * 512 if stat.S_ISREG(row.mode) else 0)
    if outside:
        raise _leads_outside(top, sorted(outside))
    tree.packed.sort()
    return tree, total_bytes


def _leaf(top: bytes, path: bytes) -> tuple[_Row, bool]:
    """What there is at a path that is no folder, and whether that stays inside the project."""
    try:
        row = _row(path, os.lstat(os.path.join(top, path)))
        if stat.S_ISREG(row.mode):
            return row, True
        if stat.S_ISLNK(row.mode):
            target, stays = _link_target(top, path)
            return row._replace(digest=os.fsdecode(target)), stays
    except OSError as error:
        raise _unreadable(top, path, error) from error
    if stat.S_ISDIR(row.mode):
        raise _Changed(path)
    kind = "a socket" if stat.S_ISSOCK(row.mode) else "a named pipe" if stat.S_ISFIFO(row.mode) else "a device"
    raise ValidationError(f"{_name(path)} is {kind}, which cannot be sent anywhere.", _leave_out(top, path))


def _row(path: bytes, status: os.stat_result) -> _Row:
    return _Row(path, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _is_racy(row: _Row, now_ns: int) -> bool:
    return row.ctime_ns > now_ns - _RACY_NS


def _listing(entries: list[tuple[bytes, bool]]) -> str:
    return _digest(b"\0".join(sorted(name + (b"/" if is_dir else b"") for name, is_dir in entries)))


def _digest(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def _link_target(top: bytes, path: bytes) -> tuple[bytes, bool]:
    """What the link at `path` says in the archive, or where it leads; and whether that is inside the project."""
    text = os.readlink(os.path.join(top, path))
    folder = os.path.dirname(path)
    target = os.path.realpath(os.path.join(top, path))
    if target != top and not target.startswith(top + b"/"):
        return target, False
    # One that leaves and comes back in by the name of a folder around it would not find that name elsewhere.
    if text.startswith(b"/") or os.path.normpath(os.path.join(folder, text)).split(b"/")[0] == b"..":
        return os.path.relpath(target, os.path.join(top, folder)), True
    return text, True


# Ignore files


def _is_ignored(rules: list[IgnoreFile], path: bytes, name: bytes, is_dir: bool) -> bool | None:
    """What the innermost ignore file says of those that say anything; None where all are silent."""
    for rule in reversed(rules):
        ignored = rule.verdict(path, name, is_dir)
        if ignored is not None:
            return ignored
    return None


def _ignore_files(top: bytes) -> tuple[bytes, list[bytes]]:
    """The name that ignore files have here, and the folders above the project whose files count, outermost first."""
    if os.path.isfile(top + b"/.flowignore"):
        return b".flowignore", []
    above: list[bytes] = []
    folder = top
    while not os.path.lexists(os.path.join(folder, b".git")):
        folder, below = os.path.dirname(folder), folder
        if folder == below:
            return b".gitignore", []
        if os.path.isfile(os.path.join(folder, b".gitignore")):
            above.insert(0, folder)
    return b".gitignore", above


def _rules_above(top: bytes, tree: _Tree, started_ns: int) -> list[IgnoreFile]:
    rules: list[IgnoreFile] = []
    for folder in tree.above:
        rules += _read_rules(top, folder, b".gitignore", tree, started_ns)
    path = top
    while rules and len(path) > rules[0].base:
        of_folders_around = [rule for rule in rules if rule.base < len(path)]
        if _is_ignored(of_folders_around, path, os.path.basename(path), True):
            # The repository ignores the project as a whole, which says nothing about what in it matters.
            return []
        path = os.path.dirname(path)
    return rules


def _read_rules(top: bytes, folder: bytes, name: bytes, tree: _Tree, started_ns: int) -> list[IgnoreFile]:
    path = os.path.join(folder, name)
    relative = os.path.relpath(path, top)
    try:
        row = _row(relative, os.stat(path))
        if not stat.S_ISREG(row.mode):
            return []
        with open(path, "rb") as file:
            text = file.read()
    except FileNotFoundError:
        # A link to nothing. What it leads to may come to be, and nothing here would show it: this row never holds.
        tree.watched.append(_Row(relative, 0, 0, 0, 0, 0))
        return []
    except OSError as error:
        raise _unreadable(top, relative, error) from error
    tree.watched.append(row._replace(digest=_digest(text)) if _is_racy(row, started_ns) else row)
    # Not at the top: with pathspec it costs as much as all else here, and many projects have no ignore file.
    from flow_sdk.ignore import parse

    rules = parse(text, len(folder.rstrip(b"/")) + 1)
    return [rules] if rules.ignores else []


# The archive


def _tar(top: bytes, rows: list[_Row], seen: list[_Row], started_ns: int) -> Iterator[bytes]:
    """The tar of `rows`, in pieces whose sizes follow from the content alone; `seen` gets each path as it was read."""
    for row in rows:
        if stat.S_ISREG(row.mode):
            yield from _tar_file(top, row.path, seen, started_ns)
            continue
        seen.append(row)
        if stat.S_ISLNK(row.mode):
            yield _header(row.path, 0o777, 0, b"2", os.fsencode(row.digest))
        else:
            yield _header(row.path + b"/", 0o755, 0, b"5")
    yield bytes(1024)


def _tar_file(top: bytes, path: bytes, seen: list[_Row], started_ns: int) -> Iterator[bytes]:
    import hashlib

    content = hashlib.sha256()
    try:
        # Neither a link nor a pipe that has taken the file's place is followed or waited for.
        fd = os.open(os.path.join(top, path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            row = _row(path, os.fstat(fd))
            if not stat.S_ISREG(row.mode):
                raise _Changed(path)
            racy = _is_racy(row, started_ns)
            piece = _header(path, 0o755 if row.mode & 0o111 else 0o644, row.size, b"0")
            left = row.size
            while left:
                chunk = _read(fd, min(left, _CHUNK_BYTES), path)
                if racy:
                    content.update(chunk)
                piece += chunk
                left -= len(chunk)
                if left:
                    yield piece
                    piece = b""
            after = _row(path, os.fstat(fd))
        finally:
            os.close(fd)
    except OSError as error:
        raise _unreadable(top, path, error) from error
    # A log that grew is sent as it was. Any other change may have left us half of one state and half of another.
    if after.size <= row.size and after.ctime_ns != row.ctime_ns:
        raise _Changed(path)
    seen.append(row._replace(digest=content.hexdigest()) if racy else row)
    yield piece + bytes(-row.size % 512)


def _read(fd: int, size: int, path: bytes) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            raise _Changed(path)
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
    for part in into.glob(f"{_PART}*"):
        try:
            if time.time() - part.stat().st_mtime > _PART_MAX_AGE_S:
                part.unlink()
        except FileNotFoundError:
            continue


# Recognising an unchanged project


def _cache_path(top: bytes, into: Path, without: bytes) -> Path:
    # A path holds no NUL, so no two projects share a name.
    key = top + b"\0" + without if without else top
    return into / "cache" / f"{_digest(key)[:32]}.json"


def _remember(top: bytes, into: Path, without: bytes, tree: _Tree, bundle: Bundle) -> None:
    import json

    record = {
        "format": _CACHE_FORMAT,
        "root": os.fsdecode(top),
        "above": [os.fsdecode(folder) for folder in tree.above],
        "packed": [(os.fsdecode(row.path), *row[1:]) for row in tree.packed],
        "watched": [(os.fsdecode(row.path), *row[1:]) for row in tree.watched],
        "sha256": bundle.sha256,
        "size_bytes": bundle.size_bytes,
        "file_count": bundle.file_count,
        "folder_count": bundle.folder_count,
    }
    path = _cache_path(top, into, without)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_private(path, json.dumps(record).encode())
    except OSError:
        # The bundle is there; without this, the next time is only slower.
        return


def _recall(top: bytes, into: Path, limit_bytes: int, without: bytes) -> Bundle | None:
    """The bundle of the last time, if it is still there and nothing has changed."""
    import json

    now_ns = time.time_ns()
    try:
        record = json.loads(_cache_path(top, into, without).read_bytes())
        sha256 = record["sha256"]
        counts = record["file_count"], record["folder_count"]
        bundle = Bundle(sha256, record["size_bytes"], *counts, into / f"{sha256}.tar.gz")
        tree = _Tree(
            [_Row(os.fsencode(path), *rest) for path, *rest in record["packed"]],
            [_Row(os.fsencode(path), *rest) for path, *rest in record["watched"]],
            [os.fsencode(folder) for folder in record["above"]],
        )
        if (
            record["format"] != _CACHE_FORMAT
            or record["root"] != os.fsdecode(top)
            or bundle.size_bytes > limit_bytes
            or bundle.path.stat().st_size != bundle.size_bytes
            or _ignore_files(top)[1] != tree.above
            or not all(_is_same(top, row, os.stat) for row in tree.watched)
            or not all(_is_same(top, row, os.lstat) for row in tree.packed)
        ):
            return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # No record, a damaged one, or one of a path that is gone.
        return None
    settled = tree._replace(packed=_settled(tree.packed, now_ns), watched=_settled(tree.watched, now_ns))
    if settled != tree:
        _remember(top, into, without, settled, bundle)
    return bundle


def _is_same(top: bytes, row: _Row, look: Callable[[bytes], os.stat_result]) -> bool:
    path = os.path.join(top, row.path)
    if row[:6] != _row(row.path, look(path))[:6]:
        return False
    if stat.S_ISLNK(row.mode):
        return _link_target(top, row.path) == (os.fsencode(row.digest), True)
    if not row.digest:
        return True
    if stat.S_ISDIR(row.mode):
        with os.scandir(path) as found:
            return _listing([(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]) == row.digest
    import hashlib

    content = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            content.update(chunk)
    return content.hexdigest() == row.digest


def _settled(rows: list[_Row], now_ns: int) -> list[_Row]:
    """The rows without the digests that are no longer needed."""
    return [
        row if not row.digest or stat.S_ISLNK(row.mode) or _is_racy(row, now_ns) else row._replace(digest="")
        for row in rows
    ]


# Errors


def _shown(path: bytes) -> str:
    """A path for a person: on one line, and printable whatever is in it."""
    text = os.fsdecode(path)
    return text if text.isprintable() else repr(text)


def _name(path: bytes) -> str:
    return _shown(path) if path else "The folder to upload"


def _why(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _megabytes(size_bytes: int) -> str:
    """Rounded up, so that what is over a limit also reads so."""
    if size_bytes >= 1e9:
        return f"{-(-size_bytes // 10**8) / 10:.1f}GB"
    return f"{-(-size_bytes // 10**5) / 10:.1f}MB"


def _leave_out(top: bytes, path: bytes) -> list[str]:
    """How to leave `path` out, which depends on the ignore file that is read here."""
    if not path:
        return []
    if os.path.exists(top + b"/.flowignore") or not os.path.exists(top + b"/.gitignore"):
        return [f"Leave {_shown(path)} out: add it to .flowignore."]
    return [f"Leave {_shown(path)} out: add it to .gitignore, or to a .flowignore, which is then read instead."]


def _unreadable(top: bytes, path: bytes, error: OSError) -> _Changed | ValidationError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ESTALE):
        return _Changed(path)
    return ValidationError(f"{_name(path)} cannot be read: {_why(error)}.", _leave_out(top, path))


def _leads_outside(top: bytes, links: list[_Row]) -> ValidationError:
    link, target = _shown(links[0].path), _shown(os.fsencode(links[0].digest))
    more = f" ({len(links) - 1} more do, too)" if len(links) > 1 else ""
    return ValidationError(
        f"The link {link} leads outside the project, to {target}{more}.",
        [
            *(line for row in links[:10] for line in _leave_out(top, row.path)),
            f'Give the task what the link leads to as a mount: mounts={{"/data": "{target}"}}.',
            "Or replace the link with what it leads to.",
        ],
    )


def _too_large(top: bytes, tree: _Tree, limit_bytes: int, size: str, where: str = "") -> UploadTooLargeError:
    files = sorted((row for row in tree.packed if stat.S_ISREG(row.mode)), key=lambda row: (-row.size, row.path))
    largest = ", ".join(f"{_shown(row.path)} ({_megabytes(row.size)})" for row in files[:10])
    return UploadTooLargeError(
        f"Project size ({size}) exceeds limit ({limit_bytes / 1e6:g}MB)",
        [
            "Name what the task does not need (models, datasets, caches) in .flowignore, in the syntax of .gitignore.",
            f"The largest files: {largest}{where}.",
            "Let the task fetch the code: "
            'flow.run("git clone https://github.com/you/code.git . && python train.py", upload_code=False).',
            "Use an image that holds the code: "
            'flow.run("python /app/train.py", image="you/code:latest", upload_code=False).',
            "Fetch an archive from storage: "
            'flow.run("aws s3 cp s3://bucket/code.tar.gz . && tar -xzf code.tar.gz && python train.py", '
            "upload_code=False).",
            "Keep the code on a volume, filled once with git clone or rsync: "
            'flow.run("python /code/train.py", volumes=[{"name": "my-code", "mount_path": "/code"}], '
            "upload_code=False).",
        ],
    )


def _storage_error(into: Path, error: OSError) -> FlowError:
    place = _shown(os.fsencode(into))
    elsewhere = "Or keep Flow's files elsewhere: set FLOW_HOME."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ConfigError(f"The disk that holds {place} is full.", ["Free some space on it.", elsewhere])
    return ConfigError(f"{place} cannot be written to: {_why(error)}.", ["Check who may write there.", elsewhere])
