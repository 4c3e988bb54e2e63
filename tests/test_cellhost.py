"""The journal of cells and its reader, the ring that outlives a kernel, and bringing code up to date."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow_sdk import bundle, cellkernel
from flow_sdk.session import Journal, append_line

HOST = Path(cellkernel.__file__).parent


def in_host(code: str, *arguments: str) -> str:
    """What a script prints that has the cell host's module at hand, as it has on a node."""
    script = f"import sys; sys.path.insert(0, {str(HOST)!r}); import cellhost\n{code}"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("start", [0, 5, 999, 1000, 12345])
def test_the_ring_has_the_last_bytes(tmp_path: Path, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cellkernel, "RING_BYTES", 1000)
    path = str(tmp_path / "ring")
    cellkernel.make_ring(path, start)
    ring, printed = cellkernel.Ring(path), b""
    choices = random.Random(start)
    for _ in range(300):
        data = choices.randbytes(choices.choice([0, 1, 3, 50, 991, 999, 1000, 1001, 2500]))
        ring.add(data)
        printed += data
        received = choices.randrange(0, len(printed) + 1)
        assert cellkernel.after(path, start + received) == printed[max(received, len(printed) - 1000) :]
    assert cellkernel.after(path, start + len(printed)) == b""
    assert cellkernel.after(str(tmp_path / "none"), 0) == b""


@given(st.binary(max_size=300), st.binary(max_size=300), st.booleans())
def test_content_is_recognised(
    tmp_path_factory: pytest.TempPathFactory, one: bytes, other: bytes, frozen: bool
) -> None:
    folder = str(tmp_path_factory.mktemp("objects"))
    name = cellkernel.place(memoryview(one), folder)
    assert bytes(cellkernel.map_copy(os.path.join(folder, name))) == one
    view = memoryview(other if frozen else bytearray(other))
    assert cellkernel.is_content(os.path.join(folder, name), view) == (one == other)
    assert cellkernel.place(view, folder, name) == cellkernel.place(view, folder)


def test_a_reader_takes_only_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    journal = Journal(tmp_path)
    assert list(journal.read()) == []
    first = json.dumps(
        {"seq": 1, "cell": "", "type": "stream", "content": {"text": "é" * 3_000_000}}, ensure_ascii=False
    )
    whole = (first + "\n" + json.dumps({"seq": 2, "cell": "", "type": "x", "content": {}}) + "\n").encode()
    for end in (10, 1_500_000, len(whole) - 5):
        path.write_bytes(whole[:end])
        seen = [event["seq"] for event in journal.read()]
    assert seen == [1]
    # Its writer takes half a line back, and writes another.
    path.write_bytes(whole[: len(first.encode()) + 1] + b'{"seq": 2, "cell": "", "type": "other", "content": {}}\n')
    assert [event["type"] for event in journal.read()] == ["other"]
    assert Journal(tmp_path).last("other") == {} and Journal(tmp_path).last("none") is None


def test_a_host_that_starts_again_cuts_half_a_line_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for tail in (b"", b'{"seq": 3, "ce'):
        path.write_bytes(b'{"seq": 1}\n{"seq": 2}\n' + tail)
        code = "import os; fd = os.open(sys.argv[1], os.O_RDWR); print(cellhost.cut_and_count(fd))"
        assert in_host(code, str(path)) == "2\n"
        assert path.read_bytes() == b'{"seq": 1}\n{"seq": 2}\n'
    path.write_bytes(b'{"seq": 1, "text": "' + b"x" * 200_000 + b'"}\n{"half')
    assert in_host(code, str(path)) == "1\n"
    path.write_bytes(b'{"half')
    assert in_host(code, str(path)) == "0\n" and path.read_bytes() == b""


def test_code_is_brought_up_to_date_and_no_further(tmp_path: Path) -> None:
    source, target, into = tmp_path / "source", tmp_path / "target", tmp_path / "bundles"
    (source / "package").mkdir(parents=True)
    for name, text in (("same.py", "1"), ("changed.py", "1"), ("gone.py", "1"), ("package/x.py", "1")):
        (source / name).write_text(text)
    (source / "link").symlink_to("same.py")
    (source / "notes.ipynb").write_text("{}")
    first = bundle.pack(source, into, without=b".ipynb")
    with tarfile.open(first.path) as archive:
        names = [member.name for member in archive if not member.isdir()]
        assert "notes.ipynb" not in names
        archive.extractall(target, filter="fully_trusted")
    (target / "made here.txt").write_text("kept")
    (target / "__pycache__").mkdir()
    (target / "__pycache__" / "changed.cpython-311.pyc").write_text("stale")
    (source / "changed.py").write_text("2")
    (source / "gone.py").unlink()
    (source / "link").unlink()
    (source / "link").symlink_to("changed.py")
    untouched = (target / "same.py").stat().st_mtime_ns, (target / "same.py").stat().st_ino
    second = bundle.pack(source, into, without=b".ipynb")
    assert second.sha256 != first.sha256
    code = "import json; cellhost.unpack_changes(sys.argv[1], sys.argv[2], set(json.loads(sys.argv[3])))"
    in_host(code, str(second.path), str(target), json.dumps(names))
    assert (target / "changed.py").read_text() == "2" and os.readlink(target / "link") == "changed.py"
    assert not (target / "gone.py").exists() and (target / "made here.txt").read_text() == "kept"
    assert not (target / "__pycache__" / "changed.cpython-311.pyc").exists()
    assert ((target / "same.py").stat().st_mtime_ns, (target / "same.py").stat().st_ino) == untouched


def test_without_notebooks_is_another_bundle_and_both_are_recognised(tmp_path: Path) -> None:
    source, into = tmp_path / "source", tmp_path / "bundles"
    source.mkdir()
    (source / "a.py").write_text("1")
    (source / "a.ipynb").write_text("1")
    (source / "below").mkdir()
    everything, code = bundle.pack(source, into), bundle.pack(source, into, without=b".ipynb")
    assert everything.file_count == 2 and code.file_count == 1
    assert bundle.pack(source, into).sha256 == everything.sha256
    (source / "a.ipynb").write_text("2")
    assert bundle.pack(source, into, without=b".ipynb").sha256 == code.sha256
    assert bundle.folders(source, into, without=b".ipynb") == [source, source / "below"]
    assert bundle.folders(tmp_path / "source" / "below", into) == []


def test_a_line_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    append_line(path, {"do": "execute", "code": "x" * 100})
    append_line(path, {"do": "stop"})
    assert [json.loads(line)["do"] for line in path.read_text().splitlines()] == ["execute", "stop"]
    assert path.stat().st_mode & 0o777 == 0o600
