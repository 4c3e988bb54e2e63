"""Packing a project: what travels, what stays, equal bytes for equal trees, and nothing read where nothing changed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flow_sdk import bundle, ignore
from flow_sdk.bundle import Bundle, pack
from flow_sdk.errors import ConfigError, UploadTooLargeError, ValidationError
from tests.services import require, wait_for

pytestmark = pytest.mark.filterwarnings("error")

Tree = dict[bytes, tuple[object, ...]]


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "flow home" / "bundles"


def write(root: Path, files: dict[str, str | bytes]) -> None:
    """Files by path; a path that ends with a slash is an empty folder."""
    for name, content in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def tree(root: Path) -> Tree:
    """All that an archive has to bring back, by path."""
    found: Tree = {}
    top = os.fsencode(root)
    for folder, folders, files in os.walk(top):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            kind: tuple[object, ...]
            if stat.S_ISLNK(mode):
                kind = ("link", os.readlink(path))
            elif stat.S_ISDIR(mode):
                kind = ("folder",)
            else:
                with open(path, "rb") as file:
                    kind = ("file", bool(mode & 0o100), file.read())
            found[os.path.relpath(path, top)] = kind
    return found


def unpack(packed: Bundle) -> Tree:
    """What the runner's `tar` makes of an archive. Python's safest reader has to agree."""
    with tempfile.TemporaryDirectory() as by_tar, tempfile.TemporaryDirectory() as by_python:
        subprocess.run(["tar", "-xzpf", packed.path, "-C", by_tar], check=True)
        with tarfile.open(packed.path, encoding="utf-8", errors="surrogateescape") as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extractall(by_python, filter="data")
                assert tree(Path(by_python)) == tree(Path(by_tar))
        return tree(Path(by_tar))


def paths(packed: Bundle) -> list[str]:
    with tarfile.open(packed.path) as archive:
        return sorted(archive.getnames())


def make_odd_tree(root: Path) -> None:
    write(
        root,
        {
            "train.py": "print('hi')\n",
            'with space/it\'s "quoted".txt': "a",
            "new\nline/tab\there": "b",
            "naïve/文件/🚀.py": "c",
            "-rf/--checkpoint=1": "d",
            "back\\slash": "e",
            "long/" + "x" * 200 + "/" + "y" * 200: "f",
            "x" * 100: "exactly as long as a header's field",
            "y" * 99 + "/": "",
            "empty/in it/": "",
            "zero bytes": "",
            "block": b"\0" * 512,
            "big.bin": random.Random(1).randbytes(700_001),
            "*glob?[a]": "g",
            "trailing space ": "h",
        },
    )
    (root / os.fsdecode(b"not \xff utf-8 \xe9")).write_bytes(b"\xff\xfe")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link to file").symlink_to("train.py")
    (root / "with space" / "up").symlink_to("../train.py")
    (root / "link to folder").symlink_to("with space")
    (root / "broken").symlink_to("nowhere/at all")
    (root / "loop").symlink_to("loop")
    (root / "far").symlink_to("long/" + "x" * 200 + "/" + "y" * 200)
    (root / "self").symlink_to(".")


# The archive


def test_what_is_unpacked_is_what_was_packed(tmp_path: Path, into: Path) -> None:
    root = tmp_path / "project"
    make_odd_tree(root)
    packed = pack(root, into)
    assert unpack(packed) == tree(root)
    assert packed.file_count == sum(kind[0] != "folder" for kind in tree(root).values())
    assert packed.size_bytes == packed.path.stat().st_size


SPECIAL = {b".", b"..", b".git", b".gitignore", b".flowignore", b"pyvenv.cfg", *bundle.LEFT_OUT}
names = st.binary(min_size=1, max_size=120).filter(lambda name: not set(b"/\0") & set(name) and name not in SPECIAL)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.lists(names, min_size=1, max_size=3).map(tuple), st.binary(max_size=1500), max_size=8))
def test_any_names_survive(files: dict[tuple[bytes, ...], bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, top = Path(folder, "project"), os.path.join(os.fsencode(folder), b"project")
        root.mkdir()
        for parts, content in files.items():
            path = os.path.join(top, *parts)
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(content)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                continue
        assert unpack(pack(root, Path(folder, "bundles"))) == tree(root)


def test_an_empty_project_is_an_empty_archive(tmp_path: Path, into: Path) -> None:
    (tmp_path / "project").mkdir()
    packed = pack(tmp_path / "project", into)
    assert unpack(packed) == {}
    assert packed.file_count == 0


def test_the_name_is_the_hash_of_the_tar_and_only_the_owner_can_read_it(tmp_path: Path, into: Path) -> None:
    write(tmp_path / "project", {"a.py": "a"})
    packed = pack(tmp_path / "project", into)
    assert hashlib.sha256(gzip.decompress(packed.path.read_bytes())).hexdigest() == packed.sha256
    assert packed.path == into / f"{packed.sha256}.tar.gz"
    assert stat.S_IMODE(packed.path.stat().st_mode) == 0o600
    assert sorted(path.name for path in into.iterdir()) == [packed.path.name, "cache"]


def test_owners_times_and_odd_permissions_stay_behind(tmp_path: Path, into: Path) -> None:
    root = tmp_path / "project"
    write(root, {"plain": "a", "tool": "b", "sub/": ""})
    (root / "plain").chmod(0o640)
    (root / "tool").chmod(0o4711)
    (root / "sub").chmod(0o2777)
    with tarfile.open(pack(root, into).path) as archive:
        members = {member.name: member for member in archive}
    assert {name: oct(member.mode) for name, member in members.items()} == {
        "plain": "0o644",
        "tool": "0o755",
        "sub": "0o755",
    }
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members.values()} == {(0, 0, "", "")}
    assert len({member.mtime for member in members.values()}) == 1
    # Wheels and other zip files cannot hold an earlier time.
    assert members["plain"].mtime > 315_532_800 + 24 * 3600


def test_equal_trees_are_equal_bytes(tmp_path: Path, into: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "another place"
    make_odd_tree(first)
    second.mkdir()
    copies = sorted(tree(first).items(), reverse=True)
    for path, (kind, *rest) in copies:
        target = os.path.join(os.fsencode(second), path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if kind == "folder":
            os.makedirs(target, exist_ok=True)
        elif kind == "link":
            os.symlink(str(os.fsdecode(rest[0])), os.fsdecode(target))  # type: ignore[call-overload]
        else:
            executable, content = rest
            with open(target, "wb") as file:
                file.write(content)  # type: ignore[arg-type]
            os.chmod(target, 0o700 if executable else 0o600)
            os.utime(target, (1, 1))
    here = pack(first, into)
    script = (
        "import sys; from pathlib import Path; from flow_sdk.bundle import pack\n"
        "print(pack(Path(sys.argv[1]), Path(sys.argv[2])).path)"
    )
    environ = {"PATH": os.environ["PATH"], "HOME": "/", "LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    there = subprocess.run(
        ["sh", "-c", 'umask 077; exec "$@"', "sh", sys.executable, "-c", script, second, tmp_path / "elsewhere"],
        env=environ,
        cwd=Path(bundle.__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert Path(there).name == here.path.name
    assert Path(there).read_bytes() == here.path.read_bytes()


def test_the_order_in_which_a_disk_lists_names_is_not_seen(
    tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    make_odd_tree(root)
    scandir = os.scandir

    @contextmanager
    def shuffled(path: str | bytes) -> Iterator[list[os.DirEntry[bytes]]]:
        with scandir(os.fsencode(path)) as found:
            entries = list(found)
        random.Random(8).shuffle(entries)
        yield entries

    expected = pack(root, into).path.read_bytes()
    monkeypatch.setattr(bundle.os, "scandir", shuffled)
    monkeypatch.setattr(bundle, "_sweep", lambda into: None)
    assert pack(root, tmp_path / "elsewhere").path.read_bytes() == expected


def test_a_file_of_more_than_eight_gigabytes_has_a_header_that_says_so() -> None:
    header = bundle._header(b"weights", 0o644, 9 << 30, b"0")
    assert tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == 9 << 30


# What stays behind


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ({}, {"a.log", "a.py", "data/a.log", "data/x.bin", "sub/a.log", "sub/data/y.bin"}),
        ({".gitignore": "*.log\n"}, {"a.py", "data/x.bin", "sub/data/y.bin"}),
        ({".gitignore": "data/\n"}, {"a.log", "a.py", "sub/a.log"}),
        ({".gitignore": "/data\n"}, {"a.log", "a.py", "sub/a.log", "sub/data/y.bin"}),
        (
            {".gitignore": "*.log\n!a.log\n"},
            {"a.log", "a.py", "data/a.log", "data/x.bin", "sub/a.log", "sub/data/y.bin"},
        ),
        ({".gitignore": "!a.log\n*.log\n"}, {"a.py", "data/x.bin", "sub/data/y.bin"}),
        ({".gitignore": "data\n!data/a.log\n"}, {"a.log", "a.py", "sub/a.log"}),
        ({".gitignore": "/data/*\n!/data/a.log\n"}, {"a.log", "a.py", "data/a.log", "sub/a.log", "sub/data/y.bin"}),
        ({"sub/.gitignore": "/a.log\n"}, {"a.log", "a.py", "data/a.log", "data/x.bin", "sub/data/y.bin"}),
        (
            {".gitignore": "*.log\n", "sub/.gitignore": "!a.log\n"},
            {"a.py", "data/x.bin", "sub/a.log", "sub/data/y.bin"},
        ),
        ({".gitignore": "sub/\n", "sub/.gitignore": "!*\n"}, {"a.log", "a.py", "data/a.log", "data/x.bin"}),
        # .flowignore takes the place of every .gitignore.
        (
            {".flowignore": "*.py\n", ".gitignore": "*.log\n"},
            {"a.log", "data/a.log", "data/x.bin", "sub/a.log", "sub/data/y.bin"},
        ),
        ({".flowignore": "", "sub/.flowignore": "data\n"}, {"a.log", "a.py", "data/a.log", "data/x.bin", "sub/a.log"}),
        ({"sub/.flowignore": "data\n"}, {"a.log", "a.py", "data/a.log", "data/x.bin", "sub/a.log", "sub/data/y.bin"}),
        ({".gitignore": "\ufeff*.log\r\n# data\r\n\r\n"}, {"a.py", "data/x.bin", "sub/data/y.bin"}),
    ],
)
def test_ignore_files(tmp_path: Path, into: Path, rules: dict[str, str | bytes], kept: set[str]) -> None:
    root = tmp_path / "project"
    write(root, dict.fromkeys(["a.log", "a.py", "data/a.log", "data/x.bin", "sub/a.log", "sub/data/y.bin"], "x"))
    write(root, rules)
    found = {os.fsdecode(path) for path, kind in unpack(pack(root, into)).items() if kind[0] == "file"}
    assert {path for path in found if Path(path).name not in (".gitignore", ".flowignore")} == kept


GIT_NAMES = ["a", "b", "ab", "a.b", "foo", "é", "a b", "b\n", "x]", "-a", "A1", "[a]", "a\\b", "voilà", "\xa0x"]
git_segments = st.one_of(
    st.sampled_from([name for name in GIT_NAMES if "\n" not in name]),
    st.sampled_from(["*", "*", "**", "***", "?", "a*", "*b", "[ab]", "[!a]", "[!a]*", "a[.-0]b", "a[!x]b", "a?b", ""]),
    st.lists(
        st.sampled_from(
            [
                *["a", "b", "ab", "é", "à", "*", "**", "?", ".", "!", "#", " ", "\t", "\xa0", "-", "]"],
                *["[ab]", "[^b-f]", "[[:alpha:]]", "[[:upper:][:digit:]]", "[]x]", "[a\\]]", "[z-a]", "[/]", "[!/]"],
                *["[a-", "[", "[[:bogus:]]", "[\\\\]", "\\", "\\a", "\\*", "\\ ", "\\/", "\\["],
            ]
        ),
        min_size=1,
        max_size=3,
    ).map("".join),
)
git_lines = st.tuples(
    st.sampled_from(["", "", "!", "!", "/", "**/", "!/", "#"]),
    st.lists(git_segments, min_size=1, max_size=3).map("/".join),
    st.sampled_from(["", "", "", "/", "/**", " ", "\r"]),
).map("".join)
git_rules = st.lists(git_lines, min_size=1, max_size=8).map("\n".join)


@pytest.fixture(scope="module")
def git_untracked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], set[bytes]]:
    """What git would add of a folder."""
    require("git")
    store = tmp_path_factory.mktemp("git") / "store"
    environ = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "init", "-q", "--bare", store], env=environ, check=True)

    def untracked(root: Path) -> set[bytes]:
        command = [
            "git",
            f"--git-dir={store}",
            f"--work-tree={root}",
            "-c",
            "core.bare=false",
            "-c",
            "core.ignorecase=false",
        ]
        done = subprocess.run(
            [*command, "ls-files", "-z", "--others", "--exclude-standard"], cwd=root, env=environ, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split(b"\0")) - {b""}

    return untracked


@pytest.fixture(scope="module")
def many_names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three levels of names; each name is a folder in one place and a file in another."""
    root = tmp_path_factory.mktemp("many names") / "project"
    for n, one in enumerate(GIT_NAMES):
        write(root, {one: ""} if n % 3 == 2 else {f"{one}/": ""})
        for m, two in enumerate(GIT_NAMES if n % 3 != 2 else []):
            write(
                root, {f"{one}/{two}": ""} if (n + m) % 2 else {f"{one}/{two}/{three}": "" for three in GIT_NAMES[m::7]}
            )
    return root


