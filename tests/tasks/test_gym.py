"""Problems of reasoning-gym."""

import pytest

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed (an optional extra)")

from cask_eval.splits.disjoint import overlaps  # noqa: E402
from cask_eval.splits.freeze import freeze  # noqa: E402
from cask_eval.tasks import gym  # noqa: E402

SUM = {"dataset": "chain_sum", "seed": 42, "count": 3}


def test_problems_are_the_same_again_and_graded_whole():
    made = gym.problems(SUM)
    assert made == gym.problems(SUM) and len({p.id for p in made}) == 3
    assert gym.problems({**SUM, "start": 1, "count": 2}) == made[1:]
    first = made[0]
    assert gym.grade(first, f"The answer is {first.answer}.").correct
    assert not gym.grade(first, f"The answer is {first.answer}0.").correct
    assert not gym.grade(first, "").correct and gym.grade(first, "").grader == gym.GRADER


def test_neighbouring_seeds_overlap_and_are_found_out():
    """Item 1 of seed 42 is item 0 of seed 43."""
    dev = freeze("dev", "reasoning_gym", "dev", *gym.describe(SUM), gym.problems(SUM))
    held = freeze("held", "reasoning_gym", "heldout", *gym.describe(SUM), gym.problems({**SUM, "seed": 43}))
    assert len(overlaps(dev, held)) == 2
    assert dev.source["version"] and "item seeds 42 to 44" in dev.rule


@pytest.mark.parametrize(
    "params, message",
    [
        ({"dataset": "no_such"}, "dataset is 'no_such'; reasoning-gym .* has "),
        ({"dataset": "word_ladder"}, "makes other problems in every process"),
        ({"version": "0.0.1"}, "version is '0.0.1', but reasoning-gym"),
        ({"count": 0}, "count is 0"),
        ({"nonsense": 3}, "reasoning-gym refuses"),
        ({"min_terms": 9, "max_terms": 2}, "reasoning-gym refuses"),
    ],
)
def test_what_is_wrong_is_said(params, message):
    with pytest.raises(ValueError, match=message):
        gym.problems({**SUM, **params})
