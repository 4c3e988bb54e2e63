"""The widget of a session's line. Loaded when the first one is shown: ipywidgets takes a while."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

STATIC = Path(__file__).parent / "static"


class PanelWidget(anywidget.AnyWidget):
    """What the page knows of a session. Times are seconds since 1970 by this machine's clock.

    Args:
        text_line, html_line: what is shown where there are no widgets, as in a saved notebook.
    """

    _esm = STATIC / "panel.js"
    _css = STATIC / "panel.css"

    session_name = traitlets.Unicode().tag(sync=True)
    hardware = traitlets.Unicode().tag(sync=True)
    price_per_hour_usd = traitlets.Float(None, allow_none=True).tag(sync=True)
    state = traitlets.Unicode().tag(sync=True)
    reason = traitlets.Unicode().tag(sync=True)
    since = traitlets.Float(None, allow_none=True).tag(sync=True)
    idle_s = traitlets.Float(None, allow_none=True).tag(sync=True)
    idle_at = traitlets.Float(None, allow_none=True).tag(sync=True)
    started_at = traitlets.Float(None, allow_none=True).tag(sync=True)
    ended_at = traitlets.Float(None, allow_none=True).tag(sync=True)

    def __init__(self, text_line: str, html_line: str, **values: Any) -> None:
        self.text_line, self.html_line = text_line, html_line
        super().__init__(**values)
        self.answer_anywhere()

    def answer_anywhere(self) -> None:
        """Lets the page's messages come in on the thread that they were meant for. From 7.4 on, ipykernel takes them to
        the thread that sent last: that is the one that follows a cell, so the buttons would wait for the cell's end."""
        comm: Any = self.comm
        vars(comm).pop("_reply_subshell_id", None)

    def _send(self, msg: dict[str, Any], buffers: Any = None) -> None:
        super()._send(msg, buffers)
        if self.comm is not None:
            self.answer_anywhere()

    def bundle(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Its data and metadata for the front end. `display` would not do: ipywidgets 7 leaves our texts out."""
        found: Any = super()._repr_mimebundle_() or {}
        data, metadata = found if isinstance(found, tuple) else (found, {})
        return {**data, "text/plain": self.text_line, "text/html": self.html_line}, metadata

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.bundle()
