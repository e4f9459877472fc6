"""The pages: everything is on them, nothing reaches out, no text can become markup, and the bytes do not vary."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from report_example import (
    HOSTILE,
    LONG,
    ONE,
    SMALL,
    THREE,
    TWO,
    analysis,
    events,
    protocol,
    several,
    several_protocol,
    study,
)

from cask_eval.decide.model import Interval
from cask_eval.report import figures, gather, html, markdown, text, write
from cask_eval.report import format as fmt

VOID_TAGS = {"meta", "br", "link", "img", "input", "hr", "col", "wbr"}


class Page(HTMLParser):
    """Collects what the tests ask about, and insists that tags are closed in order."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def data():
    return study()


@pytest.fixture(scope="module")
def source(data):
    return html.render(data)


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_every_number_is_on_the_page(data, page, source):
    plain = markdown.render(data).replace("\\", "")
    for cell in data.cells:
        for shown in (
            cell.name,
            cell.outcome_word,
            cell.effect,
            cell.error,
            cell.interval,
            cell.interval_adjusted,
            cell.wlt,
            cell.p_registered,
            cell.p_adjusted,
            cell.p_veto,
            *cell.p.values(),
            cell.ratio,
            cell.ratio_interval,
            *cell.reasons,
        ):
            shown = " ".join(shown.split())
            assert shown in page.text
            assert shown in " ".join(plain.replace("&lt;", "<").replace("&gt;", ">").split())
    for _, arms in data.arms:
        for arm in arms:
            for shown in (
                arm.preset,
                arm.params,
                arm.budget,
                arm.accuracy,
                arm.correct,
                arm.mean_cache,
                arm.pooled_cache,
                arm.peak_cache,
                arm.kept,
                arm.wiped,
                arm.longest,
                arm.active,
                arm.output_tokens,
            ):
                shown = " ".join(shown.split())
                assert shown in page.text
                assert shown in " ".join(plain.split())
    for line in (*data.deviations, *data.limits, data.counts, data.test, data.level_text):
        assert " ".join(line.split()) in page.text
        assert markdown.escape(line) in markdown.render(data)
    assert f'title="{data.analysis.registration}"' in source


def test_banner(page):
    for shown in (
        "branch B",
        "confirmatory",
        "evidence L1, known to a third party",
        "1 positive, 1 negative, 1 null, 1 void of 4 registered cells",
        "report as regime-dependent",
    ):
        assert shown in page.text


def test_texts_stay_texts(page, source):
    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "link", "object", "embed", "base", "form"}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert '<script src="https://evil.example/x.js"></script>' in page.text  # shown as written
    assert "p<img src=x onerror=alert(1)>|7" in page.text
    assert "\x1b" not in source and "\u202e" not in source


def test_nothing_is_loaded(page, source):
    for _, attrs in page.tags:
        for name, value in attrs.items():
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert value.startswith("#")
    assert not re.search(r"url\((?!#)|@import", source)
    policy = next(a for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")


def test_tables_have_scoped_heads_and_ids_are_unique(page):
    assert all(a.get("scope") in ("col", "row", "rowgroup") for t, a in page.tags if t == "th")
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    figures = [a for t, a in page.tags if t == "svg"]
    assert len(figures) == 2 and all(a["role"] == "img" and "embedded-chain/b64" in a["aria-label"] for a in figures)


def test_figures_follow_the_page(source):
    assert "var(--positive)" in source and "var(--void)" in source
    assert "#01020" not in source
    assert not re.search(r"<dc:|<metadata|Created with", source)


def test_bytes_are_the_same_in_another_process(data, tmp_path):
    paths = write(data, tmp_path / "made" / "here")
    assert {k: p.name for k, p in paths.items()} == {"html": "report.html", "markdown": "report.md"}
    script = (
        "import sys; from pathlib import Path; from report_example import study; from cask_eval.report import write; "
        "write(study(), Path(sys.argv[1]))"
    )
    environment = {
        "PYTHONPATH": ":".join(filter(None, sys.path)),
        "PYTHONHASHSEED": "7",
        "PATH": "",
        "HOME": str(tmp_path),
        "LC_ALL": "C",
    }
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "again")], check=True, env=environment)
    for path in paths.values():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
        assert b"\r" not in path.read_bytes()


