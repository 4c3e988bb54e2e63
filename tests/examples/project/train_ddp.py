"""The same training on many processes; the launcher sets its rank."""

from __future__ import annotations

from train import main

main()
