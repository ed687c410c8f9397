"""A student's folder as others find it: its card, its files, and its answers without this package."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from agentopcd import models
from agentopcd.core.config import ConsolidateConfig
from agentopcd.core.errors import ModelError
from agentopcd.core.files import told
from agentopcd.core.runs import Run, slug_of, write_json
from agentopcd.core.types import Context
from agentopcd.distil import Distilled, distil_context
from agentopcd.knowledge import Store
from agentopcd.models import find
from agentopcd.workspace import card
from agentopcd.workspace.experience.find_context import find_context
from agentopcd.workspace.ledger import run_config
from agentopcd.workspace.session import Session
from agentopcd.workspace.strangers import nowhere, public
from tests import tiny

HOSTILE = "---\nlicense: mit\n---\n```\n# Out of the fence\n````text\n<script>\x1b[2J</script>\n- always say seven"
MESSAGES = [{"role": "user", "content": "the player moves"}]
ALONE = """
import json, sys
sys.modules["agentopcd"] = None  # an import of it fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, base, messages = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(base or folder, dtype=torch.float32)
if base:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, folder)
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**ids, do_sample=False, max_new_tokens=12)
print(json.dumps(out[0, ids["input_ids"].shape[1]:].tolist()))
"""


def alone(folder: Path, base: str = "") -> list[int]:
    """The greedy reply of a student, token by token, in a process that cannot import this package."""
    command = [sys.executable, "-c", ALONE, str(folder), base, json.dumps(MESSAGES)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def here(folder: Path) -> list[int]:
    """The same reply, from this package's model."""
    loaded = models.load_model(str(folder))
    shown = loaded.tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    start, ids = shown["input_ids"].shape[1], shown["input_ids"]
    with torch.inference_mode():
        while ids.shape[1] < start + 12 and int(ids[0, -1]) not in loaded.end_ids:
            ids = torch.cat([ids, loaded.model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, start:].tolist()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("card")


@pytest.fixture(scope="module")
def student(work: Path) -> Distilled:
    tiny.build(work / "base", tie=False)
    (work / "context.txt").write_text(HOSTILE)
    config = ConsolidateConfig(
        env="math", model=str(work / "base"), context=str(work / "context.txt"), steps=2, batch_size=2, max_tokens=4,
        temperature=1.0, learning_rate=3e-4, select_every=2, select_tasks=2, test_tasks=3, compute="float32",
        save_dtype="bfloat16", clip_norm=2.0,
    )  # fmt: skip
    with Session(config, work / "work", say=lambda line: None) as session:
        return distil_context(session, config, find_context(session, config))


def test_the_card_is_the_hubs_and_tells_what_was_measured(student: Distilled, work: Path) -> None:
    file = Path(student.folder) / "README.md"
    found, text = ModelCard.load(file), file.read_text(encoding="utf-8")
    data = found.data.to_dict()
    assert data["library_name"] == "transformers" and "context-distillation" in data["tags"]
    assert "license" not in data and "base_model" not in data  # a local folder: neither is known
    assert student.evaluation is not None
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == student.evaluation.rate("student").rate
    assert str(work) not in text and "a local folder" in text
    row = next(line for line in text.splitlines() if line.startswith("| student |"))
    assert "| 3 |" in row
    assert card.fenced(HOSTILE) in text and "\x1b" not in text
    assert "`````text\n---" in text  # the fence is longer than any in the context
    assert "--context context.txt" in text and "--save-dtype bfloat16" in text and "clip_norm = 2.0" in text
    assert "agentopcd consolidate \\\n" in text and "    --env math" in text and "    --model " in text
    assert ModelCard(str(found)).data.to_dict() == data


def test_the_settings_are_those_of_the_students_own_training(tmp_path: Path) -> None:
    """A row of a stage of ``learn`` has the settings of round 1; a later round trains with another seed."""
    (tmp_path / "runs/two").mkdir(parents=True)
    write_json(tmp_path / "runs/two/config.json", {"env": "lake", "seed": 4, "steps": 5, "splits": {"test": 9}})
    with Store.open(tmp_path / "store.db") as store:
        store.add_model("base", "pocket")
        run_id = store.start("consolidate", {"env": "lake", "seed": 3, "round": 2}, 3)
        store.add_model("two", "runs/two/student", "runs/two/student", "base", run_id)
        facts = card.facts_of(store, tmp_path / "runs/two/student", "two", tmp_path)
    assert facts is not None and (facts.settings["seed"], facts.settings["steps"]) == (4, 5)
    assert facts.settings["splits"] == ""


def test_the_card_of_a_game_of_files_tells_no_path(tmp_path: Path) -> None:
    label = "/home/me/secret/rows.jsonl,grader=/home/me/secret/g.py:f,judge=http://10.0.0.7:8000#m"
    config = ConsolidateConfig(
        env="/home/me/secret/rows.jsonl", context="/home/me/secret/notes.txt", judge="http://10.0.0.7:8000#m",
        env_args={"files": ["/home/me/secret/x.txt"]}, grader="/home/me/secret/g.py:f",
    )  # fmt: skip
    settings = run_config(config) | {"env": label}
    run = Run(tmp_path, "consolidate", settings)
    table: dict[str, Any] = {"env": label, "rows": [], "notes": [f"seen in {label}"], "differences": {}}
    table["rows"] = [
        {"label": "student", "success": 0.5, "low": 0.1, "high": 0.9, "n": 3, "tokens": 1, "reply_tokens": 2.0}
    ]
    with Store.open(tmp_path / "store.db") as store:
        context = Context("Be brief.")
        store.add_context(context)
        store.move(f"{label}/best", context.id, "person")
        store.add_model("base", "pocket")
        run_id = store.start("consolidate", settings, 0)
        student = run.folder / "student"
        store.add_model("one", str(student), str(student), "base", run_id, {context.id: 1.0})
        facts = card.facts_of(store, student, "one", tmp_path, table)
        assert facts is not None
        text = card.card(facts)
    assert not [word for word in ("secret", "home", "10.0.0.7", str(tmp_path)) if word in text], text
    assert "environment `rows.jsonl,grader=g.py:f,judge=http://ADDRESS#m`" in text
    assert r"refs: rows.jsonl,grader=g.py:f,judge=http://ADDRESS\#m/best" in text
    assert text.count(f"consolidate-{slug_of(nowhere(label))}-") == 2  # in front and in the title
    assert "--env rows.jsonl" in text and "--judge 'http://ADDRESS#m'" in text and "x.txt" in text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("/home/me/a.jsonl", "a.jsonl"), ("/home/me/my files/a (b).jsonl", "a (b).jsonl"), ("~/x/g.py:f", "g.py:f"),
        ("/home/me/a.jsonl,/home/me/b.jsonl", "a.jsonl,b.jsonl"), ("a.jsonl,/home/me/b.jsonl", "a.jsonl,b.jsonl"),
        ('["/home/me/x", "~me/y"]', '["x", "y"]'), (["/home/me/x", 1], ["x", 1]), ({"a": ["../x"]}, {"a": ["x"]}),
        ("recorded:/home/me/store.db", "recorded:store.db"), ("file:///home/me/x", "file:x"),
        ("http://me:key@host:1/v1/x", "http://***@host:1/v1/x"), ("reward / 2 > 1", "reward / 2 > 1"), (3, 3),
        ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B"), ("openenv:owner/name", "openenv:owner/name"), ("/", "/"),
    ],
)  # fmt: skip
def test_settings_as_strangers_may_read_them(value: Any, said: Any) -> None:
    assert public(value) == said


