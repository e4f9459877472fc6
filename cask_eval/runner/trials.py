"""Running one arm of one cell over a list of problems, and turning outcomes into records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from cask_eval.engine.decode import MeterMismatch, Outcome, Request, generate
from cask_eval.engine.method import Method, Policy
from cask_eval.engine.model import geometry
from cask_eval.engine.registry import load as load_preset
from cask_eval.engine.sampling import Sampling
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
    """One study on one device. Slots double as the memory knob: they are halved when the device runs out."""

    def __init__(self, study: Study, registration: str, device: str, slots: int = 64):
        self.study, self.registration, self.device, self.slots = study, registration, device, slots

    def policy(self, model: Model, choice: ArmChoice) -> tuple[Method, Policy]:
        decoder, _ = models.loaded(model, self.study.workspace, self.device)
        method = load_preset(choice.preset).make(choice.preset, dict(choice.params))
        calibration = models.calibration_file(model, self.study.workspace)
        return method, method.bind(geometry(decoder), str(calibration) if calibration else None)

    def run(self, batch: Batch, done: set, save: Callable[[list[Record]], None], progress: Progress) -> None:
        """Run what is not in `done`; records reach `save` in small groups as trials finish, also when interrupted."""
        study = self.study
        model = next(m for m in study.protocol.models if m.name == batch.cell.model)
        decoder, tokenizer = models.loaded(model, study.workspace, self.device)
        wanted = {
            batch.key(p.id, s): p
            for p in study.split(batch.phase).problems for s in range(study.protocol.generation.samples)
            if batch.key(p.id, s) not in done
        }
        if not wanted:
            return
        digests = {item.id: item.digest for item in study.split(batch.phase).manifest.items}
        generation = study.protocol.generation
        sampling = Sampling(generation.max_new_tokens, float(generation.temperature), float(generation.top_p),
                            models.stop_ids(decoder, tokenizer))
        requests = [
            Request(key, tuple(tokenizer(p.prompt)["input_ids"]),
                    int(trial_seed(self.registration, batch.cell.name, p.id, key[-1], phase=batch.phase), 16))
            for key, p in wanted.items()
        ]
        lengths = {r.key: len(r.prompt_ids) for r in requests}
        _, policy = self.policy(model, batch.choice)
        buffer: list[Record] = []
        try:
            for result in self._outcomes(decoder, requests, policy, batch.choice.schedule.budget, sampling):
                buffer.append(self._record(batch, wanted[result.key], digests, lengths, tokenizer, result, sampling))
                progress(1, buffer[-1].output_tokens)
                if len(buffer) >= 32:
                    save(buffer)
                    buffer = []
        finally:
            if buffer:
                save(buffer)

    def _outcomes(self, decoder, requests, policy, budget, sampling) -> Iterator[Outcome | _Fault]:
        """Outcomes, retrying with fewer slots when memory runs out; a batch that a method breaks is run one by one,
        so that only the trials at fault are recorded as failed."""
        left = {r.key: r for r in requests}
        while left:
            slots = min(self.slots, len(left))
            try:
                for outcome in generate(decoder, list(left.values()), policy, budget, sampling, slots=slots):
                    del left[outcome.key]
                    yield outcome
            except torch.OutOfMemoryError as error:
                if slots == 1:
                    key = next(iter(left))
                    yield _Fault(left.pop(key), "infrastructure", error)
                self.slots = max(1, slots // 2)
            except MeterMismatch:
                raise
            except (FloatingPointError, ArithmeticError, RuntimeError, ValueError) as error:
                if slots == 1 and len(left) == 1:
                    yield _Fault(left.popitem()[1], "method", error)
                    continue
                for request in list(left.values()):
                    yield from self._outcomes(decoder, [request], policy, budget, sampling)
                return

    def _record(self, batch: Batch, problem: Problem, digests, lengths, tokenizer, result: Outcome | _Fault,
                sampling: Sampling) -> Record:
        failed = isinstance(result, _Fault)
        ids = [] if failed else list(result.output_ids)
        text = "" if failed else tokenizer.decode(ids, skip_special_tokens=True)
        grade = self.study.task.grade(problem, text)
        sample = result.key[-1]
        return Record(
            study=self.study.protocol.study,
            registration=self.registration,
            phase=batch.phase, cell=batch.cell.name, arm=batch.arm, config=batch.config,
            problem=problem.id, problem_digest=digests[problem.id], sample=sample,
            seed=trial_seed(self.registration, batch.cell.name, problem.id, sample, phase=batch.phase),
            status="failed" if failed else "finished" if result.stopped else "truncated",
            failure=Failure(kind=result.kind, error=type(result.error).__name__, message=str(result.error)[:500])
            if failed else None,
            prompt_tokens=lengths[result.key], output_tokens=len(ids), output=text, output_ids=ids,
            grade=GradeRecord(correct=grade.correct and not failed, extracted=grade.extracted, how=grade.how,
                              grader=grade.grader),
            residency=None if failed else ResidencyRecord(**result.residency.to_json()),
            kept_min=None if failed else result.kept_min,
            kept_max=None if failed else result.kept_max,
        )


@dataclass(frozen=True)
class _Fault:
    """A trial that cannot be run."""

    request: Request
    kind: str
    error: Exception

    @property
    def key(self):
        return self.request.key