def test_markdown_tables_are_rectangular(data):
    lines = markdown.render(data).splitlines()
    widths: list[int] = []
    tables = 0
    for line in [*lines, ""]:
        if line.startswith("|"):
            widths.append(len(re.findall(r"(?<!\\)\|", line)))
        elif widths:
            tables, checked = tables + 1, set(widths)
            assert len(checked) == 1
            widths = []
    assert tables == 9
    assert "<" not in "".join(lines) and "://" not in "".join(lines).replace("\\://", "")


def test_terminal_lines(data):
    out = text.render(data).plain
    lines = out.splitlines()
    assert lines[0].startswith("report as regime-dependent")
    assert lines[1] == "branch B · confirmatory · evidence L1, known to a third party"
    cells = [line for line in lines if line.startswith((SMALL, LONG))]
    assert len(cells) == 4
    assert re.search(r"positive +\+14\.0 pp +\[\+8\.4, \+19\.6\] +46 / 11 / 193 +p < \.0001 +p_adj < \.0001", cells[0])
    assert "VOID" in cells[3] and "beyond the tolerance" in lines[lines.index(cells[3]) + 1]
    assert "\x1b" not in out and len({line.index("cache 1.") for line in cells}) == 1


def test_plan_and_deviations(data):
    (tuned,) = data.plan.scores
    assert tuned.configs == ("lambda=0.1", "lambda=0.25", "lambda=0.5")
    assert [chosen for _, _, chosen in tuned.rows] == [1, 1, 1, 1]
    assert tuned.mean == ("72.5\u00a0%", "75.5\u00a0%", "70.5\u00a0%")
    assert data.plan.screening is None and data.screened == ""
    assert {m.cell for m in data.plan.matches} == {c.name for c in data.cells}
    assert "torch differed between registration (2.6.0) and the held-out run (2.7.0)." in data.deviations
    assert any("interrupted once" in line for line in data.deviations)


def test_arms_come_in_the_order_they_are_run(data):
    assert [[a.name for a in arms] for _, arms in data.arms] == [["baseline", "candidate", "full"]] * 4


def test_limits_depend_on_the_study():
    bare = gather(analysis(label="exploratory"), protocol(), events())
    sampled = gather(analysis(), protocol(generation={"max_new_tokens": 9, "temperature": "0.6"}), events(), (), "L3")
    assert bare.level == "L0" and "without verification" in bare.limits[0]
    assert any("greedy" in line for line in bare.limits) and not any("greedy" in line for line in sampled.limits)
    assert any("exploratory" in line for line in bare.limits)
    assert any("in private" in line for line in bare.limits)
    assert not any("in private" in line for line in sampled.limits)


def test_little_is_enough():
    """No ledger, no cells: a report all the same, saying what it has."""
    empty = analysis(
        cells=[],
        arms={},
        screening=[],
        positive_cells=0,
        negative_cells=0,
        void_cells=0,
        family=0,
        notes=[],
        correction="none",
    )
    data = gather(empty, protocol(), [])
    assert data.plan is None and data.deviations == ()
    assert "None recorded." in Page(html.render(data)).text
    assert "None recorded." in markdown.render(data)
    assert text.render(data).plain.endswith("0 void of 0 registered cells")


def test_an_interval_of_pairs_of_which_none_differs_has_a_width():
    (null,) = [c for c in analysis().cells if c.outcome == "null"]
    zero = Interval(level="0.95", low="0", high="0")
    still = {"wins": 0, "losses": 0, "ties": null.n, "difference": "0", "flips": [], "interval": zero}
    data = gather(analysis(cells=[null.model_copy(update=still)]), protocol(), [])
    (cell,) = data.cells
    assert cell.interval == f"{cell.tango} (Tango)" and cell.tango != fmt.DASH and cell.interval_adjusted == fmt.DASH
    assert all("Tango" not in c.interval for c in gather(analysis(), protocol(), []).cells)


def test_where_every_cell_is_void_nothing_was_decided():
    (void,) = [c for c in analysis().cells if c.outcome == "void"]
    one = analysis(cells=[void], positive_cells=0, negative_cells=0, void_cells=1, family=1)
    data = gather(one, protocol(), [])
    assert data.counts == "0 positive, 0 negative, 0 null, 1 void of 1 registered cell: nothing was decided"
    assert "VOID, which decides nothing, for these reasons" in Page(html.render(data)).text
    assert "nothing was decided" not in gather(analysis(), protocol(), []).counts


