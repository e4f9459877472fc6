from fractions import Fraction
from itertools import product

import pytest
from pydantic import ValidationError
from small_study import BRANCHES, account, answers, choice, ids, protocol, record, select

from cask_eval.canonical import ZERO, digest
from cask_eval.decide.analysis import analyse
from cask_eval.decide.beside import beside
from cask_eval.decide.model import Interval
from cask_eval.errors import RecordError
from cask_eval.records.model import RegionsRecord
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.power import mde
from cask_eval.stats.tango import non_inferiority, tango_interval

BOOTSTRAP = {"procedure": "paired_bootstrap"}


def run(study, records, n, chosen=None, label="confirmatory"):
    return analyse(study, ZERO, chosen or select(study), records, ids(n), label=label)


def both(cell, baseline, candidate, **rest):
    return [*answers(cell, "baseline", baseline, **rest), *answers(cell, "candidate", candidate, **rest)]


def wiped(bins, empty, longest=0):
    return RegionsRecord(bins=bins, empty=empty, longest=longest)


def test_by_hand():
    """Eight problems, two cells. b16: six wins, no loss; b32: one win, one loss."""
    study = protocol(budgets=(16, 32), controls=("null",), test={"alpha": "0.07"})
    records = [
        *both("m/b16", "00000011", "11111111"),
        *answers("m/b16", "null", "00000001"),
        *both("m/b32", "01111111", "10111111"),
        *answers("m/b32", "null", "........"),
    ]
    found = run(study, records, 8)
    assert (found.family, found.branch, found.decision) == (2, "A", "adopt")
    assert (found.positive_cells, found.negative_cells, found.void_cells) == (1, 0, 0)

    first, second = found.cells
    assert (first.cell, first.model, first.budget, first.n, first.samples) == ("m/b16", "m", 16, 8, 1)
    assert (first.wins, first.losses, first.ties) == (6, 0, 2)
    assert first.difference == "0.75"
    assert first.standard_error == format((0.75 * 0.25 / 8) ** 0.5, ".9g")
    assert first.p["mcnemar_exact"] == first.p_registered == "0.03125"  # 2/2⁶
    assert first.p["mcnemar_midp"] == "0.015625"
    assert first.p["paired_bootstrap"] == format(2 * 0.25**8, ".9g")
    assert first.p_adjusted == "0.0625"  # two cells
    assert first.p_veto == "1"
    assert first.outcome == "positive"
    assert (first.interval.level, first.interval_adjusted.level) == ("0.93", "0.965")
    assert [(f.problem, f.baseline, f.candidate) for f in first.flips] == [(f"p{i}", 0, 1) for i in range(6)]

    assert (second.p_registered, second.p_adjusted, second.outcome) == ("1", "1", "null")
    assert [(f.problem, f.baseline, f.candidate) for f in second.flips] == [("p0", 0, 1), ("p1", 1, 0)]

    assert first.matched.verdict == "matched"
    one, other = found.arms["m/b16"], found.arms["m/b32"]
    assert list(one) == list(other) == ["baseline", "candidate", "null"]
    assert (one["baseline"].accuracy, one["null"].accuracy) == ("0.25", "0.125")
    assert (other["null"].missing, other["null"].mean_cache, other["null"].active) == (8, "", "")
    assert [(s.candidate, s.gain, s.survived) for s in found.screening] == [("candidate", "0.125", True)]
    assert {c.candidate for c in found.cells} == {"candidate"}


