from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from cask_eval.verify.check import Skip, check
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.tokens import decoded


@check("V13", "grades as the grader gives them", "task", "dev", "heldout")
def v13(e: Evidence) -> Iterator[str]:
    """Every stored output is graded again, by the grader's recorded version."""
    yield from decoded(e)
    versions = {r.grade.grader for f in (e.dev, e.heldout) if f for r in f.records if r.status != "failed"}
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
