"""Running one arm of one cell over a list of problems, and turning outcomes into records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cask_eval.engine.contract import Host
from cask_eval.engine.decode import MeterMismatch, Outcome, Request, generate
from cask_eval.engine.method import Policy
from cask_eval.engine.model import geometry
from cask_eval.engine.registry import load as load_preset
from cask_eval.engine.sampling import Sampling
from cask_eval.errors import ModelError
from cask_eval.ledger.events import ArmChoice
from cask_eval.protocol.keys import chain_seed, trial_seed
from cask_eval.protocol.model import Cell, Model
from cask_eval.records.model import (
    ChainRecord,
    Failure,
    GradeRecord,
    Record,
    RegionsRecord,
    ResidencyRecord,
    StagesRecord,
)
from cask_eval.residency import Residency, join
from cask_eval.runner import models
from cask_eval.runner.study import Study
from cask_eval.schedule import Schedule
from cask_eval.stages import stages
from cask_eval.tasks import Problem
from cask_eval.tasks.vote import elect

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
    """One study on one device. `registration` is the hash of its registration, `seed_root` what its seeds are derived
    from. `slots` are the sequences in flight at most; a batch that runs out of memory goes on with half of them."""

    def __init__(self, study: Study, registration: str, seed_root: str, device: str, slots: int = 64):
        self.study, self.registration, self.seed_root = study, registration, seed_root
        self.device, self.slots = device, slots

    def policy(self, model: Model, decoder: Any, tokenizer: Any, choice: ArmChoice) -> Policy:
        """The arm's method, bound to the loaded model."""
        method = load_preset(choice.preset).make(choice.preset, dict(choice.params))
        calibration = models.calibration_file(model, self.study.workspace)
        return method.bind(
            Host(geometry(decoder), str(calibration) if calibration else None, models.encoder(tokenizer))
        )

    def run(self, batch: Batch, done: set, save: Callable[[list[Record]], None], progress: Progress) -> None:
        """Run what is not in `done`; each record reaches `save` as its trial finishes."""
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
        ask = study.asking.asker(tokenizer, model.name)
        requests = [
            Request(
                key,
                ask(p),
                int(trial_seed(self.seed_root, batch.cell.name, p.id, key[-1], phase=batch.phase), 16),
            )
            for key, p in wanted.items()
        ]
        lengths = {r.key: len(r.prompt_ids) for r in requests}
        policy = self.policy(model, decoder, tokenizer, batch.choice)
        schedule = policy.schedule(batch.choice.schedule.budget)
        for result in self._trials(decoder, requests, policy, schedule, sampling):
            record = self._record(batch, wanted[result.key], digests, lengths, tokenizer, policy, schedule, result)
            save([record])
            progress(1, record.output_tokens)

    def _trials(self, decoder, requests, policy, schedule, sampling) -> Iterator[_Chains | _Fault]:
        """One result a trial: the outcomes of all its chains, or the fault of the first that broke."""
        parts = schedule.split()
        # With several chains a trial is done only when the last one is; blocks keep finished ones from piling up.
        size = len(requests) if len(parts) == 1 else 4 * self.slots
        for start in range(0, len(requests), size):
            block = requests[start : start + size]
            if len(parts) == 1:
                for outcome in self._outcomes(decoder, block, policy, parts[0], sampling, self.slots):
                    yield outcome if isinstance(outcome, _Fault) else _Chains(outcome.key, [outcome])
                continue
            done: dict[Any, list[Outcome | _Fault]] = {r.key: [] for r in block}
            for index, part in enumerate(parts):
                chain = [Request(r.key, r.prompt_ids, chain_seed(r.seed, index)) for r in block]
                for outcome in self._outcomes(decoder, chain, policy, part, sampling, self.slots):
                    done[outcome.key].append(outcome)
            for key, several in done.items():
                yield next((o for o in several if isinstance(o, _Fault)), None) or _Chains(key, several)

    def _outcomes(self, decoder, requests, policy, schedule, sampling, slots: int) -> Iterator[Outcome | _Fault]:
        """Outcomes, with fewer slots when memory runs out; a batch that breaks is cut in halves until only the trials
        at fault are left, and those are recorded as failed. Raises MeterMismatch, and what a lost device raises:
        neither says anything about a trial."""
        left = {r.key: r for r in requests}
        while left:
            slots, fault = min(slots, len(left)), None
            try:
                for outcome in generate(decoder, list(left.values()), policy, schedule, sampling, slots=slots):
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
                    yield from self._outcomes(decoder, part, policy, schedule, sampling, slots)
                return

    def _record(
        self,
        batch: Batch,
        problem: Problem,
        digests,
        lengths,
        tokenizer,
        policy: Policy,
        schedule: Schedule,
        result: _Chains | _Fault,
    ) -> Record:
        sample = result.key[-1]
        common = {
            "study": self.study.protocol.study,
            "registration": self.registration,
            "phase": batch.phase,
            "cell": batch.cell.name,
            "arm": batch.arm,
            "config": batch.config,
            "problem": problem.id,
            "problem_digest": digests[problem.id],
            "sample": sample,
            "seed": trial_seed(self.seed_root, batch.cell.name, problem.id, sample, phase=batch.phase),
            "prompt_tokens": lengths[result.key],
        }
        if isinstance(result, _Fault):
            grade = self.study.task.grade(problem, "")
            return Record(
                **common,
                status="failed",
                failure=Failure(kind=result.kind, error=result.error, message=result.message[:500]),
                output_tokens=0,
                output="",
                output_ids=[],
                grade=GradeRecord(**{**asdict(grade), "correct": False}),
                residency=None,
            )
        outcomes = result.outcomes
        texts = [tokenizer.decode(list(o.output_ids), skip_special_tokens=True) for o in outcomes]
        grades = [self.study.task.grade(problem, text) for text in texts]
        several = len(outcomes) > 1
        winner = elect(self.study.task, grades)
        accounts = [o.residency for o in outcomes]
        account = join(accounts, policy.footprint) if several else accounts[0]
        kept = [(o.kept_min, o.kept_max) for o in outcomes if o.kept_min is not None]
        return Record(
            **common,
            status=outcomes[winner].status,
            output_tokens=len(outcomes[winner].output_ids),
            output=texts[winner],
            output_ids=list(outcomes[winner].output_ids),
            grade=GradeRecord(**asdict(grades[winner])),
            residency=_residency(account),
            kept_min=min((low for low, _ in kept), default=None),
            kept_max=max((high for _, high in kept), default=None),
            regions=RegionsRecord(
                bins=sum(o.regions.bins for o in outcomes),
                empty=sum(o.regions.empty for o in outcomes),
                longest=max(o.regions.longest for o in outcomes),
            ),
            stages=StagesRecord.of(stages(schedule, lengths[result.key], [o.output_ids for o in outcomes])),
            measures=_measures(outcomes),
            chains=[
                ChainRecord(
                    status=o.status,
                    output=text,
                    output_ids=list(o.output_ids),
                    extracted=grade.extracted,
                    residency=_residency(o.residency),
                )
                for o, text, grade in zip(outcomes, texts, grades)
            ]
            if several
            else [],
        )


def _residency(account: Residency) -> ResidencyRecord:
    return ResidencyRecord(**{k: v for k, v in account.to_json().items() if k != "chains"})


def _measures(outcomes: list[Outcome]) -> dict[str, str]:
    """Nine digits are more than anyone reads. Chains count alike in the method's own measures, and add up in
    `allocated_cache`: allocated entries per layer and KV head."""
    account = outcomes[0].residency
    allocated = sum(o.allocated_bytes for o in outcomes) / (account.heads * account.entry_bytes)
    found = {"allocated_cache": allocated}
    for name in sorted({name for o in outcomes for name in o.measures}):
        values = [o.measures[name] for o in outcomes if name in o.measures]
        found[name] = sum(values) / len(values)
    return {name: format(value, ".9g") for name, value in found.items()}


@dataclass(frozen=True)
class _Chains:
    """A trial that ran: the outcome of each of its chains, one for most methods."""

    key: Any
    outcomes: list[Outcome]


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