def test_arm_numbers():
    # 2 heads of 8 bytes. 12 steps grow 11 … 22: mean 33/2, peak 22. 40 steps at b = 16, Δ = 4: mean from the account.
    long, short = account(16, steps=40), account(100, steps=12)
    records = [
        record(
            "m/b16",
            "baseline",
            "p0",
            True,
            residency=long,
            kept_min=16,
            kept_max=16,
            output_tokens=41,
            regions=wiped(8, 3),
        ),
        record(
            "m/b16",
            "baseline",
            "p1",
            True,
            residency=short,
            kept_min=15,
            kept_max=17,
            output_tokens=13,
            regions=wiped(0, 0),
        ),
        record("m/b16", "baseline", "p2", True, status="failed", residency=None, output_tokens=0),
        record(
            "m/b16",
            "baseline",
            "p3",
            False,
            residency=long,
            status="truncated",
            output_tokens=41,
            regions=wiped(2, 1, 90),
        ),
    ]
    arm = run(protocol(), records, 5).arms["m/b16"]["baseline"]
    assert (arm.preset, arm.budget) == ("triattention", 16)
    assert (arm.trials, arm.correct, arm.missing, arm.failed, arm.truncated) == (5, 2, 1, 1, 1)
    assert arm.accuracy == "0.4"
    assert arm.mean_cache == format(float((2 * long.mean + short.mean) / 3), ".9g")
    pooled = Fraction(2 * long.payload_bytes + short.payload_bytes, (40 + 40 + 12) * 2 * 8)
    assert arm.pooled_cache == format(float(pooled), ".9g")
    assert (arm.peak_cache, arm.kept_min, arm.kept_max) == ("22", 15, 17)
    assert (arm.active, arm.mean_output_tokens) == (format(2 / 3, ".9g"), format(95 / 3, ".9g"))
    assert (arm.wiped_regions, arm.longest_wiped) == ("0.4", 90)  # pooled: (3 + 1) / (8 + 2)


def test_without_an_event_nothing_is_said_of_regions():
    records = [record("m/b16", "baseline", "p0", True, regions=wiped(0, 0)), record("m/b16", "baseline", "p1", True)]
    arm = run(protocol(), records, 2).arms["m/b16"]["baseline"]
    assert (arm.wiped_regions, arm.longest_wiped) == ("", None)


def test_nothing_wiped_out_is_not_the_same_as_no_event():
    arm = run(protocol(), [record("m/b16", "baseline", "p0", True, regions=wiped(8, 0))], 1).arms["m/b16"]["baseline"]
    assert (arm.wiped_regions, arm.longest_wiped) == ("0", 0)


def test_missing_and_failed_trials_are_wrong():
    study = protocol()
    records = both("m/b16", "1.11", "11.1")
    records[0] = record("m/b16", "baseline", "p0", True, status="failed", residency=None)
    cell = run(study, records, 4).cells[0]
    # p0: failed though graded right; p1, p2: missing. So candidate has p0 and p1 alone, baseline p2 alone.
    assert (cell.wins, cell.losses, cell.ties) == (2, 1, 1)


def test_sensitivity_note():
    found = run(protocol(), both("m/b16", "0011.", "11111"), 5)
    (note,) = [n for n in found.notes if "left no result" in n]
    # 3 wins of 5; over the 4 complete problems 2 of 4; at worst the missing baseline answer was right: 2/5.
    for part in ("1 baseline and 0 candidate", "difference 0.6", "4 complete problems 0.5", "between 0.4 and 0.6"):
        assert part in note


def test_sensitivity_note_with_samples():
    study = protocol(samples=2, test=BOOTSTRAP)
    records = both("m/b16", "00", "11") + both("m/b16", "00", "1.", sample=1)
    # Right samples 0, 0 against 2, 1 of four; the missing one could have made it 2, 2.
    (note,) = [n for n in run(study, records, 2).notes if "left no result" in n]
    for part in ("difference 0.75", "1 complete problems 1", "between 0.75 and 1"):
        assert part in note


def test_samples_are_summed_per_problem():
    study = protocol(samples=3, test=BOOTSTRAP)
    records = []
    for sample, (base, cand) in enumerate([("100", "111"), ("010", "110"), ("001", "110")]):
        records += both("m/b16", base, cand, sample=sample)
    cell = run(study, records, 3).cells[0]
    # Right samples: baseline 1, 1, 1; candidate 3, 3, 1. Pairing sample by sample would find five wins.
    assert (cell.wins, cell.losses, cell.ties, cell.samples) == (2, 0, 1, 3)
    assert cell.difference == format(4 / 9, ".9g")
    assert set(cell.p) == {"paired_bootstrap", "sign_flip"}
    assert cell.p_registered == format(2 / 27, ".9g")  # all three draws must hit the tie


def test_a_void_cell_stays_in_the_family():
    study = protocol(budgets=(16, 32), test=BOOTSTRAP, branches=[
        {"name": "V", "when": {"void_cells": ">=1"}, "decision": "repeat"}, *BRANCHES])  # fmt: skip
    strong = ("0" * 20, "1" * 12 + "0" * 8)
    records = [
        *both("m/b16", *strong),
        *answers("m/b32", "baseline", strong[0]),
        *answers("m/b32", "candidate", strong[1], residency=account(40, steps=60)),
    ]
    found = run(study, records, 20)
    good, bad = found.cells
    assert (good.outcome, bad.outcome) == ("positive", "void")
    assert float(good.p_adjusted) == pytest.approx(2 * float(good.p_registered), rel=1e-8)  # m is still 2
    assert bad.p_adjusted == "1" and bad.p_registered == good.p_registered
    assert (found.positive_cells, found.void_cells, found.branch) == (1, 1, "V")


