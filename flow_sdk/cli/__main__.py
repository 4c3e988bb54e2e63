"""`python -m flow_sdk.cli` is the `flow` command."""

from __future__ import annotations

import sys

from flow_sdk.cli import main

sys.exit(main())
