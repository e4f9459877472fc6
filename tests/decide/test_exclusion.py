from itertools import product

import pytest
from pydantic import ValidationError
from small_study import account, ids, protocol, record, select

from cask_eval.canonical import ZERO
from cask_eval.decide.analysis import analyse
from cask_eval.decide.exclusion import regime_of
from cask_eval.decide.lint import lint
from cask_eval.ledger.amend import forbidden
from cask_eval.ledger.events import Change
from cask_eval.schedule import Schedule

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


@pytest.mark.parametrize("kind", SIZES)
def test_regimes_follow_from_lengths(kind):
    schedule = Schedule("slack", 16, 4, "pinned", overflow="first")
    assert regime_of(trial("m/b16", "baseline", "p0", True, kind), schedule) == REGIMES[kind]


def test_what_a_record_says_of_its_events_is_not_asked():
    record = trial("m/b16", "baseline", "p0", True)
    assert record.stages is None
    assert regime_of(record, Schedule("slack", 16, 4, "pinned")) == "active"


def test_by_hand():
    """Six wins; two of them on problems whose baseline trial was never compressed."""
    kinds = [SHORT, SHORT, *[USUAL] * 6]
    records = [*trials("m/b16", "baseline", "0" * 6 + "11", kinds), *trials("m/b16", "candidate", "1" * 8)]
    whole, part = run(study(), records, 8), run(study("never_compressed"), records, 8)
    assert (whole.cells[0].n, whole.cells[0].wins, whole.cells[0].difference) == (8, 6, "0.75")
    found = part.cells[0]
    assert (found.n, found.wins, found.losses, found.excluded) == (6, 4, 0, 2)
    assert found.difference == format(4 / 6, ".9g")
    assert found.p_registered == "0.125"  # 2/2⁴
    assert [f.problem for f in found.flips] == ["p2", "p3", "p4", "p5"]
    assert part.arms == whole.arms, "what is said of each arm alone leaves out nothing"
    (note,) = [n for n in part.notes if "registered rule" in n]
    assert "2 of 8 problems are left out" in note and note.endswith("difference is 0.75")


def test_equals_a_study_without_those_problems():
    kinds = [USUAL] * 6 + [SHORT] * 2
    records = [*trials("m/b16", "baseline", "01010100", kinds), *trials("m/b16", "candidate", "11110111")]
    found = run(study("never_compressed"), records, 8).cells[0]
    left = [r for r in records if r.problem not in ("p6", "p7")]
    alone = run(study(), left, 6).cells[0]
    assert found.model_copy(update={"excluded": 0}) == alone


def test_the_candidate_s_own_regime_excludes_nothing():
    records = [*trials("m/b16", "baseline", "01"), *trials("m/b16", "candidate", "11", [SHORT, USUAL])]
    assert run(study("never_compressed"), records, 2).cells[0].excluded == 0


def test_only_the_named_regimes_are_left_out():
    records = [*trials("m/b16", "baseline", "011", [SHORT, USUAL, USUAL]), *trials("m/b16", "candidate", "111")]
    assert run(study("prefix_budget_exhausted"), records, 3).cells[0].excluded == 0


def test_one_sample_is_enough_to_leave_out_a_problem():
    records = []
    for arm, kinds in (("baseline", [USUAL, SHORT]), ("candidate", [USUAL, USUAL])):
        records += [trial("m/b16", arm, "p0", True, kind, sample=s) for s, kind in enumerate(kinds)]
        records += [trial("m/b16", arm, "p1", arm == "candidate", sample=s) for s in range(2)]
    rule = study("never_compressed", samples=2, test={"procedure": "sign_flip"})
    found = run(rule, records, 2).cells[0]
    assert (found.n, found.excluded, found.wins) == (1, 1, 1)


def test_nothing_left_is_void():
    records = [*trials("m/b16", "baseline", "01", [SHORT, SHORT]), *trials("m/b16", "candidate", "11")]
    found = run(study("never_compressed"), records, 2)
    assert (found.cells[0].outcome, found.void_cells, found.cells[0].n) == ("void", 1, 0)
    assert "every problem is excluded" in found.cells[0].matched.reasons
    assert found.cells[0].p_adjusted == "1"


def test_a_failed_baseline_trial_stays_and_is_wrong():
    lost = record("m/b16", "baseline", "p0", False, residency=None, status="failed")
    records = [lost, trial("m/b16", "baseline", "p1", True), *trials("m/b16", "candidate", "11")]
    found = run(study("never_compressed"), records, 2).cells[0]
    assert (found.n, found.wins, found.excluded) == (2, 1, 0)


def test_max_t_draws_one_sign_for_a_problem_wherever_it_is_left_out():
    """Brute force over the signs of all problems; p0 is left out of the first cell alone."""
    both = study("never_compressed", budgets=(16, 32), test={"correction": "max_t"})
    records = [
        *trials("m/b16", "baseline", "000000", [SHORT, *[USUAL] * 5]),
        *trials("m/b16", "candidate", "111110"),
        *trials("m/b32", "baseline", "000001"),
        *trials("m/b32", "candidate", "111000"),
    ]
    rows = [[0, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, -1]]
    reach = [0, 0]
    for signs in product((1, -1), repeat=6):
        t = [sum(s * d for s, d in zip(signs, row)) ** 2 / sum(d * d for d in row) for row in rows]
        reach[0] += max(t) >= 4
        reach[1] += t[1] >= 1
    found = run(both, records, 6)
    assert [c.excluded for c in found.cells] == [1, 0]
    assert [c.p_adjusted for c in found.cells] == [format(r / 64, ".9g") for r in reach]


def test_selecting_by_the_result_is_warned_of():
    fields = {f.field for f in lint(study("never_compressed"), 400)}
    assert "exclude.regimes" in fields
    assert "exclude.regimes" not in {f.field for f in lint(study("prefix_budget_exhausted"), 400)}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"regimes": []}, "at least 1 item"),
        ({"regimes": ["active"]}, "never_compressed"),
        ({"regimes": ["never_compressed", "never_compressed"]}, "more than once"),
        ({"regimes": ["never_compressed"], "of": "candidate"}, "baseline"),
    ],
)
def test_a_rule_that_cannot_be(rule, said):
    with pytest.raises(ValidationError, match=said):
        protocol(exclude=rule)


def test_without_a_rule_documents_are_what_they_were():
    assert "exclude" not in protocol().document()
    assert study("never_compressed").document()["exclude"] == {"regimes": ["never_compressed"], "of": "baseline"}


def test_an_amendment_may_change_it_afterwards():
    assert forbidden([Change(field="exclude.regimes", before="", after="[]")]) == []