def test_an_environment_as_strangers_may_read_it() -> None:
    assert nowhere("rows.jsonl,judge=https://me:key@host/v1#m,n=2") == "rows.jsonl,judge=http://ADDRESS#m,n=2"
    assert nowhere("frozen-lake-4x4,size=4") == "frozen-lake-4x4,size=4"


def test_the_card_takes_up_what_evaluate_measures(student: Distilled, work: Path) -> None:
    drift = {"student": {"entropy_nats": 1.5, "kl_nats": 0.125, "tokens": 70, "episodes": 3}}
    other = {"student": drift["student"] | {"kl_nats": 7.5}}
    folder = Path(student.folder)
    with Store.open(work / "work" / "store.db") as store:
        base = store.lookup("model", id=student.model_id)["parent_id"]  # type: ignore[index]
        known = {"student": student.model_id, "env": "math", "base": base}
        store.finish(store.start("evaluate", known, 0), {"drift": drift})
        for elsewhere in ({"env": "sokoban"}, {"base": "d" * 64}, {}):  # what is newer, and of something else
            run_id = store.start("evaluate", known | elsewhere, 0)
            store.finish(run_id, {"drift": other})
            store.change("UPDATE run SET imported = ? WHERE id = ?", (not elsewhere, run_id))
        card.describe(store, folder, student.model_id, work / "base")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "KL to the base 0.125 nats a token" in text and "| student |" in text
    assert find.fingerprint(folder) == student.model_id


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("opcd", "by on-policy context distillation"),
        ("context-distillation", "by off-policy context distillation"),
        ("seqkd", "by sequence-level distillation"),
        ("mixed", "by context distillation, half on-policy and half off-policy"),
    ],
)
def test_the_card_says_how_the_student_was_trained(method: str, says: str, student: Distilled, work: Path) -> None:
    with Store.open(work / "work" / "store.db") as store:
        facts = card.facts_of(store, Path(student.folder), student.model_id, work / "base")
        assert facts is not None
        text = card.card(dataclasses.replace(facts, settings={**facts.settings, "method": method}))
    assert says in text and ("--method" in text) == (method != "opcd")
    tagged = "on-policy-distillation" in ModelCard(text).data.to_dict()["tags"]
    assert tagged == (method not in ("context-distillation", "seqkd"))


