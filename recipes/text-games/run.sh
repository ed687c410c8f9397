#!/usr/bin/env bash
# The coin game of TextWorldExpress, with SmolLM2-135M held to the actions that are possible: base, with two sentences in
# the prompt, and the student without them. Needs agentopcd[twx,peft] and Java. The interpreter
# is $PYTHON, else that of .venv, else python3.
#     bash recipes/text-games/run.sh [WORK]
# There is no gate (--gate-tasks 0), which would play as many games again. docs/other-environments.md has what came of it.
set -euo pipefail
work=${1:-}
case $work in "" | /*) ;; *) work=$PWD/$work ;; esac  # a relative one is meant from where it was typed
cd "$(dirname "$0")/../.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
time "$python" -m agentopcd consolidate --env twx:coin --env-arg numLocations=5 --max-steps 10 \
    --constrain --context recipes/text-games/coin.txt --model smollm2-135m --lora-rank 16 --steps 6 --batch-size 8 \
    --select-tasks 24 --select-every 3 --test-tasks 128 --gate-tasks 0 --work "${work:-text-games-work}"
