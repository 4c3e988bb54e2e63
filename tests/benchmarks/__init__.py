"""Flow measured beside its peers and the bare machine: `python -m tests.benchmarks [--only NAME] [--quick]`.

Whatever is compared takes turns in one run, so that a busy machine is busy for all of it. Nothing here asserts a time.
"""
