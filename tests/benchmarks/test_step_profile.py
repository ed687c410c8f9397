"""The profile of a step: which kind a call is, and that a clock's laps hold what was done in them."""

from __future__ import annotations

import pytest
import torch

from benchmarks.step_profile import KINDS, ProfiledClock, kind_of

VOCABULARY = 97


@pytest.mark.parametrize(
    ("name", "shapes", "kind"),
    [
        ("aten::mm", [[84, 8], [8, 16]], "layers"),
        ("mkldnn::_linear_pointwise", [[4, 8], [VOCABULARY, 8]], "head"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", [[1, 2, 3, 4]], "attention"),
        ("aten::bmm", [[6, 1, 4], [6, 4, 9]], "attention"),
        ("aten::_fused_adamw_", [[]], "optimizer"),
        ("aten::topk", [[4, VOCABULARY], []], "vocabulary"),
        ("aten::copy_", [[4, 8], [4, 8]], "copies"),
        ("aten::silu", [[4, 8]], "small"),
    ],
)
def test_the_kind_of_a_call_follows_from_its_name_and_its_shapes(name: str, shapes: list[object], kind: str) -> None:
    assert kind_of(name, shapes, VOCABULARY) == kind and kind in KINDS


def test_each_lap_has_the_calls_made_in_it_and_nothing_is_counted_twice() -> None:
    clock = ProfiledClock(VOCABULARY)
    x, head = torch.randn(64, 32), torch.randn(VOCABULARY, 32)
    torch.nn.functional.linear(x, head)
    clock.lap("rollout")
    torch.mm(x.T, x)
    clock.lap("teacher")
    clock.profiler.stop()
    rollout, teacher = clock.kinds["rollout"], clock.kinds["teacher"]
    assert rollout["head"] > 0 == rollout["layers"]
    assert teacher["layers"] > 0 == teacher["head"]
    for phase, found in (("rollout", rollout), ("teacher", teacher)):
        assert sum(found.values()) == pytest.approx(clock.phases[phase][1], rel=0.2)
    assert not clock.kinds["update"]
