from itertools import product

import pytest
from pydantic import ValidationError
from small_study import account, ids, protocol, record, select

from cask_eval.canonical import ZERO
from cask_eval.decide.analysis import analyse
from cask_eval.decide.beside import beside
from cask_eval.decide.exclusion import crowded_out
from cask_eval.ledger.amend import forbidden
from cask_eval.ledger.events import Change
from cask_eval.schedule import Schedule
from cask_eval.stages import stages

SHORT, LONG_PROMPT, USUAL = "short", "long prompt", "usual"

# steps, prompt tokens. With a budget of 16 and events at 20 entries, 3 steps after 10 tokens compress nothing, and a
# pinned prompt of 16 leaves no room.
SIZES = {SHORT: (3, 10), LONG_PROMPT: (40, 16), USUAL: (40, 10)}
REGIMES = {SHORT: "never_compressed", LONG_PROMPT: "prefix_budget_exhausted", USUAL: "active"}


def trial(cell, arm, problem, correct, kind=USUAL, **rest):
    steps, prompt = SIZES[kind]
    held = account(steps=steps, prompt_tokens=prompt)
    lengths = {"output_ids": [0] * (steps + 1), "output_tokens": steps + 1, "prompt_tokens": prompt}
    return record(cell, arm, problem, correct, residency=held, **lengths, **rest)


def trials(cell, arm, right, kinds=None):
    kinds = kinds or [USUAL] * len(right)
    return [trial(cell, arm, f"p{i}", c == "1", kind) for i, (c, kind) in enumerate(zip(right, kinds, strict=True))]


def study(*regimes, **rest):
    rule = {"exclude": {"regimes": list(regimes)}} if regimes else {}
    return protocol(matched_cache={"min_active": "0", "tolerance": "1", "interval_tolerance": "1"}, **rule, **rest)


def run(protocol, records, n):
    return analyse(protocol, ZERO, select(protocol), records, ids(n), label="confirmatory")


def pair(cell, baseline, candidate, kinds=None):
    return [*trials(cell, "baseline", baseline, kinds), *trials(cell, "candidate", candidate, kinds)]


def test_by_hand():
    """Six wins; on two of the problems the prompt alone takes up the budget."""
    records = pair("m/b16", "0" * 6 + "11", "1" * 8, [LONG_PROMPT, LONG_PROMPT, *[USUAL] * 6])
    whole, part = run(study(), records, 8), run(study("prefix_budget_exhausted"), records, 8)
    assert (whole.cells[0].n, whole.cells[0].wins, whole.cells[0].difference) == (8, 6, "0.75")
    found = part.cells[0]
    assert (found.n, found.wins, found.losses, found.excluded) == (6, 4, 0, 2)
    assert found.difference == format(4 / 6, ".9g")
    assert found.p_registered == "0.125"  # 2/2⁴
    assert [f.problem for f in found.flips] == ["p2", "p3", "p4", "p5"]
    assert part.arms == whole.arms, "what is said of each arm alone leaves out nothing"
    (note,) = [n for n in part.notes if "registered rule" in n]
    assert "2 of 8 problems are left out" in note and note.endswith("difference is 0.75")


@pytest.mark.parametrize("kind", [SHORT, LONG_PROMPT])
def test_equals_a_study_without_those_problems(kind):
    records = pair("m/b16", "01010100", "11110100", [USUAL] * 6 + [kind] * 2)
    found = run(study(REGIMES[kind]), records, 8).cells[0]
    left = [r for r in records if r.problem not in ("p6", "p7")]
    assert found.excluded == 2
    assert found.model_copy(update={"excluded": 0}) == run(study(), left, 6).cells[0]


@pytest.mark.parametrize("arm", ["baseline", "candidate"])
def test_one_arm_that_ended_early_leaves_out_nothing(arm):
    """How long an answer is depends on how the arm fares: leaving it out would select by the result."""
    short = {"baseline": None, "candidate": None, arm: [SHORT, USUAL]}
    records = [*trials("m/b16", "baseline", "01", short["baseline"])]
    records += trials("m/b16", "candidate", "11", short["candidate"])
    assert run(study("never_compressed"), records, 2).cells[0].excluded == 0


def test_identical_arms_stay_identical():
    """What is left out because nothing was compressed is a tie: no win and no loss goes with it."""
    records = pair("m/b16", "0110", "0110", [SHORT, SHORT, USUAL, USUAL])
    found = run(study("never_compressed"), records, 4).cells[0]
    assert (found.n, found.wins, found.losses, found.excluded) == (2, 0, 0, 2)


def test_what_was_generated_does_not_matter_to_a_prompt_that_is_too_long():
    """An answer that ends before the first event is left out with the others."""
    steps, prompt = 2, SIZES[LONG_PROMPT][1]
    ended = {"output_ids": [0] * 3, "output_tokens": 3, "prompt_tokens": prompt}
    records = pair("m/b16", "01", "11", [LONG_PROMPT, USUAL])
    records[0] = record("m/b16", "baseline", "p0", False, residency=account(steps=steps, prompt_tokens=prompt), **ended)
    assert run(study("prefix_budget_exhausted"), records, 2).cells[0].excluded == 1


