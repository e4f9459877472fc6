"""`cask-eval bridge`: joining, its errors, figures against a recount, every scale, every form of output."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cask_eval.bridge import rows as joining
from cask_eval.cli import cli
from cask_eval.errors import CaskError, StateError

ROOT = Path(__file__).parents[2]

REFERENCE = [
    {"problem": "p1", "sample": 0, "output": "First 2, so the answer is 4.", "status": "finished", "gold": "4"},
    {"problem": "p1", "sample": 1, "output": "The answer is 5.", "status": "finished", "gold": "4"},
    {"problem": "p2", "sample": 0, "output": "答案很简单。答案是七。", "status": "finished", "gold": "7"},
    {"problem": "p3", "sample": 0, "output": "", "status": "finished", "gold": "1"},
]
CANDIDATE = [
    {"problem": "p3", "sample": 0, "output": "", "status": "finished", "gold": "1"},
    {"problem": "p1", "sample": 0, "output": "First 3, so the answer is \\boxed{4}.", "status": "finished",
     "gold": "4"},
    {"problem": "p1", "sample": 1, "output": "THE ANSWER IS 5.  ", "status": "finished", "gold": "4"},
    {"problem": "p2", "sample": 0, "output": "one one one one one one", "status": "truncated", "gold": "7"},
]


@pytest.fixture
def files(tmp_path):
    def write(candidate=CANDIDATE, reference=REFERENCE):
        for name, found in (("c.jsonl", candidate), ("r.jsonl", reference)):
            lines = [found] if isinstance(found, bytes) else [json.dumps(row).encode() + b"\n" for row in found]
            (tmp_path / name).write_bytes(b"".join(lines))
        return str(tmp_path / "c.jsonl"), str(tmp_path / "r.jsonl")

    return write


def bridge(*args, ok=True):
    result = CliRunner().invoke(cli, ["bridge", *map(str, args)], standalone_mode=False)
    if result.exception and ok:
        raise result.exception
    return result


def told(*args):
    return json.loads(bridge(*args, "--json").stdout)


def test_two_files(files):
    found = told(*files(), "--pairs")
    (only,) = found["comparisons"]
    assert (only["candidate"], only["reference"], only["pairs"], only["problems"]) == ("c.jsonl", "r.jsonl", 4, 3)
    pairs = {tuple(p["key"]): p for p in only["of_pairs"]}
    assert list(pairs) == [("p1", "0"), ("p1", "1"), ("p2", "0"), ("p3", "0")]  # the reference's order
    first = pairs["p1", "0"]
    # First , so the answer is 4 . of 13 tokens: First 3 , so the answer is \ boxed { 4 } .
    assert first["lcs_ratio"] == pytest.approx(8 / 13) and first["prefix_tokens"] == pytest.approx(1 / 13)
    assert first["answer_match"] == 1 and first["exact_match"] == 0
    assert first["candidate"]["right"] == first["reference"]["right"] == 1
    second = pairs["p1", "1"]
    assert (second["exact_match"], second["normalised_match"], second["answer_match"]) == (0, 1, 1)
    third = pairs["p2", "0"]
    assert third["lcs_ratio"] == 0 and third["candidate"]["repetition"] == pytest.approx(2 / 3)
    assert third["candidate"]["truncated"] == 1 and third["reference"]["tokens"] == 11
    assert "answer_match" not in third  # the reference announces none that the rule finds
    empty = pairs["p3", "0"]
    assert empty["lcs_ratio"] == empty["exact_match"] == 1 and "answer_match" not in empty
    # Means are over problems: p1's two samples count once together.
    lcs = only["alike"]["lcs_ratio"]
    means = [(first["lcs_ratio"] + second["lcs_ratio"]) / 2, 0, 1]
    assert lcs["mean"] == pytest.approx(np.mean(means)) and (lcs["pairs"], lcs["problems"]) == (4, 3)
    assert lcs["low"] <= lcs["mean"] <= lcs["high"]
    assert only["alike"]["answer_match"]["pairs"] == 2
    cut = only["sides"]["truncated"]
    assert (cut["candidate"], cut["reference"]) == (pytest.approx(1 / 3), 0)
    assert cut["difference"]["mean"] == pytest.approx(1 / 3)


def test_intervals_are_the_percentile_bootstrap_by_problem(files):
    outputs = [("a b c d", "a b c d"), ("a b", "a x"), ("q", "z"), ("m n o p", "m n o z"), ("k", "k")] * 6
    both = [
        [{"problem": f"p{i}", "output": texts[side]} for i, texts in enumerate(outputs)] for side in (0, 1)
    ]  # fmt: skip
    (only,) = told(*files(*both), "--seed", 3)["comparisons"]
    values = np.array([1, 0.5, 0, 0.75, 1] * 6)
    rng = np.random.default_rng(0)
    draws = rng.choice(values, (20_000, len(values))).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    lcs = only["alike"]["lcs_ratio"]
    assert lcs["low"] == pytest.approx(low, abs=0.02) and lcs["high"] == pytest.approx(high, abs=0.02)


def test_scripts_count_alike(files):
    texts = ["مرحبا بالعالم الجميل", "今天天气很好", "👨‍👩‍👧‍👦👍🏽", "नमस्ते दुनिया"]
    same = [{"problem": str(i), "output": t} for i, t in enumerate(texts)]
    (only,) = told(*files(same, same))["comparisons"]
    assert only["alike"]["lcs_ratio"]["mean"] == only["alike"]["prefix_characters"]["mean"] == 1
    texts = ["مرحبا بالعالم", "今天天气不好", "👨‍👩‍👧‍👦", "दुनिया"]
    cut = [{"problem": str(i), "output": t} for i, t in enumerate(texts)]
    (only,) = told(*files(cut, same))["comparisons"]
    assert only["alike"]["lcs_ratio"]["mean"] == pytest.approx((2 / 3 + 5 / 6 + 1 / 2 + 1 / 2) / 4)


def test_partners_that_are_missing_are_named(files):
    lost = [row for row in CANDIDATE if row["problem"] != "p2"]
    failed = [dict(row, status="failed") if row["problem"] == "p3" else row for row in lost]
    paths = files(failed, [*REFERENCE, {"problem": "p9", "output": "x"}])
    error = bridge(*paths, ok=False).exception
    assert isinstance(error, CaskError)
    assert "3 outputs of the reference have no partner (p2/0, p3/0, p9/)" in str(error)
    assert "--missing drop" in str(error)
    found = told(*paths, "--missing", "drop")
    assert found["comparisons"][0]["unpaired"] == {"candidate": [], "reference": ["p2/0", "p3/0", "p9/"]}
    assert any("3 outputs without a partner" in note for note in found["notes"])
    shown = bridge(*paths, "--missing", "drop").stdout
    assert "only in the reference: p2/0, p3/0, p9/" in shown


def test_doubled_rows_are_named(files):
    error = bridge(*files([*CANDIDATE, CANDIDATE[0]], REFERENCE), ok=False).exception
    assert "c.jsonl:5: p3/0 is already at" in str(error) and "c.jsonl:1" in str(error)
    without = bridge(*files(), "--by", "problem", ok=False).exception
    assert "p1 is already at" in str(without)


@pytest.mark.parametrize(
    "row, match",
    [
        (b"no json\n", "c.jsonl:1: is no JSON"),
        (b"[1]\n", "c.jsonl:1: is list"),
        (b"\xff\n", "byte 0 is not UTF-8"),
        (b"\n", "has no rows"),
        ([{"output": "x"}], "there is no field 'problem'; it has output"),
        ([{"problem": "p", "output": 3}], "output is '3'; give a text"),
        ([{"problem": ["p"], "output": "x"}], "problem is"),
        ([{"problem": "p", "output": "x", "status": "done"}], "status is 'done'"),
        ([{"problem": "p", "output": "x", "gold": 4}], "gold is '4'"),
        ([{"problem": "p", "output": "x", "output_ids": ["1"]}], "output_ids is"),
        ([{"problem": "elsewhere", "output": "x"}], "have no partner"),
    ],
)
def test_bad_rows_are_named(files, row, match):
    error = bridge(*files(row, REFERENCE), ok=False).exception
    assert isinstance(error, CaskError) and match in str(error)


def test_nothing_in_common_is_no_comparison(files):
    error = bridge(*files([{"problem": "z", "output": ""}]), "--missing", "drop", ok=False).exception
    assert "no output of the candidate has a partner" in str(error)


def test_the_tasks_own_metric(files, tmp_path, monkeypatch):
    import tomllib
    from importlib.metadata import EntryPoint, EntryPoints

    from cask_eval.tasks import registry

    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][registry.GROUP]
    points = EntryPoints(EntryPoint(name, value, registry.GROUP) for name, value in named.items())
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    (tmp_path / "longbench").mkdir()
    rows = [
        dict(input=f"who {i}?", context=f"text {i} " * 9, answers=["Ada Lovelace"], length=9, dataset="hotpotqa",
             language="en", all_classes=None, _id=str(i))
        for i in range(3)
    ]  # fmt: skip
    (tmp_path / "longbench" / "hotpotqa.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    split = tmp_path / "heldout.json"
    run = ["--data", str(tmp_path), "split", "freeze", str(split), "--task", "longbench", "--role", "heldout"]
    params = ["--param", "dataset=hotpotqa", "--param", "threshold=0.5"]
    assert CliRunner().invoke(cli, [*run, *params], standalone_mode=False).exception is None
    said = ["Ada Lovelace", "It was Ada Lovelace", "Grace"]
    ours = [{"problem": f"longbench/hotpotqa/{i}", "output": t} for i, t in enumerate(said)]
    full = [dict(row, output="Ada Lovelace") for row in ours]
    paths = files(ours, full)
    result = CliRunner().invoke(
        cli, ["--data", str(tmp_path), "bridge", *paths, "--split", str(split), "--json"], standalone_mode=False
    )
    assert result.exception is None, result.exception
    found = json.loads(result.stdout)
    (only,) = found["comparisons"]
    assert found["metric"] == "qa_f1"
    assert only["sides"]["score"]["candidate"] == pytest.approx(float((1 + Fraction(2, 3)) / 3))
    assert only["sides"]["score"]["difference"]["mean"] == pytest.approx(float((1 + Fraction(2, 3)) / 3 - 1))
    assert only["sides"]["right"]["candidate"] == pytest.approx(2 / 3)
    foreign = files([dict(ours[0], problem="longbench/hotpotqa/7")], [dict(ours[0], problem="longbench/hotpotqa/7")])
    result = CliRunner().invoke(
        cli, ["--data", str(tmp_path), "bridge", *foreign, "--split", str(split)], standalone_mode=False
    )
    assert "problem 'longbench/hotpotqa/7' is not in the split" in str(result.exception)


@pytest.mark.slow
def test_records_of_a_study(tmp_path):
    args = ["-C", ROOT, "bridge", "--study", "alpha-vs-triattention", "--reference", "full", "--arms", "candidate"]
    result = CliRunner().invoke(cli, [*map(str, args), "--json", "--replicates", "199"], standalone_mode=False)
    assert result.exception is None, result.exception
    found = json.loads(result.stdout)
    analysis = json.loads((ROOT / "reports" / "alpha-vs-triattention" / "analysis.json").read_text())
    assert [c["cell"] for c in found["comparisons"]] == list(analysis["arms"])  # in the protocol's order
    for c in found["comparisons"]:
        arm, full = (analysis["arms"][c["cell"]][name] for name in ("candidate", "full"))
        assert c["pairs"] == arm["trials"]
        for name, own in (("candidate", arm), ("reference", full)):
            assert c["sides"]["right"][name] == pytest.approx(float(own["accuracy"]))
        assert c["alike"]["exact_match"]["mean"] <= c["alike"]["prefix_ids"]["mean"] <= 1


@pytest.mark.parametrize(
    "args, error, match",
    [
        (["--study", "none", "--reference", "full"], StateError, "none"),
        (["--study", "alpha-vs-triattention"], CaskError, "takes --reference ARM"),
        (["--study", "alpha-vs-triattention", "--reference", "fool"], CaskError, "records of an arm 'fool'"),
        ([], CaskError, "give two files"),
        (["--json", "--md"], CaskError, "both want stdout"),
    ],
)
def test_bad_calls(args, error, match):
    result = CliRunner().invoke(cli, ["-C", str(ROOT), "bridge", *args], standalone_mode=False)
    assert isinstance(result.exception, error) and match in str(result.exception)


def test_markdown_and_text(files):
    paths = files([dict(CANDIDATE[0], problem="p|<b>")], [dict(REFERENCE[3], problem="p|<b>")])
    page = bridge(*paths, "--md", "--pairs").stdout
    assert "| lcs\\_ratio |" in page and "p\\|&lt;b&gt;/0" in page and "They were not registered" in page
    assert "lcs_ratio" in bridge(*files()).stdout


def test_joining_is_by_all_fields():
    def one(key, status=None):
        return joining.Output(key, "t", "w", status)

    joined = joining.join([one(("p", "1")), one(("p", "0"))], [one(("p", "0")), one(("p", "1"))])
    assert [(a.key, b.key) for a, b in joined.pairs] == [(("p", "0"),) * 2, (("p", "1"),) * 2]
