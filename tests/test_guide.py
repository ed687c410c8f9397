"""The pages of the guide do what they say: every command on them runs, or its reason not to is named here.

A page is run from top to bottom in an empty folder, as a reader would: `pytest -m slow tests/test_guide.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from tests import pages
from tests.pages import Step, steps_of
from tests.test_readme import commands

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (
    "README.md", "docs/quickstart.md", "docs/environments.md", "docs/other-environments.md", "docs/conversations.md",
    "docs/knowledge.md", "docs/rounds.md", "docs/engines.md", "docs/gateway.md", "docs/scaling.md",
    "docs/reading-results.md",
    "examples/README.md",
)  # fmt: skip
OWN_TESTS = {
    "docs/conversations.md": "tests/test_conversations_page.py",
    "docs/gateway.md": "tests/test_gateway_page.py",
    "docs/knowledge.md": "tests/test_knowledge_page.py",
}
"""Pages whose pasted blocks are run by a test of their own, which looks at what comes out."""

OTHERS = "tests/envs/test_other_pages.py"
ELSEWHERE = {
    "pip install agentopcd": "fetches packages; tests/test_wheel.py installs the wheel",
    "pip install 'agentopcd[vllm]'": "fetches packages",
    "vllm serve ": "needs vLLM; tests/rollouts/sampling/test_vllm_server.py starts one",
    "VLLM_SERVER_DEV_MODE=1 ": "needs vLLM; tests/rollouts/sampling/test_vllm_server.py starts one",
    "agentopcd consolidate --env math --context prompt.txt --model Qwen/Qwen3-1.7B --server ": "needs that server; "
    "tests/rollouts/sampling/test_vllm_server.py trains with one",
    "bash benchmarks/gpu.sh": "needs a GPU, or minutes; tests/benchmarks/test_gpu_script.py runs it at a tiny size",
    "agentopcd serve --model pocket --record shop": "waits for clients; the pasted block of its page begins with it",
    "export AGENTOPCD_API_KEY": "needs an API; tests/rollouts/sampling/test_api.py plays with one",
    "agentopcd play --env frozen-lake-4x4 --engine api": "needs an API; tests/rollouts/sampling/test_api.py has one",
    "agentopcd knowledge score --env frozen-lake-4x4 --engine api": "needs an API; tests/rollouts/sampling/test_api.py",
    "agentopcd consolidate --env frozen-lake-4x4 --context frozen-lake-4x4/best --model pocket": "follows from those",
    "agentopcd evaluate --env chats.jsonl --judge": "needs a model that judges; tests/envs/test_judge.py has one",
    "agentopcd consolidate --env chats.jsonl --context SKILL.md --placement system --model Qwen": "that of README.md",
    "python examples/opcd_in_100_lines.py": "90 s; tests/examples/test_opcd_in_100_lines.py runs it smaller",
    "python examples/python_loop.py": "minutes; tests/examples/test_examples.py runs it smaller",
    "agentopcd envs try twx:": f"needs Java; {OTHERS} (games)",
    "agentopcd envs check twx:": f"needs Java; {OTHERS} (games)",
    "agentopcd play --env twx:": f"needs Java; {OTHERS} (games)",
    "agentopcd envs try gym:minigrid:": f"needs minigrid; {OTHERS} (games)",
    "python3 -m venv openenv-venv": f"fetches packages; {OTHERS} (network)",
    "openenv-venv/bin/openenv init": f"needs openenv; {OTHERS} (network)",
    "sed -i 's/max_concurrent_envs": f"needs openenv; {OTHERS} (network)",
    "../openenv-venv/bin/python -m uvicorn": f"needs openenv; {OTHERS} (network)",
    "agentopcd envs try openenv:": f"needs that server; {OTHERS} (network)",
    "agentopcd envs check openenv:": f"needs that server; {OTHERS} (network)",
    "agentopcd play --env openenv:": f"needs that server; {OTHERS} (network)",
    "python3 -m venv verifiers-venv": f"fetches packages; {OTHERS} (network)",
    "verifiers-venv/bin/pip install ./my_env": f"needs verifiers; {OTHERS} (network)",
    "export AGENTOPCD_VERIFIERS_PYTHON": f"needs verifiers; {OTHERS} (network)",
    "agentopcd envs check verifiers:": f"needs verifiers; {OTHERS} (network)",
    "agentopcd play --env verifiers:": f"needs verifiers; {OTHERS} (network)",
    "AGENTOPCD_OPENENV_PYTHON=": "runs tests/envs/test_hub_real.py",
}
"""How a command begins that is not run here, and who runs it or why nobody can."""
# `agentopcd envs new` and `agentopcd status` are named in the text of docs/quickstart.md and run where they are tested.

SMALLER = {
    "agentopcd play": "--episodes 4 --chains 1 --chain-steps 2",
    "agentopcd knowledge score": "--candidates 1 --confirm-tasks 4",
    "agentopcd consolidate": "--steps 1 --batch-size 4 --select-tasks 4 --test-tasks 4 --max-tokens 16 --gate-tasks 4 "
    "--force",
    "agentopcd evaluate": "--test-tasks 4",
    "agentopcd forecast": "--episodes 4",
    "agentopcd learn": "--rounds 1 --episodes-per-round 4 --chains 1 --chain-steps 2 --candidates 1 --confirm-tasks 4 "
    "--steps 1 --batch-size 4 --select-tasks 4 --test-tasks 4 --gate-tasks 0 --force",
    "torchrun": "--steps 1 --batch-size 4 --select-tasks 4 --test-tasks 0 --max-tokens 16",
}
"""What is added to a command after ``$``, which stands for a run of any size. Pasted blocks run as they are."""
STAND_INS = {"HUB_ID": "pocket-s", "Qwen/Qwen3-1.7B": "pocket-s"}
"""Models that are fetched, and what is taken in their place."""
BEFORE = {
    "README.md": """echo "Answer in one short sentence." > SKILL.md
