"""Damaged model folders and run folders."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from agentopcd import models
from agentopcd.core.types import Context, Request, Sampling
from agentopcd.rollouts.chat import Chat
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler
from benchmarks.fuzz import stock
from benchmarks.fuzz.harness import Case, Silent, call
from benchmarks.fuzz.mutate import damage_bytes, damage_json

TEXT = "What is 3+4?  Two spaces,\n\tnew lines, Ünïcode and 7."


# -- models --------------------------------------------------------------------------------------------


def _damage_weights(rng: random.Random, file: Path) -> str:
    """Weights that are missing, renamed, of another shape, or not finite."""
    tensors = load_file(file)
    name = rng.choice(sorted(tensors))
    how = rng.choice(("drop", "rename", "shape", "nan", "more", "dtype", "zero"))
    if how == "drop":
        del tensors[name]
    elif how == "rename":
        tensors[name + rng.choice((".x", "0"))] = tensors.pop(name)
    elif how == "shape":
        tensors[name] = tensors[name][: max(1, len(tensors[name]) // 2)].clone()
    elif how == "nan":
        tensors[name] = torch.full_like(tensors[name], rng.choice((float("nan"), float("inf"))))
    elif how == "more":
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(64, 32)
    elif how == "dtype":
        tensors[name] = tensors[name].to(rng.choice((torch.float16, torch.int8, torch.float64)))
    else:
        tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})
    return f"{how} {name}"


TEMPLATES = (
    "", "{{ x", "{% for %}", "{{ messages[0]['content'] }}", "hello", "{{ 1/0 }}", "{{ messages }}", "{% raw %}",
    "{% for m in messages %}{{ m.role }}{% endfor %}", "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "{{ raise_exception('no') }}", "{% for m in messages %}{{ m['content'][:3] }}{% endfor %}",
    "{{ messages[5].content }}",
    "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
    "{% for m in messages %}{{ m.content|trim }}{% endfor %}",
)  # fmt: skip


def try_model(case: Case) -> None:
    """A model folder with damage: it reads text as text, uses every weight and ends replies; or it is refused."""
    rng = case.rng
    folder = stock.copy(stock.MODEL, case.folder / "model")
    file = folder / rng.choice(sorted(file.name for file in stock.MODEL.iterdir()))
    how = rng.choice(("bytes", "json", "json", "json", "gone", "weights", "template"))
    if how == "json" and file.suffix == ".json":
        value, how = damage_json(rng, json.loads(file.read_text()))
        file.write_text(json.dumps(value))
    elif how == "gone":
        file.unlink()
    elif how == "weights":
        how = _damage_weights(rng, folder / "model.safetensors")
    elif how == "template":
        how = rng.choice(TEMPLATES)
        (folder / "chat_template.jinja").write_text(how)
    else:
        data, how = damage_bytes(rng, file.read_bytes())
        file.write_bytes(data)
    case.shown = f"{file.name}: {how}"
    with torch.inference_mode(), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        loaded = models.load_model(str(folder))
    told = any("does not give back" in str(warning.message) for warning in warned)
    with torch.inference_mode():
        _check_model(loaded, folder, told)


def _check_model(loaded: models.LoadedModel, folder: Path, told: bool) -> None:
    tokenizer, model = loaded.tokenizer, loaded.model
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    if (back := tokenizer.decode(ids)) != TEXT and not told:
        raise Silent(f"the tokenizer gives back {back!r:.100}")
    state = model.state_dict()
    for name, tensor in load_file(folder / "model.safetensors").items():
        mine = state.get(name)
        if mine is None or mine.shape != tensor.shape or not torch.equal(mine.float(), tensor.float()):
            raise Silent(f"the weights {name} of the folder are not those of the model")
    rows = model.get_input_embeddings().weight.shape[0]
    if bad := [token for token in (*loaded.end_ids, tokenizer.pad_token_id, max(ids)) if not 0 <= token < rows]:
        raise Silent(f"token ids {bad} are beyond the {rows} embeddings")
    chat = Chat(tokenizer)
    request = chat.request([{"role": "user", "content": TEXT}], Context("A hint."), seed=1, choices=())
    prompt = tokenizer.decode(list(request.prompt_ids))
    if (TEXT not in prompt and not told) or "A hint." not in prompt:
        raise Silent(f"the prompt does not hold the message: {prompt!r:.150}")
    sampler = TransformersSampler(loaded, compute=torch.float32)
    (reply,) = sampler.sample([Request(prompt_ids=request.prompt_ids, seed=1)], Sampling(temperature=1.0, max_tokens=3))
    if not all(value <= 0 for value in reply.logprobs) or not reply.token_ids:
        raise Silent(f"log-probabilities {reply.logprobs}")
    logits = model(torch.tensor([ids])).logits
    if not torch.isfinite(logits).all():
        raise Silent("the logits are not finite")


# -- runs ----------------------------------------------------------------------------------------------


def _outcome(run: Path) -> tuple[str, bytes]:
    """What a run leaves: its result, and the student's weights."""
    return (run / "result.json").read_text(), (run / "student" / "model.safetensors").read_bytes()


@functools.cache
def straight() -> tuple[str, bytes]:
    """The outcome of the killed run when nothing is damaged."""
    source, _, killed = stock.runs()
    home, folder = Path.cwd(), stock.copy(source, stock.shelf() / "straight")
    os.chdir(folder)
    try:
        call(*stock.KILLED)
        return _outcome(folder / killed.relative_to(source))
    finally:
        os.chdir(home)


def try_run(case: Case) -> None:
    """A run folder with damage: the run ends as it would have, from an older point if need be; or it is refused."""
    rng = case.rng
    wanted, (source, finished, killed) = straight(), stock.runs()
    shutil.copytree(source, case.folder, dirs_exist_ok=True)
    going_on = rng.random() < 0.7
    run = case.folder / (killed if going_on else finished).relative_to(source)
    file = rng.choice(sorted(path for path in run.rglob("*") if path.is_file()))
    how = rng.choice(("bytes", "bytes", "json", "gone", "folder gone"))
    if how == "json" and file.suffix == ".json":
        value, how = damage_json(rng, json.loads(file.read_text()))
        file.write_text(json.dumps(value))
    elif how == "gone":
        file.unlink()
    elif how == "folder gone" and file.parent != run:
        shutil.rmtree(file.parent)
    else:
        data, how = damage_bytes(rng, file.read_bytes())
        file.write_bytes(data)
    case.shown = f"{'killed' if going_on else 'finished'} run, {file.relative_to(run)}: {how}"
    said = call(*(stock.KILLED if going_on else stock.FINISHED))
    if going_on and _outcome(run) != wanted and "warning: the best student so far" not in said:
        raise Silent("the run ended, and not as it would have")
    if not going_on:
        _check_finished(run, finished)


def _check_finished(run: Path, finished: Path) -> None:
    """A finished run that is reported again says what it said, of the student that it made."""
    was, now = (json.loads((folder / "result.json").read_text()) for folder in (finished, run))
    facts = was.keys() - {"sha256"}
    weights = [(folder / "student" / "model.safetensors").read_bytes() for folder in (finished, run)]
    if weights[0] != weights[1] or any(was[name] != now.get(name) for name in facts):
        raise Silent("a damaged result or student is reported as if it were whole")


KINDS: dict[str, tuple[Callable[[Case], None], int]] = {"models": (try_model, 350), "runs": (try_run, 60)}
