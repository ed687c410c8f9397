"""The mask of replies that are held to a list."""

from __future__ import annotations

import runpy
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from agentopcd.rollouts.sampling import choices
from agentopcd.rollouts.sampling.choices import allowed_ids, allowed_in, keep

CHOICES = ((5, 6, 2), (5, 7, 2), (5, 2), (8, 2))


def test_what_may_follow_is_what_some_choice_goes_on_with() -> None:
    assert allowed_ids(CHOICES, ()) == (5, 8)
    assert allowed_ids(CHOICES, (5,)) == (2, 6, 7)
    assert allowed_ids(CHOICES, (5, 6)) == (2,)
    assert allowed_ids(CHOICES, (5, 6, 2)) == ()  # all is said
    assert allowed_ids((), (5,)) == ()
    assert allowed_in(CHOICES, (8, 2)) == [(5, 8), (2,)]
    assert allowed_in((), (8, 2)) == [(), ()]


def test_only_rows_with_a_list_are_masked_and_no_gradient_reaches_what_is_forbidden() -> None:
    logits = torch.arange(12.0).reshape(2, 6).requires_grad_()
    found = keep(logits, [(1, 4), ()])
    assert found[0].tolist() == [-torch.inf, 1, -torch.inf, -torch.inf, 4, -torch.inf]
    assert found[1].tolist() == logits[1].tolist()
    found.softmax(-1)[:, 1].sum().backward()
    assert logits.grad is not None and (logits.grad[0] != 0).tolist() == [False, True, False, False, True, False]
    assert keep(logits, [(), ()]) is logits


def test_lists_that_come_from_another_process_are_choices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside vLLM; here with a module in place of vLLM's."""
    name = "vllm.v1.sample.logits_processor"
    module = ModuleType(name)
    module.AdapterLogitsProcessor = object  # type: ignore[attr-defined]
    for part in ("vllm", "vllm.v1", "vllm.v1.sample"):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    mask = runpy.run_path(choices.__file__.replace("choices.py", "vllm_choices.py"))["Constrain"]()
    lists = [list(choice) for choice in CHOICES]
    process = mask.new_req_logits_processor(SimpleNamespace(extra_args={"agentopcd_choices": lists}))
    masked = process([5], torch.zeros(9))
    assert [id_ for id_ in range(9) if masked[id_] == 0] == [2, 6, 7]
    for nothing in (None, {}, {"agentopcd_choices": []}):
        assert mask.new_req_logits_processor(SimpleNamespace(extra_args=nothing)) is None