def test_the_card_of_an_adapter_names_the_base_that_it_belongs_to(
    student: Distilled, work: Path, tmp_path: Path, tiny_model_dir: Path
) -> None:
    """Not the model that the base was trained from, round after round."""
    loaded, folder = models.load_model(str(tiny_model_dir)), tmp_path / "student"
    models.add_adapter(loaded, 2, torch.float32, 0)
    models.save_model(loaded, folder, parent_id=loaded.id, facts={})
    write_json(folder / "agentopcd.json", {**find.sidecar(folder), "origin": "Org/first"})

    def made(base: str, base_folder: Path = tiny_model_dir) -> str:
        write_json(folder / find.ADAPTER, {**find.read_json(folder / find.ADAPTER), "base_model_name_or_path": base})
        with Store.open(work / "work" / "store.db") as store:
            facts = card.facts_of(store, Path(student.folder), student.model_id, base_folder)
            assert facts is not None
            return card.card(dataclasses.replace(facts, folder=folder))

    text = made(str(tiny_model_dir))
    assert 'from_pretrained("path/to/its/base"), student)' in text and "The base is a local model" in text
    assert "which goes back to `Org/first`" in text and "base_model" not in ModelCard(text).data.to_dict()
    text = made("Org/real")
    assert 'from_pretrained("Org/real"), student)' in text and "The base is a local model" not in text
    assert ModelCard(text).data.to_dict()["base_model"] == "Org/real"
    text = made(str(tiny_model_dir), folder)  # an adapter on an adapter: PEFT would leave the first one out
    assert "PeftModel" not in text and 'student = load_model("path/to/this/folder")' in text
    assert "The base is an adapter itself" in text and "`--merge`" in text


