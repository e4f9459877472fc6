"""The report of a study of fidelity: its own unit and direction, the ceiling beside, and nothing of right answers."""

from __future__ import annotations

import re

import pytest
from report_example import LONG, SMALL, analysis, events, protocol
from test_report_pages import Page

from cask_eval.decide.model import Interval, PairedValues
from cask_eval.protocol.model import Protocol
from cask_eval.report import figures, gather, html, markdown, text
from cask_eval.report.limits import limits
from cask_eval.report.scale import columns, scale_of

RULE = {"margin": "0.1", "alpha": "0.05"}


def registered(endpoint: str) -> Protocol:
    document = protocol().document()
    test = {**document["test"], "endpoint": endpoint, "non_inferiority": RULE}
    return Protocol.model_validate({**document, "test": test, "tuning": {"select": "max_mean_endpoint"}})


def followed(endpoint: str = "nll"):
    base, shown = analysis(), {"nll": "0.51234", "top1": "0.875", "top5": "0.99", "kl": "0.01", "nll_after": "0.75"}
    values = [
        PairedValues(problem=f"p{i}", baseline="0.5", candidate=f"{0.5 - d:.9g}", improvement=f"{d:.9g}")
        for i, d in enumerate([0.25, -0.125, 0.0])
    ]
    cells = [c.model_copy(update={"flips": [], "values": values}) for c in base.cells]
    empty = Interval(level="0.95", low="", high="")
    cells[3] = cells[3].model_copy(
        update={"values": [], "interval": empty, "interval_adjusted": empty, "n": 0, "difference": "0"}
    )
    arms = {
        cell: {name: arm.model_copy(update={"fidelity": shown}) for name, arm in row.items()}
        for cell, row in base.arms.items()
    }
    full = base.arms[f"{SMALL}/b64"]["full"]
    for model in (SMALL, LONG):
        ceiling = full.model_copy(update={"fidelity": {**shown, "nll": "0.125"}})
        arms[f"{model}/reference"] = {"reference": full, "ceiling": ceiling}
    made = base.model_copy(update={"endpoint": endpoint, "cells": cells, "arms": arms, "non_inferior_cells": 0})
    return gather(made, registered(endpoint), events(), (), "L0")


@pytest.mark.parametrize("render", [lambda d: Page(html.render(d)).text, markdown.render])
def test_pages_speak_of_the_endpoint(render):
    said = " ".join(render(followed()).replace("\\", "").split())
    assert "baseline minus candidate, because less is better" in said
    assert "Mean improvement in nll (nats) on the dev split" in said
    for shown in ("+0.1400", "−0.0880", "0.5123", "0.1250", "87.5 %", "ceiling"):
        assert shown in said, shown
    for gone in ("Tango", "McNemar would find", "percentage points", "Which problems", "are wrong", "as wrong"):
        assert gone not in said, gone
    assert "a loss of 0.1000 nats at a one-sided .05 is rejected by the bootstrap" in said
    assert "gone on to write by itself" in said


def test_the_page_lists_problems_with_their_values():
    page = Page(html.render(followed()))
    assert "p0 0.5000 0.2500 candidate" in page.text and "p1 0.5000 0.6250 baseline" in page.text
    assert "p2" not in page.text.split()


def test_the_full_caches_rows_come_last_and_not_into_the_figure():
    data = followed()
    assert [cell for cell, _ in data.full] == [f"{SMALL}/reference", f"{LONG}/reference"]
    assert [a.name for a in data.full[0][1]] == ["ceiling", "reference"]
    assert "ceiling" not in figures.caches(data.arms)
    ceiling, reference = data.full[0][1]
    assert ceiling.fidelity[0] == "0.1250" and set(reference.fidelity) == {"—"}


def test_a_comparison_without_pairs_is_drawn_and_printed_empty():
    data = followed()
    cell = data.cells[3]
    assert cell.interval == cell.interval_adjusted == "—"
    drawn = figures.forest(data.groups, data.scale)
    assert "improvement over the baseline in nll, nats" in re.sub("<[^>]*>", " ", drawn) + drawn


def test_the_terminal_has_the_unit():
    assert "+0.1400 nats" in text.render(followed()).plain
    assert "+14.0 pp" in text.render(followed("top1")).plain


def test_scales():
    nats, share = scale_of("kl_after"), scale_of("top5")
    assert nats.direction.endswith("in nats: baseline minus candidate, because less is better")
    assert "predicted from a compressed cache" in nats.name
    assert share.direction.endswith("in percentage points")
    assert (nats.difference("-0.25"), nats.spread("0.5")) == ("−0.2500", "0.5000")
    assert share.difference("0.02") == "+2.0"
    assert nats.difference("0.00001") == "+0.00001" and nats.difference("0.000000000001") == "0.0000"
    assert nats.value("") == share.value("") == nats.difference("") == "—"
    assert columns("accuracy") == () and columns("kl_after") == ("kl_after", "top1", "top5", "nll", "kl")
    assert columns("top5") == ("top5", "top1", "nll", "kl")


def test_limits_of_accuracy_are_as_they_were():
    said = " ".join(limits(analysis(), protocol(), "L0", verified=True))
    assert "was not tested" not in said
