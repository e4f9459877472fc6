import subprocess
import sys

import pytest
import small_study

from cask_eval.decide.lint import describe_power, lint, points

VOID = {"name": "V", "when": {"void_cells": ">=1", "positive_cells": "==0"}, "decision": "undecided"}
BRANCHES = [*small_study.BRANCHES[:2], VOID, *small_study.BRANCHES[2:]]


def protocol(branches=BRANCHES, **rest):
    return small_study.protocol(branches=branches, **rest)


# A sound study of 600 problems in two cells: nothing to say about it.
SOUND = {"budgets": (16, 32), "expected_discordance": "0.3", "expected_effect": "0.1"}


def fields(study, n):
    return [(f.level, f.field) for f in lint(study, n)]


def messages(study, n):
    return " | ".join(f.message for f in lint(study, n))


def test_a_sound_protocol_has_no_findings():
    assert lint(protocol(**SOUND), 600) == []


def test_branch_faults_are_errors_and_come_first():
    study = protocol(branches=BRANCHES[:2], **SOUND)
    assert fields(study, 50)[0] == ("error", "branches")
    assert "void_cells" not in messages(study, 50), "one thing at a time"
    unreachable = [{"name": "X", "when": {"positive_cells": ">=5"}, "decision": "x"}, *BRANCHES]
    assert fields(protocol(branches=unreachable, **SOUND), 600) == [("error", "branches")]


def test_a_branch_must_look_at_void_cells():
    study = protocol(branches=small_study.BRANCHES, **SOUND)
    assert fields(study, 600) == [("warning", "branches")]
    assert "ends in branch C, reject, as if something had been found" in messages(study, 600)


def test_power_needs_the_number_of_problems():
    assert lint(protocol(budgets=(16, 32), expected_effect="0.01"), None) == []


@pytest.mark.parametrize("n, warned", [(66, True), (67, False)])
def test_twenty_expected_discordant_pairs(n, warned):
    # 67 × 0.3 = 20.1
    study = protocol(test={"procedure": "paired_bootstrap"}, expected_discordance="0.3")
    found = messages(study, n)
    assert ("rejects more often than its level" in found) == warned
    assert ("at least 67 problems" in found) == warned


def test_unknown_discordance_is_assumed_and_said():
    found = messages(protocol(), 90)  # 18 expected
    assert "about 18 of 90 at discordance 0.2, assumed as expected_discordance is not given" in found
    assert "assumed" not in messages(protocol(expected_discordance="0.2"), 90)


def test_a_level_out_of_reach():
    # Two-sided .0125 takes 8 discordant pairs in one direction; 35 × .2 gives 7.
    study = protocol(budgets=(16, 32, 64, 128), expected_discordance="0.2")
    assert "needs at least 8 problems that differ" in messages(study, 35)
    assert "is unlikely" in messages(study, 35) and "is unlikely" not in messages(study, 40)
    assert "no result can be positive" in messages(study, 7)


@pytest.mark.parametrize("effect, warned", [("0.09", True), ("0.1", False)])
def test_expected_effect_against_what_can_be_detected(effect, warned):
    # n = 250, q = .2, four cells: 80 % power from 9.6 points.
    study = protocol(budgets=(16, 32, 64, 128), expected_discordance="0.2", expected_effect=effect)
    found = [f for f in lint(study, 250) if f.field == "expected_effect"]
    assert bool(found) == warned
    if warned:
        assert "9.6 points or more" in found[0].message and "about 273 problems" in found[0].message


def test_expected_effect_that_cannot_be():
    assert "exchange the arms" in messages(protocol(expected_effect="-0.05"), 400)
    assert "more than discordance 0.1 allows" in messages(
        protocol(expected_effect="0.2", expected_discordance="0.1"), 400
    )


def test_weak_veto():
    weak = protocol(expected_discordance="0.2", expected_effect="0.06", test={"veto": {"alpha": "0.01"}})
    found = [f for f in lint(weak, 400) if f.field == "test.veto.alpha" and "test.non_inferiority" in f.message]
    assert len(found) == 1
    strong = weak.model_copy(update={"test": weak.test.model_copy(update={"veto": weak.test.veto.model_copy(
        update={"alpha": "0.1"})})})  # fmt: skip
    assert not [f for f in lint(strong, 400) if "non-inferiority" in f.message]


HELD = [
    {"name": "A", "when": {"positive_cells": ">=1", "non_inferior_cells": "==1"}, "decision": "adopt"},
    {"name": "C", "otherwise": True, "decision": "reject"},
]


