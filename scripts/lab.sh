#!/usr/bin/env bash
# Opens the quickstart notebook in JupyterLab, which prints its address; arguments go to JupyterLab.
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH"
options=()
# Root is what one is in a container; JupyterLab wants it said.
[[ $EUID == 0 ]] && options+=(--allow-root)
# Where there is no screen, a text browser would take the terminal.
[[ $(uname) == Darwin || -n ${DISPLAY:-}${WAYLAND_DISPLAY:-}${BROWSER:-} ]] || options+=(--no-browser)
# As the default address, and not as a file to open: so the address that is printed leads to the notebook, too.
exec jupyter-lab ${options[@]+"${options[@]}"} --ServerApp.root_dir="$PWD/notebooks" \
  --LabApp.default_url=/lab/tree/quickstart.ipynb "$@"
