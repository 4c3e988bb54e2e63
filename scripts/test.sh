#!/usr/bin/env bash
# Runs the tests in parallel; arguments go to pytest. The last line is `N passed, N failed, N skipped`.
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cores=$(nproc)
jobs=${FLOW_TEST_JOBS:-$((cores < 2 ? 2 : cores > 8 ? 8 : cores))}
exec .venv/bin/python -m pytest -q -n "$jobs" --dist loadgroup "$@" </dev/null
