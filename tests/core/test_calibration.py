"""The rule before a training, and how often it was right, by hand."""

from __future__ import annotations

import json

import pytest

from agentopcd.core.calibration import NOISE_NATS, Calibration, Past, advise, told
from agentopcd.core.stats import Difference, Mean, Rate


def ends(low: float, high: float) -> Difference:
    return Difference((low + high) / 2, low, high, 64)


def far(low: float, high: float) -> Mean:
    return Mean((low + high) / 2, low, high, 64)


HELPS, MAY, NO, MOVES = ends(0.1, 0.5), ends(-0.1, 0.3), ends(-0.3, 0.0), far(0.1, 0.2)


@pytest.mark.parametrize(
    ("gain", "beyond", "moved", "advice", "why"),
    [
        (HELPS, HELPS, far(0.0, NOISE_NATS / 2), "do not", "does not move the model"),
        (NO, HELPS, MOVES, "do not", "no gain to distil"),
        (MAY, HELPS, MOVES, "collect better notes", "not shown that the context helps"),
        (HELPS, MAY, MOVES, "collect better notes", "form only"),
        (HELPS, HELPS, MOVES, "train", "more than its placebo"),
        (HELPS, None, None, "train", "the context helps"),
        (None, None, MOVES, "train", "nothing here says whether that is for the better"),
        (None, None, far(-0.1, 0.2), "collect better notes", "not shown that the context moves the model"),
        (None, None, far(0.0, NOISE_NATS / 2), "do not", "nothing to distil"),
        (ends(0.0, 0.4), HELPS, MOVES, "collect better notes", "not shown"),
    ],
)
def test_the_first_line_that_holds_decides(
    gain: Difference | None, beyond: Difference | None, moved: Mean | None, advice: str, why: str
) -> None:
    found = advise(gain, beyond, moved)
    assert found[0] == advice and why in found[1]


@pytest.mark.parametrize(
    ("wins", "n", "gain", "advice"),
    [
        (64, 64, ends(-0.06, 0.06), "do not"), (63, 64, MAY, "do not"), (62, 64, MAY, "collect better notes"),
        (8, 8, MAY, "collect better notes"), (640, 660, HELPS, "train"), (64, 64, NO, "do not"),
    ],
)  # fmt: skip
def test_a_model_that_wins_already_has_nothing_to_gain(wins: int, n: int, gain: Difference, advice: str) -> None:
    """62 of 64 and 8 of 8 leave more than a tenth by their intervals."""
    found = advise(gain, HELPS, MOVES, Rate(wins, n))
    assert found[0] == advice and ("the model wins without it" in found[1]) is (advice == "do not" and gain is not NO)
    assert advise(MAY, HELPS, MOVES, Mean(1.0, 1.0, 1.0, 64))[0] == "collect better notes", "a score without an end"


def past(gain: Difference, student: Difference, beyond: Difference | None = None) -> Past:
    return Past(name="run", gain=gain, beyond=beyond, student=student)


def test_a_calibration_counts_what_came_of_each_advice() -> None:
    found = Calibration.of(
        [past(HELPS, HELPS), past(HELPS, MAY), past(HELPS, HELPS, beyond=MAY), past(MAY, HELPS), past(NO, NO)]
    )
    assert (found.trained.wins, found.trained.n) == (1, 2)
    assert (found.other.wins, found.other.n) == (1, 3)  # the last: it did not gain
    # Gains in context above 0: 0.3 each, three of them; the students' are 0.3, 0.1 and 0.3.
    assert found.handed is not None
    assert (found.handed.rate, found.handed.n) == (pytest.approx(0.7 / 0.9), 3)
    assert found.handed.low < 0.7 / 0.9 < found.handed.high
    assert found.lines()[0].startswith("calibration on 5 earlier trainings: of 2 with the advice train, 1 students")


def test_a_few_trainings_have_the_interval_of_student() -> None:
    handed = Calibration.of([past(HELPS, HELPS), past(HELPS, ends(0.05, 0.25))]).handed
    assert handed is not None
    # Gains 0.3 and 0.15 over 0.3 each: 0.75, and 0.075 and -0.075 from it; 12.706 for one degree of freedom.
    half = 12.706 * (2 * (0.075**2 + 0.075**2)) ** 0.5 / 0.6
    assert (handed.low, handed.high) == (pytest.approx(0.75 - half, rel=1e-3), pytest.approx(0.75 + half, rel=1e-3))


def test_the_prediction_scales_the_gain_in_context() -> None:
    one = Calibration.of([past(HELPS, ends(0.2, 0.4))])
    assert one.predicted(ends(0.2, 0.4)) == (pytest.approx(0.3), None, None)  # of one training: no interval
    two = Calibration.of([past(HELPS, HELPS), past(HELPS, ends(0.05, 0.25))])
    handed = two.handed
    assert handed is not None and handed.rate == pytest.approx(0.75)
    assert two.predicted(ends(0.2, 0.4)) == (
        pytest.approx(0.225), pytest.approx(0.2 * handed.low if handed.low > 0 else 0.4 * handed.low),
        pytest.approx(0.4 * handed.high),
    )  # fmt: skip
    nothing = Calibration.of([past(NO, NO)])
    assert nothing.predicted(HELPS) is None and len(nothing.lines()) == 1
    assert "no earlier training" in Calibration.of([]).lines()[0]


def test_what_came_is_said_in_words_and_json() -> None:
    one = past(HELPS, NO, beyond=HELPS)
    assert str(one).endswith("train; student -0.150 [-0.300, +0.000], no difference")
    (given,) = json.loads(json.dumps(told([one])))
    assert given["advice"] == "train" and given["gained"] is False and given["gain"]["low"] == 0.1
    json.dumps(Calibration.of([one]).to_dict())