for n in $(seq 120)
do echo '{"messages": [{"role": "user", "content": "Where is parcel '$n'?"}]}'
done > chats.jsonl""",
    "docs/scaling.md": "echo 'Add the tens first.' > prompt.txt",
    "docs/environments.md": f"ln -s {ROOT}/examples examples; echo 'G is the goal.' > notes.txt",
    "examples/README.md": f"ln -s {ROOT}/examples examples",
}
"""What lies in the reader's folder."""


def steps(page: str) -> list[Step]:
    return steps_of((ROOT / page).read_text(encoding="utf-8"))


def reason(step: Step) -> str | None:
    """Why a step is not run by the test of its page; None if it is."""
    if step.kind != "command":
        return None
    return next((why for start, why in ELSEWHERE.items() if step.text.startswith(start)), None)


def as_run(step: Step) -> str:
    """A step as this test runs it."""
    if step.kind != "command":
        return step.shell
    words = step.shell
    for name, model in STAND_INS.items():
        words = words.replace(name, model)
    more = next((more for start, more in SMALLER.items() if words.startswith(start)), "")
    return words if "--dry-run" in words else f"{words} {more}"


@pytest.mark.parametrize("page", GUIDE)
def test_every_command_parses(page: str, cli_generator: ModuleType) -> None:
    pages.check_commands(ROOT / page, cli_generator, 0)


def test_every_command_is_run_or_has_a_reason() -> None:
    found = {page: steps(page) for page in GUIDE}
    begun = [step.text for listed in found.values() for step in listed if step.kind == "command"]
    assert [start for start in ELSEWHERE if not any(text.startswith(start) for text in begun)] == []
    for file in re.findall(r"tests/[\w/]+\.py", " ".join([*ELSEWHERE.values(), *OWN_TESTS.values()])):
        assert (ROOT / file).is_file(), file
    run = [page for page in GUIDE if any(reason(step) is None for step in found[page])]
    assert set(run) == {*RUN, *OWN_TESTS}
    for page in OWN_TESTS:
        unrun = [step.text for step in found[page] if step.kind != "block" and reason(step) is None]
        assert unrun == [], f"the test of {page} runs its pasted blocks, and not this"


def test_pages_in_the_guide_of_the_site_are_covered() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    guide = nav[nav.index("  - Guide:") : nav.index("  - Understand:")]
    own = {
        "docs/cli.md",  # generated from the help
        "docs/python-api.md",  # run by tests/test_python_api.py
        "docs/recorded.md",  # tests/test_recorded_page.py; run by tests/workspace/test_harness_real.py
        "docs/students.md",  # tests/test_students_page.py
        "docs/pages.md",  # its four commands: tests/cli/page
    }
    assert {f"docs/{name}" for name in re.findall(r"[\w-]+\.md", guide)} <= {*GUIDE, *own}


RUN = (
    "README.md", "docs/quickstart.md", "docs/environments.md", "docs/rounds.md", "docs/scaling.md",
    "examples/README.md",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", RUN)
def test_a_page_runs_as_it_is_written(page: str, tmp_path: Path) -> None:
    done = [step for step in steps(page) if reason(step) is None]
    _, said = pages.run([BEFORE.get(page, "true"), *(as_run(step) for step in done)], tmp_path)
    for step, printed in zip(done, said[1:], strict=True):
        for words in commands(f"```bash\n{step.text}\n```") if step.shown else ():
            if words[0] != "envs":  # what a model says is not the same on every processor
                break
        else:
            lines = [line for line in step.shown.splitlines() if line.strip() and not line.endswith("...")]
            assert [line for line in lines if line not in printed.splitlines()] == [], printed


def test_the_code_of_the_quickstart_is_the_example() -> None:
    (code,) = (step.text for step in steps("docs/quickstart.md") if step.kind == "file")
    example = (ROOT / "examples" / "cave.py").read_text(encoding="utf-8")
    assert example.partition('"""\n\n')[2] == code


def test_the_reader_of_steps_sees_what_it_should() -> None:
    text = (
        "Save this as `a.py`:\n\n```python\nx = 1\n```\n\nAdd to `a.py`:\n\n```python\ny = 2\n```\n\n"
        "```bash\ncat a.py\n```\n\n```text\nx = 1\n```\n\nAnother:\n\n```text\nnot shown by it\n```\n\n"
        "```\n$ one |\n    two   # note\nthe output\n$ three \\\n  four\n```\n\n```python\nprint(3)\n```\n"
    )
    found = steps_of(text)
    assert [step.kind for step in found] == ["file", "file", "block", "command", "command", "script"]
    assert found[0].shell.startswith("cat > a.py") and found[1].shell.startswith("cat >> a.py")
    assert [step.shown for step in found] == ["", "", "x = 1\n", "the output\n", "", ""]
    assert [step.text for step in found[3:5]] == ["one |\n    two", "three \\\n  four"]


def test_pages_run_in_order_in_one_folder(tmp_path: Path) -> None:
    blocks = [
        step.shell
        for step in steps_of("Save this as `a.py`:\n\n```python\nprint(6 * 7)\n```\n\n```bash\npython3 a.py\n```\n")
    ]
    assert pages.run(blocks, tmp_path)[1] == ["", "42\n"]


def test_a_block_that_fails_is_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="false"):
        pages.run(["false | true"], tmp_path)
