#!/usr/bin/env bash
# The main job: demo/ is uploaded, trained by the engine of this machine while its log streams in, and its result shown.
set -euo pipefail
unset CDPATH FLOW_LOCAL_STRICT
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# A home of its own: it needs no home folder, and leaves nothing in anybody's.
export FLOW_HOME="$PWD/.cache/demo-home" FLOW_PROVIDER=local PATH="$PWD/.venv/bin:$PATH"
cd demo
echo '$ flow run "python train.py" --name spirals --watch'
flow run "python train.py" --name spirals --watch </dev/null
echo
echo '$ flow info spirals'
flow info spirals
echo
script='import flow; print(flow.get_task("spirals").result())'
echo "\$ python -c '$script'"
python -c "$script"
echo
echo "Next: source .venv/bin/activate   puts flow on your PATH; then see README.md"
