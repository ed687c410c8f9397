"""A file of conversations, distilled without a grader: what is drawn, what is measured, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from agentopcd.cli.options import Call
from agentopcd.cli.verbs import consolidate as command
from agentopcd.cli.verbs import evaluate as evaluate_command
from agentopcd.cli.verbs import forecast as forecast_command
from agentopcd.core.config import (
    ConsolidateConfig,
    EvaluateConfig,
    ForecastConfig,
    LearnConfig,
    PlayConfig,
    ScoreConfig,
)
from agentopcd.core.errors import ConfigError
from agentopcd.core.types import Context
from agentopcd.distil import Distilled, distil_context
from agentopcd.distillation.methods import drawn
from agentopcd.distillation.positions import response_logits
from agentopcd.learn import learn
from agentopcd.workspace.checks import check_unseen
from agentopcd.workspace.evaluation.spoken import Distances
from agentopcd.workspace.evaluation.student import evaluate_student
from agentopcd.workspace.experience.choose import ranked_by
from agentopcd.workspace.experience.find_context import find_context
from agentopcd.workspace.session import Session
from tests import tiny

CONTEXT = Context("Say left. " * 4, "system")


def rows(path: Path, n: int = 120, **more: Any) -> str:
    def talk(i: int) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": f"Box {i}?"}, {"role": "assistant", "content": "Up."},
            {"role": "user", "content": f"And {i + 1}?"}, {"role": "assistant", "content": "Down."},
        ]  # fmt: skip

    path.write_text("".join(json.dumps({"messages": talk(i), **more}) + "\n" for i in range(n)))
    return str(path)


def settings(tmp_path: Path, **more: Any) -> ConsolidateConfig:
    model = tmp_path / "model"
    if not model.is_dir():
        tiny.build(model, tie=False, hearing=4.0)
    given: dict[str, Any] = {
        "env": rows(tmp_path / "chats.jsonl"), "model": str(model), "steps": 12, "batch_size": 12, "max_tokens": 4,
        "temperature": 1.0, "learning_rate": 1e-4, "select_every": 4, "select_tasks": 6, "test_tasks": 8,
        "compute": "float32",
    }  # fmt: skip
    return ConsolidateConfig(**(given | more))


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[str]]:
    tmp_path = tmp_path_factory.mktemp("chats")
    lines: list[str] = []
    config = settings(tmp_path)
    with Session(config, tmp_path / "w", say=lines.append) as session:
        result = distil_context(session, config, CONTEXT)
    return tmp_path, result, lines


def test_stored_prompts_are_not_played_so_half_of_them_is_not_either(tmp_path: Path) -> None:
    config = settings(tmp_path, method="mixed")
    with (
        Session(config, tmp_path / "w", say=lambda line: None) as session,
        pytest.raises(ConfigError, match="--method mixed plays games, and the prompts of this environment are stored"),
    ):
        distil_context(session, config, CONTEXT)


def test_the_student_comes_nearer_to_the_model_that_sees_the_context(distilled: tuple[Path, Any, list[str]]) -> None:
    _, result, lines = distilled
    found = result.evaluation.distances
    assert found.rows["in-context"].distance.rate == 0
    assert found.closed.low > 0.3
    assert found.closed.rate == pytest.approx(
        1 - found.rows["student"].distance.rate / found.rows["base"].distance.rate, rel=1e-9
    )
    assert found.closed.n == 8 and found.rows["base"].distance.n == 16
    assert any(line.startswith("method: prefix-replay") for line in lines)
    assert any("nats a token from the model that sees it" in line for line in lines)
    assert Distances.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_checkpoints_are_chosen_by_the_same_figure(distilled: tuple[Path, Any, list[str]]) -> None:
    _, result, _ = distilled
    folder = Path(result.folder).parent
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    by_step = {r["step"]: r["select/distance_nats"] for r in records if "select/distance_nats" in r and r["step"]}
    assert set(by_step) == {4, 8, 12}
    assert result.best_step == min(by_step, key=by_step.__getitem__)
    assert records[1]["rollout/turns"] == 12 and "rollout/success" not in records[1]  # one turn of each conversation


def test_the_distance_is_that_of_plain_forward_passes(distilled: tuple[Path, Any, list[str]]) -> None:
    """By hand: each reply of the base read alone, without and with the context in its prompt."""
    tmp_path, result, _ = distilled
    with Session(settings(tmp_path), tmp_path / "w", say=lambda line: None) as session:
        base, chat = (
            session.load(str(tmp_path / "model")),
            session.player_for(session.load(str(tmp_path / "model"))).chat,
        )
        divergences = []
        for row in session.store.episodes(model_id=base.id, context_id=Context().id, split="test"):
            for turn in session.store.transcript(row["id"]).turns:
                with torch.no_grad():
                    own, told = (
                        response_logits(base.model, [(prompt, turn.response_ids)], 0).log_softmax(-1)
                        for prompt in chat.prompts(turn.messages, CONTEXT)
                    )
                divergences.append((own.exp() * (own - told)).sum(-1))
    expected = torch.cat(divergences)
    assert len(divergences) == 16
    assert result.evaluation.distances.rows["base"].distance.rate == pytest.approx(float(expected.mean()), rel=1e-3)


def test_a_finished_run_shows_the_same_table_and_trains_nothing(distilled: tuple[Path, Any, list[str]]) -> None:
    tmp_path, result, _ = distilled
    config = settings(tmp_path)
    with Session(config, tmp_path / "w", say=lambda line: None) as session:
        again = distil_context(session, config, CONTEXT)
    assert again.repeated and again.evaluation is not None
    assert again.evaluation.distances == result.evaluation.distances


def test_a_repeated_command_is_taught_by_the_student_of_then(tmp_path: Path) -> None:
    """The student that it trains becomes ENV/student, which it names as its teacher."""
    config = settings(tmp_path, steps=2, gate_tasks=0, test_tasks=0)
    taught: list[Distilled] = []
    for given in ({}, *[{"teacher": f"{config.env}/student"}] * 3):
        with Session(dataclasses.replace(config, **given), tmp_path / "w", say=lambda line: None) as session:
            session.store.add_context(CONTEXT)
            taught.append(distil_context(session, dataclasses.replace(config, **given), CONTEXT))
    first, second, again, once_more = taught
    assert second.teacher_id == first.model_id != second.model_id and not second.repeated
    assert {again.model_id, once_more.model_id} == {second.model_id} and again.repeated and once_more.repeated


def test_a_placebo_student_has_the_teacher_of_its_twin(tmp_path: Path) -> None:
    """The twin's gate moves ENV/student, which is their teacher, before it is trained."""
    config = settings(tmp_path, steps=2, gate_tasks=0, test_tasks=0)
    for given in ({}, {"teacher": f"{config.env}/student", "placebo": True, "test_tasks": 4}):
        with Session(dataclasses.replace(config, **given), tmp_path / "w", say=lambda line: None) as session:
            session.store.add_context(CONTEXT)
            out = distil_context(session, dataclasses.replace(config, **given), CONTEXT)
    configs = [json.loads(file.read_text()) for file in tmp_path.glob("w/runs/consolidate-*/config.json")]
    assert out.placebo_id and sorted(one["teacher_id"] == out.teacher_id for one in configs) == [False, True, True]


