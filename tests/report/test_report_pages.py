"""The pages: everything is on them, nothing reaches out, no text can become markup, and the bytes do not vary."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from report_example import HOSTILE, LONG, SMALL, analysis, events, protocol, study

from cask_eval.report import gather, html, markdown, text, write

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
        for arm in cell.arms:
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
        "evidence L1, pushed to a third party's git host",
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
    assert lines[1] == "branch B · confirmatory · evidence L1, pushed to a third party's git host"
    cells = [line for line in lines if line.startswith((SMALL, LONG))]
    assert len(cells) == 4
    assert re.search(r"positive +\+14\.0 pp +\[\+8\.4, \+19\.6\] +46 / 11 / 193 +p < \.0001 +p_adj < \.0001", cells[0])
    assert "VOID" in cells[3] and "beyond the tolerance" in lines[lines.index(cells[3]) + 1]
    assert "\x1b" not in out and len({line.index("cache 1.") for line in cells}) == 1


def test_plan_and_deviations(data):
    assert data.plan.scores.configs == ("lambda=0.1", "lambda=0.25", "lambda=0.5")
    assert [chosen for _, _, chosen in data.plan.scores.rows] == [1, 1, 1, 1]
    assert data.plan.scores.mean == ("72.5\u00a0%", "75.5\u00a0%", "70.5\u00a0%")
    assert {m.cell for m in data.plan.matches} == {c.name for c in data.cells}
    assert "torch differed between registration (2.6.0) and the held-out run (2.7.0)." in data.deviations
    assert any("interrupted once" in line for line in data.deviations)


def test_arms_come_in_the_order_they_are_run(data):
    assert [a.name for a in data.cells[0].arms] == ["baseline", "candidate", "full"]


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
    empty = analysis(cells=[], positive_cells=0, negative_cells=0, void_cells=0, family=0, notes=[], correction="none")
    data = gather(empty, protocol(), [])
    assert data.plan is None and data.deviations == ()
    assert "None recorded." in Page(html.render(data)).text
    assert "None recorded." in markdown.render(data)
    assert text.render(data).plain.endswith("0 void of 0 registered cells")


def test_unknown_measurements_are_dashes():
    """An arm that left no account has no cache to print, and its cell no ratio."""
    cell = analysis().cells[3]
    arm = cell.arms["candidate"].model_copy(
        update=dict.fromkeys(("mean_cache", "pooled_cache", "peak_cache", "active", "mean_output_tokens"), "")
        | {"kept_min": None}
    )
    interval = cell.matched.interval.model_copy(update={"low": "", "high": ""})
    cell = cell.model_copy(
        update={
            "arms": {**cell.arms, "candidate": arm},
            "matched": cell.matched.model_copy(update={"ratio": "", "interval": interval}),
        }
    )
    data = gather(analysis(cells=[cell]), protocol(), [])
    [shown] = data.cells
    assert (shown.ratio, shown.ratio_interval, shown.arms[1].mean_cache, shown.arms[1].kept) == ("—",) * 4
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


def test_import_is_light():
    script = (
        "import sys, cask_eval.report, cask_eval.report.html, cask_eval.report.text; "
        "print({'matplotlib', 'jinja2', 'torch', 'rich'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "set()"
