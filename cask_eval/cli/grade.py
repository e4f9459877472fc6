"""cask-eval grade"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from cask_eval.cli.common import json_option, print_json, say
from cask_eval.errors import CaskError

RULES = ("boxed", "hash", "final", "answer", "last-number")


@click.command("grade")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--rule",
    type=click.Choice(RULES),
    default="answer",
    show_default=True,
    help="Where an answer may stand: the last balanced box; after ####; box, #### or what 'the answer is' announces; "
    "that or the whole text when it is short; or, failing all, the last number. A line's own field `rule` goes first.",
)
@click.option("--integers", is_flag=True, help="Only a whole number can be right (AIME).")
@click.option("--compare", is_flag=True, help="Say as well what math-verify alone would have decided.")
@click.option("--workers", type=click.IntRange(1), help="Worker processes; one per core, at most 4, if not given.")
@json_option
def command(file: str, rule: str, integers: bool, compare: bool, workers: int | None, as_json: bool) -> None:
    """Grade the lines of FILE ("-": standard input), each a JSON object with the texts `gold` and `answer`.

    An answer is compared as what it is (docs/GRADING.md). A failure of the grader counts as wrong and is said.
    """
    from concurrent.futures import ThreadPoolExecutor

    from cask_eval.grading import VERSION, Grader

    rows = _rows(file)
    with Grader(workers) as grader, ThreadPoolExecutor(grader.workers) as threads:

        def one(row: dict[str, Any]) -> Any:
            own = {"rule": row.get("rule", rule), "integers": integers, "compare": compare}
            return grader.grade(row["gold"], row["answer"], **own)

        verdicts = list(threads.map(one, rows))
    right, failed = sum(v.correct for v in verdicts), sum(v.failed for v in verdicts)
    differ = sum(v.differs for v in verdicts)
    if as_json:
        out = []
        for row, v in zip(rows, verdicts):
            entry = {
                "verdict": v.correct,
                "status": v.status,
                "extracted": v.extracted,
                "found": v.found,
                "engine": v.engine,
                "reason": v.reason,
                "seconds": round(v.seconds, 6),
            }
            if compare:
                entry |= {"math_verify": v.plain, "differs": v.differs}
            out.append({key: row[key] for key in ("id", "gold", "answer", "label") if key in row} | entry)
        print_json({"grader": VERSION, "rule": rule, "graded": len(rows), "correct": right, "failed": failed,
                    "results": out})  # fmt: skip
        return
    for k, v in enumerate(verdicts, 1):
        other = f"; math-verify alone: {'right' if v.plain else 'wrong'}" if v.differs else ""
        shown = "none" if v.extracted is None else json.dumps(v.extracted[:60], ensure_ascii=False)
        click.echo(f"{k:6}  {'right' if v.correct else 'wrong':5}  {v.how:24} {shown}  ({v.reason}{other})")
    say(f"{right} of {len(rows)} right; the grader failed on {failed}; {VERSION}, rule {rule}" + (
        f"; math-verify alone differs on {differ}" if compare else ""))  # fmt: skip


def _rows(file: str) -> list[dict[str, Any]]:
    try:
        data = sys.stdin.buffer.read() if file == "-" else open(file, "rb").read()
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CaskError(f"{file}: byte {error.start} is not UTF-8; write the file in UTF-8") from None
    rows = []
    for k, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CaskError(f"{file}:{k}: is no JSON ({error}); write one object a line") from None
        if not isinstance(row, dict):
            raise CaskError(f"{file}:{k}: is {type(row).__name__}; write an object with the texts gold and answer")
        for name in ("gold", "answer"):
            if type(row.get(name)) is int:
                row[name] = str(row[name])
            if not isinstance(row.get(name), str):
                raise CaskError(f"{file}:{k}: {name} is {row.get(name)!r}; give a text")
        if row.get("rule", "boxed") not in RULES:
            raise CaskError(f"{file}:{k}: rule is {row['rule']!r}; use one of {', '.join(RULES)}")
        rows.append(row)
    return rows
