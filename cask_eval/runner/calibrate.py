"""Measuring a method's calibration statistics on a model's own full-cache traces of a split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cask_eval.engine.contract import Host
from cask_eval.engine.decode import Request, generate
from cask_eval.engine.model import geometry
from cask_eval.engine.queries import feed
from cask_eval.engine.registry import load as load_preset
from cask_eval.engine.sampling import Sampling
from cask_eval.errors import MethodError
from cask_eval.protocol.model import Model, Prompt
from cask_eval.runner import models
from cask_eval.runner.asking import Asking
from cask_eval.runner.study import problems_of
from cask_eval.splits.model import Manifest
from cask_eval.tasks import registry as tasks
from cask_eval.workspace import Workspace


def measure(
    workspace: Workspace,
    model: Model,
    manifest: Manifest,
    method: str,
    *,
    limit: int,
    max_new_tokens: int,
    device: str,
    prompt: Prompt | None = None,
    slots: int | None = None,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Any, int]:
    """(statistics, tokens seen) of `method` on `model`: the first `limit` problems of a development split are solved
    greedily with the full cache, asked as `prompt` says, then each trace (prompt and output) passes once more with its
    queries observed.
    Raises MethodError when the method needs no statistics or the split is not a development split."""
    if manifest.role != "dev":
        raise MethodError(f"split {manifest.name} has role {manifest.role!r}; calibration may only use a dev split")
    preset = load_preset(method)
    decoder, tokenizer = models.loaded(model, workspace, device)
    shape = geometry(decoder)
    accumulator = preset.calibrator(shape)
    asking = Asking.read(workspace, prompt)
    ask = asking.asker(tokenizer, model.name)
    prompts = {p.id: ask(p) for p in problems_of(workspace, tasks.load(manifest.task), manifest, manifest.name)[:limit]}
    full = load_preset("fullkv")().bind(Host(shape))
    sampling = Sampling(max_new_tokens, stop_ids=models.stop_ids(decoder, tokenizer))
    requests = [Request(key, ids, seed) for key, ids in prompts.items()]
    # Sorted, because outcomes arrive in the order they finish and sums depend on the order in their last bits.
    traces = sorted(
        (o.key, [*prompts[o.key], *o.output_ids])
        for o in generate(decoder, requests, full, full.schedule(1), sampling, slots=slots)
    )
    for _, ids in traces:
        feed(decoder, [ids], accumulator.add)
        advance()
    provenance = {
        "source": "cask-eval calibrate",
        "split": manifest.name,
        "split_digest": manifest.digest(),
        "problems": len(traces),
        "decoding": "greedy, full cache",
        "max_new_tokens": max_new_tokens,
        "dtype": model.dtype,
        "model_id": model.id,
        "revision": model.revision or "",
    }
    if prompt:
        provenance |= {"prompt_form": prompt.form, "prompt_digest": asking.digest or ""}
    return accumulator.finish(provenance), sum(len(ids) for _, ids in traces)


def convert(source: Path, method: str) -> Any:
    """Statistics from another project's file, in this method's own container. Raises MethodError."""
    return load_preset(method).read_calibration(source)