def test_evaluate_measures_to_the_teacher_of_the_training(tmp_path: Path) -> None:
    teacher, lines = tiny.build(tmp_path / "teacher", tie=False, hearing=4.0, seed=1), list[str]()
    config = settings(tmp_path, teacher=str(teacher), steps=2)
    with Session(config, tmp_path / "w", say=lines.append) as session:
        session.store.add_context(CONTEXT)
        far = distil_context(session, config, CONTEXT).evaluation.distances  # type: ignore[union-attr]
    again = EvaluateConfig(env=config.env, max_tokens=4, test_tasks=8, temperature=1.0, compute="float32")
    for to in (str(teacher), "the base"):
        with Session(again, tmp_path / "w", say=lines.append) as session:
            found = evaluate_student(session, again)[0].distances
        assert found is not None and far is not None
        same = [found.rows[label] == far.rows[label] for label in ("base", "student")] + [found.closed == far.closed]
        assert all(same) if to == str(teacher) else not any(same)
        assert ("in-context" in found.rows) == (to == "the base"), "nobody has measured it to another model"
        assert any("distance" in line and (f"to {to} " in line or f"teacher {to} " in line) for line in lines)
        shutil.rmtree(teacher, ignore_errors=True)


def test_the_commands_print_distances_and_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "SKILL.md"
    file.write_text(CONTEXT.text)
    config = settings(tmp_path, context=str(file), placement="system", steps=2)
    command(config, Call(tmp_path / "w", False, False))
    printed = capsys.readouterr().out
    assert "distance closed by the student" in printed and "nats a token of a model's own replies" in printed
    assert "success" not in printed and "floors" not in printed
    shown = EvaluateConfig(env=config.env, max_tokens=4, test_tasks=8, temperature=1.0, compute="float32")
    evaluate_command(shown, Call(tmp_path / "w", False, False))
    again = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("distance closed")]
    assert line in again


