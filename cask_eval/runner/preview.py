"""What `register` would refuse, found without loading weights and without writing: for `lint`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from cask_eval.canonical import digest
from cask_eval.decide.lint import Finding
from cask_eval.engine import kernels, registry
from cask_eval.engine.model import check_config
from cask_eval.errors import CaskError, SplitError
from cask_eval.ledger.log import Ledger
from cask_eval.ledger.state import StudyState
from cask_eval.protocol.load import load
from cask_eval.protocol.model import Model, Protocol
from cask_eval.runner import models
from cask_eval.runner.study import Prompted, Study, check_methods, frozen_splits, open_study
from cask_eval.schedule import Book, Schedule
from cask_eval.tasks import registry as tasks
from cask_eval.workspace import Workspace


def preview(workspace: Workspace, path: Path) -> Iterator[Finding]:
    """Errors of splits, models, calibrations and budgets, as far as they show on this machine; a warning for what could
    only be seen elsewhere: problems whose data is not here, models that would have to be fetched. Problems are not
    fetched; that models are not is the caller's to say, before the hub's client is imported (HF_HUB_OFFLINE)."""
    protocol = load(path).protocol
    try:
        tasks.load(protocol.task.name)
    except CaskError as error:
        yield Finding("error", "task.name", str(error))
        return
    yield from _taken(workspace, protocol)
    try:
        frozen_splits(workspace, protocol)
    except CaskError as error:
        yield Finding("error", "task", str(error).removeprefix("task."))
        return
    try:
        study = open_study(workspace, path, offline=True)
    except SplitError as error:
        yield Finding("warning", "task", f"on this machine `register` would refuse it: {error}")
        return
    except CaskError as error:
        yield Finding("error", "protocol", str(error))
        return
    try:
        kernels.chosen()
    except CaskError as error:
        yield Finding("error", "environment", str(error))
    known = []
    for model in study.protocol.models:
        try:
            known.append(prompted(study, model))
        except CaskError as error:
            yield _missing(model, workspace, error)
    try:
        check_methods(study.protocol, known)
    except CaskError as error:
        field = re.search(r"models\[[^]]*\]\.calibration", str(error))
        yield Finding("error", field[0] if field else "budgets", str(error))
        return
    yield from _idle(study.protocol, known)


def _taken(workspace: Workspace, protocol: Protocol) -> Iterator[Finding]:
    state = StudyState.of(Ledger(workspace.ledger).events(), protocol.study)
    if state.register is None:
        return
    if state.register[1].protocol_digest == digest(protocol.document()):
        yield Finding("warning", "study", f"{protocol.study!r} is registered already, as it stands here")
        return
    hint = "give it another name, or put it in the place of the old one with `cask-eval amend`"
    yield Finding("warning", "study", f"{protocol.study!r} is registered already, with another protocol; {hint}")


def _idle(protocol: Protocol, known: list[Prompted]) -> Iterator[Finding]:
    """Cells in which not even the longest prompt with the longest output would be compressed by the baseline."""
    if Fraction(protocol.matched_cache.min_active) == 0:
        return
    arm, most = protocol.baseline, protocol.generation.max_new_tokens
    method = registry.load(arm.preset).make(arm.preset, dict(arm.params))
    if method.packing():
        return
    for model in known:
        for budget in protocol.budgets:
            parts = method.schedule(budget).split()
            if not any(_compresses(part, model.longest, most) for part in parts):
                yield Finding(
                    "warning",
                    "budgets",
                    f"at {budget} the baseline ({arm.preset}) never compresses anything of {model.name}: prompts of up "
                    f"to {model.longest} and outputs of up to {most} tokens (generation.max_new_tokens) end before its "
                    "first event; a cell of which less than matched_cache.min_active is compressed is void; lower the "
                    "budget or delta, raise max_new_tokens, or take a baseline that compresses",
                )


def _compresses(schedule: Schedule, prompt_tokens: int, most: int) -> bool:
    wait = Book(schedule, prompt_tokens).wait()
    return schedule.compresses_prompt(prompt_tokens) or (wait is not None and wait < most)


def _missing(model: Model, workspace: Workspace, error: CaskError) -> Finding:
    where, said = f"models[{model.name}]", str(error)
    if not _here(model, workspace):
        hint = "so nobody has looked whether its prompts fit the budgets; `register` will, where it can be fetched"
        return Finding("warning", where, f"{model.id} is not here, {hint}")
    named = re.match(rf"{re.escape(where)}[.\w]*", said)
    return Finding("error", named[0] if named else where, said[named.end() if named else 0 :].lstrip(": "))


def _here(model: Model, workspace: Workspace) -> bool:
    """Whether the files of a model are here, or should be."""
    try:
        if not models.fetches(model, workspace):
            return True
    except CaskError:
        return True
    try:
        models.located(model, workspace)
    except CaskError:
        return False
    return True


def prompted(study: Study, model: Model) -> Prompted:
    """What methods must know of a model, from its config, tokenizer and calibration file. Raises ModelError."""
    config = models.config(model, study.workspace)
    check_config(config)
    calibration = models.calibration_file(model, study.workspace)
    longest = max(prompt_lengths(study, model))
    models.check_context(model, config, longest, study.protocol.generation.max_new_tokens)
    return Prompted(model.name, longest, calibration is not None)


def prompt_lengths(study: Study, model: Model) -> list[int]:
    """Tokens of the prompt of every problem of both splits. Raises ModelError."""
    ask = study.asking.asker(models.tokenizer(model, study.workspace), model.name)
    return [len(ask(problem)) for problem in study.problems]
