"""Fidelity endpoints against loops in exact fractions: direction, pairs, what is left out, what counts as the worst."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_study import choice, ids, protocol, record, select

from cask_eval.canonical import ZERO
from cask_eval.decide.analysis import analyse
from cask_eval.decide.beside import beside
from cask_eval.decide.budgets import text
from cask_eval.decide.endpoints import Counts, Reals, draws, pair, score
from cask_eval.decide.lint import describe_power, lint
from cask_eval.decide.selection import select as choose
from cask_eval.decide.selection import stated
from cask_eval.errors import ProtocolError
from cask_eval.ledger.events import Select
from cask_eval.protocol.load import check
from cask_eval.protocol.yaml import parse
from cask_eval.records.model import FidelityRecord
from cask_eval.stats.off_lattice import bootstrap_interval, bootstrap_p, sign_flip_reals

TEST = {"endpoint": "nll", "procedure": "sign_flip"}


def study(endpoint="nll", **rest):
    test = {**TEST, "endpoint": endpoint, **rest.pop("test", {})}
    return protocol(test=test, tuning={"select": "max_mean_endpoint"}, **rest)


def replayed(nll, after=..., **rest):
    """A fidelity record; the other numbers follow from nll."""

    def rates(value, tokens):
        numbers = {"top1": max(0.0, 1 - value / 9), "top5": 1.0, "nll": value, "kl": value / 4}
        return {"tokens": tokens, **{name: f"{number:.9f}" for name, number in numbers.items()}}

    late = 2 * nll if after is ... else after
    return FidelityRecord.model_validate(
        {"whole": rates(nll, 41), "after": None if late is None else rates(late, 20), "first_mismatch": 1,
         "arrays": ZERO, **rest}
    )  # fmt: skip


def trials(cell, arm, values, *, sample=0, **rest):
    """One record per value: None failed, "." missing, a pair is (whole, after)."""
    out = []
    for i, value in enumerate(values):
        if value == ".":
            continue
        if value is None:
            out.append(record(cell, arm, f"p{i}", False, sample=sample, residency=None, status="failed",
                              failure={"kind": "method", "error": "E", "message": "m"}, **rest))  # fmt: skip
            continue
        both = value if isinstance(value, tuple) else (value,)
        out.append(record(cell, arm, f"p{i}", True, sample=sample, fidelity=replayed(*both), **rest))
    return out


def by_problem(records, n):
    return {p: [r for r in records if r.problem == p] for p in ids(n)}


def compared(endpoint, baseline, candidate, samples=1):
    n = max(map(len, baseline))
    sides = [[r for s, values in enumerate(arm) for r in trials("m/b16", "x", values, sample=s)]
             for arm in (baseline, candidate)]  # fmt: skip
    return pair(endpoint, *(by_problem(side, n) for side in sides), samples)


def test_less_loss_is_an_improvement_and_so_are_more_hits():
    found = compared("nll", [[1.5, 0.5]], [[1.25, 0.75]])
    assert found.improvements == {"p0": Fraction(1, 4), "p1": Fraction(-1, 4)}
    assert found.means == {"p0": (Fraction(3, 2), Fraction(5, 4)), "p1": (Fraction(1, 2), Fraction(3, 4))}
    assert compared("kl", [[1.5]], [[1.25]]).improvements["p0"] == Fraction("0.0625")
    assert compared("top1", [[1.5]], [[1.25]]).improvements["p0"] > 0
    assert compared("nll_after", [[(1.5, 2.0)]], [[(1.25, 3.0)]]).improvements["p0"] == -1


def test_a_trial_without_a_result_counts_as_the_worst_of_the_comparison():
    found = compared("nll", [[1.0, 2.0, 0.5]], [[0.5, None, "."]])
    assert found.improvements == {"p0": Fraction(1, 2), "p1": 0, "p2": Fraction(-3, 2)}
    assert found.complete == {"p0": Fraction(1, 2)} and found.lost == (0, 2) and found.void == 0
    hits = compared("top1", [[0.0, 0.9, 8.1]], [[0.0, None, 8.1]])
    assert hits.improvements == {"p0": 0, "p1": Fraction("-0.8"), "p2": 0}


def test_pairs_without_any_result_or_without_compression_are_left_out():
    found = compared("nll", [[1.0, None, "."]], [[0.5, None, None]])
    assert list(found.improvements) == ["p0"] and found.void == 2 and found.lost == (2, 2)
    late = compared("nll_after", [[(1.0, None), 1.0, (1.0, None)]], [[1.0, (1.0, None), (0.5, None)]])
    assert late.improvements == {} and late.excluded == 3 and late.lost == (0, 0)


def test_samples_are_paired_first():
    """A sample that was never compressed in one arm says nothing of the other arm's."""
    found = compared("nll_after", [[(1.0, 4.0)], [(1.0, None)]], [[(1.0, 3.0)], [(1.0, 9.0)]], 2)
    assert found.improvements == {"p0": 1} and found.excluded == 1
    both = compared("nll", [[1.0], [2.0]], [[0.5], [2.25]], 2)
    assert both.improvements == {"p0": Fraction(1, 8)}