def test_unknown_measurements_are_dashes():
    """An arm that left no account has no cache to print, and its cell no ratio."""
    cell, arms = analysis().cells[3], analysis().arms
    arm = arms[f"{LONG}/b128"]["candidate"].model_copy(
        update=dict.fromkeys(("mean_cache", "pooled_cache", "peak_cache", "active", "mean_output_tokens"), "")
        | {"kept_min": None}
    )
    interval = cell.matched.interval.model_copy(update={"low": "", "high": ""})
    cell = cell.model_copy(update={"matched": cell.matched.model_copy(update={"ratio": "", "interval": interval})})
    arms = {cell.cell: {**arms[cell.cell], "candidate": arm}}
    data = gather(analysis(cells=[cell], arms=arms), protocol(), [])
    [shown], [(_, (_, held, _))] = data.cells, data.arms
    assert (shown.ratio, shown.ratio_interval, held.mean_cache, held.kept) == ("—",) * 4
    assert "candidate —" in html.render(data)
    assert text.render(data).plain and markdown.render(data)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="of study"):
        gather(analysis(study="another"), protocol(), events())
    with pytest.raises(ValueError, match="L9"):
        gather(analysis(), protocol(), events(), (), "L9")


def test_other_studies_in_the_ledger_are_passed_over():
    foreign = [e.model_copy(update={"study": "another", "event": "amend"}) for e in events()]
    assert gather(analysis(), protocol(), [*events(), *foreign]).steps == study().steps


def test_amendments_are_named():
    e = events()[0]
    amend = e.model_copy(update={"event": "amend", "payload": {"reason": "typo in\nthe hypothesis"}})
    assert (
        f"The protocol was amended at {e.time}: typo in the hypothesis"
        in gather(analysis(), protocol(), [*events(), amend]).deviations
    )


def test_names_with_dollar_signs_are_not_formulas():
    cells = [c.model_copy(update={"cell": "$\\frac{x$" + HOSTILE}) for c in analysis().cells[:1]]
    assert "\\frac" in html.render(gather(analysis(cells=cells), protocol(), []))


@pytest.fixture(scope="module")
def wide():
    return several(ONE, THREE)


