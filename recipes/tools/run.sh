#!/usr/bin/env bash
# A tool environment with charges that nobody tells: a model is taught to call, plays, writes lessons, chooses among
# contexts made of them, and learns the best by heart. All but the teaching is the ordinary command line.
#     bash recipes/tools/run.sh
# Everything lands in tools-work/ (or $TOOLS_WORK); the same command goes on where it was stopped. The interpreter is
# $PYTHON, else that of .venv, else python3.
set -euo pipefail
work=${TOOLS_WORK:-}
case $work in "" | /*) ;; *) work=$PWD/$work ;; esac  # a relative one is meant from where it was typed
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work=${work:-tools-work}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
show() { printf '\n$ agentopcd %s\n' "$*"; "$python" -m agentopcd "$@"; }

[ -d "$work/model" ] || "$python" -m recipes.tools.train --out "$work/model"
player=(--env recipes/tools/desk.py:Desk --model "$work/model" --max-tokens 64 --work "$work")
show play "${player[@]}" --episodes 24 --extract-tokens 48
show knowledge score "${player[@]}" --candidates 8 --confirm-tasks 64
show consolidate "${player[@]}" --steps 8 --batch-size 16 --select-tasks 32 --select-every 4 --test-tasks 100
