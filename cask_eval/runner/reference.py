"""What a model answers with its full cache, as problems of the `jsonl` task: the question then is whether a compressed
cache leaves the answer as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cask_eval.engine.contract import Host
from cask_eval.engine.decode import Request, generate
from cask_eval.engine.model import geometry
from cask_eval.engine.registry import load as load_preset
from cask_eval.engine.sampling import Sampling
from cask_eval.grading import extract
from cask_eval.protocol.model import Model, Prompt
from cask_eval.runner import models
from cask_eval.runner.asking import Asking
from cask_eval.runner.study import problems_of
from cask_eval.splits.model import Manifest
from cask_eval.tasks import graded
from cask_eval.tasks import registry as tasks
from cask_eval.workspace import Workspace


def answers(
    workspace: Workspace,
    model: Model,
    manifest: Manifest,
    rule: str,
    *,
    prompt: Prompt | None,
    max_new_tokens: int,
    device: str,
    slots: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> tuple[list[dict[str, Any]], int]:
    """(rows, left out): one row for each problem of `manifest` that `model` answers greedily with its full cache, in
    the manifest's order. Its answer is what `rule` finds in the output. A problem is left out where it finds nothing,
    or where the grader does not see the output as right by that answer."""
    decoder, tokenizer = models.loaded(model, workspace, device)
    ask = Asking.read(workspace, prompt).asker(tokenizer, model.name)
    problems = problems_of(workspace, tasks.load(manifest.task), manifest, manifest.name)
    full = load_preset("fullkv")().bind(Host(geometry(decoder)))
    sampling = Sampling(max_new_tokens, stop_ids=models.stop_ids(decoder, tokenizer))
    requests = [Request(p.id, ask(p), 0) for p in problems]
    found = {}
    for outcome in generate(decoder, requests, full, full.schedule(1), sampling, slots=slots):
        found[outcome.key] = tokenizer.decode(list(outcome.output_ids), skip_special_tokens=True)
        advance()
    rows = []
    for p in problems:
        answer = (extract(found[p.id], rule).text or "").strip()
        if answer and graded.grade(graded.Question(p.id, p.prompt, answer, rule=rule), found[p.id]).correct:
            rows.append({"id": p.id, "problem": p.prompt, "answer": answer, "stratum": p.stratum or "all"})
    return rows, len(problems) - len(rows)
