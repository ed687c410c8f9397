from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from agentopcd.core.errors import EnvError, TaskLeak
from agentopcd.core.types import SPLITS, Task
from agentopcd.envs import FromGym, Manifest, TextEnv, build_splits, make, task_key
from agentopcd.envs.splits import _packages
from tests.envs.test_gym import OneWay


@pytest.fixture(scope="module")
def lake() -> Manifest:
    return build_splits("frozen-lake-4x4")


def test_splits_share_no_task_and_have_the_sizes_of_the_spec(lake: Manifest) -> None:
    sizes = {name: len(lake.tasks(name)) for name in SPLITS}
    assert sizes == {"test": 256, "confirm": 127, "select": 64, "extract": 60, "train": lake.distinct - 507}
    keys = [task.key for name in SPLITS for task in lake.tasks(name)]
    assert len(keys) == len(set(keys)) == lake.distinct == 755
    assert lake.overlap() == (0, 0.0) and not lake.shared
    assert lake.rules_sha256 == "aa4dbd78be9a7a9b" and lake.packages["textarena"]


def test_a_key_keeps_its_first_seed_and_its_rank_when_more_seeds_are_looked_at() -> None:
    few = build_splits("math", seeds=300, sizes={"test": 50})
    many = build_splits("math", seeds=600, sizes={"test": 50})
    seeds = {task.key: task.seed for tasks in many.splits.values() for task in tasks}
    assert all(seeds[task.key] == task.seed for tasks in few.splits.values() for task in tasks)
    env = make("math")
    for task in few.tasks("test")[:20]:
        assert task_key(*env.reset(seed=task.seed)) == task.key


def test_the_salt_changes_who_is_where_and_nothing_else() -> None:
    a, b = (build_splits("math", seeds=300, salt=salt) for salt in "ab")
    assert a == build_splits("math", seeds=300, salt="a")
    assert a.tasks("test") != b.tasks("test")
    assert {t for ts in a.splits.values() for t in ts} == {t for ts in b.splits.values() for t in ts}


def test_too_few_tasks_are_shared() -> None:
    manifest = build_splits("frozen-lake")
    assert manifest.shared and manifest.distinct == 19
    assert manifest.tasks("test") == manifest.tasks("train") == manifest.tasks("shared")
    manifest.guard_training(manifest.tasks("train"))
    assert manifest.overlap() == (19, 1.0)


def test_named_sizes_win_and_train_takes_the_rest() -> None:
    manifest = build_splits("math", {"level": 1}, seeds=1000, sizes={"test": 10, "extract": 0, "train": 20})
    assert [len(manifest.tasks(name)) for name in ("test", "extract", "train")] == [10, 0, 20]
    assert manifest.kwargs == {"level": 1}
    small = build_splits("frozen-lake", sizes={"test": 5, "confirm": 2, "select": 3, "extract": 4})
    assert not small.shared and len(small.tasks("train")) == 5


def test_training_on_a_held_out_task_is_refused(lake: Manifest) -> None:
    lake.guard_training(lake.tasks("train") + lake.tasks("extract"))
    for split in ("test", "confirm", "select"):
        stolen = Task(seed=999_999, key=lake.tasks(split)[0].key)  # another seed, the same board
        with pytest.raises(TaskLeak, match=f"held out for '{split}'"):
            lake.guard_training([*lake.tasks("train"), stolen])


def test_keys_are_computed_again(lake: Manifest) -> None:
    lake.verify(lake.tasks("test")[:10])
    with pytest.raises(EnvError, match=r"now makes task .*its code or its arguments changed"):
        lake.verify([Task(0, "0" * 16)])
    old = dataclasses.replace(lake, packages={"textarena": "0.1"})
    with pytest.raises(EnvError, match=r"textarena 0\.1 became"):
        old.verify([Task(0, "0" * 16)])


