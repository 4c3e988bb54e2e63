"""`python -m torch.distributed.launch`, which is torchrun by its older name."""

from __future__ import annotations

from torch.distributed.run import main

main()
