#!/usr/bin/env bash
# A system prompt of 389 tokens, distilled into SmolLM2-135M with conversations and no grader.
#     bash recipes/system-prompt/run.sh [WORK [OPTION ...]]
# With WORK --placebo, a placebo student is trained beside the student, in about twice the time.
# Needs agentopcd[peft]. The interpreter is $PYTHON, else that of .venv, else python3.
# docs/conversations.md has what came of it.
set -euo pipefail
work=${1:-}
case $work in "" | /*) ;; *) work=$PWD/$work ;; esac  # a relative one is meant from where it was typed
cd "$(dirname "$0")/../.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
time "$python" -m agentopcd consolidate --env recipes/system-prompt/chats.jsonl \
    --context recipes/system-prompt/PROMPT.md --placement system --model smollm2-135m --lora-rank 32 \
    --steps 16 --batch-size 16 --max-tokens 48 --select-tasks 32 --select-every 8 --test-tasks 100 \
    --work "${work:-system-prompt-work}" "${@:2}"
