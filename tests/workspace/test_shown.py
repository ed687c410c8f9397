"""How much of an item's effect a student shows: on distributions made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agentopcd.core.groups import Products, shown_share
from agentopcd.core.stats import Mean
from agentopcd.workspace.lineage.found import Found, Shown
from agentopcd.workspace.lineage.measure import Logits, Sums, by_task, shown, sums

TOKENS = [3, 2, 4, 3, 5, 2, 3, 2]
KEYS = ["a", "a", "b", "c", "d", "e", "f", "g"]
V = 11


def logits(seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(sum(TOKENS), V, generator=torch.Generator().manual_seed(seed)) * scale


BASE = logits(0)
WITHOUT = BASE + logits(1)
WHOLE = WITHOUT + logits(2)


def given(rows: Tensor) -> Logits:
    return lambda where: rows[where]


def measured(student: Tensor, *, without: Tensor = WITHOUT, whole: Tensor = WHOLE, rows: int = 5) -> Shown:
    turns = sums(given(BASE), given(without), given(whole), given(student), TOKENS, rows, 1.0)
    return shown(by_task(KEYS, turns))


def roots(rows: Tensor) -> Tensor:
    return rows.softmax(-1).sqrt()


def blend(rest: float, part: float) -> Tensor:
    """Logits of a student whose square roots are the base's plus so much of what the rest and the item change."""
    mixed = roots(BASE) + rest * (roots(WITHOUT) - roots(BASE)) + part * (roots(WHOLE) - roots(WITHOUT))
    return mixed.clamp_min(1e-12).square().log()


@pytest.mark.parametrize(
    ("student", "share"), [(WHOLE, 1.0), (WITHOUT, 0.0), (BASE, 0.0)], ids=["teacher", "without the item", "base"]
)
def test_the_three_students_that_are_known(student: Tensor, share: float) -> None:
    found = measured(student)
    assert found.share.rate == pytest.approx(share, abs=1e-5)
    assert (found.share.low, found.share.high) == pytest.approx((share, share), abs=1e-4)


def test_half_of_an_item_beside_the_whole_rest_is_half() -> None:
    found = measured(blend(1.0, 0.5)).share
    assert found.rate == pytest.approx(0.5, abs=0.03)  # the student's probabilities must add up to 1, which costs a bit


def test_what_the_other_items_change_does_not_count_even_if_it_looks_alike() -> None:
    """The item pushes the way the rest pushes: a student with the rest alone would seem to show it."""
    whole = WITHOUT + 0.7 * (WITHOUT - BASE) + 0.3 * logits(3)
    naive = ((roots(WITHOUT) - roots(BASE)) * (roots(whole) - roots(WITHOUT))).sum()
    assert naive > 0.2 * (roots(whole) - roots(WITHOUT)).square().sum()
    found = measured(blend(0.8, 0.0), whole=whole).share
    assert abs(found.rate) < 0.06  # not exactly 0: probabilities must add up to 1, which costs a bit


def test_an_only_item_needs_no_rest() -> None:
    assert measured(WHOLE, without=BASE).share.rate == pytest.approx(1.0)
    assert measured(BASE, without=BASE).share.rate == 0.0


def test_an_item_that_does_nothing_has_no_share() -> None:
    found = measured(WHOLE, without=WHOLE)
    assert found.effect.rate == 0 and found.share.low == -float("inf") and found.of_context.high == 0


def test_the_interval_is_that_of_the_regression_with_tasks_as_clusters() -> None:
    """By hand: residuals of least squares, summed up by task, in the sandwich."""
    student = blend(0.6, 0.4) + logits(4, 0.5)
    x = [roots(WITHOUT) - roots(BASE), roots(WHOLE) - roots(WITHOUT)]
    y = roots(student) - roots(BASE)
    design = torch.stack([one.flatten() for one in x], 1).double()
    solved = torch.linalg.lstsq(design, y.flatten().double()[:, None]).solution[:, 0]
    residual = y.flatten().double() - design @ solved
    tasks = [key for key, n in zip(KEYS, TOKENS, strict=True) for _ in range(n * V)]
    meat = torch.zeros(2, 2, dtype=torch.float64)
    for key in set(KEYS):
        rows = torch.tensor([one == key for one in tasks])
        score = design[rows].T @ residual[rows]
        meat += torch.outer(score, score)
    bread = torch.linalg.inv(design.T @ design)
    error = float((bread @ meat @ bread)[1, 1] * 7 / 6) ** 0.5
    found = measured(student).share
    assert found.rate == pytest.approx(float(solved[1]), abs=1e-5)
    assert found.high - found.rate == pytest.approx(2.446912 * error, rel=1e-4)  # t of six degrees of freedom
    assert found.n == 7


