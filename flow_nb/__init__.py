"""Flow in notebooks: `%load_ext flow_nb`, then `%%flow gpu=a100` over a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Adds the magics, their completion and the displays; says which sessions of this notebook are still there."""
    from flow_nb import completer, displays
    from flow_nb.magics import FlowMagics

    magics = FlowMagics(shell)
    shell.register_magics(magics)
    completer.register(shell)
    displays.register(shell)
    magics.greet()


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Takes all of that away; sessions go on, and end by their idle time."""
    from flow_nb import completer, displays

    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("flow", None)
    shell.magics_manager.registry.pop("FlowMagics", None)
    completer.unregister(shell)
    displays.unregister(shell)