@pytest.mark.parametrize(
    ("schedule", "prompt", "out"),
    [
        (Schedule("slack", 16, 4, "pinned", overflow="first"), 15, False),
        (Schedule("slack", 16, 4, "pinned", overflow="first"), 16, True),
        (Schedule("slack", 16, 4, "pinned", overflow="last"), 40, True),
        (Schedule("slack", 16, 4, "compete"), 40, False),
        (Schedule("slack", 16, 4, "outside"), 40, False),
        (Schedule("never", 16, 4, "pinned"), 40, False),
        (Schedule("slack", 16, 4, "two_stage", recent=4), 40, False),
        (Schedule("slack", 16, 4, "two_stage", recent=4, count_prompt=False), 40, True),
    ],
)
def test_prompts_that_take_up_the_budget(schedule, prompt, out):
    assert crowded_out(schedule, prompt) == out
    long = stages(schedule, prompt, [[0] * 200])
    assert bool(long.exhausted) == out, "a long answer comes to the same"


def test_only_the_named_regimes_are_left_out():
    records = pair("m/b16", "011", "111", [SHORT, USUAL, USUAL])
    assert run(study("prefix_budget_exhausted"), records, 3).cells[0].excluded == 0


def test_one_sample_that_was_compressed_keeps_its_problem():
    rule, records = study("never_compressed", samples=2, test={"procedure": "sign_flip"}), []
    for arm in ("baseline", "candidate"):
        for problem, kinds in (("p0", [SHORT, SHORT]), ("p1", [SHORT, USUAL])):
            records += [trial("m/b16", arm, problem, True, kind, sample=s) for s, kind in enumerate(kinds)]
    assert (run(rule, records, 2).cells[0].n, run(rule, records, 2).cells[0].excluded) == (1, 1)
    assert run(rule, records[1:], 2).cells[0].excluded == 0, "nobody knows what a missing trial was"


NOTHING = [
    {"correction": "holm"},
    {"correction": "max_t"},
    {"procedure": "paired_bootstrap"},
    {"non_inferiority": {"margin": "0.05", "alpha": "0.05"}},
]


@pytest.mark.parametrize("test", NOTHING)
def test_nothing_left_is_void(test):
    records = pair("m/b16", "01", "01", [SHORT, SHORT])
    found = run(study("never_compressed", test=test), records, 2)
    assert (found.cells[0].outcome, found.void_cells, found.cells[0].n) == ("void", 1, 0)
    assert "every problem is excluded" in found.cells[0].matched.reasons
    assert found.cells[0].p_adjusted == "1"
    (row,) = beside(found)
    assert (row.tango, row.detects) == (None, None)


def test_a_failed_baseline_trial_stays_and_is_wrong():
    lost = record("m/b16", "baseline", "p0", False, residency=None, status="failed")
    records = [lost, trial("m/b16", "baseline", "p1", True), *trials("m/b16", "candidate", "11", [SHORT, USUAL])]
    found = run(study("never_compressed"), records, 2).cells[0]
    assert (found.n, found.wins, found.excluded) == (2, 1, 0)


def test_max_t_draws_one_sign_for_a_problem_wherever_it_is_left_out():
    """Brute force over the signs of all problems; p0 is left out of the first cell alone, where its prompt is too
    long."""
    both = study("prefix_budget_exhausted", budgets=(16, 32), test={"correction": "max_t"})
    kinds = [LONG_PROMPT, *[USUAL] * 5]
    records = [*pair("m/b16", "000000", "111110", kinds), *pair("m/b32", "000001", "111000", kinds)]
    rows = [[0, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, -1]]
    reach = [0, 0]
    for signs in product((1, -1), repeat=6):
        t = [sum(s * d for s, d in zip(signs, row)) ** 2 / sum(d * d for d in row) for row in rows]
        reach[0] += max(t) >= 4
        reach[1] += t[1] >= 1
    found = run(both, records, 6)
    assert [c.excluded for c in found.cells] == [1, 0]
    assert [c.p_adjusted for c in found.cells] == [format(r / 64, ".9g") for r in reach]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"regimes": []}, "at least 1 item"),
        ({"regimes": ["active"]}, "never_compressed"),
        ({"regimes": ["never_compressed", "never_compressed"]}, "more than once"),
        ({"regimes": ["never_compressed"], "of": "candidate"}, "of"),
    ],
)
def test_a_rule_that_cannot_be(rule, said):
    with pytest.raises(ValidationError, match=said):
        protocol(exclude=rule)


def test_without_a_rule_documents_are_what_they_were():
    assert "exclude" not in protocol().document()
    assert study("never_compressed").document()["exclude"] == {"regimes": ["never_compressed"]}


def test_an_amendment_may_change_it_afterwards():
    assert forbidden([Change(field="exclude.regimes", before="", after="[]")]) == []