def test_an_absent_cell_is_void():
    study = protocol(budgets=(16, 32))
    found = run(study, both("m/b16", "0" * 8, "1" * 8), 8)
    assert [c.outcome for c in found.cells] == ["positive", "void"]
    assert found.cells[1].p_adjusted == "1"
    assert (found.cells[1].n, found.cells[1].ties, found.cells[1].matched.ratio) == (8, 8, "")


def test_a_cell_the_selection_lacks_is_void():
    study = protocol(budgets=(16, 32))
    chosen = select(study, arms={"m/b16": select(study).arms["m/b16"]})
    found = run(study, both("m/b16", "0" * 8, "1" * 8) + both("m/b32", "0" * 8, "1" * 8), 8, chosen)
    cell = found.cells[1]
    assert (cell.outcome, found.arms["m/b32"]["candidate"].preset) == ("void", "alpha")
    assert "froze no baseline and no candidate" in cell.matched.reasons[0]


def test_the_frozen_budget_and_prompt_policy_are_used():
    study = protocol()
    frozen = {"baseline": choice("triattention", 14), "candidate": choice("alpha", 15, prompt="outside")}
    found = run(study, both("m/b16", "0" * 8, "1" * 8), 8, select(study, arms={"m/b16": frozen}))
    cell, arms = found.cells[0], found.arms["m/b16"]
    assert (arms["baseline"].budget, arms["candidate"].budget) == (14, 15)
    assert "prompt policies differ" in cell.matched.reasons[0] and cell.outcome == "void"


class TestNegative:
    losing = both("m/b16", "1" * 5 + "000", "0" * 8)

    @pytest.mark.parametrize("veto, want", [("0.03125", "negative"), ("0.03", "null")])
    def test_one_sided_and_uncorrected(self, veto, want):
        # Five losses: one-sided p is 1/2⁵ = .03125; with four more cells a corrected level would miss it.
        study = protocol(budgets=(16, 32, 48, 64), test={"veto": {"alpha": veto}})
        cell = run(study, self.losing, 8).cells[0]
        assert (cell.p_veto, cell.outcome) == ("0.03125", want)

    def test_a_gain_is_never_negative(self):
        study = protocol(test={"veto": {"alpha": "0.5"}})
        assert run(study, both("m/b16", "0" * 7 + "1", "1" * 2 + "0" * 6), 8).cells[0].outcome == "null"

    def test_a_draw_is_never_negative(self):
        # One win, one loss: the one-sided mid-p for harm is just .5.
        study = protocol(test={"procedure": "mcnemar_midp", "veto": {"alpha": "0.5"}})
        cell = run(study, both("m/b16", "01", "10"), 2).cells[0]
        assert (cell.p_veto, cell.outcome) == ("0.5", "null")

    def test_a_significant_loss_is_not_positive(self):
        study = protocol(test={"alpha": "0.5", "veto": {"alpha": "0.0001"}})
        assert run(study, self.losing, 8).cells[0].outcome == "null"


def test_one_sided_alternative():
    study = protocol(test={"alternative": "greater"})
    cell = run(study, both("m/b16", "0" * 8, "1" * 5 + "000"), 8).cells[0]
    assert (cell.p_registered, cell.outcome) == ("0.03125", "positive")


def test_no_correction():
    study = protocol(budgets=(16, 32), test={"correction": "none"})
    cell = run(study, both("m/b16", "0" * 8, "1" * 6 + "00"), 8).cells[0]
    assert (cell.p_adjusted, cell.interval_adjusted, cell.outcome) == ("0.03125", cell.interval, "positive")


def test_controls_never_decide():
    study = protocol(controls=("null",))
    base = both("m/b16", "01010101", "01010101")
    plain = run(study, base, 8)
    loud = run(study, [*base, *answers("m/b16", "null", "1" * 8, residency=account(60, steps=63))], 8)
    assert plain.branch == loud.branch == "C"
    assert plain.cells[0].matched == loud.cells[0].matched


