"""Regimes on the page: counted from the frozen schedule, whatever a record says of itself."""

from types import SimpleNamespace

from report_example import SMALL, analysis, events, protocol
from test_report_pages import Page

from cask_eval.decide.budgets import footprint_of, schedule_of
from cask_eval.ledger.events import Select
from cask_eval.records.model import StagesRecord
from cask_eval.report import gather, html, markdown
from cask_eval.report.regimes import NAMES, NOTE, collect
from cask_eval.residency import walk
from cask_eval.stages import Stages

CELL = f"{SMALL}/b64"


def trial(select, arm, prompt, output, **fields):
    choice = select.arms[CELL][arm]
    schedule, footprint = schedule_of(choice), footprint_of(choice)
    account = walk(schedule, footprint, prompt, output - 1, footprint.heads)
    base = dict(cell=CELL, arm=arm, phase="heldout", prompt_tokens=prompt, output_ids=[0] * output, chains=[])
    return SimpleNamespace(**{**base, "account": lambda: account, "measures": {}, **fields})


def select():
    (found,) = [e.payload for e in events() if e.event == "select"]
    return Select.model_validate(found)


def test_counts_come_from_the_schedule():
    s = select()
    schedule = schedule_of(s.arms[CELL]["baseline"])
    long, short = 40 * schedule.delta, 2
    forged = StagesRecord.of(Stages(9, 9, 9, {}))
    rows = [
        trial(s, "baseline", 20, long, stages=forged),
        trial(s, "baseline", 20, short),
        trial(s, "baseline", 20, short, account=lambda: None),
        trial(s, "baseline", 20, long, phase="dev"),
        trial(s, "candidate", 20, long),
    ]
    baseline, candidate = collect(rows, s, [CELL], ["baseline", "candidate", "control"])
    assert (baseline.cell, baseline.arm, candidate.arm) == (CELL, "baseline", "candidate")
    assert dict(zip(NAMES, baseline.counts)) == {
        "active": "1",
        "prefix budget exhausted": "0",
        "never compressed": "1",
    }
    assert baseline.failed == "1" and baseline.decode_events == f"{len(rows[0].account().events)}"
    assert candidate.counts[0] == "1"


def test_a_schedule_that_is_none_spoils_nothing_else():
    s, broken = select(), select()
    choice = broken.arms[CELL]["baseline"]
    none = choice.schedule.model_copy(update={"prompt": "keep"})
    broken.arms[CELL]["baseline"] = choice.model_copy(update={"schedule": none})
    (row,) = collect([trial(s, "baseline", 20, 9)], broken, [CELL], ["baseline"])
    assert set(row.counts) == {row.guards} == {"—"}


def test_pages_show_them():
    data = gather(analysis(), protocol(), events(), records=[trial(select(), "candidate", 20, 2)])
    page, plain = Page(html.render(data)), markdown.render(data)
    for shown in (NOTE, "Never compressed", "Decode events"):
        assert shown in page.text and shown in plain


def test_without_records_there_is_no_table():
    assert "Regimes" not in markdown.render(gather(analysis(), protocol(), events()))