ALLOWED = torch.arange(V) % 3 != 0


def of_tasks(four: list[Tensor], rows: int) -> list[Sums]:
    return by_task(KEYS, sums(*map(given, four), TOKENS, rows, 0.7))  # type: ignore[call-arg,arg-type]


def test_chunks_and_forbidden_tokens_change_nothing() -> None:
    four = [BASE, WITHOUT, WHOLE, blend(0.5, 0.5)]
    found = of_tasks([rows.masked_fill(~ALLOWED, -torch.inf) for rows in four], 4)
    for one, other in zip(found, of_tasks([rows[:, ALLOWED] for rows in four], 1000), strict=True):
        assert one[:3] == pytest.approx(other[:3], rel=1e-5)
        assert one.products == pytest.approx(other.products, rel=1e-5)
    assert [one.tokens for one in found] == [5, 4, 3, 5, 2, 3, 2]


def test_divergences_are_those_from_the_whole_context_by_hand() -> None:
    found = of_tasks([BASE, WITHOUT, WHOLE, blend(0.5, 0.5)], 4)
    base, without, whole = ((rows / 0.7).softmax(-1).double() for rows in (BASE, WITHOUT, WHOLE))
    tasks = [key for key, n in zip(KEYS, TOKENS, strict=True) for _ in range(n)]
    for name, other in (("item_nats", without), ("context_nats", base)):
        nats = (whole * (whole / other).log()).sum(-1)
        wanted = [float(nats[[task == key for task in tasks]].sum()) for key in sorted(set(KEYS))]
        assert [getattr(one, name) for one in found] == pytest.approx(wanted, rel=1e-5)
    of_context = (whole * (whole / without).log()).sum() / (whole * (whole / base).log()).sum()
    assert shown(found).of_context.rate == pytest.approx(float(of_context), rel=1e-5)


def test_a_placebo_is_told_in_units_of_the_item() -> None:
    """The sentence does a hundredth of what the item does; the student shows three times that, by chance."""
    small = [Products(0.0, 0.0, 1e-4, 0.0, 3e-4), Products(0.0, 0.0, 1e-4, 0.0, 3e-4)]
    large = [Products(0.0, 0.0, 1.0, 0.0, 1.0)] * 2
    assert shown_share(small).rate == pytest.approx(3.0)
    assert shown_share(small, large).rate == pytest.approx(0.03)
    assert shown_share(large, large) == shown_share(large)


@pytest.mark.parametrize(
    ("share", "placebo", "of_context", "verdict"),
    [
        ((1.0, 0.9, 1.1), (0.1, 0.0, 0.2), 0.5, "shown"),
        ((0.15, 0.1, 0.2), (0.1, 0.0, 0.2), 0.5, "not shown"),
        ((0.3, 0.25, 0.4), (0.1, 0.0, 0.2), 0.5, "shown"),
        ((0.3, 0.1, 0.4), (0.1, 0.0, 0.2), 0.5, "undecided"),
        ((0.7, -0.8, 2.2), (-0.4, -1.3, 0.4), 0.5, "undecided"),
        ((-0.5, -0.6, -0.4), (-1.0, -1.1, -0.9), 0.5, "undecided"),
        ((1.0, 0.9, 1.1), (0.1, 0.0, 0.2), 0.005, "inert"),
    ],
)
def test_a_verdict_wants_an_interval(
    share: tuple[float, ...], placebo: tuple[float, ...], of_context: float, verdict: str
) -> None:
    whole = Mean(of_context, of_context, of_context, 9)
    own, nothing = (Shown(whole, whole, Mean(*figures, 9)) for figures in (share, placebo))  # type: ignore[arg-type]
    found = Found(item="ab", text="x", context="c", carrier="m", carried=True, own=own, placebo=nothing)
    assert found.verdict == verdict
    assert Found.from_dict(found.to_dict()) == found


def test_a_share_of_nothing_is_not_known() -> None:
    assert shown_share([]).low == -float("inf")
    same = [Products(2.0, 4.0, 8.0, 1.0, 2.0), Products(1.0, 2.0, 4.0, 0.5, 1.0)]  # the part is twice the rest
    assert shown_share(same).high == float("inf")
