"""What is said of the dev split before the held-out split is spent."""

import pytest
from small_study import account, choice, ids, protocol, record

from cask_eval.canonical import ZERO
from cask_eval.decide.analysis import analyse
from cask_eval.decide.rehearsal import rehearsal
from cask_eval.ledger.events import Select

N = 20


def select(study, prompts=("pinned", "pinned"), scores=("1/2", "3/4")) -> Select:
    arms = {"baseline": choice("triattention", 16, prompts[0]), "candidate": choice("alpha", 16, prompts[1])}
    return Select(
        rule="", gains={"candidate": "1/4"}, survivors=["candidate"],
        scores={c.name: {"baseline": {"": scores[0]}, "candidate": {"x": scores[1]}} for c in study.cells},
        chosen={c.name: {"candidate": "x"} for c in study.cells},
        arms={c.name: arms for c in study.cells},
    )  # fmt: skip


def dev(arm: str, right: str, *, steps: int = 40, cut: int = 0, config: str = "x", **rest) -> list:
    """One dev record per character, of which the first `cut` met the length cap."""
    config = "" if arm == "baseline" else config
    return [
        record("m/b16", arm, f"p{i}", c == "1", phase="dev", config=config, residency=account(steps=steps),
               output_ids=[0] * (steps + 1), output_tokens=steps + 1,
               status="truncated" if i < cut else "finished", **rest)
        for i, c in enumerate(right)
    ]  # fmt: skip


HALF, MORE = "10" * (N // 2), "1" * 15 + "0" * 5


def rehearsed(*records, study=None, **chosen):
    study = study or protocol()
    return rehearsal(study, select(study, **chosen), [r for rows in records for r in rows], ids(N))


def test_nothing_is_wrong():
    found = rehearsed(dev("baseline", HALF), dev("candidate", MORE))
    assert found.warnings == []
    assert {arm: (r.correct, r.trials, r.active) for arm, r in found.arms["m/b16"].items()} == {
        "baseline": (10, N, "1"),
        "candidate": (15, N, "1"),
    }


def test_other_arms_configurations_and_phases_are_passed_over():
    other = [*dev("candidate", "0" * N, config="y", cut=N), *dev("someone", "0" * N, cut=N)]
    found = rehearsed(other, dev("baseline", HALF), dev("candidate", MORE))
    assert found == rehearsed(dev("baseline", HALF), dev("candidate", MORE))


@pytest.mark.parametrize(
    "records, chosen, expected",
    [
        ((dev("baseline", HALF), dev("candidate", MORE)), {"prompts": ("pinned", "compete")}, "prompt policies differ"),
        ((dev("baseline", HALF, cut=4), dev("candidate", MORE)), {}, "length cap differ by more than 0.10"),
        ((dev("baseline", HALF, steps=3), dev("candidate", MORE, steps=3)), {}, "of the trials were compressed"),
        ((dev("baseline", HALF, steps=12), dev("candidate", MORE)), {}, "cache ratio"),
    ],
)
def test_a_comparison_that_would_be_void_is_named_with_its_reason(records, chosen, expected):
    (said,) = rehearsed(*records, **chosen).warnings
    assert said.startswith("m/b16: on the dev split this comparison would be void")
    assert expected in said


def test_void_on_dev_is_what_the_analysis_would_say_of_the_same_trials():
    """The rehearsal and the analysis agree on the reasons, trial for trial."""
    study = protocol()
    rows = [*dev("baseline", HALF, cut=4), *dev("candidate", MORE)]
    heldout = [r.model_copy(update={"phase": "heldout", "config": ""}) for r in rows]
    cell = analyse(study, ZERO, select(study), heldout, ids(N), label="confirmatory").cells[0]
    assert cell.matched.verdict == "void"
    (said,) = rehearsed(rows, study=study).warnings
    assert said.endswith("; ".join(cell.matched.reasons))


def test_a_policy_that_the_protocol_allows_to_differ_voids_nothing():
    study = protocol(matched_cache={"prompt_policies": "any"})
    found = rehearsed(dev("baseline", HALF), dev("candidate", MORE), study=study, prompts=("pinned", "compete"))
    assert found.warnings == []


def test_the_side_that_is_against_the_claim_is_tolerated():
    """A candidate that is ahead with a smaller cache is void only where it is behind."""
    records = dev("baseline", HALF), dev("candidate", MORE, steps=12)
    assert account(steps=12).mean < account().mean
    assert rehearsed(*records).warnings == []
    (said,) = rehearsed(*records, scores=("3/4", "1/2")).warnings
    assert "the more accurate arm held more" in said


def test_most_trials_at_the_length_cap():
    found = rehearsed(dev("baseline", HALF, cut=12), dev("candidate", MORE, cut=12))
    (said,) = found.warnings
    assert said.startswith("most dev trials met the length cap (generation.max_new_tokens 64); a higher one")
    assert said.endswith(": m/b16 baseline 12 of 20, m/b16 candidate 12 of 20")


@pytest.mark.parametrize(
    "right, which", [("0" * N, "none of 20"), ("1" * N, "all of 20"), (HALF, "the same 10 of 20")]
)
def test_arms_that_nothing_tells_apart(right, which):
    (said,) = rehearsed(dev("baseline", right), dev("candidate", right)).warnings
    assert f"every arm is right on {which} dev trials" in said


def test_everything_excluded():
    study = protocol(exclude={"regimes": ["never_compressed"]})
    found = rehearsed(dev("baseline", HALF, steps=3), dev("candidate", MORE, steps=3), study=study)
    assert found.warnings == ["m/b16: `exclude` leaves out every dev problem"]
