"""What the methods say of themselves: means over trials, and nothing that the decision could rest on."""

from types import SimpleNamespace

import pytest

from cask_eval.errors import RecordError
from cask_eval.report import format as fmt
from cask_eval.report.measures import collect


def record(arm, cell="m/b1", phase="heldout", **measures):
    return SimpleNamespace(arm=arm, cell=cell, phase=phase, measures=measures)


def test_means_over_the_trials_that_gave_a_number():
    found = collect(
        [
            record("a", overlap="0.5"),
            record("a", overlap="1", core="3"),
            record("a", cell="m/b2", overlap="0.25"),
            record("b", overlap="nan"),
            record("a", phase="dev", overlap="9"),
            record("elsewhere", overlap="9"),
        ],
        ["m/b1", "m/b2"],
        ["a", "b"],
    )
    (only,) = found.arms
    assert only.arm == "a" and found.cells == ("m/b1", "m/b2")
    assert dict(only.rows) == {"core": ("3 (1 of 2)", fmt.DASH), "overlap": ("0.75", "0.25")}


@pytest.mark.parametrize("text", ["inf", "x", "1e999", ""])
def test_what_is_no_number_is_not_counted(text):
    assert collect([record("a", m=text)], ["m/b1"], ["a"]).arms == ()


def test_records_that_cannot_be_read_spoil_nothing_else():
    def broken():
        yield record("a", m="1")
        raise RecordError("line 2 is no record")

    assert "line 2" in collect(broken(), ["m/b1"], ["a"]).fault