class TestSeveralCandidates:
    @pytest.fixture
    def data(self, wide):
        return wide

    @pytest.fixture
    def page(self, data):
        return Page(html.render(data))

    def test_banner(self, data, page):
        assert data.counts == "2 positive, 2 negative, 2 null, 2 void of 8 registered comparisons"
        assert data.screened == "2 of 3 candidates confirmed"
        assert data.gains == f"dev gain in points: {ONE} +7.0, {TWO} −1.0 (out), {THREE} +0.1"
        assert f"{data.screened}; {data.gains}" in text.render(data).plain
        assert "Bonferroni over 8 registered comparisons" in data.test
        for shown in (data.counts, data.screened):
            assert shown in page.text and markdown.escape(shown) in markdown.render(data)
            assert shown in text.render(data).plain

    def test_screening_table(self, data, page):
        screening = data.plan.screening
        assert screening.rule == (
            "the best 2 of 3 by mean dev gain over the baseline, of those that gain at least 0.0 points; ties go to "
            "the one listed first"
        )
        assert (screening.baseline.mean, screening.baseline.scores[0]) == ("57.0\u00a0%", "57.0\u00a0%")
        found = [(r.candidate, r.preset, r.scores[0], r.mean, r.gain, r.word) for r in screening.rows]
        assert found == [
            (ONE, "alpha", "65.0\u00a0%", "75.5\u00a0%", "+7.0", "confirmed"),
            (TWO, "ams", "56.0\u00a0%", "56.0\u00a0%", "−1.0", "screened out"),
            (THREE, "third", "57.1\u00a0%", "57.1\u00a0%", "+0.1", "confirmed"),
        ]
        for row in found:
            for shown in row:
                shown = " ".join(shown.split())
                assert shown in page.text and shown in " ".join(markdown.render(data).replace("\\", "").split())

    def test_results_come_candidate_by_candidate(self, data, page):
        assert [(name, [c.cell for c in cells]) for name, cells in data.groups] == [
            (name, [c.name for c in several_protocol().cells]) for name in (ONE, THREE)
        ]
        assert [c.name for c in data.cells] == [
            f"{name} {c.name}" for name in (ONE, THREE) for c in several_protocol().cells
        ]
        groups = [i for i, (tag, a) in enumerate(page.tags) if tag == "tr" and a.get("class") == "group"]
        assert len(groups) == 2 + 2 + 4 + 4  # results, tests, and the arms and budgets of each cell
        lines = text.render(data).plain.splitlines()
        assert sum(line.startswith(f"{ONE} {SMALL}") for line in lines) == 2
        assert f"| {ONE} {SMALL}/b64 | positive |" in markdown.render(data)

    def test_each_arm_is_shown_once_in_a_cell(self, data):
        assert [[a.name for a in arms] for _, arms in data.arms] == [["baseline", ONE, THREE, "full"]] * 4

    def test_gains_are_said_where_there_is_no_table_of_them(self, data):
        bare = gather(data.analysis, several_protocol(), [])
        for out in (Page(html.render(bare)).text, markdown.render(bare).replace("\\", "")):
            assert f"{bare.screened}; {bare.gains}." in out
        assert data.gains not in Page(html.render(data)).text

    def test_the_forest_plot_has_the_candidates_as_headings(self, data):
        drawn = figures.forest(data.groups, data.scale)
        rows = [r for r in re.findall(r">([^<>\n]+)</text>", drawn) if r in (ONE, THREE) or r.startswith(SMALL)]
        cells = [f"{SMALL}/b64", f"{SMALL}/b128"]
        assert sorted(rows) == sorted([ONE, THREE, *cells, *cells])

    def test_the_forest_plot_names_what_it_draws_whatever_the_order(self, data):
        """A forged document may mix the candidates; each effect stays with its name."""
        mixed = data.analysis.model_copy(update={"cells": data.analysis.cells[::-1]})
        drawn = gather(mixed, several_protocol(), [])
        for _, cells in drawn.groups:
            for cell in cells:
                assert (cell.result.candidate, cell.result.cell) == (cell.candidate, cell.cell)
        label = re.search('aria-label="([^"]*)"', figures.forest(drawn.groups, drawn.scale)).group(1)
        assert f"{THREE} {SMALL}/b64 +14.0 points" in label and f"{ONE} {LONG}/b64 −8.8 points" in label

    def test_the_cache_plot_has_a_row_for_every_arm_of_every_cell(self, data):
        drawn = figures.caches(data.arms)
        shown = re.findall(r">([^<>\n]+)</text>", drawn)
        assert [shown.count(name) for name in ("baseline", ONE, "full", f"{SMALL}/b64")] == [4, 4, 4, 1]
        assert [[a.role for a in arms] for _, arms in data.arms] == [
            ["baseline", "candidate", "candidate", "control"]
        ] * 4

    def test_the_forest_plot_names_candidate_and_cell(self, page):
        forest = next(a["aria-label"] for tag, a in page.tags if tag == "svg")
        assert f"{ONE} {SMALL}/b64 +14.0 points" in forest and f"{THREE} {SMALL}/b64 +14.0 points" in forest

    def test_every_tuned_candidate_has_its_table(self, data, page):
        assert [t.candidate for t in data.plan.scores] == [ONE, THREE]
        assert f"{THREE}: accuracy on the dev split" in page.text
        assert f"\n{THREE}:\n" in markdown.render(data).replace("\\", "")

    def test_what_was_screened_out_is_not_judged(self, data, page):
        line = next(line for line in data.limits if "screened out" in line)
        assert f"({TWO})" in line and line in page.text
        assert not any("screened out" in line for line in study().limits)

    def test_too_few_survivors_are_counted(self):
        assert several(ONE).counts == (
            "1 positive, 1 negative, 1 null, 1 void, 4 without a survivor of 8 registered comparisons"
        )

    def test_nobody_survives(self):
        data = several()
        assert data.counts == "0 positive, 0 negative, 0 null, 0 void, 8 without a survivor of 8 registered comparisons"
        page, plain = Page(html.render(data)), markdown.render(data)
        for out in (page.text, plain):
            assert "Nothing was compared, because no candidate survived the screening." in out
            assert "Every test" not in out and "Which problems flipped" not in out and "screened out" in out
        assert [[a.name for a in arms] for _, arms in data.arms] == [["baseline", "full"]] * 4
        assert "0 of 3 candidates confirmed" in text.render(data).plain

    def test_without_a_rule_all_are_confirmed(self):
        everyone = several_protocol().model_copy(update={"screening": None})
        screening = gather(analysis(family=12), everyone, events()).plan.screening
        assert screening.rule == "no screening was registered: all 3 candidates are confirmed"


def test_import_is_light():
    script = (
        "import sys, cask_eval.report, cask_eval.report.html, cask_eval.report.text; "
        "print({'matplotlib', 'jinja2', 'torch', 'rich'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "set()"
