"""The training of a job whose type is its script's name."""

from __future__ import annotations

from train import main

main()
