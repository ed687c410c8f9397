"""The draw of the in-process engine at the ends of the unit interval."""

from __future__ import annotations

import pytest
import torch

from agentopcd.core.errors import AlignmentError
from agentopcd.core.types import Request, Sampling
from agentopcd.rollouts.sampling import drawing

LOGITS = torch.tensor([[-9.0, 0.0, 2.0, 1.0, -9.0]])


@pytest.mark.parametrize(("noise", "token"), [(0.0, 1), (1 - 2**-53, 3)])
def test_no_draw_hits_a_token_without_probability(noise: float, token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens 0 and 4 are cut by top-k, so the smallest number takes token 1 and the largest token 3."""

    class Fixed:
        def __init__(self, seed: str) -> None: ...

        def random(self) -> float:
            return noise

    monkeypatch.setattr(drawing.random, "Random", Fixed)
    request = Request(prompt_ids=(5,), seed=0)
    assert drawing.draw(LOGITS, [(request, ())], Sampling(temperature=1.0, top_k=3))[0] == [token]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(temperature: float) -> None:
    rows = [(Request(prompt_ids=(5,), seed=i), ()) for i in range(2)]
    broken = torch.cat([LOGITS, torch.full_like(LOGITS, torch.nan)])
    with pytest.raises(AlignmentError, match="no numbers"):
        drawing.draw(broken, rows, Sampling(temperature=temperature))


def test_top_p_is_of_what_top_k_has_left() -> None:
    """Of 0.4, 0.3, 0.2 and 0.1, top-k leaves 0.57 and 0.43, so the first token alone holds half."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    found = drawing.truncated_logprobs(logits, Sampling(temperature=1.0, top_k=2, top_p=0.5)).exp()
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    both = drawing.truncated_logprobs(logits, Sampling(temperature=1.0, top_k=2, top_p=0.6)).exp()
    torch.testing.assert_close(both, torch.tensor([[4 / 7, 3 / 7, 0.0, 0.0]]))
