"""`uv pip install …`, done by pip: what uv does with an activated environment."""

from __future__ import annotations

import os
import sys

if sys.argv[1:3] != ["pip", "install"]:
    sys.exit(f"uv: no such command: {sys.argv[1:]}")
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
