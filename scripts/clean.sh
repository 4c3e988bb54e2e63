#!/usr/bin/env bash
# Removes what `make` made here, the test image's storage included.
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -f .cache/podman/storage.conf ]] && command -v podman >/dev/null; then
  # Layers may be mounted: podman knows how to let go of its own.
  CONTAINERS_CONF="$PWD/.cache/podman/containers.conf" CONTAINERS_STORAGE_CONF="$PWD/.cache/podman/storage.conf" \
    podman system reset --force >/dev/null 2>&1 || echo "clean: podman could not empty .cache/podman" >&2
  rm -rf "$(sed -n 's/^runroot = "\(.*\)"/\1/p' .cache/podman/storage.conf)"
fi
rm -rf .venv .venv-* .cache .bench tests/artifacts .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build ./*.egg-info
find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
