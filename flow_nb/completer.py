from __future__ import annotations

from typing import Any


def register(shell: Any) -> None: ...
def unregister(shell: Any) -> None: ...
