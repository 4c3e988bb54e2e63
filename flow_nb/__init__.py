"""Flow in notebooks: `%load_ext flow_nb`, then `%%flow gpu=a100` over a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

PRELOAD_AFTER_S = 0.3

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
    preload(with_widgets=getattr(shell, "kernel", None) is not None)


def preload(with_widgets: bool) -> None:
    """Loads what the first cell needs, a moment later and beside the notebook: while its user types that cell."""
    import threading

    def load() -> None:
        import flow_sdk

        if with_widgets:
            import anywidget  # noqa: F401

        # Names of the modules that bring the rest.
        _ = flow_sdk.Session, flow_sdk.TaskConfig.model_fields

    timer = threading.Timer(PRELOAD_AFTER_S, load)
    timer.daemon = True
    timer.start()


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Takes all of that away; sessions go on, and end by their idle time."""
    from flow_nb import completer, displays

    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("flow", None)
    shell.magics_manager.registry.pop("FlowMagics", None)
    completer.unregister(shell)
    displays.unregister(shell)
