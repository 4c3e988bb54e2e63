"""`nvidia-smi`, as far as a task can see: the GPUs it was given."""

from __future__ import annotations

import os

for number, gpu in enumerate(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))):
    print(f"GPU {number}: ({gpu})")
