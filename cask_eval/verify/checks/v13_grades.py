from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from cask_eval.records.model import Record
from cask_eval.tasks.vote import elect
from cask_eval.verify.check import Skip, check
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.replays import measured
from cask_eval.verify.tokens import decoded


@check("V13", "grades as the grader gives them", "dev", "heldout")
def v13(e: Evidence) -> Iterator[str]:
    """Every stored output is graded again, by the grader's recorded version; where a trial's chains voted, the vote is
    held again. The fidelity of a replay is computed again from its numbers per token."""
    yield from measured(e)
    if e.task is None:
        yield Skip(e.why("task"))
        return
    yield from decoded(e)
    versions = {about.grader for f in (e.dev, e.heldout) if f for about in f.rows.abouts if not about.failed}
    if len(versions) > 1:
        yield f"the records were graded by {len(versions)} graders: {', '.join(sorted(versions))}"
    if other := versions - {e.task.GRADER}:
        yield Skip(f"graded by {', '.join(sorted(other))}, but {e.task.GRADER} is installed here")
        return
    for role, file in (("dev", e.dev), ("heldout", e.heldout)):
        problems = e.problems.get(role)
        if problems is None:
            yield Skip(e.why(f"{role}_problems"))
            continue
        for r in file.records if file else ():
            where = f"{role}/{r.cell}/{r.arm}/{r.problem}/{r.sample}"
            if r.status == "failed":
                continue
            if r.problem not in problems.by_id:
                yield f"{where}: there is no such problem"
            elif asdict(e.task.grade(problems.by_id[r.problem], r.output)) != r.grade.model_dump():
                recorded = "right" if r.grade.correct else "wrong"
                yield f"{where}: recorded as {recorded} ({r.grade.extracted!r}), regraded otherwise"
            elif r.chains:
                yield from (f"{where}: {what}" for what in _vote(e.task, problems.by_id[r.problem], r))


def _vote(task: Any, problem: Any, r: Record) -> Iterator[str]:
    """What the chains say against the record that speaks for them."""
    grades = [task.grade(problem, chain.output) for chain in r.chains]
    for i, (chain, grade) in enumerate(zip(r.chains, grades, strict=True)):
        if chain.extracted != grade.extracted:
            yield f"chain {i} is said to answer {chain.extracted!r}, its output answers {grade.extracted!r}"
    winner = r.chains[elect(task, grades)]
    if (r.status, r.output, r.output_ids) != (winner.status, winner.output, winner.output_ids):
        yield "it has the output of another chain than the one that won the vote"