values = st.one_of(st.none(), st.just("."), st.integers(0, 40).map(lambda v: v / 8))
columns = st.lists(st.tuples(*[st.lists(values, min_size=2, max_size=2)] * 2), min_size=1, max_size=6)


@given(columns)
@settings(max_examples=60, deadline=None)
def test_pairing_by_brute_force(rows):
    """rows: per problem (baseline's samples, candidate's samples)."""
    sides = [[[row[side][s] for row in rows] for s in range(2)] for side in range(2)]
    found = compared("nll", *sides, 2)
    known = [Fraction(v) for side in sides for column in side for v in column if v not in (None, ".")]
    worst = max(known, default=0)
    for i, (b, c) in enumerate(rows):
        kept = [(x, y) for x, y in zip(b, c) if not (x in (None, ".") and y in (None, "."))]
        exact = [[worst if v in (None, ".") else Fraction(v) for v in pair_] for pair_ in kept]
        expected = sum((x - y for x, y in exact), Fraction()) / len(exact) if exact else None
        assert found.improvements.get(f"p{i}") == expected
    reverse = compared("nll", *sides[::-1], 2)
    assert reverse.improvements == {p: -d for p, d in found.improvements.items()}


def test_a_dev_score_is_a_mean_rounded_to_a_billionth():
    found = compared("nll", [[1.0, 1.0, 1.0]], [[0.5, 0.25, 1.0]])
    assert score(found) == Fraction(416666667, 10**9)
    assert score(compared("nll_after", [[(1.0, None)]], [[(0.5, None)]])) == 0


def test_reals_ask_the_off_lattice_statistics():
    kept = {"p0": Fraction(1, 3), "p2": Fraction(-1, 7), "p3": Fraction(2)}
    made = Reals(kept, ids(4), 1, 42)
    d = list(kept.values())
    assert (made.n, made.wins, made.losses, made.ties) == (3, 2, 1, 0)
    assert made.row == [d[0], 0, d[1], d[2]] and made.difference == sum(d) / 3
    assert made.p("sign_flip", "greater") == sign_flip_reals(d, "greater")[0]
    assert made.p("paired_bootstrap", "two-sided") == bootstrap_p(d, seed=42)
    assert made.interval(Fraction(19, 20)) == bootstrap_interval(d, 0.95, seed=42)
    assert made.non_inferior(Fraction(1, 2))[1] == bootstrap_p([x + Fraction(1, 2) for x in d], "greater", seed=42)
    nothing = Reals({}, ids(4), 1, 42)
    assert nothing.tests("two-sided")["sign_flip"] == 1 and nothing.interval(Fraction(1, 2)) is None
    assert Reals({"p0": Fraction(1)}, ids(1), 1, 1).tests("less").keys() == {"sign_flip", "paired_bootstrap"}


def test_more_draws_for_finer_levels():
    assert [draws(Fraction(level)) for level in ("0.05", "0.002", "0.001", "0.00002")] == [9999, 9999, 99_999, 999_999]


def test_counts_are_as_they_were():
    made = Counts([1, 0, -1, 1], 1)
    assert (made.wins, made.losses, made.difference) == (2, 1, Fraction(1, 4))
    assert made.tests("two-sided").keys() == {"paired_bootstrap", "mcnemar_exact", "mcnemar_midp"}


FULL = choice("fullkv", 1, "compete")


def frozen(p):
    chosen = select(p)
    rows = {c.name: {arm: FULL for arm in ("reference", "ceiling")} for c in p.reference_cells}
    return chosen.model_copy(update={"arms": {**chosen.arms, **rows}})


