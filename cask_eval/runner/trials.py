"""Running one arm of one cell over a list of problems, and turning outcomes into records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cask_eval.engine.decode import MeterMismatch, Outcome, Request, generate
from cask_eval.engine.method import Policy
from cask_eval.engine.model import geometry
from cask_eval.engine.registry import load as load_preset
from cask_eval.engine.sampling import Sampling
from cask_eval.errors import ModelError
from cask_eval.ledger.events import ArmChoice
from cask_eval.protocol.keys import trial_seed
from cask_eval.protocol.model import Cell, Model
from cask_eval.records.model import Failure, GradeRecord, Record, ResidencyRecord
from cask_eval.runner import models
from cask_eval.runner.study import Study
from cask_eval.tasks import Problem

Progress = Callable[[int, int], None]  # trials done, tokens generated


@dataclass(frozen=True)
class Batch:
    """The trials of one (cell, arm, configuration) in one phase."""

    phase: str
    cell: Cell
    arm: str
    config: str
    choice: ArmChoice

    def key(self, problem: str, sample: int) -> tuple[str, str, str, str, str, int]:
        return (self.phase, self.cell.name, self.arm, self.config, problem, sample)


class Bench:
    """One study on one device. `slots` are the sequences in flight at most; a batch that runs out of memory goes on
    with half of them."""

    def __init__(self, study: Study, registration: str, device: str, slots: int = 64):
        self.study, self.registration, self.device, self.slots = study, registration, device, slots

    def policy(self, model: Model, decoder: Any, choice: ArmChoice) -> Policy:
        """The arm's method, bound to the loaded model."""
        method = load_preset(choice.preset).make(choice.preset, dict(choice.params))
        calibration = models.calibration_file(model, self.study.workspace)
        return method.bind(geometry(decoder), str(calibration) if calibration else None)

    def run(self, batch: Batch, done: set, save: Callable[[list[Record]], None], progress: Progress) -> None:
        """Run what is not in `done`; records reach `save` in small groups as trials finish, also when interrupted."""
        study = self.study
        model = next(m for m in study.protocol.models if m.name == batch.cell.model)
        decoder, tokenizer = models.loaded(model, study.workspace, self.device)
        wanted = {
            batch.key(p.id, s): p
            for p in study.split(batch.phase).problems
            for s in range(study.protocol.generation.samples)
            if batch.key(p.id, s) not in done
        }
        if not wanted:
            return
        digests = {item.id: item.digest for item in study.split(batch.phase).manifest.items}
        generation = study.protocol.generation
        sampling = Sampling(
            generation.max_new_tokens,
            float(generation.temperature),
            float(generation.top_p),
            models.stop_ids(decoder, tokenizer),
        )
        requests = [
            Request(
                key,
                tuple(tokenizer(p.prompt)["input_ids"]),
                int(trial_seed(self.registration, batch.cell.name, p.id, key[-1], phase=batch.phase), 16),
            )
            for key, p in wanted.items()
        ]
        lengths = {r.key: len(r.prompt_ids) for r in requests}
        policy = self.policy(model, decoder, batch.choice)
        buffer: list[Record] = []

        def flush() -> None:
            # Emptied first: an interrupt that reaches `save` may find the records on disk already, and saving them
            # twice would damage the file. A trial that was lost is run again.
            nonlocal buffer
            group, buffer = buffer, []
            if group:
                save(group)

        try:
            outcomes = self._outcomes(decoder, requests, policy, batch.choice.schedule.budget, sampling, self.slots)
            for result in outcomes:
                buffer.append(self._record(batch, wanted[result.key], digests, lengths, tokenizer, result))
                progress(1, buffer[-1].output_tokens)
                if len(buffer) >= 32:
                    flush()
        finally:
            flush()

    def _outcomes(self, decoder, requests, policy, budget, sampling, slots: int) -> Iterator[Outcome | _Fault]:
        """Outcomes, with fewer slots when memory runs out; a batch that breaks is cut in halves until only the trials
        at fault are left, and those are recorded as failed. Raises MeterMismatch, and what a lost device raises:
        neither says anything about a trial."""
        left = {r.key: r for r in requests}
        while left:
            slots, fault = min(slots, len(left)), None
            try:
                for outcome in generate(decoder, list(left.values()), policy, budget, sampling, slots=slots):
                    del left[outcome.key]
                    yield outcome
            except (MeterMismatch, ModelError):
                raise
            except Exception as error:
                memory = _out_of_memory(error)
                if not memory and _device_is_lost(error):
                    raise
                kind = "infrastructure" if memory else "method"
                # Only text is kept: a traceback would keep the broken run's cache in memory.
                fault = kind, type(error).__name__, str(error)
            if fault is None:
                continue
            remaining = list(left.values())
            if fault[0] == "infrastructure" and slots > 1:
                slots //= 2
            elif len(remaining) == 1:
                yield _Fault(left.popitem()[1], *fault)
            else:
                middle = len(remaining) // 2
                for part in (remaining[:middle], remaining[middle:]):
                    yield from self._outcomes(decoder, part, policy, budget, sampling, slots)
                return

    def _record(self, batch: Batch, problem: Problem, digests, lengths, tokenizer, result: Outcome | _Fault) -> Record:
        failed = isinstance(result, _Fault)
        ids = [] if failed else list(result.output_ids)
        text = "" if failed else tokenizer.decode(ids, skip_special_tokens=True)
        grade = self.study.task.grade(problem, text)
        sample = result.key[-1]
        return Record(
            study=self.study.protocol.study,
            registration=self.registration,
            phase=batch.phase,
            cell=batch.cell.name,
            arm=batch.arm,
            config=batch.config,
            problem=problem.id,
            problem_digest=digests[problem.id],
            sample=sample,
            seed=trial_seed(self.registration, batch.cell.name, problem.id, sample, phase=batch.phase),
            status="failed" if failed else "finished" if result.stopped else "truncated",
            failure=Failure(kind=result.kind, error=result.error, message=result.message[:500]) if failed else None,
            prompt_tokens=lengths[result.key],
            output_tokens=len(ids),
            output=text,
            output_ids=ids,
            grade=GradeRecord(
                correct=grade.correct and not failed, extracted=grade.extracted, how=grade.how, grader=grade.grader
            ),
            residency=None if failed else ResidencyRecord(**result.residency.to_json()),
            kept_min=None if failed else result.kept_min,
            kept_max=None if failed else result.kept_max,
        )


@dataclass(frozen=True)
class _Fault:
    """A trial that cannot be run."""

    request: Request
    kind: str
    error: str
    message: str

    @property
    def key(self):
        return self.request.key


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of the device or of the machine: outside torch's own allocator it has no type."""
    signs = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in signs)


def _device_is_lost(error: Exception) -> bool:
    """Whether every further call would fail alike: a device that has raised once answers nothing any more."""
    return isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error)