def test_a_manifest_survives_a_file(tmp_path: Path, lake: Manifest) -> None:
    path = tmp_path / "splits.json"
    for manifest in (lake, build_splits("sokoban", {"dim_room": (6, 6)}, seeds=120)):
        manifest.save(path)
        assert Manifest.load(path) == manifest
    raw = json.loads(path.read_text())
    assert raw["env"] == "sokoban" and raw["seeds"] == [0, 120]
    assert isinstance(raw["splits"]["test"][0][0], int)


def test_bad_manifests_and_bad_requests_give_one_message(tmp_path: Path, lake: Manifest) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(EnvError, match="cannot read splits"):
        Manifest.load(path)
    for text in ("no json", "[]", "{}", '{"splits": {"test": [1]}}'):
        path.write_text(text)
        with pytest.raises(EnvError, match="not a splits manifest"):
            Manifest.load(path)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(EnvError, match="it is not UTF-8 text"):
        Manifest.load(path)
    with pytest.raises(EnvError, match=r"no split 'tets'.*did you mean 'test'"):
        lake.tasks("tets")
    with pytest.raises(EnvError, match="no split 'dev'"):
        build_splits("math", sizes={"dev": 3})
    with pytest.raises(EnvError, match="cannot have -1 tasks"):
        build_splits("math", sizes={"test": -1})
    with pytest.raises(EnvError, match="19 distinct tasks, fewer than the 30"):
        build_splits("frozen-lake", sizes={"test": 30, "confirm": 0, "select": 0, "extract": 0})
    with pytest.raises(EnvError, match="cannot be written to a manifest"):
        build_splits("math", {"level": {1}})
    with pytest.raises(EnvError, match="seeds must be above 0"):
        build_splits("math", seeds=0)
    with pytest.raises(EnvError, match="fixed by its seeds"):
        build_splits("frozen-lake-paper", seeds=10)


def test_the_protocol_of_the_paper_overlaps_and_says_so() -> None:
    manifest = build_splits("frozen-lake-paper")
    assert manifest.protocol == "paper" and not manifest.shared
    test = manifest.tasks("test")
    assert len(test) == 128 and test[1].seed == 468460046 + 1000
    assert manifest.tasks("select") == manifest.tasks("confirm") == test
    assert manifest.tasks("extract")[0].seed == 468460046 + 128_000
    assert manifest.overlap() == (128, 1.0)
    manifest.guard_training(manifest.tasks("train"))  # allowed here, and only here


def test_a_split_column_is_honoured_and_checked(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": str(n), "split": "test" if n < 3 else "train"} for n in range(8)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    manifest = build_splits(str(file))
    assert [len(manifest.tasks(name)) for name in SPLITS] == [3, 0, 0, 0, 5]
    assert manifest.seeds == (0, 8) and manifest.distinct == 8
    rows.append({"question": "Q0", "answer": "0", "split": "train"})
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(TaskLeak, match="both"):
        build_splits(str(file))


def test_a_long_file_is_cut_by_content(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"question": f"q{n}", "answer": "1"}) for n in range(200)))
    manifest = build_splits(str(file))
    assert manifest.distinct == 200 and not manifest.shared
    assert sum(len(manifest.tasks(name)) for name in SPLITS) == 200