@settings(max_examples=150, deadline=None)
@given(
    rules=st.fixed_dictionaries({".": git_rules}, optional=dict.fromkeys(["a", "foo", "a/a", "foo/foo"], git_rules)),
)
@example(rules={".": "/a[.-0]b\na[!x]b\n"})
@example(rules={".": "[z-a]*\n![[:alpha:]]?\n/a/[[:bogus:]]\n"})
@example(rules={".": "a/**\n!a/b/**/\n", "a": "/b\n"})
@example(rules={".": "voilà\nfoo/*/\n\\[a]\n"})
def test_ignore_files_mean_what_they_mean_to_git(
    git_untracked: Callable[[Path], set[bytes]], many_names: Path, rules: dict[str, str]
) -> None:
    for old in many_names.rglob(".gitignore"):
        old.unlink()
    write(
        many_names, {f"{folder}/.gitignore": text for folder, text in rules.items() if (many_names / folder).is_dir()}
    )
    with tempfile.TemporaryDirectory() as into:
        packed = pack(many_names, Path(into))
        with tarfile.open(packed.path, encoding="utf-8", errors="surrogateescape") as archive:
            files = {os.fsencode(member.name) for member in archive if member.isfile()}
    assert files == git_untracked(many_names)


def test_an_ignored_folder_is_not_entered(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "project"
    write(root, {".gitignore": "data/\n", "data/deep/er/x": "", "node_modules/m/y": "", "src/a.py": ""})
    scandir = os.scandir
    entered = []

    def watched(path: str | bytes) -> object:
        if isinstance(path, bytes):
            entered.append(os.path.basename(path))
        return scandir(path)

    monkeypatch.setattr(bundle.os, "scandir", watched)
    pack(root, into)
    assert sorted(entered) == [b"project", b"src"]


def test_pathspec_is_loaded_for_ignore_files_only(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from flow_sdk.bundle import pack\n"
        "pack(Path(sys.argv[1]), Path(sys.argv[2])); print('pathspec' in sys.modules)"
    )
    root = tmp_path / "project"
    write(root, {"a.py": "a"})

    def loaded() -> str:
        argv = [sys.executable, "-c", script, str(root), str(tmp_path / "bundles")]
        return subprocess.run(
            argv, cwd=Path(bundle.__file__).parent.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert loaded() == "False"
    write(root, {".gitignore": "*.log\n"})
    assert loaded() == "True"
    assert loaded() == "False", "an unchanged project needs no rules"


def test_caches_and_environments_stay_behind_unless_taken_back(tmp_path: Path, into: Path) -> None:
    root = tmp_path / "project"
    junk = ["__pycache__/a.pyc", ".venv/x", "sub/node_modules/m.js", ".ipynb_checkpoints/n", ".DS_Store"]
    write(root, dict.fromkeys([*junk, "env/pyvenv.cfg", "env/bin/python", ".git/HEAD", "sub/.git", "a.py"], "x"))
    assert paths(pack(root, into)) == ["a.py", "sub"]
    write(root, {".flowignore": "!node_modules\n!env/\n!.git\n.flowignore\n"})
    assert paths(pack(root, into)) == [
        *["a.py", "env", "env/bin", "env/bin/python", "env/pyvenv.cfg", "sub", "sub/node_modules"],
        "sub/node_modules/m.js",
    ]


def test_the_repository_around_the_project_has_a_say(tmp_path: Path, into: Path) -> None:
    repository = tmp_path / "repository"
    root = repository / "projects" / "one"
    write(
        repository, {".git/HEAD": "x", ".gitignore": "*.ckpt\n/projects/one/big\n", "projects/.gitignore": "!b.ckpt\n"}
    )
    write(root, {"a.ckpt": "", "b.ckpt": "", "big/x": "", "a.py": ""})
    assert paths(pack(root, into)) == ["a.py", "b.ckpt"]
    write(root, {".flowignore": ".flowignore\n"})
    assert paths(pack(root, into)) == ["a.ckpt", "a.py", "b.ckpt", "big", "big/x"]


@pytest.mark.parametrize("line", ["projects/", "one", "*", "/projects/*"])
def test_a_project_that_its_repository_ignores_is_packed(tmp_path: Path, into: Path, line: str) -> None:
    repository = tmp_path / "repository"
    root = repository / "projects" / "one"
    write(repository, {".git/HEAD": "x", ".gitignore": f"{line}\n", "projects/one/a.py": ""})
    assert paths(pack(root, into)) == ["a.py"]


@pytest.mark.parametrize("home", [".", ".flow", "sub/flow home"])
def test_flows_own_folder_stays_behind(tmp_path: Path, home: str) -> None:
    root = tmp_path / "project"
    write(root, {"a.py": "", "sub/": ""})
    into = root / home / "bundles"
    if home != ".":
        write(root, {f"{home}/tasks/t1/code/a.py": ""})
    first = pack(root, into)
    assert paths(first) == ["a.py", "sub"]
    assert pack(root, into) == first


# What cannot be sent


@pytest.mark.parametrize(
    "target",
    ["/etc/hostname", "../outside.txt", "sub/../../outside.txt", "../missing", "/no/such/place", "by way/secret"],
)
def test_a_link_that_leads_outside_is_refused_by_name(tmp_path: Path, into: Path, target: str) -> None:
    root = tmp_path / "project"
    write(tmp_path, {"outside.txt": "secret", "folder/secret": "x"})
    write(root, {"sub/a.py": "", ".gitignore": "by way\n"})
    (root / "by way").symlink_to("../folder")
    (root / "sub" / "lnk").symlink_to(f"../{target}" if target[0] not in "/." else target)
    if target.startswith("../"):
        (root / "sub" / "lnk").unlink()
        (root / "sub" / "lnk").symlink_to(f"../{target}")
    with pytest.raises(ValidationError) as caught:
        pack(root, into)
    assert caught.value.message.startswith("The link sub/lnk leads outside the project, to /")
    assert "\n" not in caught.value.message
    assert any("sub/lnk" in line and ".gitignore" in line for line in caught.value.suggestions)
    assert any("mounts=" in line for line in caught.value.suggestions)
    assert not list(into.glob("*.tar.gz"))


def test_all_links_that_lead_outside_are_named(tmp_path: Path, into: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    for name in ("one", "two", "three"):
        (root / name).symlink_to("/etc")
    with pytest.raises(ValidationError, match=r"The link one leads outside .* \(2 more do, too\)") as caught:
        pack(root, into)
    assert {name for name in ("one", "two", "three") if f"Leave {name} out" in str(caught.value)} == {
        "one",
        "two",
        "three",
    }


def test_an_ignored_link_may_lead_anywhere(tmp_path: Path, into: Path) -> None:
    root = tmp_path / "project"
    write(root, {".flowignore": "data\n", "a.py": ""})
    (root / "data").symlink_to("/etc")
    assert paths(pack(root, into)) == [".flowignore", "a.py"]


def test_links_that_come_back_inside_are_made_relative(tmp_path: Path, into: Path) -> None:
    root = tmp_path / "project"
    write(root, {"sub/deep/a.py": "a", "b.py": "b"})
    (root / "sub" / "absolute").symlink_to(root / "b.py")
    (root / "sub" / "broken").symlink_to(root / "not" / "here")
    (root / "around").symlink_to("../project/sub/deep")
    (root / "top").symlink_to(root)
    (tmp_path / "alias").symlink_to(root)
    (root / "by alias").symlink_to(tmp_path / "alias" / "b.py")
    found = unpack(pack(root, into))
    links = {os.fsdecode(path): os.fsdecode(kind[1]) for path, kind in found.items() if kind[0] == "link"}  # type: ignore[arg-type]
    assert links == {
        "sub/absolute": "../b.py",
        "sub/broken": "../not/here",
        "around": "sub/deep",
        "top": ".",
        "by alias": "b.py",
    }


def test_a_project_reached_by_a_link_is_that_project(tmp_path: Path, into: Path) -> None:
    write(tmp_path / "project", {"a.py": "a"})
    (tmp_path / "alias").symlink_to("project")
    assert pack(tmp_path / "alias", into) == pack(tmp_path / "project", into)


def test_sockets_and_pipes_are_refused_by_name(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("control sock")
        with pytest.raises(ValidationError, match=r"^control sock is a socket, ") as caught:
            pack(root, into)
    assert caught.value.suggestions == ["Leave control sock out: add it to .flowignore."]
    write(root, {".flowignore": "*sock\n"})
    os.mkfifo(root / "pipe")
    with pytest.raises(ValidationError, match=r"^pipe is a named pipe, "):
        pack(root, into)
    (root / "pipe").unlink()
    assert paths(pack(root, into)) == [".flowignore"]


@contextmanager
def not_root() -> Iterator[Path]:
    """A folder in which permissions count."""
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid() != 0:
            yield Path(folder)
            return
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("name", ["secret.key", "closed/", ".gitignore"])
def test_what_cannot_be_read_is_named(name: str) -> None:
    assert ignore.parse(b"*.log", 1)
    with not_root() as folder:
        root = folder / "project"
        write(root, {"a.py": "", name: "x"})
        (root / name).chmod(0)
        with pytest.raises(ValidationError) as caught:
            pack(root, folder / "bundles")
        assert caught.value.message == f"{name.rstrip('/')} cannot be read: permission denied."
        (root / name).chmod(0o700)


def test_a_closed_folder_that_is_ignored_harms_nobody() -> None:
    assert ignore.parse(b"*.log", 1)
    with not_root() as folder:
        root = folder / "project"
        write(root, {"a.py": "", "closed/": "", ".gitignore": "closed\n"})
        (root / "closed").chmod(0)
        assert paths(pack(root, folder / "bundles")) == [".gitignore", "a.py"]
        (root / "closed").chmod(0o700)


def test_a_message_is_one_printable_line_whatever_the_name(tmp_path: Path, into: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    os.symlink("/etc", os.path.join(os.fsencode(root), b"new\nline \xff \x1b[31m"))
    with pytest.raises(ValidationError) as caught:
        pack(root, into)
    assert caught.value.message.isprintable()
    assert all(line.isprintable() for line in caught.value.suggestions)


# The top folder


def test_a_missing_folder(tmp_path: Path, into: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        pack(tmp_path / "nope", into)
    assert caught.value.message == f"There is no folder {tmp_path / 'nope'} to upload."
    assert not into.exists()


def test_a_file_is_no_project(tmp_path: Path, into: Path) -> None:
    write(tmp_path, {"a.py": ""})
    with pytest.raises(ValidationError, match=r"a\.py is not a folder"):
        pack(tmp_path / "a.py", into)
    with pytest.raises(ValidationError, match=r"cannot be uploaded: not a directory"):
        pack(tmp_path / "a.py" / "b", into)


def test_a_null_byte_in_the_path(into: Path) -> None:
    with pytest.raises(ValidationError, match="null byte"):
        pack(Path("a\0b"), into)


def test_the_whole_disk_and_the_whole_home_are_refused(
    tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "me").mkdir()
    (tmp_path / "alias").symlink_to("me")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for root, what in ((Path("/"), "whole disk"), (tmp_path / "me", "whole home"), (tmp_path / "alias", "whole home")):
        with pytest.raises(ValidationError, match=what) as caught:
            pack(root, into)
        assert "cd my-project" in caught.value.suggestions[0]
    write(tmp_path / "me", {"project/a.py": ""})
    assert paths(pack(tmp_path / "me" / "project", into)) == ["a.py"]


def test_a_folder_that_is_gone(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ValidationError, match=r"There is no folder \. to upload"):
        pack(Path(), into)


# The limit


@contextmanager
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of what is read from the project's files."""
    sizes: list[int] = []
    read = os.read

    def counting(fd: int, size: int) -> bytes:
        data = read(fd, size)
        sizes.append(len(data))
        return data

    with monkeypatch.context() as patch:
        patch.setattr(bundle.os, "read", counting)
        yield sizes


def test_over_the_limit(tmp_path: Path, into: Path) -> None:
    root = tmp_path / "project"
    noise = random.Random(2)
    write(root, {f"model-{size}.bin": noise.randbytes(size * 10_000) for size in range(1, 14)})
    with pytest.raises(UploadTooLargeError) as caught:
        pack(root, into, limit_bytes=700_000)
    assert caught.value.message == "Project size (1.0MB) exceeds limit (0.7MB)"
    ignoring, largest, git, image, storage, volume = caught.value.suggestions
    assert ".flowignore" in ignoring
    named = [part.split(" (")[0] for part in largest.removeprefix("The largest files: ").split("; ")[0].split(", ")]
    assert named == [f"model-{size}.bin" for size in range(13, 3, -1)]
    assert "git clone" in git
    assert "image=" in image
    assert "s3://" in storage
    assert "volumes=" in volume
    assert all("upload_code=False" in line for line in (git, image, storage, volume))
    assert list(into.iterdir()) == []
    exact = pack(root, into)
    assert pack(root, into, limit_bytes=exact.size_bytes) == exact
    with pytest.raises(UploadTooLargeError):
        pack(root, into, limit_bytes=exact.size_bytes - 1)


def test_the_limit_is_ten_megabytes(tmp_path: Path, into: Path) -> None:
    write(tmp_path / "project", {"a.bin": random.Random(3).randbytes(15_150_000)})
    with pytest.raises(UploadTooLargeError) as caught:
        pack(tmp_path / "project", into)
    assert caught.value.message == "Project size (15.2MB) exceeds limit (10MB)"
    write(tmp_path / "project", {"a.bin": b"x" * 15_150_000})
    assert pack(tmp_path / "project", into).size_bytes < 100_000


def test_it_stops_reading_at_the_limit(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "project"
    write(root, {f"{n}.bin": random.Random(n).randbytes(5_000_000) for n in range(4)})
    with counted_reads(monkeypatch) as sizes, pytest.raises(UploadTooLargeError) as caught:
        pack(root, into, limit_bytes=1_000_000)
    assert sum(sizes) < 2_000_000
    assert caught.value.message == "Project size (20.1MB) exceeds limit (1MB)"


def test_what_cannot_fit_is_not_read_at_all(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "project"
    root.mkdir()
    with (root / "sparse.bin").open("wb") as file:
        file.truncate(50_000_000_000)
    with counted_reads(monkeypatch) as sizes, pytest.raises(UploadTooLargeError) as caught:
        pack(root, into)
    assert sizes == []
    assert caught.value.message == "Project size (50.1GB before compression) exceeds limit (10MB)"
    assert "sparse.bin (50.0GB)" in caught.value.suggestions[1]


def test_a_walk_through_very_many_files_ends_where_they_cannot_fit(
    tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    root.mkdir()
    for number in range(50):
        (root / f"{number}").mkdir()
        for name in ("a.bin", "b.bin"):
            with (root / f"{number}" / name).open("wb") as file:
                file.truncate(1_000_000_000)
    monkeypatch.setattr(bundle, "_MANY_FILES", 30)
    with pytest.raises(UploadTooLargeError) as caught:
        pack(root, into)
    assert caught.value.message == "Project size (20.1GB before compression) exceeds limit (10MB)"


def test_memory_is_flat(tmp_path: Path) -> None:
    write(tmp_path / "small", {"a": "a"})
    write(tmp_path / "noise", {"a": random.Random(4).randbytes(40_000_000)})
    write(tmp_path / "sparse", {"a": ""})
    os.truncate(tmp_path / "sparse" / "a", 150_000_000)
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from flow_sdk.bundle import pack
        pack(Path(sys.argv[1]), Path(sys.argv[2]), limit_bytes=100_000_000)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """)

    def peak_kb(project: str) -> int:
        argv = [sys.executable, "-c", script, str(tmp_path / project), str(tmp_path / "bundles")]
        here = Path(bundle.__file__).parent.parent
        return int(subprocess.run(argv, cwd=here, capture_output=True, text=True, check=True).stdout)

    base = peak_kb("small")
    assert peak_kb("noise") < base + 8_000
    assert peak_kb("sparse") < base + 8_000


# Files that change meanwhile


@contextmanager
def while_reading(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> Iterator[None]:
    """`act(n)` runs right after the n-th piece of a file was read."""
    read, count = os.read, 0

    def acting(fd: int, size: int) -> bytes:
        nonlocal count
        data = read(fd, size)
        count += 1
        act(count)
        return data

    with monkeypatch.context() as patch:
        patch.setattr(bundle.os, "read", acting)
        yield


def project_with_a_long_file(tmp_path: Path) -> tuple[Path, Path]:
    root = tmp_path / "project"
    write(root, {"long.log": b"a" * 1_000_000, "other.py": "b"})
    return root, root / "long.log"


def test_a_log_that_grows_is_sent_as_it_was(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, log = project_with_a_long_file(tmp_path)

    def grow(_: int) -> None:
        with log.open("ab") as file:
            file.write(b"more")

    with while_reading(monkeypatch, grow):
        packed = pack(root, into)
    assert unpack(packed) == {b"long.log": ("file", False, b"a" * 1_000_000), b"other.py": ("file", False, b"b")}
    assert unpack(pack(root, into)) == tree(root), "the growth is seen the next time"


@pytest.mark.parametrize("change", ["shrink", "rewrite", "replace", "vanish", "become a link", "become a pipe"])
def test_a_file_that_changes_once_is_packed_as_it_became(
    tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    root, log = project_with_a_long_file(tmp_path)
    write(root, {"first.py": "c"})

    def act(count: int) -> None:
        # The first read is of first.py, the second is in the middle of long.log.
        in_the_middle = change in ("shrink", "rewrite")
        if count != (2 if in_the_middle else 1):
            return
        if change == "shrink":
            os.truncate(log, 10)
        elif change == "rewrite":
            log.write_bytes(b"z" * 1_000_000)
        else:
            log.unlink()
        if change == "replace":
            log.write_bytes(b"new")
        elif change == "become a link":
            log.symlink_to("other.py")
        elif change == "become a pipe":
            os.mkfifo(log)

    with while_reading(monkeypatch, act):
        if change == "become a pipe":
            with pytest.raises(ValidationError, match=r"long\.log is a named pipe"):
                pack(root, into)
            return
        packed = pack(root, into)
    assert unpack(packed) == tree(root)


def test_a_file_that_never_rests_is_named(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, log = project_with_a_long_file(tmp_path)
    with while_reading(monkeypatch, lambda count: os.utime(log)), pytest.raises(ValidationError) as caught:
        pack(root, into)
    assert caught.value.message == "long.log kept changing while it was packed."
    assert caught.value.suggestions[1] == "Leave long.log out: add it to .flowignore."
    assert list(into.glob("*.tar.gz")) == list(into.glob(".packing-*")) == []


def test_every_archive_is_whole_while_files_come_and_go(tmp_path: Path, into: Path) -> None:
    root = tmp_path / "project"
    write(root, {f"{n}.py": "x" * n * 100 for n in range(50)})
    over = threading.Event()

    def churn() -> None:
        noise = random.Random(5)
        while not over.is_set():
            path = root / f"{noise.randrange(50)}.py"
            if noise.random() < 0.3:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(b"y" * noise.randrange(5000))

    thread = threading.Thread(target=churn)
    thread.start()
    packed = 0
    try:
        for _ in range(30):
            try:
                result = pack(root, into)
            except ValidationError as error:
                assert "kept changing" in error.message
                continue
            packed += 1
            content = gzip.decompress(result.path.read_bytes())
            assert hashlib.sha256(content).hexdigest() == result.sha256
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                assert all(set(archive.extractfile(member).read()) <= set(b"xy") for member in archive)  # type: ignore[union-attr]
    finally:
        over.set()
        thread.join()
    assert unpack(pack(root, into)) == tree(root)


# The bundles folder


def test_twenty_processes_at_once(tmp_path: Path, into: Path) -> None:
    roots = [tmp_path / f"project {n}" for n in range(4)]
    for number, root in enumerate(roots):
        write(root, {f"{n}.py": f"{number} {n}" * 500 for n in range(100)})
    script = (
        "import sys; from pathlib import Path; from flow_sdk.bundle import pack\n"
        "sys.stdin.read(1); print(pack(Path(sys.argv[1]), Path(sys.argv[2])).sha256)"
    )
    here = Path(bundle.__file__).parent.parent
    packers = [
        subprocess.Popen(
            [sys.executable, "-c", script, roots[n % 4], into],
            cwd=here,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(20)
    ]
    for packer in packers:
        assert packer.stdin
        packer.stdin.write("g")
        packer.stdin.flush()
    hashes = [packer.communicate()[0].strip() for packer in packers]
    assert [packer.returncode for packer in packers] == [0] * 20
    assert hashes == [pack(root, tmp_path / "alone").sha256 for root in roots] * 5
    assert {path.name for path in into.iterdir()} == {"cache", *(f"{sha256}.tar.gz" for sha256 in hashes)}
    for root in roots:
        assert unpack(pack(root, into)) == tree(root)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, full_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = full_disk("1m")
    root = tmp_path / "project"
    write(root, {"a.bin": random.Random(6).randbytes(3_000_000)})
    with pytest.raises(ConfigError) as caught:
        pack(root, disk / "bundles")
    assert caught.value.message == f"The disk that holds {disk / 'bundles'} is full."
    assert any("FLOW_HOME" in line for line in caught.value.suggestions)
    assert list((disk / "bundles").iterdir()) == []
    write(root, {"a.bin": "now it fits"})
    packed = pack(root, disk / "bundles")
    assert unpack(packed) == tree(root)


def test_a_disk_too_full_for_the_record_still_gives_the_bundle(
    tmp_path: Path, full_disk: Callable[[str], Path]
) -> None:
    disk = full_disk("256k")
    root = tmp_path / "project"
    # Next to nothing to compress, and a lot to remember.
    write(root, {f"{'folder' * 20}/{n:04}": "" for n in range(2500)})
    packed = pack(root, disk / "bundles")
    assert packed.file_count == 2500
    assert [path.name for path in disk.rglob("*") if path.is_file()] == [packed.path.name]
    assert pack(root, disk / "bundles") == packed


def test_a_folder_that_cannot_be_written(tmp_path: Path, readonly_dir: Callable[[Path], Path]) -> None:
    write(tmp_path / "project", {"a.py": ""})
    home = readonly_dir(tmp_path / "home")
    for into in (home, home / "bundles"):
        with pytest.raises(ConfigError, match=r"cannot be written to: ") as caught:
            pack(tmp_path / "project", into)
        assert "\n" not in caught.value.message
    write(tmp_path, {"a file": ""})
    with pytest.raises(ConfigError, match=r"cannot be written to: "):
        pack(tmp_path / "project", tmp_path / "a file")


def test_a_killed_packer_leaves_no_archive_and_its_rest_is_swept(tmp_path: Path, into: Path) -> None:
    root = tmp_path / "project"
    write(root, {"a.bin": random.Random(7).randbytes(9_000_000)})
    script = (
        "import sys; from pathlib import Path; from flow_sdk.bundle import pack\n"
        "pack(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    packer = subprocess.Popen(
        [sys.executable, "-c", script, root, into], cwd=Path(bundle.__file__).parent.parent, stderr=subprocess.DEVNULL
    )
    rest = wait_for(lambda: next((part for part in into.glob(".packing-*") if part.stat().st_size), None))
    packer.send_signal(signal.SIGKILL)
    packer.wait()
    assert rest is not None
    assert rest.exists()
    assert list(into.glob("*.tar.gz")) == []
    assert unpack(pack(root, into)) == tree(root)
    assert rest.exists(), "it may belong to one that is still at work"
    os.utime(rest, (1, 1))
    write(root, {"b.py": ""})
    pack(root, into)
    assert not rest.exists()


# Unchanged projects


def packs_anew(root: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether packing reads the project's files; what it gives must be right either way."""
    with counted_reads(monkeypatch) as sizes:
        packed = pack(root, into)
    with tempfile.TemporaryDirectory() as fresh:
        assert pack(root, Path(fresh)).sha256 == packed.sha256
    return bool(sizes)


@pytest.fixture
def settled(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that was packed, and whose times are old enough to be trusted."""
    root = tmp_path / "repository" / "project"
    write(tmp_path / "repository", {".git/HEAD": "", ".gitignore": "*.ckpt\n"})
    write(
        root,
        {
            "a.py": "aaaa",
            "sub/b.py": "bbbb",
            "empty/": "",
            "sub/.gitignore": "*.log\n.gitignore\n",
            "sub/x.log": "",
            "env/pyvenv.cfg": "",
            "env/bin/python": "",
            "data/x": "",
            "data/y": "",
        },
    )
    (root / "link").symlink_to("a.py")
    (root / "by way").symlink_to("data")
    (root / "further").symlink_to("by way/x")
    now = bundle.time.time_ns
    monkeypatch.setattr(bundle.time, "time_ns", lambda: now() + 10_000_000_000)
    pack(root, into)
    assert not packs_anew(root, into, monkeypatch)
    return root


def rewrite_in_place(path: Path) -> None:
    """Another content with the same size and modification time, which only the change time tells."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(bytes(byte ^ 1 for byte in path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file's content": lambda root: (root / "a.py").write_text("other"),
    "content with the same size and time": lambda root: rewrite_in_place(root / "sub" / "b.py"),
    "a file replaced": lambda root: (shutil.copy2(root / "a.py", root / "new"), (root / "new").replace(root / "a.py")),
    "an exec bit": lambda root: (root / "a.py").chmod(0o755),
    "a file more": lambda root: (root / "empty" / "new.py").write_text(""),
    "a file less": lambda root: (root / "sub" / "b.py").unlink(),
    "a file renamed": lambda root: (root / "a.py").rename(root / "c.py"),
    "a folder more": lambda root: (root / "sub" / "new").mkdir(),
    "a folder less": lambda root: (root / "empty").rmdir(),
    "a link retargeted": lambda root: ((root / "link").unlink(), (root / "link").symlink_to("sub")),
    "a new ignore file": lambda root: (root / ".gitignore").write_text("a.py\n"),
    "a .flowignore": lambda root: (root / ".flowignore").write_text("b.py\n"),
    "an ignore file that is ignored": lambda root: (root / "sub" / ".gitignore").write_text("b.py\n.gitignore\n"),
    "an ignore file with the same size and time": lambda root: rewrite_in_place(root / "sub" / ".gitignore"),
    "the repository's ignore file": lambda root: (root.parent / ".gitignore").write_text("a.py\n"),
    "a repository's ignore file less": lambda root: (root.parent / ".gitignore").unlink(),
    "no repository any more": lambda root: shutil.rmtree(root.parent / ".git"),
    "an environment that is none": lambda root: (root / "env" / "pyvenv.cfg").unlink(),
    "a folder that became an environment": lambda root: (root / "sub" / "pyvenv.cfg").write_text(""),
    "a file that became a folder": lambda root: ((root / "a.py").unlink(), (root / "a.py").mkdir()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(settled: Path, into: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    CHANGES[change](settled)
    assert packs_anew(settled, into, monkeypatch)
    assert not packs_anew(settled, into, monkeypatch)


def test_a_link_that_leads_outside_by_way_of_another_is_noticed(settled: Path, into: Path) -> None:
    (settled / "by way").unlink()
    (settled / "by way").symlink_to("/etc")
    with pytest.raises(ValidationError, match="The link by way leads outside"):
        pack(settled, into)


def test_a_link_that_leads_outside_by_way_of_what_is_ignored_is_noticed(
    tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    write(root, {"node_modules/": "", "data/x": ""})
    (root / "node_modules" / "way").symlink_to("../data")
    (root / "link").symlink_to("node_modules/way/x")
    pack(root, into)
    assert not packs_anew(root, into, monkeypatch)
    (root / "node_modules" / "way").unlink()
    (root / "node_modules" / "way").symlink_to("/etc")
    with pytest.raises(ValidationError, match="The link link leads outside the project, to /etc/x"):
        pack(root, into)


def test_an_ignore_file_that_is_a_link_is_read_when_it_leads_somewhere(tmp_path: Path, into: Path) -> None:
    root = tmp_path / "project"
    write(root, {"node_modules/": "", "a.log": ""})
    (root / ".gitignore").symlink_to("node_modules/rules")
    assert paths(pack(root, into)) == [".gitignore", "a.log"]
    write(root, {"node_modules/rules": "*.log\n"})
    assert paths(pack(root, into)) == [".gitignore"]


def test_changes_that_do_not_matter(settled: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pack(settled, into)
    (settled / "env" / "bin" / "pip").write_text("")
    os.utime(settled / "a.py", (1, 1))
    again = pack(settled, into)
    assert again == first
    assert not packs_anew(settled, into, monkeypatch)


@pytest.mark.parametrize("clock_ns", [0, -3_600_000_000_000])
def test_a_change_within_one_tick_of_the_clock_is_noticed(
    tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch, clock_ns: int
) -> None:
    """On a file system that stamps whole seconds, and with a clock that was set back since."""
    root = tmp_path / "project"
    write(root, {"a.py": "0000", "sub/b.py": "", ".gitignore": "*.log\n"})
    now, exact = bundle.time.time_ns, bundle._row

    def coarse(path: bytes, status: os.stat_result) -> bundle._Row:
        row = exact(path, status)
        second = 1_000_000_000
        return row._replace(mtime_ns=row.mtime_ns // second * second, ctime_ns=row.ctime_ns // second * second)

    monkeypatch.setattr(bundle, "_row", coarse)
    monkeypatch.setattr(bundle.time, "time_ns", lambda: now() + clock_ns)

    def in_place(name: str, content: str) -> None:
        with (root / name).open("r+") as file:
            file.write(content)

    hashes = []
    for number in range(50):
        in_place("a.py", f"{number:04}")
        hashes.append(pack(root, into).sha256)
        in_place(".gitignore", ["*.lag", "*.lug"][number % 2])
        hashes.append(pack(root, into).sha256)
        in_place(".gitignore", ".g*  ")
        assert paths(pack(root, into)) == ["a.py", "sub", "sub/b.py"]
        in_place(".gitignore", "*.log")
        pack(root, into)
        (root / "sub" / f"{number}.py").touch()
        assert f"sub/{number}.py" in paths(pack(root, into))
        (root / "sub" / f"{number}.py").unlink()
    assert len(set(hashes)) == 100


def test_fresh_files_are_compared_by_content_until_their_times_can_be_trusted(
    tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    write(root, {"a.py": "a", "sub/b.py": "b"})
    pack(root, into)
    opened = []
    real_open = open

    def watched(path: bytes | int, mode: str) -> object:
        if isinstance(path, bytes):
            opened.append(os.path.basename(path))
        return real_open(path, mode)

    monkeypatch.setattr(bundle, "open", watched, raising=False)
    assert not packs_anew(root, into, monkeypatch)
    assert sorted(opened) == [b"a.py", b"b.py"]
    now = bundle.time.time_ns
    monkeypatch.setattr(bundle.time, "time_ns", lambda: now() + 10_000_000_000)
    opened.clear()
    for expected in ([b"a.py", b"b.py"], []):
        assert not packs_anew(root, into, monkeypatch)
        assert sorted(opened) == expected
        opened.clear()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": 1}',
        b"\xff\xfe\0",
        b'{"format": 1, "sha256": 1, "size_bytes": 1, "file_count": 1, "packed": [[1]], "watched": 3, "above": []}',
    ],
)
def test_a_damaged_record_only_costs_time(
    settled: Path, into: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    first = pack(settled, into)
    (record,) = (into / "cache").iterdir()
    record.write_bytes(damage)
    assert packs_anew(settled, into, monkeypatch)
    assert pack(settled, into) == first


@pytest.mark.parametrize("field", ["format", "root", "sha256", "size_bytes", "packed", "watched", "above"])
def test_a_record_of_something_else_is_not_believed(
    settled: Path, into: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    (record,) = (into / "cache").iterdir()
    content = json.loads(record.read_text())
    content[field] = {"format": 0, "root": "/", "sha256": "0" * 64, "size_bytes": 1, "above": ["/"]}.get(field, [["x"]])
    record.write_text(json.dumps(content))
    assert packs_anew(settled, into, monkeypatch)


@pytest.mark.parametrize("damage", ["deleted", "cut short", "cache deleted"])
def test_a_bundle_that_is_gone_is_made_again(
    settled: Path, into: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    first = pack(settled, into)
    content = first.path.read_bytes()
    if damage == "deleted":
        first.path.unlink()
    elif damage == "cut short":
        os.truncate(first.path, 100)
    else:
        shutil.rmtree(into / "cache")
    assert packs_anew(settled, into, monkeypatch)
    assert first.path.read_bytes() == content


def test_the_gzip_around_the_tar_names_nothing(tmp_path: Path, into: Path) -> None:
    write(tmp_path / "project", {"a.py": "a"})
    magic, method, flags, mtime, _, system = struct.unpack(
        "<HBBLBB", pack(tmp_path / "project", into).path.read_bytes()[:10]
    )
    assert (magic, method, flags, mtime, system) == (0x8B1F, 8, 0, 0, 255)