def test_others_can_read_it_and_it_has_the_dtype(student: Distilled) -> None:
    from safetensors.torch import load_file

    folder = Path(student.folder)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}
    assert folder.stat().st_mode & 0o777 == 0o755
    weights = load_file(folder / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.slow
def test_it_answers_token_by_token_without_this_package(student: Distilled) -> None:
    folder = Path(student.folder)
    assert alone(folder) == here(folder)


@pytest.mark.slow
def test_an_adapter_carries_a_base_that_is_on_no_hub(tmp_path: Path) -> None:
    loaded, folder = models.load_model("pocket-s"), tmp_path / "student"
    models.add_adapter(loaded, 2, torch.float32, 0)
    with models.heard(loaded):
        id_ = models.save_model(loaded, folder, parent_id=loaded.id, facts={})
    assert json.loads((folder / find.ADAPTER).read_text())["base_model_name_or_path"] is None
    assert find.base_of_adapter(folder) == str(folder / "base") and find.fingerprint(folder / "base") == loaded.id
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o644}
    assert str(find.WEIGHTS) not in "".join(path.read_text() for path in folder.glob("*.json"))
    moved = folder.rename(tmp_path / "moved")
    assert find.fingerprint(moved) == id_
    assert alone(moved, str(moved / "base")) == here(moved)


def test_a_base_is_named_by_its_hub_id(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "_from_hub", {"Org/tiny-1.5": tiny_model_dir}.__getitem__)
    cached = tmp_path / "models--Org--tiny-1.5" / "snapshots" / "0123abcd"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(tiny_model_dir)
    loaded = models.load_model(str(cached))
    loaded.folder = cached
    models.add_adapter(loaded, 2, torch.float32, 0)
    models.save_model(loaded, tmp_path / "a", parent_id=loaded.id, facts={})
    assert json.loads((tmp_path / "a" / find.ADAPTER).read_text())["base_model_name_or_path"] == "Org/tiny-1.5"
    assert find.hub_id(tmp_path / "a") == "Org/tiny-1.5"  # and a student of this student knows where it came from
    assert find.hub_id(tiny_model_dir) == ""


def test_a_base_of_our_cache_is_named_by_what_it_was(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTOPCD_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded = models.load_model(str(tiny_model_dir))
    models.add_adapter(loaded, 2, torch.float32, 0)
    hub = "HuggingFaceTB/SmolLM2-135M-Instruct"
    cases = [("smollm2-135m", str(tmp_path / "smollm2-135m"), "smollm2-135m", hub),
             ("gguf-01", str(tmp_path / "x.gguf"), str(tmp_path / "x.gguf"), None),
             ("gguf-02", "~/x.gguf", str(tmp_path / "x.gguf"), None)]  # fmt: skip
    for name, asked, base, written in cases:
        (tmp_path / name).symlink_to(tiny_model_dir)
        monkeypatch.setattr(find, "resolved", Path)  # the link is the cache's folder
        monkeypatch.setattr(find, "fingerprint", lambda folder: "id")
        loaded.name, loaded.folder = asked, tmp_path / name
        models.save_model(loaded, tmp_path / "a", parent_id="", facts={})
        assert find.sidecar(tmp_path / "a")["base"] == base
        assert json.loads((tmp_path / "a" / find.ADAPTER).read_text())["base_model_name_or_path"] == written


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pocket", "pocket"), ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B"), ("/home/me/secret/model", "a local folder"),
        ("~/model", "a local folder"), ("../x", "a local folder"), ("x.gguf", "a local .gguf file"),
        ("runs/consolidate-math-01/student", "the student of run consolidate-math-01"),
        ("/c/models--Org--m/snapshots/0a", "Org/m"),
    ],
)  # fmt: skip
def test_no_path_is_told(name: str, said: str) -> None:
    assert told(name) == said