@pytest.mark.parametrize("margin, n, warned", [("0.05", 1000, False), ("0.05", 400, True), ("0.02", 1000, True)])
def test_a_margin_that_an_equal_candidate_would_not_reach(margin, n, warned):
    rule = {"margin": margin, "alpha": "0.05"}
    study = protocol(branches=HELD, expected_discordance="0.2", test={"non_inferiority": rule})
    found = [f for f in lint(study, n) if f.field == "test.non_inferiority.margin"]
    assert bool(found) == warned
    assert not [f for f in lint(study, n) if f.field == "test.veto.alpha"]
    if warned:
        needed = int(found[0].message.split(", or ")[1].split()[0])
        assert not [f for f in lint(study, needed) if f.field == "test.non_inferiority.margin"]


def test_a_margin_that_no_branch_looks_at():
    rule = {"margin": "0.1", "alpha": "0.05"}
    found = lint(protocol(test={"non_inferiority": rule}), 1000)
    assert any("the margin changes nothing" in f.message for f in found)


def test_a_protocol_that_ignores_harm():
    blind = [{"name": "A", "when": {"positive_cells": ">=1"}, "decision": "adopt"}, BRANCHES[-1]]
    assert "no branch looks at negative_cells" in messages(protocol(branches=blind, **SOUND), 600)


@pytest.mark.parametrize(
    "budgets, test, field, words",
    [
        ((16, 32), {"alpha": "0.2"}, "test.alpha", "0.05 or less"),
        ((16, 32), {"correction": "none"}, "test.correction", "use bonferroni"),
        ((16,), {"veto": {"alpha": "0.04"}}, "test.veto.alpha", "0.05 or more"),
        ((16,), {"veto": {"alpha": "0.3"}}, "test.veto.alpha", "0.2 or less"),
    ],
    ids=["alpha", "correction", "strict veto", "loose veto"],
)
def test_levels(budgets, test, field, words):
    study = protocol(**{**SOUND, "budgets": budgets}, test=test)
    found = [f for f in lint(study, 2000) if words in f.message]
    assert [(f.level, f.field) for f in found] == [("warning", field)]


def test_interval_narrower_than_the_ratio():
    study = protocol(matched_cache={"tolerance": "0.05", "interval_tolerance": "0.03"}, **SOUND)
    assert fields(study, 600) == [("warning", "matched_cache.interval_tolerance")]


def test_describe_power():
    study = protocol(budgets=(16, 32, 64, 128), expected_discordance="0.2")
    assert describe_power(study, 250) == (
        "each cell (n = 250, level 0.0125, two-sided) detects 9.6 points with 80 % power by exact McNemar "
        "at discordance 0.2"
    )
    assert "detects no difference" in describe_power(study, 5)


def test_power_is_per_comparison():
    """Two survivors in two cells are a family of four, whoever they will be."""
    study = protocol(budgets=(16, 32), candidates=("a", "b", "c"), survivors=2, expected_discordance="0.2")
    assert describe_power(study, 250).startswith("each comparison (n = 250, level 0.0125, two-sided) detects 9.6")
    assert describe_power(protocol(candidates=("a", "b", "c"), survivors=1), 250).startswith(
        "each comparison (n = 250, level 0.05"
    )


def test_branches_are_checked_against_the_family():
    wide = [{"name": "X", "when": {"positive_cells": ">=3"}, "decision": "x"}, *BRANCHES]
    screened = {"candidates": ("a", "b", "c"), "branches": wide, **SOUND}
    unreachable = [f for f in lint(protocol(survivors=1, **screened), None) if f.field == "branches"]
    assert [f.level for f in unreachable] == ["error"] and "among 2 comparisons" in unreachable[0].message
    assert not [f for f in lint(protocol(survivors=2, **screened), None) if f.field == "branches"]


def same_twice():
    study = protocol(candidates=("a", "b", "c"), survivors=2)
    other = study.candidates[1].model_copy(update={"params": {"delta": 8}})
    return study.model_copy(update={"candidates": [study.candidates[0], other, study.candidates[2]]})


def test_candidates():
    assert fields(protocol(candidates=("a", "b"), **SOUND), None)[0] == ("warning", "screening")
    assert "each of the 4 comparisons is tested at 0.0125" in messages(protocol(candidates=("a", "b"), **SOUND), None)
    assert fields(same_twice(), None) == [("warning", "candidates")]
    assert "a and c are the same method" in messages(same_twice(), None)


def test_points_are_rounded_up():
    assert points(0.0951) == "9.6 points"
    assert points(0.1) == "10 points"


def test_importing_costs_no_scipy():
    code = (
        "import sys, cask_eval.decide.lint, cask_eval.decide.analysis;"
        "print([m for m in ('scipy', 'statsmodels', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
