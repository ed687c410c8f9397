#!/usr/bin/env bash
# A system prompt of 389 tokens, distilled into SmolLM2-135M with conversations and no grader.
#     bash recipes/system-prompt/run.sh [WORK [OPTION ...]]
# With WORK --placebo, a placebo student is trained beside the student, in about twice the time.
# docs/conversations.md has what came of it.
set -euo pipefail
cd "$(dirname "$0")/../.."
time "${PYTHON:-.venv/bin/python}" -m agentopcd consolidate --env recipes/system-prompt/chats.jsonl \
    --context recipes/system-prompt/PROMPT.md --placement system --model smollm2-135m --lora-rank 32 \
    --steps 16 --batch-size 16 --max-tokens 48 --select-tasks 32 --select-every 8 --test-tasks 100 \
    --work "${1:-system-prompt-work}" "${@:2}"
