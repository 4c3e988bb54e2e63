"""Counts the bytes below /input and writes the number to /output."""

from __future__ import annotations

from pathlib import Path

from look import look, need_files

look()
need_files("/input")
size_bytes = sum(path.stat().st_size for path in Path("/input").rglob("*") if path.is_file())
Path("/output/size_bytes.txt").write_text(str(size_bytes))