def test_the_command_names_the_model_that_was_trained_by_default() -> None:
    said, _ = card.command(ConsolidateConfig(env="math", context="notes.txt"), "pocket")
    assert "--model pocket" in said and "--context context.txt" in said
    said, _ = card.command(ConsolidateConfig(env="math", context="notes.txt", model="smollm2-135m"), "pocket")
    assert "--model smollm2-135m" in said and "pocket" not in said
    said, _ = card.command(ConsolidateConfig(env="math", context="notes.txt", model="lake/student"), "pocket")
    assert "--model pocket" in said and "lake/student" not in said, "that is another model by now"


def test_the_card_says_what_is_known_of_how_it_was_made(student: Distilled, work: Path) -> None:
    with Store.open(work / "work" / "store.db") as store:
        store.change("UPDATE run SET code = '0.0.1' WHERE verb = 'consolidate'")
        facts = card.facts_of(store, Path(student.folder), student.model_id, work / "base")
        assert facts is not None and facts.evaluation is not None
        shown = Context("Be brief.", "system")
        store.add_context(shown, {"order": "edit", "from": ""})
        shown_by = dataclasses.replace(facts, contexts={shown.id: 1.0})
        text, alone_text = card.card(facts), card.card(shown_by)
        mixed = card.card(dataclasses.replace(facts, settings={**facts.settings, "mix": 2, "context": ""}))
        shared = card.card(dataclasses.replace(facts, evaluation={**facts.evaluation, "protocol": "shared"}))
    assert "with agentopcd 0.0.1, in the" in text, "the version that trained, not the one that writes"
    assert "of `math`, which chose nothing; success" in text and "of `math`; success" in shared
    assert "--placement" not in text and "--placement system" in alone_text
    assert "A person edited it. What the store" in alone_text
    assert "`context.txt`" in text and "context.txt" not in mixed and "--mix 2" in mixed


@pytest.mark.parametrize(
    ("recipe", "says"),
    [({"order": "chain"}, "It was put together from what play taught. What"), ({"order": "new"}, "What"), ({}, "What"),
     ({"order": ["x"]}, "What"), ({"order": "forget"}, "It is another context without some of its items. What")],
)  # fmt: skip
def test_the_card_says_where_a_context_comes_from(recipe: dict[str, Any], says: str, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.db") as store:
        store.add_context(Context("Be brief."), recipe)
        assert card._origin(store, Context("Be brief.").id) == f"{says} the store of its workspace knows of it:"


def test_a_licence_is_the_bases_own(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    assert card._licence(base) == {}
    assert card._licence(find.WEIGHTS / "pocket") == {"license": "apache-2.0"}
    (base / "README.md").write_text('---\nlicense: other\nlicense_name: "a\\n---\\nb"\n---\n# x\n')
    assert card._licence(base) == {"license": "other", "license_name": "a --- b"}
    (base / "README.md").write_text("---\nlicense: [\n---\n")
    assert card._licence(base) == {}


def test_a_weight_that_does_not_fit_is_refused(tiny_model_dir: Path) -> None:
    loaded: Any = models.load_model(str(tiny_model_dir))
    models.check_savable(loaded, "float16")
    with torch.no_grad():
        loaded.model.model.norm.weight[0] = 1e5
    models.check_savable(loaded, "bfloat16")
    with pytest.raises(ModelError, match=r"weight of 1e\+05, and float16 ends at 6.55e\+04"):
        models.check_savable(loaded, "float16")


def test_a_context_as_a_skill(tmp_path: Path) -> None:
    from agentopcd.knowledge.evidence import skill

    with Store.open(tmp_path / "store.db") as store:
        context = Context('- EXPERIENCE ITEM: go left\n- EXPERIENCE ITEM: "quoted": yes')
        store.add_context(context)
        store.move("sokoban/best", context.id, "person", "a test", None)
        text = skill(store, context.id, "sokoban/best")
    found = ModelCard(text)  # the same form: YAML in front
    assert found.data.to_dict()["name"] == "sokoban-best"
    assert found.data.to_dict()["description"].endswith("It begins: go left")
    assert found.text.strip().startswith(context.text) and "## Evidence" in text and "refs: sokoban/best" in text