def everything(baseline, candidate):
    n = len(baseline)
    reference = [record("m/reference", "reference", p, True) for p in ids(n)]
    ceiling = trials("m/reference", "ceiling", [(0.125, None)] * n)
    return [*reference, *ceiling, *trials("m/b16", "baseline", baseline), *trials("m/b16", "candidate", candidate)]


def run(p, records, n, **rest):
    return analyse(p, ZERO, frozen(p), records, ids(n), label="confirmatory", **rest)


def test_an_analysis_says_what_it_compared():
    n = 30
    found = run(study(), everything([1.0] * n, [0.75] * n), n)
    (cell,) = found.cells
    assert (cell.outcome, cell.difference, cell.wins, cell.n) == ("positive", "0.25", n, n)
    assert found.endpoint == "nll" and cell.flips == [] and len(cell.values) == n
    assert (cell.values[0].baseline, cell.values[0].candidate, cell.values[0].improvement) == ("1", "0.75", "0.25")
    assert cell.p.keys() == {"sign_flip", "paired_bootstrap", "t_test"}
    assert found.arms["m/reference"]["ceiling"].fidelity == {
        "top1": "0.986111111", "top5": "1", "nll": "0.125", "kl": "0.03125"}  # fmt: skip
    assert found.arms["m/b16"]["candidate"].fidelity["nll_after"] == "1.5"
    assert found.arms["m/reference"]["reference"].fidelity == {}
    worse = run(study(), everything([0.75] * n, [1.0] * n), n).cells[0]
    assert (worse.outcome, worse.difference) == ("negative", "-0.25")


def test_analyses_of_accuracy_have_no_new_field():
    from small_study import answers

    p = protocol()
    records = answers("m/b16", "baseline", "110") + answers("m/b16", "candidate", "111")
    document = analyse(p, ZERO, select(p), records, ids(3), label="confirmatory").model_dump(mode="json")
    assert "endpoint" not in document and "values" not in document["cells"][0]
    assert "fidelity" not in document["arms"]["m/b16"]["baseline"]
    assert "fidelity" not in records[0].model_dump()


def test_a_comparison_that_nothing_is_left_of_is_void():
    found = run(study("kl_after"), everything([(1.0, None)] * 12, [(0.5, None)] * 12), 12)
    (cell,) = found.cells
    assert (cell.outcome, cell.n, cell.p_adjusted, cell.interval.low) == ("void", 0, "1", "")
    assert cell.matched.reasons[0] == "no problem has kl_after in both arms"
    assert found.notes[0].startswith("m/b16: 12 of 12 pairs are left out on both sides")


def test_lost_replays_are_told_and_void_the_cell_when_they_are_many():
    n = 30
    candidate = [0.75] * n
    candidate[3] = None
    found = run(study(), everything([1.0] * n, candidate), n)
    assert found.cells[0].outcome == "positive" and found.cells[0].losses == 0 and found.cells[0].ties == 1
    assert "0 baseline and 1 candidate trials left no result" in found.notes[0]
    assert "over the 29 problems with complete pairs 0.25" in found.notes[0]
    candidate[4] = candidate[5] = None
    many = run(study(), everything([1.0] * n, candidate), n).cells[0]
    assert many.outcome == "void" and "lack a residency account" in many.matched.reasons[0]


@pytest.mark.parametrize("correction", ["bonferroni", "holm", "max_t", "none"])
def test_every_correction_takes_reals(correction):
    p = study(test={"correction": correction}, candidates=("candidate", "other"))
    n = 12
    records = everything([1.0 + i / 64 for i in range(n)], [0.75] * n) + trials("m/b16", "other", [0.875] * n)
    found = run(p, records, n)
    assert [c.outcome for c in found.cells] == ["positive", "positive"]
    own = float(found.cells[0].p_registered)
    factor = {"bonferroni": 2, "holm": 2, "none": 1}.get(correction)
    assert factor is None or float(found.cells[0].p_adjusted) == pytest.approx(factor * own)
    assert float(found.cells[0].p_adjusted) >= own
    more = beside(found)
    assert more[0].tango is None and more[0].detects is None
    assert more[0].adjusted["bonferroni"] == pytest.approx(2 * own)
    if correction == "max_t":
        assert f"{more[0].adjusted['max_t']:.9g}" == found.cells[0].p_adjusted


