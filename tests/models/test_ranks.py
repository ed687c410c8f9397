"""Two real processes over gloo do what one does, and a run goes on with another number of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agentopcd.cli import main
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ConfigError, TrainingError
from agentopcd.core.types import Context, Mixture
from agentopcd.models.parallel.ranks import Ranks
from tests.models import architectures
from tests.processes import SHARDED, STOPPED, THREE, TWO, run, same, uneven

PARTS = Context("- EXPERIENCE ITEM: always go left"), Context("- EXPERIENCE ITEM: answers that end in five are wrong")
MIXED = Mixture(PARTS, (0.6, 0.4))
MIXES = f"""
from agentopcd.workspace.experience import find_context as module
from agentopcd.cli import main
from agentopcd.core.types import Context, Mixture
mixed = {MIXED!r}
def find_context(session, config):
    for part in mixed.parts:
        session.store.add_context(part)
    return mixed
module.find_context = find_context
main()
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return uneven(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def alone(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("alone")
    run("-m", "agentopcd", *flags, "--work", work)
    return work


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped_and_do_what_it_does(
    flags: list[str], alone: Path, tmp_path: Path
) -> None:
    run("-c", STOPPED, *flags, "--work", tmp_path, rc=130)
    said = run(*TWO, "-m", "agentopcd", *flags, "--work", tmp_path)
    assert "resumed after step 2" in said
    assert said.count("step 004/004") == 1  # one of them speaks
    same(alone, tmp_path)


PILOTS = """
import sys
from agentopcd import distil
from agentopcd.cli import main
def in_short(session, config, context, **more):
    print("pilot", distil.pilot(session, config, context), distil.pilot(session, config, context), flush=True)
    return again(session, config, context, **more)
again, distil.distil_context = distil.distil_context, in_short
sys.argv = ["agentopcd", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_a_pilot_and_a_teacher_by_its_name_are_those_of_all_processes(flags: list[str], tmp_path: Path) -> None:
    words = [*flags, "--gate-tasks", "0", "--work", tmp_path]
    run("-m", "agentopcd", *words)  # so that there is a student by name
    (tmp_path / "pilots.py").write_text(PILOTS)
    said = run(*TWO, tmp_path / "pilots.py", *words, "--teacher", "math/student", "--seed", "1")
    assert said.count("pilot") >= 1 and said.count("step 004/004") == 2
    folders = sorted(path.name.split("-")[0] for path in (tmp_path / "runs").iterdir())
    assert folders == ["consolidate", "consolidate", "pilot"]


@pytest.mark.slow
def test_sharded_weights_do_what_whole_ones_do_and_go_on_with_more_processes(
    flags: list[str], alone: Path, tmp_path: Path
) -> None:
    words = [*flags, "--shard", "--gradient-checkpointing", "--work", tmp_path]
    (tmp_path / "stopped.py").write_text(SHARDED + STOPPED)
    said = run(*TWO, tmp_path / "stopped.py", *words, rc=1)
    assert said.count("sharded:") == 2, said  # unbuffered, two processes mix their lines
    assert "resumed after step 2" in run(*THREE, "-m", "agentopcd", *words)
    same(alone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt_oss", "lfm2"])
def test_a_sharded_teacher_goes_on_from_copies_of_its_state(kind: str, flags: list[str], tmp_path: Path) -> None:
    form = "the rest follows on copies of its state"
    words = [*flags]
    words[words.index("--model") + 1] = str(architectures.build(tmp_path / "model", kind))
    said = run("-m", "agentopcd", *words, "--work", tmp_path / "one")
    assert said.count(form) == 1
    (tmp_path / "counts.py").write_text(SHARDED + "from agentopcd.cli import main\nmain()\n")
    said = run(*TWO, tmp_path / "counts.py", *words, "--shard", "--work", tmp_path / "two")
    assert said.count(form) == 1 and said.count("sharded:") == 2
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--method", "context-distillation"),
        ("--method", "mixed"),
        ("--teacher-kind", "ema"),
        ("--teacher-kind", "ema", "--lora-rank", "4", "--merge"),
    ],
)
def test_two_processes_do_what_one_does_with_other_answers_and_a_teacher_that_moves(
    flags: list[str], words: tuple[str, ...], tmp_path: Path
) -> None:
    run("-m", "agentopcd", *flags, *words, "--work", tmp_path / "one")
    run(*TWO, "-m", "agentopcd", *flags, *words, "--work", tmp_path / "two")
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_two_processes_answer_stored_turns_as_one_does(flags: list[str], tmp_path: Path) -> None:
    played = "--env math --split train --episodes 6 --no-extract --max-tokens 12 --temperature 1 --compute float32"
    for work, launcher in ((tmp_path / "one", ()), (tmp_path / "two", TWO)):
        model = flags[flags.index("--model") + 1]
        run("-m", "agentopcd", "play", *played.split(), "--model", model, "--work", work)
        said = run(*launcher, "-m", "agentopcd", *flags, "--method", "prefix-replay", "--work", work)
        assert "replaying the turns of 6 stored episodes" in said
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_two_processes_score_with_the_contexts_that_one_draws(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "mixes.py").write_text(MIXES)
    for work, launcher in ((tmp_path / "one", ()), (tmp_path / "two", TWO)):
        said = run(*launcher, tmp_path / "mixes.py", *flags, "--work", work)
        assert f"consolidating context {MIXED.id[:12]}" in said
    same(tmp_path / "one", tmp_path / "two")


def test_one_process_has_nothing_to_shard_over(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["agentopcd", *flags, "--shard", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "error: there is one process to shard over" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--shard, or --lora-rank"):
        ConsolidateConfig(env="math", shard=True, lora_rank=4)
    with pytest.raises(ConfigError, match="leave out --shard, or --lora-rank or vllm"):
        ConsolidateConfig(env="math", shard=True, engine="vllm")


@pytest.mark.slow
def test_what_is_refused_ends_all_processes(flags: list[str], tmp_path: Path) -> None:
    said = run(*TWO, "-m", "agentopcd", *flags, "--device", "cpu", "--work", tmp_path, rc=1)  # the launcher's own code
    assert "error: device is 'cpu' with 2 processes; leave it out" in said


def test_alone_every_call_is_trivial() -> None:
    ranks = Ranks()
    assert (ranks.count, ranks.main) == (1, True)
    assert ranks.mine([1, 2, 3]) == [1, 2, 3]
    assert ranks.everyone("x") == ["x"]
    assert ranks.from_main("x") == "x"
    ranks.wait()


@pytest.mark.parametrize(("error", "sent"), [(TrainingError, ["work", None]), (ConfigError, ["work"])])
def test_after_a_training_that_failed_everywhere_the_others_are_told_to_end(
    error: type[Exception], sent: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any other error they know nothing, and wait where no message reaches them."""
    ranks, said = Ranks(), list[object]()
    monkeypatch.setattr(ranks, "from_main", said.append)
    with pytest.raises(error), ranks.led("work"):
        raise error("the loss is not finite")
    ranks.dismiss()
    assert said == sent
