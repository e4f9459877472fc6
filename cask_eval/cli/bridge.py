"""cask-eval bridge"""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import click

from cask_eval.cli.common import json_option, print_json, workspace
from cask_eval.cli.compare import Names
from cask_eval.cli.grade import RULES
from cask_eval.cli.share import Share
from cask_eval.errors import CaskError, SplitError

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NOTE = "These figures describe how outputs changed. They were not registered, and nothing is decided by them."


@click.command("bridge")
@click.argument("candidate", type=_FILE, required=False)
@click.argument("reference", type=_FILE, required=False)
@click.option("--study", help="Compare the held-out records of a closed study instead of two files.")
@click.option("--reference", "reference_arm", metavar="ARM", help="With --study: the arm to compare with.")
@click.option("--arms", type=Names(), help="With --study: the arms to compare; all others if not given.")
@click.option(
    "--by", type=Names(), default=("problem", "sample"), help="Fields that join rows; problem,sample if not given."
)
@click.option("--output-field", default="output", show_default=True, help="The field with the output's text.")
@click.option("--missing", type=click.Choice(["drop"]), help="Leave outputs without a partner out, and name them.")
@click.option("--split", type=_FILE, help="The manifest of the problems: answers and scores as its task has them.")
@click.option(
    "--rule", type=click.Choice(RULES), default="final", show_default=True, help="Without --split: where answers stand."
)
@click.option("--embedder", metavar="DIR", help="A local sentence-embedding model, for similarity in meaning.")
@click.option("--level", default="0.95", show_default=True, type=Share("0.95"), help="Confidence level.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the bootstrap.")
@click.option("--replicates", default=9999, show_default=True, type=click.IntRange(99, 1_000_000), help="Likewise.")
@click.option("--pairs", "with_pairs", is_flag=True, help="Also every pair, in --json and --md.")
@click.option("--md", is_flag=True, help="Print Markdown.")
@json_option
@click.pass_context
def command(
    ctx, candidate, reference, study, reference_arm, arms, by, output_field, missing, split, rule, embedder, level,
    seed, replicates, with_pairs, md, as_json,
) -> None:  # fmt: skip
    """Say how the outputs in CANDIDATE differ from those in REFERENCE: as texts, as answers, by the task's metric.

    Both are files of JSON lines with the fields problem, output and, where there are several outputs a problem, sample;
    a study's records are such files. Means are over problems; intervals are percentile bootstrap intervals by problem.
    """
    if as_json and md:
        raise CaskError("--json and --md both want stdout; choose one")
    if study is None:
        if candidate is None or reference is None or reference_arm or arms:
            raise CaskError("give two files, CANDIDATE and REFERENCE, or --study STUDY and --reference ARM")
        comparisons, notes = _files(ctx, candidate, reference, by, output_field, split, rule)
    else:
        if candidate is not None or split is not None or reference_arm is None:
            raise CaskError(f"--study {study} takes --reference ARM and no files or --split; they follow from it")
        comparisons, notes = _study(ctx, study, reference_arm, arms)
    found = _document(comparisons, notes, missing == "drop", embedder, level, seed, replicates, with_pairs)
    if as_json:
        print_json(found)
    elif md:
        click.echo(_markdown(found), nl=False)
    else:
        _show(found)


def _files(ctx, candidate: Path, reference: Path, by, output_field, split, rule):
    from cask_eval.bridge import scales
    from cask_eval.bridge.rows import read
    from cask_eval.splits.store import read as read_manifest

    if split is None:
        scale = scales.by_rule(rule)
    else:
        from cask_eval.cli.split import _reading

        with _reading(ctx, split, None):
            scale = scales.by_task(*scales.problems_of(read_manifest(split)))
    ours, theirs = (read(path, by, output_field) for path in (candidate, reference))
    return [({"candidate": candidate.name, "reference": reference.name}, ours, theirs, scale)], []


def _study(ctx, study: str, reference: str, arms):
    """One comparison per cell and arm. The records of a study that is not closed are not looked at: its accuracies are
    not to be known before its decision."""
    from collections import defaultdict

    from cask_eval.bridge import scales
    from cask_eval.bridge.rows import of_record
    from cask_eval.cli.common import locked_protocol
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import StudyState, pick
    from cask_eval.records.store import RecordStore
    from cask_eval.splits.store import read as read_manifest
    from cask_eval.tasks import registry
    from cask_eval.tasks.data import inside

    space = workspace(ctx)
    events = Ledger(space.ledger).events()
    name = pick(events, study, {"closed"})
    _, register = StudyState.of(events, name).register
    protocol = locked_protocol(register)
    own: dict[tuple[str, str], list] = defaultdict(list)
    path = space.records(name, "heldout")
    ran: dict[str, None] = {}
    for record in RecordStore(path).read():
        ran[record.arm] = None
        if not arms or record.arm in (reference, *arms):
            own[record.cell, record.arm].append(of_record(record, path.name))
    for arm in (reference, *(arms or ())):
        if arm not in ran:
            raise CaskError(f"study {name}: there are no held-out records of an arm {arm!r}; it has {', '.join(ran)}")
    notes = []
    try:
        with inside(space.root):
            scale = scales.by_task(*scales.problems_of(read_manifest(space.resolve(register.splits["heldout"].path))))
    except SplitError as error:
        scale = scales.by_study(registry.load(protocol.task.name))
        notes.append(f"answers and verdicts are those in the records, without the task's own metric: {error}")
    out = []
    for cell in protocol.cells:
        for arm in arms or [a for a in ran if a != reference]:
            if (cell.name, arm) in own and (cell.name, reference) in own:
                ours, theirs = own[cell.name, arm], own[cell.name, reference]
                out.append(({"cell": cell.name, "candidate": arm, "reference": reference}, ours, theirs, scale))
    if not out:
        raise CaskError(f"study {name}: no cell has records of {reference!r} and of another arm; name others: --arms")
    return out, notes


