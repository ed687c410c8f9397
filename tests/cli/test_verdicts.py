"""Verdicts on claims: what they take, how outcomes are kept, and that figures come out of them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentopcd.cli.page.results import paper_row
from agentopcd.cli.paper.verdicts import finding, judged, pack, success, unpack
from agentopcd.core.crossed import Outcomes
from agentopcd.core.errors import ConfigError
from recipes.paper import recompute


def played(rate: float, seeds: int, tasks: int = 60, seed: int = 0) -> Outcomes:
    rng = np.random.default_rng(seed)
    return {(s, f"t{t}", 0): bool(rng.random() < rate) for s in range(seeds) for t in range(tasks)}


@pytest.mark.parametrize(
    ("seeds", "chains", "rates", "verdict"),
    [
        (4, None, (0.9, 0.1), "reproduced"),
        (4, None, (0.1, 0.9), "refuted"),
        (4, None, (0.5, 0.5), "undecided at this size"),
        (3, None, (0.9, 0.1), "undecided: too few seeds"),
        (3, 3, (0.9, 0.1), "undecided: too few seeds"),
        (7, 7, (0.9, 0.1), "undecided: too few chains"),
        (8, 8, (0.9, 0.1), "reproduced"),
    ],
)
def test_a_verdict_takes_four_seeds_or_eight_chains(
    seeds: int, chains: int | None, rates: tuple[float, float], verdict: str
) -> None:
    arms = {"a": played(rates[0], seeds, seed=1), "b": played(rates[1], seeds, seed=2)}
    assert finding(("a", "b"), arms, chains).verdict == verdict


@pytest.mark.parametrize(
    ("tasks", "verdict"), [(1, "undecided: too few tasks"), (4, "undecided: too few tasks"), (5, "reproduced")]
)
def test_a_verdict_takes_five_tasks(tasks: int, verdict: str) -> None:
    arms = {"a": played(1, 4, tasks), "b": played(0, 4, tasks)}
    assert finding(("a", "b"), arms, None).verdict == verdict


def test_one_chain_of_eight_decides_nothing() -> None:
    """As it was in Figure 7: one chain rose by 0.72, the others stayed, and the page said reproduced."""
    arms = {"a": played(0.1, 8, seed=1), "b": played(0.1, 8, seed=1)}
    arms["a"] = {key: won or key[0] == 3 for key, won in arms["a"].items()}
    found = finding(("a", "b"), arms, 8)
    assert found.seen.diff > 0.1 and found.verdict == "undecided at this size"


def test_outcomes_are_kept_as_they_were() -> None:
    arms = {"a": {**played(0.5, 2, 5), (0, "t0", 7): True}, "b": {(1, "t3", 0): False}}
    kept = json.loads(json.dumps(pack(arms)))
    assert kept["tasks"].count("t0") == 2 and set(kept["arms"]["b"]["1"]) == {"0", "-"}
    back = unpack(kept)
    for arm, found in arms.items():
        assert sorted((s, t, won) for (s, t, _), won in back[arm].items()) == sorted(
            (s, t, won) for (s, t, _), won in found.items()
        )
        assert success(back[arm]).to_dict() == success(found).to_dict()
    assert pack({"a": {}}) == {}


def result(seeds: int = 4, chains: int | None = None) -> dict[str, Any]:
    arms = {"opcd": played(0.8, seeds, seed=1), "base": played(0.2, seeds, seed=2)}
    return json.loads(json.dumps({
        "seeds": list(range(seeds)), "chains": chains, "outcomes": pack(arms), "probe_outcomes": pack(arms),
        "rates": {arm: success(found).to_dict() for arm, found in arms.items()},
        "probe": {arm: success(found).to_dict() for arm, found in arms.items()},
        "findings": [finding(("opcd", "base"), arms, chains).to_dict()],
        "probe_findings": [finding(("opcd", "base"), arms, chains).to_dict()],
    }))  # fmt: skip


def test_every_figure_comes_out_again_and_a_changed_one_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "row.json"
    file.write_text(json.dumps(result()))
    assert recompute.main([str(file)]) == 0 and "every figure comes out again" in capsys.readouterr().out
    for change in ("low", "p", "verdict"):
        row = result()
        row["findings"][0][change] = "refuted" if change == "verdict" else 0.123
        file.write_text(json.dumps(row))
        assert recompute.main([str(file)]) == 1
        assert f"findings opcd > base {change}: " in capsys.readouterr().out
    row = result()
    signs = row["outcomes"]["arms"]["opcd"]["0"]
    row["outcomes"]["arms"]["opcd"]["0"] = signs.translate({48: 49, 49: 48})
    file.write_text(json.dumps(row))
    assert recompute.main([str(file)]) == 1 and "rates opcd success" in capsys.readouterr().out


def test_a_file_without_outcomes_is_told_and_alone_is_refused(tmp_path: Path) -> None:
    old = {name: value for name, value in result().items() if "outcomes" not in name}
    file = tmp_path / "row.json"
    file.write_text(json.dumps(old))
    with pytest.raises(ConfigError, match="no file with outcomes was given"):
        recompute.main([str(file)])
    file.write_text("[]")
    with pytest.raises(ConfigError, match="is no result"):
        recompute.main([str(file)])
    row = result()
    row["outcomes"]["tasks"].pop()
    file.write_text(json.dumps(row))
    with pytest.raises(ConfigError, match=r"the outcomes of .* cannot be read"):
        recompute.main([str(file)])


@pytest.mark.parametrize(
    ("seeds", "chains", "verdict"),
    [
        (2, None, "undecided: too few seeds"),
        (4, 4, "undecided: too few chains"),
        (5, None, "undecided: outcomes by seed were not kept"),
    ],
)
def test_an_old_file_decides_nothing(seeds: int, chains: int | None, verdict: str) -> None:
    old = {name: value for name, value in result(seeds, chains).items() if "outcomes" not in name}
    now = judged(old)
    assert now["findings"][0]["verdict"] == now["probe_findings"][0]["verdict"] == verdict
    assert now["findings"][0]["difference"] == old["findings"][0]["difference"]
    assert judged(result()) == result()
    shown = paper_row({**old, "row": "r"})
    assert shown and [claim["verdict"] for claim in shown["claims"]] == [verdict]


def test_what_is_published_comes_out_again(root: Path) -> None:
    found = {file.stem: recompute.checked(file) for file in (root / "docs" / "results").glob("*.json")}
    assert [name for name, wrong in found.items() if wrong] == []
    assert "person-mini-frozen-lake-3x3" in [name for name, wrong in found.items() if wrong is not None], "it is played"