class TestSeveralCandidates:
    """Two of three survive, in two cells: a family of four comparisons against one baseline."""

    study = protocol(budgets=(16, 32), candidates=("a", "b", "c"), survivors=2, controls=("null",))
    records = [
        *answers("m/b16", "baseline", "0" * 8),
        *answers("m/b16", "a", "1" * 8),
        *answers("m/b16", "c", "1" * 7 + "0"),
        *answers("m/b16", "null", "0" * 8),
        *answers("m/b32", "baseline", "1" * 8),
        *answers("m/b32", "a", "1" * 8),
        *answers("m/b32", "c", "0" * 8),
        *answers("m/b32", "null", "0" * 8),
    ]

    def test_a_comparison_is_a_candidate_in_a_cell(self):
        found = run(self.study, self.records, 8, select(self.study, ["a", "c"]))
        assert [(c.candidate, c.cell) for c in found.cells] == [
            ("a", "m/b16"), ("a", "m/b32"), ("c", "m/b16"), ("c", "m/b32")]  # fmt: skip
        assert found.family == 4
        # Eight and seven wins: 2/2⁸ and 2/2⁷, four times each. Eight losses: 1/2⁸ one-sided.
        assert [c.p_registered for c in found.cells] == ["0.0078125", "1", "0.015625", "0.0078125"]
        assert [c.p_adjusted for c in found.cells] == ["0.03125", "1", "0.0625", "0.03125"]
        assert [c.outcome for c in found.cells] == ["positive", "null", "null", "negative"]
        assert (found.positive_cells, found.negative_cells, found.branch) == (1, 1, "B")
        assert found.cells[0].interval_adjusted.level == "0.9875"
        assert list(found.arms["m/b16"]) == ["baseline", "a", "c", "null"]
        assert [(s.candidate, s.gain, s.survived) for s in found.screening] == [
            ("a", "0.125", True), ("b", "-0.125", False), ("c", "0.125", True)]  # fmt: skip

    def test_a_comparison_equals_that_of_a_study_of_its_own(self):
        """But for the correction: m is 4 here, 2 there."""
        found = run(self.study, self.records, 8, select(self.study, ["a", "c"]))
        alone = protocol(budgets=(16, 32), candidates=("c",))
        own = run(alone, [r for r in self.records if r.arm in ("baseline", "c")], 8)
        for here, there in zip(found.cells[2:], own.cells):
            changed = {"p_adjusted", "interval_adjusted", "outcome"}
            assert here.model_dump(exclude=changed) == there.model_dump(exclude=changed)
        assert own.cells[0].outcome == "positive"

    @pytest.mark.parametrize("survivors", [["c"], ["a"]])
    def test_the_family_does_not_shrink_with_the_survivors(self, survivors):
        kept = [r for r in self.records if r.arm in ("baseline", "null", *survivors)]
        found = run(self.study, kept, 8, select(self.study, survivors))
        both = run(self.study, self.records, 8, select(self.study, ["a", "c"]))
        assert found.family == 4
        assert found.cells == [c for c in both.cells if c.candidate in survivors]

    def test_nobody_survives(self):
        kept = [r for r in self.records if r.arm in ("baseline", "null")]
        found = run(self.study, kept, 8, select(self.study, []))
        assert (found.family, found.cells, found.branch) == (4, [], "C")
        assert (found.positive_cells, found.negative_cells, found.void_cells) == (0, 0, 0)
        assert {cell: list(row) for cell, row in found.arms.items()} == {
            "m/b16": ["baseline", "null"], "m/b32": ["baseline", "null"]}  # fmt: skip
        assert not any(s.survived for s in found.screening)

    def test_a_record_of_a_candidate_that_was_screened_out_is_refused(self):
        with pytest.raises(RecordError, match="confirmed arms"):
            run(self.study, self.records, 8, select(self.study, ["a"]))

    def test_more_survivors_than_registered_are_refused(self):
        with pytest.raises(ValueError, match="family has 4 members"):
            run(self.study, self.records, 8, select(self.study, ["a", "b", "c"]))

    def test_every_candidate_is_confirmed_without_screening(self):
        study = protocol(budgets=(16, 32), candidates=("a", "c"), controls=("null",))
        assert run(study, self.records, 8).family == 4

    def test_notes_name_the_candidate(self):
        study = protocol(candidates=("a", "b"), test=BOOTSTRAP)
        records = [r for arm in ("baseline", "a", "b") for r in answers("m/b16", arm, "01")]
        assert [n.split(":")[0] for n in run(study, records, 2).notes] == ["a m/b16", "b m/b16"]


