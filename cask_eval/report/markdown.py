"""The same report as Markdown, for a pull request or a paper's appendix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from cask_eval.report import format as fmt
from cask_eval.report.data import Cell, Plan, ReportData, Screening
from cask_eval.report.graders import NOTE as DIFFERENCES
from cask_eval.report.measures import NOTE, Measures
from cask_eval.report.regimes import NAMES
from cask_eval.report.regimes import NOTE as REGIMES
from cask_eval.report.scale import Scale


def render(data: ReportData) -> str:
    """GitHub-flavoured Markdown. Texts are escaped, so that none can add markup, links or table columns."""
    return "\n".join(_lines(data)) + "\n"


def _lines(d: ReportData) -> Iterator[str]:
    yield from (f"# {escape(d.decision)}", "")
    yield from (
        f"{escape(d.study)} · branch {escape(d.branch)} · **{d.label}** · evidence {d.level}, {d.level_text}",
        "",
    )
    yield from (f"**Hypothesis.** {escape(d.hypothesis)}", "")
    if d.screened:
        tabled = d.plan and d.plan.screening
        yield from (f"{escape(d.screened if tabled else f'{d.screened}; {d.gains}')}.", "")
    yield from (f"{escape(d.counts)}. Registered test: {escape(d.test)}.", "")

    if d.plan and d.plan.screening:
        yield from _screening(d.plan.screening, d.scale)
    yield from ("## Results", "")
    if d.cells:
        yield from _results(d)
    else:
        yield from (f"Nothing was compared{', because no candidate survived the screening' if d.screened else ''}.", "")

    yield from (
        "## Arms",
        "",
        "Caches in entries per layer and head. Wiped is the share of the 64-token stretches of the history of which an "
        "event left no entry in a layer and head, longest gap the most tokens in a row of which it left none. Active "
        "is the share of trials that were compressed, by an event or by being stored in fewer bytes. "
        + _lost(d),
        "",
    )
    yield from table(
        [
            "Cell",
            "Arm",
            "Preset",
            "Parameters",
            "b′",
            *(d.columns or ("Accuracy", "Correct")),
            "Mean cache",
            "Pooled",
            "Peak",
            "Kept per head",
            "Wiped",
            "Longest gap",
            "Active",
            "Tokens out",
            "Truncated",
            "Failed",
            "Missing",
            *(["math-verify differs"] if d.differences.of else []),
        ],
        (
            [
                cell,
                a.name,
                a.preset,
                a.params,
                a.budget,
                *(a.fidelity or (a.accuracy, a.correct)),
                a.mean_cache,
                a.pooled_cache,
                a.peak_cache,
                a.kept,
                a.wiped,
                a.longest,
                a.active,
                a.output_tokens,
                str(a.truncated),
                str(a.failed),
                str(a.missing),
                *([d.differences.count(cell, a.name)] if d.differences.of else []),
            ]
            for cell, arms in (*d.arms, *d.full)
            for a in arms
        ),
        left=4,
    )

    yield from _differences(d)
    if d.regimes:
        yield from ("## Regimes", "", f"{REGIMES} {d.exclusion}", "")
        yield from table(
            ["Cell", "Arm", *map(str.capitalize, NAMES), "Failed", "Prompt events", "Decode events", "Guards"],
            ([r.cell, r.arm, *r.counts, r.failed, r.prefix_events, r.decode_events, r.guards] for r in d.regimes),
            left=2,
        )
    yield from _measures(d.measures)
    if d.cells:
        yield from _flips(d.cells, d.scale)
    yield from ("## What was registered", "")
    yield from table(["Branch", "When", "Decision"], d.branches, left=3)
    if d.plan:
        yield from _plan(d.plan, d.scale)

    yield from _list("Deviations and notes", d.deviations or ("None recorded.",))
    if d.checks:
        yield from ("## Verification", "")
        yield from table(
            ["Check", "Status", "What was checked"],
            ([k.id, k.status, "; ".join([k.title, *k.details])] for k in d.checks),
            left=3,
        )
    yield from _list("What this does not prove", d.limits)

    yield from ("## Provenance", "")
    yield from table(["What", "Value", "Digest"], ([f.name, f.text, f.digest] for f in d.provenance), left=3)
    if d.steps:
        yield from table(
            ["Seq", "Event", "Time (as written)", "Hash"],
            ([str(s.seq), s.event, s.time, fmt.short(s.digest)] for s in d.steps),
            left=4,
        )


def _differences(d: ReportData) -> Iterator[str]:
    if not d.differences:
        return
    yield from ("## Where math-verify alone decides otherwise", "", escape(DIFFERENCES), "")
    if d.differences.absent:
        yield from (f"Not worked out: {escape(d.differences.absent)}.", "")
    for x in d.differing:
        for verdict, names in (("right", x.right), ("wrong", x.wrong)):
            if names:
                yield f"- {escape(x.cell)}, {escape(x.arm)}: {len(names)} graded {verdict} ({escape(', '.join(names))})"
    if d.differences.of:
        yield ""


def _measures(m: Measures) -> Iterator[str]:
    if not m.arms and not m.fault:
        return
    yield from ("## What the methods say of themselves", "", escape(NOTE), "")
    if m.fault:
        yield from (escape(m.fault), "")
    else:
        rows = ([arm.arm, name, *means] for arm in m.arms for name, means in arm.rows)
        yield from table(["Arm", "Measure", *m.cells], rows, left=2)


def _results(d: ReportData) -> Iterator[str]:
    yield from (f"{escape(d.scale.direction)}.", "")
    yield from table(
        [
            d.unit.capitalize(),
            "Outcome",
            "Effect",
            "SE",
            f"{d.interval_level} interval",
            f"Adjusted {d.adjusted_level} interval",
            "W / L / T",
            "n",
            "p",
            "p adj",
            f"Cache ratio, {d.ratio_level} interval",
        ],
        (
            [
                c.name,
                c.outcome_word,
                c.effect,
                c.error,
                c.interval,
                c.interval_adjusted,
                c.wlt,
                str(c.n),
                c.p_registered,
                c.p_adjusted,
                f"{c.ratio} {c.ratio_interval}",
            ]
            for c in d.cells
        ),
        left=2,
    )
    for c in d.cells:
        if c.reasons:
            yield f"- {escape(c.name)}, caches {c.outcome_word if c.verdict == 'void' else c.verdict}: " + escape(
                "; ".join(c.reasons)
            )
    if any(c.reasons for c in d.cells):
        yield ""

    counted = (
        f"; the Tango interval is at {d.interval_level}; detects is the smallest true difference that exact McNemar "
        "would find with 80 % power, were as many problems to differ as did here, at the level that Bonferroni leaves."
    )
    judge = "Tango's test" if d.scale.counted else "the bootstrap"
    yield from (
        "## Every test",
        "",
        "Only the registered test decides. Harm is the one-sided p for the candidate being worse. Bonferroni and Holm "
        "are those of the registered test over the registered family"
        + (counted if d.scale.counted else ".")
        + (f" Non-inferior: a loss of {d.non_inferiority} is rejected by {judge}." if d.non_inferiority else ""),
        "",
    )
    yield from table(
        [
            d.unit.capitalize(),
            *(f"{t} (registered)" if i == 0 else t for i, t in enumerate(d.tests)),
            "adjusted",
            "harm",
            *d.corrections,
            *(["Tango", "detects"] if d.scale.counted else []),
            *(["non-inferior"] if d.non_inferiority else []),
        ],
        (
            [
                c.name,
                *(c.p[t] for t in d.tests),
                c.p_adjusted,
                c.p_veto,
                *c.corrections,
                *([c.tango, c.detects] if d.scale.counted else []),
                *([c.non_inferior] if d.non_inferiority else []),
            ]
            for c in d.cells
        ),
        left=1,
    )


def _lost(d: ReportData) -> str:
    """What failed and missing trials count as."""
    if d.scale.counted:
        return "Failed and missing trials count as wrong."
    return (
        "All arms replay what the reference put out. Failed and missing trials count as the worst of their comparison, "
        "unless their reference failed; values are means over the problems that have one."
    )


def _flips(cells: Sequence[Cell], scale: Scale) -> Iterator[str]:
    if not scale.counted:
        # Nearly all differ; report.html lists them.
        yield from ("## Problem by problem", "")
        yield from (f"- {escape(c.name)}: {c.wins} to the candidate, {c.losses} to the baseline" for c in cells)
        yield ""
        return
    yield from ("## Which problems flipped", "")
    for c in cells:
        yield (
            f"- {escape(c.name)}: to the candidate {_problems(c, 'candidate')}; to the baseline "
            f"{_problems(c, 'baseline')}"
        )
    yield ""


def _screening(s: Screening, scale: Scale) -> Iterator[str]:
    yield from ("## Screening", "", f"{escape(scale.scored)} on the dev split; {escape(s.rule)}.", "")
    first = ["baseline", s.baseline.preset, *s.baseline.scores, s.baseline.mean, "", ""]
    rows = ([r.candidate, r.preset, *r.scores, r.mean, r.gain, r.word] for r in s.rows)
    head = ["Candidate", "Preset", *s.cells, "Mean", f"Gain, {scale.unit}", "Outcome"]
    yield from table(head, [first, *rows], left=2)


def _plan(plan: Plan, scale: Scale) -> Iterator[str]:
    yield from (
        f"Rule: {escape(plan.rule)}. {escape(scale.scored)} on the dev split, ✓ for the choice:"
        if plan.scores
        else f"Rule: {escape(plan.rule)}. There was one configuration, so nothing was tuned.",
        "",
    )
    for tuned in plan.scores:
        if len(plan.scores) > 1:
            yield from (f"{escape(tuned.candidate)}:", "")
        rows = [
            [cell, *(f"✓ {s}" if i == chosen else s for i, s in enumerate(scores))]
            for cell, scores, chosen in tuned.rows
        ]
        yield from table(["Cell", *tuned.configs], [*rows, ["Mean", *tuned.mean]], left=1)
    yield from ("Budgets that matched the caches on the dev split:", "")
    yield from table(
        ["Cell", "Arm", "Preset", "Parameters", "Trigger", "Δ", "b", "b′", "Dev mean cache", "To match", "Ratio"],
        (
            [
                m.cell,
                m.arm,
                m.preset,
                m.params,
                m.trigger,
                str(m.delta),
                str(m.nominal),
                str(m.budget),
                m.dev_mean,
                m.reference_mean,
                m.ratio,
            ]
            for m in plan.matches
        ),
        left=5,
    )


def _problems(cell: Cell, better: str) -> str:
    names = [f.problem for f in cell.flips if f.better == better]
    return f"{len(names)}" + (f" ({escape(', '.join(names))})" if names else "")


def _list(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield from (f"## {title}", "", *(f"- {escape(line)}" for line in lines), "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> Iterator[str]:
    """A Markdown table, ended by an empty line; the first `left` columns are texts, the others numbers."""
    yield "| " + " | ".join(map(escape, head)) + " |"
    yield "|" + "|".join("---" if i < left else "--:" for i in range(len(head))) + "|"
    for row in rows:
        yield "| " + " | ".join(map(escape, row)) + " |"
    yield ""


def escape(text: str) -> str:
    """Text as itself: Markdown's and HTML's signs lose their meaning, and addresses do not become links."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#@]|:(?=//)|(?<=www)\.)", r"\\\1", text)
