"""The fenced blocks of a Markdown page, each with the heading it stands under."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Block(NamedTuple):
    """One fenced block.

    Attributes:
        heading: the headings above it below the page's title, as "Data Mounting > Quick Start".
        number: its number under that heading, from 0.
        line: of its first line in the page, from 1.
        above: the line directly above the fence, where there is one that is not empty.
    """

    heading: str
    number: int
    language: str
    text: str
    line: int
    above: str


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of the page, in order."""
    headings: list[str] = []
    counts: dict[str, int] = {}
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    above = ""
    for line_number, line in lines:
        if found := re.match(r"(#+) +(.*)", line):
            # The page's title is not part of any block's place.
            depth = len(found[1]) - 2
            headings = [*headings[: max(depth, 0)], found[2]] if depth >= 0 else []
        elif found := re.match(r"( *)(`{3,})(\w*)\s*$", line):
            body = []
            for _, inner in lines:
                if inner.strip() == found[2]:
                    break
                body.append(inner)
            else:
                raise ValueError(f"{page}, line {line_number}: the fence is never closed")
            place = " > ".join(headings)
            number = counts[place] = counts.get(place, -1) + 1
            yield Block(place, number, found[3], textwrap.dedent("\n".join(body)) + "\n", line_number + 1, above)
        above = line.strip()