def test_few_flips_are_noted_for_the_bootstrap_only():
    records = both("m/b16", "0" * 30, "1" * 5 + "0" * 25)
    assert any("differ on 5 problems" in n for n in run(protocol(test=BOOTSTRAP), records, 30).notes)
    assert run(protocol(), records, 30).notes == []


def varied_records():
    out = []
    for cell in ("m/b16", "m/b32"):
        for sample in (0, 1):
            for i, arm in enumerate(("baseline", "candidate")):
                for j in range(12):
                    right, held = (j + i * sample) % 3 == 0, account(16, 30 + j + i)
                    out.append(record(cell, arm, f"p{j}", right, sample=sample, residency=held))
    return out


def test_deterministic_and_independent_of_record_order():
    study, records = protocol(budgets=(16, 32), samples=2, test=BOOTSTRAP), varied_records()
    # Two accounts of one problem that fail in different ways: which comes first must not depend on the file.
    for i, forged in ((0, {"layers": 0}), (24, {"entries": 1})):
        assert (records[i].problem, records[i].arm) == ("p0", "baseline")
        held = records[i].residency.model_copy(update=forged)
        records[i] = records[i].model_copy(update={"residency": held})
    one, other = run(study, records, 12), run(study, records[::-1], 12)
    assert digest(one.model_dump(mode="json")) == digest(other.model_dump(mode="json"))


def test_each_cell_has_its_own_seed():
    one, other = run(protocol(budgets=(16, 32), samples=2, test=BOOTSTRAP), varied_records(), 12).cells
    assert one.matched.ratio == other.matched.ratio
    assert one.matched.interval.low != other.matched.interval.low


def test_label_is_kept():
    assert run(protocol(), [], 3, label="exploratory").label == "exploratory"


@pytest.mark.parametrize(
    "bad",
    [
        {"problem": "p9"},
        {"cell": "m/b99"},
        {"arm": "other"},
        {"sample": 1},
        {"phase": "dev"},
        {"config": "lambda=1"},
        {"study": "another"},
        {"registration": "sha256:" + "1" * 64},
    ],
    ids=lambda bad: next(iter(bad)),
)
def test_an_unexpected_record_is_refused(bad):
    fields = {"cell": "m/b16", "arm": "baseline", "problem": "p0", "correct": True} | bad
    with pytest.raises(RecordError):
        run(protocol(), [record(**fields)], 4)


def test_a_second_result_is_refused():
    with pytest.raises(RecordError, match="twice"):
        run(protocol(), [*answers("m/b16", "baseline", "0"), *answers("m/b16", "baseline", "1")], 4)


@pytest.mark.parametrize("names", [[], ["p0", "p0"]])
def test_problem_ids_must_be_distinct(names):
    study = protocol()
    with pytest.raises(ValueError, match="distinct"):
        analyse(study, ZERO, select(study), [], names, label="confirmatory")


@pytest.mark.parametrize("text", ["1e999999999", "nan", "1" * 41, "0.5 ", "1/0x", "--1"])
def test_a_number_that_would_be_a_hard_sum_is_refused(text):
    with pytest.raises(ValidationError, match="pattern"):
        Interval(level="0.95", low=text, high="1")


# --- what a protocol may register besides the plain test


def two_cells(**test):
    """b16: seven wins, no loss; b32: five of them again, and one loss."""
    study = protocol(budgets=(16, 32), test={"procedure": "sign_flip", **test})
    records = [*both("m/b16", "0" * 7 + "11111", "1" * 12), *both("m/b32", "0" * 5 + "1" * 7, "1" * 11 + "0")]
    return run(study, records, 12)


@pytest.mark.parametrize(
    "correction, adjusted",
    [("none", ["0.015625", "0.21875"]), ("bonferroni", ["0.03125", "0.4375"]), ("holm", ["0.03125", "0.21875"])],
)
def test_corrections_over_two_cells(correction, adjusted):
    assert [c.p_adjusted for c in two_cells(correction=correction).cells] == adjusted