def test_a_name_that_no_file_can_have_is_told() -> None:
    with pytest.raises(EnvError, match=r"cannot read splits .*null byte"):
        Manifest.load("a\0b")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw["splits"]["test"].append([0.5, "a"]), r"got \[0\.5, 'a'\]"),
        (lambda raw: raw["splits"]["test"].append(["7", "a"]), r"got \['7', 'a'\]"),
        (lambda raw: raw["splits"]["test"].append([True, "a"]), r"got \[True, 'a'\]"),
        (lambda raw: raw["splits"]["test"].append([7, None]), r"got \[7, None\]"),
        (lambda raw: raw["splits"]["test"].append(raw["splits"]["train"][0]), "is in 'test' and in 'train'"),
        (lambda raw: raw["splits"].update({"trai~": raw["splits"].pop("train")}), "has an unknown split 'trai~'"),
        (lambda raw: raw["splits"].pop("train"), "lacks the split 'train'"),
        (lambda raw: raw.update(seeds=[0, 0.5]), r"seeds is \[0, 0\.5\]"),
        (lambda raw: raw.update(kwargs=None), "kwargs is None, wanted dict"),
        (lambda raw: raw.update(protocol="fair"), "protocol is 'fair'"),
        (lambda raw: raw.pop("protocol"), "protocol"),
        (lambda raw: raw["splits"].update(train={}), "a split is {}, wanted a list"),
        (lambda raw: raw["splits"].update(train=""), "a split is '', wanted a list"),
        (lambda raw: raw.pop("salt"), "salt"),
        (lambda raw: raw.update(more=1), "unexpected keyword argument 'more'"),
    ],
)
def test_a_changed_manifest_is_refused_and_never_read_as_another(change: Any, words: str) -> None:
    raw = json.loads(build_splits("math", seeds=200).to_json())
    change(raw)
    with pytest.raises(EnvError, match=words):
        Manifest.from_json(json.dumps(raw))


class Slow(TextEnv):
    """A new task for every seed up to 40, then none."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.first(key=min(seed or 0, 40), state="?")


def test_looking_at_a_slow_environment_stops_when_there_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []

    def progress(label: str, items: Any, total: int) -> Any:
        for item in items:
            shown.append(total)
            yield item

    monkeypatch.setattr("agentopcd.envs.scan.SCAN_S", 0.0)
    monkeypatch.setattr("agentopcd.envs.scan.ENOUGH", 30)
    ref = "tests.envs.test_splits:Slow"
    with pytest.warns(UserWarning, match=r"is slow: looked at 30 of 4,000 seeds; the 30 distinct tasks found"):
        manifest = build_splits(ref, progress=progress)
    assert manifest.seeds == (0, 30) and manifest.distinct == 30 and shown == [4000] * 30
    monkeypatch.setattr("agentopcd.envs.scan.ENOUGH", 400)
    monkeypatch.setattr("agentopcd.envs.scan.NOTHING_NEW", 20)
    more = r"looked at 61 of 4,000 seeds.*\(agentopcd envs splits tests\.envs\.test_splits:Slow --seeds N"
    with pytest.warns(UserWarning, match=more):  # nothing new in 41 to 60
        assert build_splits(ref).distinct == 41
    assert build_splits(ref, seeds=100).seeds == (0, 100)  # who asks for more gets it


class Sized(TextEnv):
    """As many tasks as seeds."""

    seeds = 500

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.first(key=seed, state="?")


HELD = {"test": 100, "confirm": 100, "select": 100, "extract": 50}


@pytest.mark.parametrize(
    ("sizes", "fits"),
    [({**HELD, "train": 150}, True), ({**HELD, "train": 200}, False), ({**HELD, "test": 200, "train": 10}, False)],
)
def test_sizes_of_a_spec_count_or_are_set_aside_with_a_warning(
    sizes: dict[str, int], fits: bool, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(Sized, "split_sizes", sizes, raising=False)
    found = build_splits("tests.envs.test_splits:Sized").splits
    assert ({name: len(tasks) for name, tasks in found.items()} == sizes) is fits
    told = [str(one.message) for one in recwarn if "split_sizes" in str(one.message)]
    assert bool(told) is not fits
    assert fits or "has 500 distinct tasks, too few for its split_sizes (test" in told[0]


def test_the_package_of_a_gymnasium_id_is_in_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentopcd.envs.splits.packages_distributions", lambda: {"tests": ["pytest"]})
    env = FromGym(OneWay())
    assert list(_packages(env)) == ["gymnasium", "gymnasium", "pytest"]
    assert list(_packages(make("math"))) == ["gymnasium"]
