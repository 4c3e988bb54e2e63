#!/usr/bin/env bash
# The main jobs, on the engine of this machine: demo/ is uploaded and trained while its log streams in, and its result
# shown; then the quickstart notebook is executed.
set -euo pipefail
unset CDPATH FLOW_LOCAL_STRICT MPLBACKEND
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Homes of its own, for Jupyter too: it needs no home folder, and leaves nothing in anybody's.
export FLOW_HOME="$PWD/.cache/demo-home" HOME="$PWD/.cache/demo-user" FLOW_PROVIDER=local PATH="$PWD/.venv/bin:$PATH"
mkdir -p "$HOME" .cache/demo
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
cd ../notebooks
copy=.cache/demo/quickstart.ipynb
echo '$ jupyter execute quickstart.ipynb'
if ! jupyter-execute quickstart.ipynb --output="../$copy" </dev/null >../.cache/demo/execute.log 2>&1; then
  cat ../.cache/demo/execute.log >&2
  exit 1
fi
echo "$copy holds the notebook with its outputs: a model trained in %%flow cells, and its figure"
echo
echo "Next: make lab                    opens the notebook in JupyterLab"
echo "      source .venv/bin/activate   puts flow on your PATH; then see README.md"
