#!/usr/bin/env bash
# The whole circle on real weights, in two arms; `make demo-real` runs it. About seven minutes on two cores.
#   (a) experience: the model plays, writes down items, the best context is confirmed, and only then distilled
#   (b) a person's context of one line, distilled
# Everything lands in demo-real-work/ (or $DEMO_WORK); the same command goes on where it was stopped. The interpreter is
# $PYTHON, else that of .venv, else python3.
set -euo pipefail
work=${DEMO_WORK:-}
case $work in "" | /*) ;; *) work=$PWD/$work ;; esac  # a relative one is meant from where it was typed
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=${work:-demo-real-work}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
"$python" -m agentopcd --version > /dev/null ||
    { echo "agentopcd is not installed for $python; name another interpreter with PYTHON=" >&2; exit 1; }
mkdir -p "$work"
show() { printf '\n$ agentopcd %s\n' "$*"; "$python" -m agentopcd "$@"; }

task=(--env math --env-arg level=1 --env-arg grader=last-number)
[ -f "$work/splits.json" ] || show envs splits math --env-arg level=1 --env-arg grader=last-number \
    --test 256 --confirm 224 --select 64 --extract 32 --out "$work/splits.json"
who=("${task[@]}" --splits "$work/splits.json" --model smollm2-135m --max-tokens 24 --work "$work")
training=(--steps 10 --batch-size 32 --select-every 5)

printf '\n(a) the model'"'"'s own experience\n'
show learn "${who[@]}" "${training[@]}" --episodes-per-round 32 --chains 4 --chain-steps 6 \
    --extract-tokens 48 --candidates 6 --select-tasks 64 --confirm-tasks 224

printf '\n(b) a context written by a person: %s\n' "$(cat recipes/demo-real/context.txt)"
show consolidate "${who[@]}" "${training[@]}" --context recipes/demo-real/context.txt

printf '\nBoth arms on the same test tasks\n'
"$python" recipes/demo_real_table.py "$work"
