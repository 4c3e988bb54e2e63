"""The import name of the original documents: `import flow`, `from flow.errors import …` give flow_sdk's own objects.

The names here are aliases, never copies: `flow.errors.FlowError is flow_sdk.errors.FlowError`.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

import flow_sdk


class _Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers `import flow.x` with the module `flow_sdk.x`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("flow."):
            return None
        real = "flow_sdk" + fullname.removeprefix("flow")
        if importlib.util.find_spec(real) is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module("flow_sdk" + spec.name.removeprefix("flow"))
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just put the alias's spec on the shared module.
        module.__spec__ = self._own_spec


# A finder of its own ahead of the path-based one, which would load the files a second time.
if not any(type(finder).__name__ == "_Alias" for finder in sys.meta_path):
    sys.meta_path.insert(0, _Alias())
sys.modules[__name__] = flow_sdk