def test_max_t_flips_problems_in_all_cells_together():
    """All 2⁸ sign patterns of the problems that differ, by brute force."""
    found = two_cells(correction="max_t")
    first, second = [1] * 7 + [0], [1] * 5 + [0, 0, -1]
    reach = [0, 0]
    for signs in product((1, -1), repeat=8):
        t = [sum(s * d for s, d in zip(signs, row)) ** 2 / sum(d * d for d in row) for row in (first, second)]
        reach[0] += max(t) >= 7
        reach[1] += t[1] >= 16 / 6
    assert [c.p_adjusted for c in found.cells] == [format(r / 256, ".9g") for r in reach]
    assert found == two_cells(correction="max_t")


def test_max_t_goes_with_tests_that_flip_signs():
    with pytest.raises(ValidationError, match="max_t flips signs, but test.procedure is paired_bootstrap"):
        protocol(test={**BOOTSTRAP, "correction": "max_t"})


MARGIN = {"margin": "0.05", "alpha": "0.05"}
HELD = [
    {"name": "A", "when": {"positive_cells": ">=1", "non_inferior_cells": "==2"}, "decision": "adopt"},
    {"name": "B", "when": {"non_inferior_cells": "==2"}, "decision": "no worse"},
    {"name": "C", "otherwise": True, "decision": "reject"},
]


def held(losses, n=400):
    study = protocol(budgets=(16, 32), branches=HELD, test={"non_inferiority": MARGIN})
    one = both("m/b16", "1" * n, "0" * losses[0] + "1" * (n - losses[0]))
    other = both("m/b32", "1" * n, "0" * losses[1] + "1" * (n - losses[1]))
    return run(study, one + other, n)


def test_non_inferior_cells_are_counted_and_decide():
    fine, harmed = held((0, 5)), held((0, 30))
    assert (fine.non_inferior_cells, fine.branch) == (2, "B")
    assert (harmed.non_inferior_cells, harmed.branch) == (1, "C")
    for cell, lost in zip(harmed.cells, (0, 30)):
        z, p = non_inferiority(Pairs.binary(400, 0, lost), Fraction(1, 20))
        assert (cell.non_inferior.z, cell.non_inferior.p) == (format(z, ".9g"), format(p, ".9g"))
        assert cell.non_inferior.shown == (p <= 0.05)


def test_a_void_cell_is_not_non_inferior():
    study = protocol(budgets=(16, 32), branches=HELD, test={"non_inferiority": MARGIN})
    records = both("m/b16", "1" * 400, "1" * 400)  # b32 has no record at all
    assert run(study, records, 400).non_inferior_cells == 1


@pytest.mark.parametrize(
    "rest, message",
    [
        ({"branches": HELD}, "test.non_inferiority is missing"),
        ({"samples": 2, "test": {**BOOTSTRAP, "non_inferiority": MARGIN}}, "needs one sample per problem"),
        ({"test": {"non_inferiority": {"margin": "0", "alpha": "0.05"}}}, "margin"),
    ],
)
def test_non_inferiority_that_cannot_be(rest, message):
    with pytest.raises(ValidationError, match=message):
        protocol(**rest)


def test_what_was_not_asked_for_is_not_in_the_documents():
    """So that documents of studies that were locked before it could be asked for stay what they were."""
    study = protocol()
    assert "anchor" not in study.document() and "non_inferiority" not in study.document()["test"]
    found = run(study, both("m/b16", "01", "11"), 2).model_dump(mode="json")
    assert "non_inferior_cells" not in found and "non_inferior" not in found["cells"][0]


def test_procedures_beside_the_registered_one():
    found = two_cells()
    first, second = beside(found)
    assert first.adjusted == {"bonferroni": 0.03125, "holm": 0.03125, "max_t": pytest.approx(0.015625, abs=0.01)}
    jointly = [float(c.p_adjusted) for c in two_cells(correction="max_t").cells]
    assert [b.adjusted["max_t"] for b in (first, second)] == pytest.approx(jointly, rel=1e-8)
    assert first.tango == tango_interval(Pairs.binary(12, 7, 0), Fraction("0.95"))
    assert first.detects == mde(12, 7 / 12, 0.025)
    void = run(protocol(budgets=(16, 32)), both("m/b16", "01", "11"), 2)
    assert beside(void)[1].adjusted == {"bonferroni": 1.0, "holm": 1.0, "max_t": 1.0}


def test_arms_that_never_differ_have_numbers_beside_too():
    found = run(protocol(budgets=(16, 32)), both("m/b16", "01", "01") + both("m/b32", "11", "11"), 2)
    assert [b.adjusted for b in beside(found)] == [{"bonferroni": 1.0, "holm": 1.0, "max_t": 1.0}] * 2
