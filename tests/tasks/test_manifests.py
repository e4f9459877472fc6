"""The committed manifests of the public sets, and, where the sets are at hand, the sets against them."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from cask_eval.cli import cli
from cask_eval.splits.check import check_manifest, check_problems
from cask_eval.splits.disjoint import overlaps
from cask_eval.splits.store import read
from cask_eval.tasks import data, registry

SPLITS = Path(__file__).parents[2] / "splits"
COUNTS = {"math500-dev": 100, "math500-heldout": 400, "gsm8k-dev": 200, "gsm8k-heldout": 1119,
          "aime24-dev": 30, "aime25-heldout": 30}  # fmt: skip
PAIRS = [("math500-dev", "math500-heldout"), ("gsm8k-dev", "gsm8k-heldout"), ("aime24-dev", "aime25-heldout")]

at_hand = pytest.mark.skipif(
    not os.environ.get(data.VARIABLE), reason=f"{data.VARIABLE} names no folder with the data sets"
)


@pytest.fixture
def run(points):
    def call(*args):
        return CliRunner().invoke(cli, [str(a) for a in args], standalone_mode=False)

    return call


def test_every_entry_point_is_a_task(points):
    known = "chain math500 gsm8k aime aime24 aime25 jsonl longbench needle reasoning_gym tracking"
    assert set(known.split()) == set(points)
    for name in points:
        task = registry.load(name)
        assert callable(task.problems) and callable(task.grade) and re.fullmatch(r"[a-z-]+/\d.*", task.GRADER)


@pytest.mark.parametrize("name", COUNTS)
def test_manifests_are_whole_and_hold_no_texts(name):
    manifest = read(SPLITS / f"{name}.json")
    assert check_manifest(manifest) == [] and len(manifest.items) == COUNTS[name]
    assert manifest.name == name and manifest.source["sha256"]
    strings = [s for item in manifest.items for s in (item.id, item.stratum)]
    assert max(map(len, strings)) < 50


@pytest.mark.parametrize("dev, held", PAIRS)
def test_parts_are_disjoint(dev, held):
    assert overlaps(read(SPLITS / f"{dev}.json"), read(SPLITS / f"{held}.json")) == []


def test_strata_are_shared_out():
    dev, held = (Counter(i.stratum for i in read(SPLITS / f"math500-{r}.json").items) for r in ("dev", "heldout"))
    assert len(held) == 35 and sum((dev + held).values()) == 500
    assert all(abs(dev[s] - (dev[s] + held[s]) / 5) < 1 for s in held)


@at_hand
@pytest.mark.parametrize("name", COUNTS)
def test_the_sets_are_what_was_frozen(name, points):
    manifest = read(SPLITS / f"{name}.json")
    problems = registry.load(manifest.task).problems(manifest.source)
    assert check_problems(manifest, problems) == []
    task, changed = registry.load(manifest.task), manifest.source
    assert task.describe({k: v for k, v in changed.items() if k in ("part", "dev", "seed", "year")})[0] == changed


@at_hand
def test_one_changed_word_is_found_and_named_with_both_digests(run, tmp_path):
    text = (Path(os.environ[data.VARIABLE]) / "math500" / "test.jsonl").read_text()
    row = json.loads(text.splitlines()[0])
    edited = tmp_path / "copy.jsonl"
    edited.write_text(text.replace(json.dumps(row["problem"])[1:20], "Transform the point", 1))
    both = [SPLITS / f"math500-{role}.json" for role in ("dev", "heldout")]
    found = str(run("split", "check", *both, "--data", edited).exception)
    assert re.search(rf"problem '{row['unique_id']}' now has digest sha256:\w+, frozen was sha256:\w+", found)
    assert found.count("now has digest") == 1
    good = run("split", "check", *both)
    assert good.exit_code == 0, good.exception


def test_a_set_that_is_not_at_hand_says_where_it_was_looked_for(run, tmp_path, monkeypatch):
    monkeypatch.delenv(data.VARIABLE, raising=False)
    result = run("split", "check", SPLITS / "aime24-dev.json")
    assert "aime24/test.nemo-skills.jsonl is not there" in str(result.exception)
    assert "--data" in str(result.exception)


def test_show_prints_source_strata_and_digests(run):
    shown = run("split", "show", SPLITS / "math500-heldout.json").output
    for part in ("Algebra / level 5", "merkle_root  sha256:", "digest       sha256:", "revision", "count        400"):
        assert part in shown
    as_json = json.loads(run("split", "show", SPLITS / "math500-heldout.json", "--json").output)
    assert as_json["strata"]["Algebra / level 5"] == 24


def test_freezing_rows_of_ones_own(run, tmp_path):
    (tmp_path / "prereg").mkdir()
    rows = [{"id": f"q{i}", "problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(10)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = [tmp_path / "splits" / f"mine-{part}.json" for part in ("dev", "heldout")]
    for path, part in zip(out, ("dev", "heldout")):
        params = [f"--param={p}" for p in ("file=mine.jsonl", f"part={part}", "dev=4", "seed=1")]
        result = run("split", "freeze", path, "--task", "jsonl", "--role", part, *params)
        assert result.exit_code == 0, result.exception
    assert read(out[0]).source["rule"] == "boxed" and "D = 4, SEED = 1" in read(out[0]).rule
    assert run("split", "check", *out).exit_code == 0
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({**row, "answer": "7"}) + "\n" for row in rows))
    assert "now has digest" in str(run("split", "check", *out).exception)
    whole = run("--data", tmp_path / "mine.jsonl", "split", "check", out[0])
    assert "now has digest" in str(whole.exception)