def test_measuring_keeps_no_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentopcd.workspace.evaluation import distance

    kept, forward = [], distance.response_hidden

    def watched(*given: Any) -> torch.Tensor:
        hidden_NH = forward(*given)
        kept.append(hidden_NH.requires_grad)
        return hidden_NH

    monkeypatch.setattr(distance, "response_hidden", watched)
    config = settings(tmp_path, steps=1)
    with Session(config, tmp_path / "w", say=lambda line: None) as session:
        distil_context(session, config, CONTEXT)
    assert kept and not any(kept)  # gigabytes, with a real model


def test_few_conversations_get_a_clear_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "SKILL.md").write_text(CONTEXT.text)
    file = rows(tmp_path / "few.jsonl", 20)
    config = settings(tmp_path, env=file, context=str(tmp_path / "SKILL.md"), placement="system", steps=1)
    command(config, Call(tmp_path / "w", False, False))
    assert "20 tasks are too few to split" in capsys.readouterr().out


def test_a_killed_run_ends_bit_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentopcd.distillation import checkpoint

    class Killed(BaseException):
        pass

    config, folders = settings(tmp_path, steps=6, save_every=2, test_tasks=0), []
    for name in ("straight", "killed"):
        for attempt in (1, 2):
            with monkeypatch.context() as patched, Session(config, tmp_path / name, say=lambda line: None) as session:
                session.store.add_context(CONTEXT)
                if name == "killed" and attempt == 1:
                    save = checkpoint.save

                    def then_die(*args: Any, save: Any = save) -> None:
                        save(*args)
                        raise Killed

                    patched.setattr(checkpoint, "save", then_die)
                    with pytest.raises(Killed):
                        distil_context(session, config, CONTEXT)
                    continue
                folders.append(distil_context(session, config, CONTEXT).model_id)
    assert len(set(folders)) == 1 and len(folders) == 3


def test_later_turns_are_drawn_less_often() -> None:
    turns: list[Any] = list(enumerate("abc"))
    seen: Counter[Any] = Counter(drawn(turns, random.Random(seed), 0.5)[1] for seed in range(4000))
    assert seen["a"] / seen["b"] == pytest.approx(2, rel=0.15) and seen["b"] / seen["c"] == pytest.approx(2, rel=0.2)
    even: Counter[Any] = Counter(drawn(turns, random.Random(seed), 0.0)[1] for seed in range(3000))
    assert max(even.values()) / min(even.values()) < 1.2


def test_what_has_no_use_here_is_refused(tmp_path: Path) -> None:
    config = settings(tmp_path)
    score = ScoreConfig(env=config.env, model=config.model)
    with (
        Session(score, tmp_path / "w", say=lambda line: None) as session,
        pytest.raises(ConfigError, match=r"right in .* --grader FILE\.py:FUNCTION.*--context FILE --work \S+`"),
    ):
        ranked_by(session)
    with pytest.raises(ConfigError, match="nothing says what is right"):
        learn(LearnConfig(env=config.env, model=config.model), str(tmp_path / "w2"), say=lambda line: None)
    with pytest.raises(ConfigError, match="--by distance chooses checkpoints"):
        LearnConfig(env=config.env, by="distance")
    with pytest.raises(ConfigError, match="turn_decay is 1"):
        settings(tmp_path, turn_decay=1.0)
    other = settings(tmp_path, env="math", turn_decay=0.5)
    with (
        Session(other, tmp_path / "w3", say=lambda line: None) as session,
        pytest.raises(ConfigError, match="--turn-decay is for stored turns"),
    ):
        distil_context(session, other, CONTEXT)
    with pytest.raises(ConfigError, match="--grader and --env-arg grader"):
        PlayConfig(env=config.env, grader="a.py:f", env_args={"grader": "b.py:f"})


