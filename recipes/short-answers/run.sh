#!/usr/bin/env bash
# Form or knowledge? Three contexts for the same questions, each tried at the gate. A quarter of an hour on one core.
#   (a) what the model makes of its own replies alone: nonsense in short lines
#   (b) what it makes of them with the reviewer's feedback
#   (c) the notes of a person
# Everything lands in short-answers-work/ (or $SHORT_WORK); the same command goes on where it was stopped. The
# interpreter is $PYTHON, else that of .venv, else python3.
set -euo pipefail
work=${SHORT_WORK:-}
case $work in "" | /*) ;; *) work=$PWD/$work ;; esac  # a relative one is meant from where it was typed
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work=${work:-short-answers-work}
here=recipes/short-answers
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
"$python" -m agentopcd --version > /dev/null ||
    { echo "agentopcd is not installed for $python; name another interpreter with PYTHON=" >&2; exit 1; }
mkdir -p "$work"
show() { printf '\n$ agentopcd %s\n' "$*"; "$python" -m agentopcd "$@"; }

sizes=(--test 128 --confirm 192 --select 96 --extract 64)
player=(--model smollm2-135m --max-tokens 48 --work "$work")
extraction=(--episodes 24 --chains 4 --chain-steps 4 --extract-tokens 48)
choosing=(--method uniform --candidates 2 --select-tasks 24 --confirm-tasks 96)

"$python" "$here/make_rows.py" --silent --out "$work/silent.jsonl"
silent=(--env "$work/silent.jsonl" --splits "$work/silent.json" "${player[@]}")
reviewed=(--env "$here/rows.jsonl" --splits "$work/reviewed.json" "${player[@]}")
[ -f "$work/silent.json" ] || show envs splits "$work/silent.jsonl" "${sizes[@]}" --out "$work/silent.json"
[ -f "$work/reviewed.json" ] || show envs splits "$here/rows.jsonl" "${sizes[@]}" --out "$work/reviewed.json"

printf '\n(a) lessons from its own replies\n'
show play "${silent[@]}" "${extraction[@]}"
show knowledge score "${silent[@]}" "${choosing[@]}"

printf '\n(b) lessons from its own replies and the feedback on them\n'
show play "${reviewed[@]}" "${extraction[@]}"
show knowledge score "${reviewed[@]}" "${choosing[@]}"

printf '\n(c) the notes of a person\n'
show knowledge confirm "${reviewed[@]}" --context "$here/notes.txt" --confirm-tasks 96
