"""What the methods say of themselves: means over trials, and nothing that the decision could rest on."""

from types import SimpleNamespace

import pytest
from report_example import HOSTILE, SMALL, analysis, events, protocol
from test_report_pages import Page

from cask_eval.errors import RecordError
from cask_eval.report import format as fmt
from cask_eval.report import gather, html, markdown
from cask_eval.report.measures import NOTE, collect


def record(arm, cell="m/b1", phase="heldout", **measures):
    return SimpleNamespace(arm=arm, cell=cell, phase=phase, measures=measures, account=lambda: None)


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


def pages(records):
    data = gather(analysis(), protocol(), events(), records=records)
    return Page(html.render(data)), markdown.render(data)


def test_pages_show_them_as_the_author_s_word():
    page, plain = pages([record("candidate", cell=f"{SMALL}/b64", overlap="0.51", **{HOSTILE: "2"})])
    for shown in (NOTE, "overlap", "0.51", fmt.one_line(HOSTILE)):
        assert shown in page.text and markdown.escape(shown) in plain
    assert "author's word" in NOTE and not {tag for tag, _ in page.tags} & {"script", "img"}


def test_pages_without_any_do_not_mention_them():
    page, plain = pages([record("candidate", cell=f"{SMALL}/b64")])
    assert NOTE not in page.text and markdown.escape(NOTE) not in plain


def test_pages_say_why_there_are_none():
    def broken():
        raise RecordError("line 2 is no record")
        yield

    page, plain = pages(broken())
    assert "line 2 is no record" in page.text and "line 2 is no record" in plain
