"""Times, money and other people's words, as the terminal and the notebook show them."""

from __future__ import annotations

import time


def duration(seconds: float) -> str:
    """ "3.2 s", "4 min 10 s", "30 min", "2 h 5 min", "3 d 4 h"."""
    if seconds < 59.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    units = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
    length, unit, smaller, part = next(one for one in units if whole >= one[0])
    rest = whole % length // smaller
    return f"{whole // length} {unit}" + (f" {rest} {part}" if rest else "")


def age(created_at: float) -> str:
    """ "8 s ago", "5 min ago", "3 d ago"; a date where that is long ago."""
    seconds = int(max(0.0, time.time() - created_at))
    for length, unit, up_to in ((1, "s", 60), (60, "min", 3600), (3600, "h", 86400), (86400, "d", 30 * 86400)):
        if seconds < up_to:
            return f"{seconds // length} {unit} ago"
    return time.strftime("%Y-%m-%d", time.localtime(created_at))


def money(usd: float | None) -> str:
    if usd is None:
        return ""
    return "free" if usd == 0 else f"${usd:.2f}"


def clean(text: str) -> str:
    """One line without what could steer a terminal: reasons quote a program's last words."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