PROMPT = """You answer for a parcel service.
Be short, and never promise a day. If you do not know where a parcel is, say so, and ask for its number."""
DAILY = PROMPT.replace("\n", "  \n") + "\nToday is day {}."


def shown(tmp_path: Path, system: str, *, role: str = "system", every: int = 1, drop: bool = False) -> dict[str, Any]:
    """Settings for conversations of which some (``every`` second, say) begin with a message that may be the prompt."""
    path, talks = tmp_path / "told.jsonl", []
    for i in range(120):
        first = [{"role": role, "content": system.format(i)}] if i % every == 0 else []
        talks.append({"messages": [*first, {"role": "user", "content": f"Where is {i}?"}]})
    path.write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    (tmp_path / "PROMPT.md").write_text(PROMPT)
    args = {"env_args": {"system": "drop"}} if drop else {}
    return {"env": str(path), "context": str(tmp_path / "PROMPT.md"), "placement": "system", **args}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"system": PROMPT}, "refused"),
        ({"system": PROMPT.replace("\n", "\r\n")}, "refused"),
        ({"system": DAILY.replace(" know", "\u00a0know")}, "refused"),
        ({"system": PROMPT + " Here is the question:", "role": "user"}, "refused"),
        ({"system": PROMPT, "every": 3}, r"warning: \d+ of \d+ prompts hold the context already"),
        ({"system": PROMPT.replace("short", "brief")}, r"warning: (\d+) of \1 prompts hold most of the context"),
        ({"system": "You sell boxes, and ask for its number."}, ""),
        ({"system": PROMPT, "drop": True}, ""),
    ],
)
def test_a_context_that_the_prompts_show_already_is_told(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    lines: list[str] = []
    config = settings(tmp_path, **shown(tmp_path, **given))
    with Session(config, tmp_path / "w", say=lines.append) as session:
        if said == "refused":
            with pytest.raises(ConfigError, match=r"(\d+) of \1 prompts hold the context already.*system=drop"):
                distil_context(session, config, find_context(session, config))
            return
        check_unseen(session, find_context(session, config).parts)
    assert [bool(re.match(said, line)) for line in lines] == [True] * bool(said)


def test_every_command_with_a_context_looks_whether_the_prompts_hold_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call, dry = (Call(tmp_path / "w", False, dry_run) for dry_run in (False, True))
    given: dict[str, Any] = shown(tmp_path, PROMPT) | {"model": settings(tmp_path).model}
    verbs: list[tuple[Any, Any]] = [(forecast_command, ForecastConfig(**given)), (command, ConsolidateConfig(**given))]
    for verb, config in verbs:
        for one in (call, dry):
            with pytest.raises(ConfigError, match="hold the context already"):
                verb(config, one)
    evaluate_command(EvaluateConfig(**given), dry)
    assert "hold the context already" in capsys.readouterr().out


def test_a_game_may_be_chosen_by_distance_too(tmp_path: Path) -> None:
    config = settings(tmp_path, env=tiny.questions(tmp_path / "rows.jsonl"), by="distance", steps=2)
    with Session(config, tmp_path / "w", say=lambda line: None) as session:
        result = distil_context(session, config, CONTEXT)
    assert result.evaluation is not None and result.evaluation.graded and result.evaluation.distances is not None


def test_a_grader_makes_it_a_graded_environment(tmp_path: Path) -> None:
    (tmp_path / "grade.py").write_text("def short(row, reply):\n    return len(reply) < 12\n")
    config = settings(tmp_path, grader=f"{tmp_path}/grade.py:short", steps=2)
    with Session(config, tmp_path / "w", say=lambda line: None) as session:
        assert session.by == ranked_by(session) == "success"
        result = distil_context(session, config, CONTEXT)
    assert result.evaluation is not None and result.evaluation.distances is None
    assert 0 < result.evaluation.rate("base").rate <= 1
    assert dataclasses.asdict(result.evaluation)["graded"]
