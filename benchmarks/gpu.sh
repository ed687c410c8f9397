#!/usr/bin/env bash
# What a GPU does with all of this, meant to take about eight minutes: bash benchmarks/gpu.sh [--tiny] [--out FILE]
#
# For a bare machine with a GPU, Python 3.12 and torch, and no network: packages that are missing there are taken from
# the wheels in the folder $WHEELS (./wheels), which were fetched elsewhere, for example with
#   pip download --no-deps --only-binary :all: -d wheels -c constraints.txt textarena gymnasium typer rich openai ...
# --tiny runs the same script at a tiny size, on a CPU too. See benchmarks/gpu.py.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} WHEELS=${WHEELS:-wheels}
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ -d "$WHEELS" ]; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --upgrade --target .gpu-packages "$WHEELS"/*.whl
  export PYTHONPATH=$PYTHONPATH:$PWD/.gpu-packages
fi
exec "$PYTHON" -m benchmarks.gpu "$@"
