from __future__ import annotations

import sys
from typing import Any


class Panel:
    def __init__(self, session: Any, shell: Any) -> None:
        self.session = session

    def show(self) -> None:
        sys.stderr.write(f"flow: {self.session.task.name} starts.\n")

    def on_wake(self) -> None: ...
    def on_end(self) -> None: ...
