"""Says what it sees, and nothing more."""

from __future__ import annotations

from look import look

look()