def test_non_inferiority_is_in_the_endpoints_own_unit():
    rule = {"non_inferiority": {"margin": "0.1", "alpha": "0.05"}}
    for loss, shown in ((0.05, True), (0.15, False)):
        found = run(study(test=rule), everything([1.0] * 30, [1 + loss + (i % 3) / 100 for i in range(30)]), 30)
        assert found.cells[0].non_inferior.shown is shown and found.cells[0].non_inferior.z == ""


def test_dev_chooses_the_greatest_improvement():
    p = study(candidates=("candidate",))
    p = p.model_copy(update={"candidates": [p.candidates[0].model_copy(update={"tune": {"lambda": ["0.5", "1.0"]}})]})
    dev = {"phase": "dev"}
    records = trials("m/b16", "baseline", [1.0, 2.0], **dev)
    records += trials("m/b16", "candidate", [0.75, 2.0], config="lambda=0.5", **dev)
    records += trials("m/b16", "candidate", [0.5, 2.0], config="lambda=1.0", **dev)
    found = choose(p, records, ids(2))
    assert found.scores["m/b16"] == {"baseline": {"": 0}, "candidate": {"lambda=0.5": Fraction(1, 8),
                                                                        "lambda=1.0": Fraction(1, 4)}}  # fmt: skip
    assert found.chosen["m/b16"] == {"candidate": "lambda=1.0"} and found.gains == {"candidate": Fraction(1, 4)}
    assert choose(p, records + records, ids(2)) == found


def test_scores_fit_the_ledger():
    """Many problems and samples, whose exact mean has more digits than the ledger takes."""
    p = study(samples=7)
    dev = {"phase": "dev"}
    baseline = [r for s in range(7) for r in trials("m/b16", "baseline", [1 / (3 + s + i) for i in range(11)],
                                                    sample=s, **dev)]  # fmt: skip
    candidate = [r for s in range(7 - 1) for r in trials("m/b16", "candidate", [1 / (5 + s * i) for i in range(11)],
                                                         sample=s, config="untuned", **dev)]  # fmt: skip
    found = choose(p, baseline + candidate, ids(11))
    Select(rule="r", scores=stated(found.scores), chosen={}, gains={k: text(v) for k, v in found.gains.items()},
           survivors=[], arms={})  # fmt: skip


def faults(text):
    with pytest.raises(ProtocolError) as error:
        check(parse(text.encode(), "p.yaml"), "p.yaml")
    return "\n".join(error.value.problems)


TEXT = """\
study: s
hypothesis: The candidate follows the full cache more closely.
task: {name: chain, dev: splits/dev.json, heldout: splits/heldout.json}
models: [{id: "embedded:chain-s", name: m}]
generation: {max_new_tokens: 64}
budgets: [16]
baseline: {preset: triattention}
candidate: {preset: alpha}
tuning: {select: max_mean_endpoint}
test: {endpoint: nll, procedure: sign_flip, alpha: "0.05", veto: {alpha: "0.05"}}
branches: [{name: A, otherwise: true, decision: nothing}]
"""


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("sign_flip", "mcnemar_exact", "p.yaml:10: test.procedure: mcnemar_exact counts right and wrong answers"),
        ("tuning: {select: max_mean_endpoint}\n", "", "max_mean_accuracy, but with test.endpoint nll"),
        ("endpoint: nll, ", "", "p.yaml:9: tuning.select: is max_mean_endpoint, but test.endpoint is accuracy"),
        ("endpoint: nll", "endpoint: nil", "test.endpoint: must be"),
        ("candidate: {", "candidate: {name: ceiling, ", "'ceiling' names an arm"),
        ('alpha: "0.05", veto', 'alpha: "0.00001", veto', "finer than resampling can resolve"),
        ("sign_flip", "paired_bootstrap, correction: max_t", "max_t flips signs"),
    ],
)
def test_what_does_not_fit_is_refused(old, new, said):
    assert check(parse(TEXT.encode(), "p.yaml"), "p.yaml").fidelity
    assert old in TEXT and said in faults(TEXT.replace(old, new))


def test_lint_asks_what_can_be_asked_of_reals():
    p = check(parse(TEXT.encode(), "p.yaml"), "p.yaml")
    assert {f.field for f in lint(p, 100)} == {"branches"}
    odd = p.model_copy(update={"expected_effect": "0.1", "expected_discordance": "0.2"})
    assert {f.field for f in lint(odd, 100)} == {"branches", "expected_effect", "expected_discordance"}
    # z(.975) + z(.8) = 2.80, over the root of 100.
    assert "in nll of 0.28 standard deviations" in describe_power(p, 100)
