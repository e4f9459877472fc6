"""Running one arm of one cell over a list of problems, and turning outcomes into records."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cask_eval.engine.capacity import fitting
from cask_eval.engine.contract import Host
from cask_eval.engine.decode import MeterMismatch, Outcome, Request, generate
from cask_eval.engine.method import Policy
from cask_eval.engine.model import geometry
from cask_eval.engine.registry import load as load_preset
from cask_eval.engine.replay import Given, Replayed, dense, replay
from cask_eval.engine.sampling import Sampling
from cask_eval.engine.usage import Usage
from cask_eval.errors import ModelError, StateError
from cask_eval.fidelity import Tokens, summarise
from cask_eval.ledger.events import ArmChoice
from cask_eval.protocol.keys import chain_seed, trial_seed
from cask_eval.protocol.model import Cell, Model
from cask_eval.records.model import (
    ChainRecord,
    Failure,
    FidelityRecord,
    GradeRecord,
    Record,
    RegionsRecord,
    ResidencyRecord,
    StagesRecord,
)
from cask_eval.records.tokens import Trial, digest_of
from cask_eval.residency import join
from cask_eval.runner import models
from cask_eval.runner.study import Study
from cask_eval.schedule import Schedule
from cask_eval.stages import stages
from cask_eval.tasks import Problem
from cask_eval.tasks.vote import elect

Progress = Callable[[int, int], None]  # trials done, tokens generated
Save = Callable[[list[Record]], None]

# Logits of the full cache that wait for their replays, in bytes.
FULL_BYTES = 1 << 30

# Replays whose numbers are written at once, and wait for the disk together.
KEPT_AT_ONCE = 64


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


@dataclass(frozen=True)
class Replays:
    """What a batch of replays needs. references: (problem, sample) → the record of the trial whose tokens are replayed.
    keep: stores numbers per token, before the records that commit to them."""

    references: Mapping[tuple[str, int], Record]
    keep: Callable[[dict[Trial, Tokens]], None]


# Batches, each with the references that it replays.
Work = Sequence[tuple[Batch, Replays | None]]


class Bench:
    """One study on one device. `registration` is the hash of its registration, `seed_root` what its seeds are derived
    from. `slots` are the sequences in flight at most, None being as many as memory has room for; a batch that runs out
    of memory goes on with half of them. `usage` says of all that was generated how much of the work was of use."""

    def __init__(self, study: Study, registration: str, seed_root: str, device: str, slots: int | None = None):
        self.study, self.registration, self.seed_root = study, registration, seed_root
        self.device, self.slots, self.usage = device, slots, Usage()
        self._lengths: dict[tuple[str, str, str, int], int] = {}
        self._dense: tuple[str, dict] = ("", {})

    def policy(self, model: Model, decoder: Any, tokenizer: Any, choice: ArmChoice) -> Policy:
        """The arm's method, bound to the loaded model."""
        method = load_preset(choice.preset).make(choice.preset, dict(choice.params))
        calibration = models.calibration_file(model, self.study.workspace)
        return method.bind(
            Host(geometry(decoder), str(calibration) if calibration else None, models.encoder(tokenizer))
        )

    def run(
        self,
        batch: Batch,
        done: set,
        save: Save,
        progress: Progress,
        replays: Replays | None = None,
    ) -> None:
        """Run what is not in `done`; each record reaches `save` as its trial finishes. With `replays` the trials are
        given their references' tokens instead of generating some, and are saved some at a time."""
        for records, tokens in self.results(batch, done, replays.references if replays else None):
            hand_on(records, tokens, save, progress, replays)

    def run_all(self, work: Work, done: set, save: Save, progress: Progress) -> None:
        """Run several batches that do not wait for one another: here one after the other."""
        for batch, replays in work:
            self.run(batch, done, save, progress, replays)

    def results(
        self, batch: Batch, done: Container, references: Mapping[tuple[str, int], Record] | None = None
    ) -> Iterator[tuple[list[Record], dict[Trial, Tokens]]]:
        """The records of what is not in `done` as they come; of replays some at a time, with their numbers per token.
        """
        study = self.study
        model = next(m for m in study.protocol.models if m.name == batch.cell.model)
        if self._dense[0] != model.name:  # before the next model is loaded
            self._dense = model.name, {}
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

        def made(result: _Chains | _Fault) -> Record:
            reference = references[result.key[-2:]] if references is not None else None
            return self._record(
                batch, wanted[result.key], digests, lengths, tokenizer, policy, schedule, result, reference
            )

        if references is None:
            # Those that took longest under another arm come first: a long one that begins last runs alone in the end.
            of = (batch.phase, batch.cell.model)
            expected = {r.key: self._lengths.get((*of, *r.key[-2:]), generation.max_new_tokens) for r in requests}
            requests.sort(key=lambda r: (-expected[r.key], -lengths[r.key]))
            for result in self._trials(decoder, requests, policy, schedule, sampling):
                record = made(result)
                yield [record], {}
                self._lengths[(*of, *record.key[-2:])] = record.output_tokens
            return
        if lost := [k for k in wanted if k[-2:] not in references]:
            raise StateError(
                f"{len(lost)} trials replay references that are not among the records, the first being "
                f"{lost[0][-2]}/{lost[0][-1]} of {model.name}; restore the records"
            )
        for several in _some(self._replays(decoder, requests, policy, schedule, references), KEPT_AT_ONCE):
            records = [made(result) for result in several]
            yield records, {r.key[3:]: o.tokens for r, o in zip(records, several) if isinstance(o, _Chains)}

    def _replays(self, decoder, requests, policy, schedule, references) -> Iterator[_Chains | _Fault]:
        """As `_trials`, of the references' tokens: as many trials at once as the full cache's logits leave memory for.
        A trial whose reference failed fails as that did."""
        given = []
        for r in requests:
            reference = references[r.key[-2:]]
            if reference.failure:
                message = f"its reference failed: {reference.failure.message}"
                yield _Fault(r, reference.failure.kind, reference.failure.error, message)
            else:
                given.append(Given(r.key, r.prompt_ids, r.seed, tuple(reference.output_ids)))
        of_token = decoder.config.get_text_config().vocab_size * decoder.dtype.itemsize
        for block in _blocks(given, max(1, FULL_BYTES // of_token)):
            full = self._full(decoder, block)
            faults = [found for found in full.values() if isinstance(found, _Fault)]
            yield from faults
            sound = [r for r in block if not isinstance(full[r.key], _Fault)]
            if sound:
                yield from self._trials(decoder, sound, policy, schedule, None, full)

    def _full(self, decoder, block: Sequence[Given]) -> dict[Any, Tensor | _Fault]:
        """Key → logits of the full cache, or the fault that kept them from being. Those of the last block are kept: the
        next arm replays the same tokens."""
        model, known = self._dense
        wanted = {(r.prompt_ids, r.continuation) for r in block}
        known = {text: logits for text, logits in known.items() if text in wanted}
        self._dense = model, known
        full: dict[Any, Tensor | _Fault] = {}
        for r in block:
            text = r.prompt_ids, r.continuation
            try:
                if text not in known:
                    known[text] = dense(decoder, r)
                full[r.key] = known[text]
            except Exception as error:
                full[r.key] = _Fault(r, *_judged(error))
        return full

    def _trials(self, decoder, requests, policy, schedule, sampling, full=None) -> Iterator[_Chains | _Fault]:
        """One result a trial: the outcomes of all its chains, or the fault of the first that broke."""
        parts = schedule.split()

        def room(r: Request | Given) -> int:
            return sampling.max_new_tokens if sampling else len(r.continuation)

        slots = self.slots or min(fitting(decoder, requests, policy, part, room) for part in parts)
        # With several chains a trial is done only when the last one is; blocks keep finished ones from piling up.
        size = len(requests) if len(parts) == 1 else 4 * slots
        for start in range(0, len(requests), size):
            block = requests[start : start + size]
            if len(parts) == 1:
                for outcome in self._outcomes(decoder, block, policy, parts[0], sampling, slots, full):
                    yield outcome if isinstance(outcome, _Fault) else _Chains(outcome.key, [outcome])
                continue
            done: dict[Any, list[Outcome | Replayed | _Fault]] = {r.key: [] for r in block}
            for index, part in enumerate(parts):
                chain = [replace(r, seed=chain_seed(r.seed, index)) for r in block]
                for outcome in self._outcomes(decoder, chain, policy, part, sampling, slots, full):
                    done[outcome.key].append(outcome)
            for key, several in done.items():
                yield next((o for o in several if isinstance(o, _Fault)), None) or _Chains(key, several)

    def _outcomes(
        self, decoder, requests, policy, schedule, sampling, slots: int, full=None
    ) -> Iterator[Outcome | Replayed | _Fault]:
        """Outcomes, with fewer slots when memory runs out; a batch that breaks is cut in halves until only the trials
        at fault are left, and those are recorded as failed. Raises MeterMismatch, and what a lost device raises:
        neither says anything about a trial."""
        left = {r.key: r for r in requests}
        while left:
            slots, fault = min(slots, len(left)), None
            try:
                some = list(left.values())
                if full is None:
                    run = generate(decoder, some, policy, schedule, sampling, slots=slots, usage=self.usage)
                else:
                    run = replay(decoder, some, policy, schedule, slots=slots, full=full)
                for outcome in run:
                    del left[outcome.key]
                    yield outcome
            except (MeterMismatch, ModelError):
                raise
            except Exception as error:
                fault = _judged(error)
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
                    yield from self._outcomes(decoder, part, policy, schedule, sampling, slots, full)
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
        reference: Record | None = None,
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
        if reference is None:
            outputs = [list(o.output_ids) for o in outcomes]
            statuses = [o.status for o in outcomes]
            texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in outputs]
        else:
            outputs, statuses, texts = (
                [own] * len(outcomes) for own in (reference.output_ids, reference.status, reference.output)
            )
        grades = [self.study.task.grade(problem, text) for text in texts]
        several = len(outcomes) > 1
        winner = elect(self.study.task, grades)
        accounts = [o.residency for o in outcomes]
        account = join(accounts, policy.footprint) if several else accounts[0]
        kept = [(o.kept_min, o.kept_max) for o in outcomes if o.kept_min is not None]
        return Record(
            **common,
            status=statuses[winner],
            output_tokens=len(outputs[winner]),
            output=texts[winner],
            output_ids=outputs[winner],
            grade=GradeRecord(**asdict(grades[winner])),
            residency=ResidencyRecord.of(account),
            kept_min=min((low for low, _ in kept), default=None),
            kept_max=max((high for _, high in kept), default=None),
            regions=RegionsRecord(
                bins=sum(o.regions.bins for o in outcomes),
                empty=sum(o.regions.empty for o in outcomes),
                longest=max(o.regions.longest for o in outcomes),
            ),
            stages=StagesRecord.of(stages(schedule, lengths[result.key], outputs)),
            fidelity=FidelityRecord.of(summarise(result.tokens), digest_of(result.tokens)) if reference else None,
            measures=_measures(outcomes),
            chains=[
                ChainRecord(
                    status=status,
                    output=text,
                    output_ids=ids,
                    extracted=grade.extracted,
                    residency=ResidencyRecord.of(o.residency),
                )
                for o, status, text, ids, grade in zip(outcomes, statuses, texts, outputs, grades)
            ]
            if several
            else [],
        )


def hand_on(
    records: list[Record], tokens: dict[Trial, Tokens], save: Save, progress: Progress, replays: Replays | None
) -> None:
    """What becomes of results: the numbers per token are stored before the records that commit to them."""
    if replays:
        replays.keep(tokens)
    save(records)
    progress(len(records), sum(r.output_tokens for r in records))


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
    outcomes: Sequence[Any]

    @property
    def tokens(self) -> Tokens:
        """Of a replay: the numbers per token of its chains, one below the other."""
        return Tokens.stacked([o.tokens for o in self.outcomes])


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


def _some(results: Iterator, count: int) -> Iterator[list]:
    """Up to `count` at a time."""
    while several := list(itertools.islice(results, count)):
        yield several


def _blocks(requests: Sequence[Given], tokens: int) -> Iterator[list[Given]]:
    """Consecutive trials of up to so many given tokens; one alone may have more."""
    block, size = [], 0
    for r in requests:
        if block and size + len(r.continuation) > tokens:
            yield block
            block, size = [], 0
        block.append(r)
        size += len(r.continuation)
    if block:
        yield block


def _judged(error: Exception) -> tuple[str, str, str]:
    """Kind, name and message of an error. Only text is kept: a traceback would keep a broken run's cache in memory.
    Raises it where it says nothing about a trial."""
    memory = _out_of_memory(error)
    if not memory and device_is_lost(error):
        raise error
    return "infrastructure" if memory else "method", type(error).__name__, str(error)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of the device or of the machine: outside torch's own allocator it has no type."""
    signs = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in signs)


def device_is_lost(error: Exception) -> bool:
    """Whether every further call would fail alike: a device that has raised once answers nothing any more."""
    return isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error)
