from typing import get_args

import pytest

from cask_eval.protocol.model import Test as RegisteredTest
from cask_eval.stats.multiplicity import CORRECTIONS
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.procedures import BINARY_ONLY, PROCEDURES, fewest_discordant, p_values


def test_a_protocol_can_register_exactly_these():
    fields = RegisteredTest.model_fields
    assert set(get_args(fields["procedure"].annotation)) == set(PROCEDURES)
    # max_t corrects differences, the others p-values.
    assert set(get_args(fields["correction"].annotation)) == {*CORRECTIONS, "max_t"}


def test_several_samples_leave_only_what_applies():
    assert set(p_values(Pairs.binary(10, 3, 1), "two-sided")) == set(PROCEDURES) - {"sign_flip"}
    several = Pairs.from_differences([2, 1, -1, 0], samples=2)
    assert set(p_values(several, "two-sided")) == set(PROCEDURES) - BINARY_ONLY
    for name in BINARY_ONLY:
        with pytest.raises(ValueError):
            PROCEDURES[name](several, "two-sided")


@pytest.mark.parametrize(
    "procedure, alternative, want",
    [("mcnemar_exact", "two-sided", 8), ("mcnemar_exact", "greater", 7), ("mcnemar_midp", "two-sided", 7),
     ("paired_bootstrap", "two-sided", 5), ("sign_flip", "two-sided", 8)],
)  # fmt: skip
def test_fewest_flips_that_can_reach_the_bonferroni_level(procedure, alternative, want):
    assert fewest_discordant(procedure, 100, 0.0125, alternative) == want


def test_too_few_problems_can_never_reach_it():
    assert fewest_discordant("mcnemar_exact", 7, 0.0125, "two-sided") is None