def _document(
    comparisons, notes, drop: bool, embedder, level: Fraction, seed: int, replicates: int, with_pairs: bool
) -> dict[str, Any]:
    from cask_eval.bridge.embedding import Embedder
    from cask_eval.bridge.measures import ALIKE, SIDES, measure, summarise
    from cask_eval.bridge.rows import join

    model = Embedder(embedder) if embedder else None
    out, metric = [], ""
    for names, ours, theirs, scale in comparisons:
        joined = join(ours, theirs, drop=drop)
        texts = [(a.text, b.text) for a, b in joined.pairs]
        pairs = measure(joined, scale, model.cosines(texts) if model else None)
        try:
            summary = summarise(pairs, level, seed=seed, replicates=replicates)
        except ValueError as error:
            raise CaskError(f"--replicates {replicates}: {error}; use more") from None
        metric = metric or scale.metric
        row = {**names, **asdict(summary)}
        row["unpaired"] = {
            "candidate": ["/".join(one.key) for one in joined.candidate_only],
            "reference": ["/".join(one.key) for one in joined.reference_only],
        }
        if with_pairs:
            row["of_pairs"] = [
                {
                    "key": list(p.key),
                    **{name: float(value) for name, value in p.alike.items()},
                    **{
                        which: {name: float(value) for name, value in getattr(p, which).items()}
                        for which in ("candidate", "reference")
                    },
                }
                for p in pairs
            ]
        out.append(row)
    if model and model.cut:
        cut = f"{model.cut} texts were longer than the {model.longest} tokens that the embedder reads, and were cut"
        notes = [*notes, cut]
    left = sum(len(names) for row in out for names in row["unpaired"].values())
    if left:
        notes = [*notes, f"{left} outputs without a partner were left out; they are named under unpaired"]
    return {
        "note": NOTE,
        "level": float(level),
        "seed": seed,
        "replicates": replicates,
        "metric": metric,
        "measures": {**ALIKE, **SIDES},
        "comparisons": out,
        "notes": list(notes),
    }


def _rows(comparison: dict[str, Any]):
    """(measure, candidate, reference, mean or difference, interval, pairs) as texts."""
    for name, mean in comparison["alike"].items():
        yield name, "", "", f"{mean['mean']:.4f}", f"[{mean['low']:.4f}, {mean['high']:.4f}]", f"{mean['pairs']:,}"
    for name, side in comparison["sides"].items():
        mean = side["difference"]
        yield (
            name,
            f"{side['candidate']:.4g}",
            f"{side['reference']:.4g}",
            f"{mean['mean']:+.4g}",
            f"[{mean['low']:+.4g}, {mean['high']:+.4g}]",
            f"{mean['pairs']:,}",
        )


def _title(comparison: dict[str, Any]) -> str:
    cell = f"{comparison['cell']}: " if "cell" in comparison else ""
    return (
        f"{cell}{comparison['candidate']} against {comparison['reference']}, {comparison['pairs']:,} pairs of "
        f"{comparison['problems']:,} problems"
    )


def _head(found: dict[str, Any]) -> list[str]:
    return ["Measure", "Candidate", "Reference", "Mean or difference", f"{found['level'] * 100:g} % interval", "Pairs"]


def _unpaired(comparison: dict[str, Any]):
    for which, names in comparison["unpaired"].items():
        if names:
            yield f"only in the {which}: {', '.join(names)}"


def _show(found: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    for comparison in found["comparisons"]:
        console.print(escape(_title(comparison)))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(_head(found)):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
        for row in _rows(comparison):
            table.add_row(*map(escape, row))
        needed = Console(width=10_000).measure(table).maximum
        Console(highlight=False, width=max(console.width, needed)).print(table)
        for line in _unpaired(comparison):
            console.print(escape(line))
    for note in (*found["notes"], NOTE):
        console.print(f"note: {escape(note)}")


def _markdown(found: dict[str, Any]) -> str:
    from cask_eval.report.markdown import escape, table

    lines = ["# Output bridge", "", NOTE, ""]
    for comparison in found["comparisons"]:
        lines += [f"## {escape(_title(comparison))}", "", *table(_head(found), _rows(comparison), left=1)]
        lines += [f"- {escape(line)}" for line in _unpaired(comparison)]
        if own := comparison.get("of_pairs"):
            names = [n for n in found["measures"] if any(n in p for p in own)]
            rows = (["/".join(p["key"]), *(f"{p[n]:.4f}" if n in p else "—" for n in names)] for p in own)
            lines += ["", *table(["Pair", *names], rows, left=1)]
    shown = {n for c in found["comparisons"] for n in (*c["alike"], *c["sides"])}
    lines += ["## Measures", ""]
    lines += [f"- {escape(n)}: {escape(text)}" for n, text in found["measures"].items() if n in shown]
    if found["metric"]:
        lines.append(f"- The task's own metric is {escape(found['metric'])}.")
    lines += [f"- {escape(note)}" for note in found["notes"]]
    return "\n".join(lines) + "\n"
