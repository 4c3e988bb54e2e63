from __future__ import annotations

from torch.distributed.run import main

main()
