"""What a model says with its full cache: generated once, stored as token ids, read again and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cask_eval import jsonl
from cask_eval.engine.decode import Request, generate
from cask_eval.engine.method import Policy
from cask_eval.engine.replay import Given, compare, dense, entropy
from cask_eval.engine.sampling import Sampling
from cask_eval.errors import DriftError
from cask_eval.protocol.keys import trial_seed
from cask_eval.replay.records import Reference, Settings, line_of, read
from cask_eval.runner.asking import digest_of


@dataclass(frozen=True)
class Question:
    """One problem as the model reads it."""

    problem: str
    ids: tuple[int, ...]

    @property
    def digest(self) -> str:
        return digest_of([self.ids])


# A question and the number of its sample.
Missing = tuple[Question, int]


def seed_of(settings: Settings, problem: str, sample: int) -> str:
    """The seed of a reference, and of every replay of it: arms share their random numbers."""
    return trial_seed(str(settings.seed), "replay", problem, sample, phase="reference")


def given_of(reference: Reference, question: Question, seed: int) -> Given:
    return Given(reference.key, question.ids, seed, tuple(reference.output_ids))


def complete(
    path: Path,
    settings: Settings,
    questions: Sequence[Question],
    make: Callable[[list[Missing], Callable[[Reference], None]], None],
    advance: Callable[[int, int], None],
) -> list[Reference]:
    """The references of all questions and samples, in this order; those that `path` lacks are added to it as `make`
    hands them out. Raises DriftError when one that is there is of another prompt, model or setting."""
    jsonl.repair(path)
    found = {r.key: r for r in read(path, Reference)}
    check(found.values(), settings, questions)
    wanted = [(q, s) for q in questions for s in range(settings.samples)]
    missing = [(q, s) for q, s in wanted if (q.problem, s) not in found]

    def keep(reference: Reference) -> None:
        jsonl.append(path, line_of(reference) + b"\n")
        found[reference.key] = reference
        advance(1, len(reference.output_ids))

    if missing:
        make(missing, keep)
    return [found[q.problem, s] for q, s in wanted]


def generated(decoder: Any, full: Policy, settings: Settings, missing: Sequence[Missing]) -> Iterator[Reference]:
    """The missing references as they finish. `full`: the full cache."""
    sampling = Sampling(
        settings.max_new_tokens, float(settings.temperature), float(settings.top_p), tuple(settings.stop_ids)
    )
    about = {(q.problem, s): (q, seed_of(settings, q.problem, s)) for q, s in missing}
    requests = [Request(key, q.ids, int(seed, 16)) for key, (q, seed) in about.items()]
    for outcome in generate(decoder, requests, full, full.schedule(1), sampling, slots=settings.slots):
        question, seed = about[outcome.key]
        given = Given(outcome.key, question.ids, 0, outcome.output_ids)
        logits = dense(decoder, given)
        nll, rank, _, _ = compare(logits, logits.new_tensor(outcome.output_ids).long())
        missed = (rank > 1).nonzero().flatten().tolist()
        yield Reference(
            problem=question.problem,
            sample=outcome.key[1],
            seed=seed,
            model=settings.model_digest,
            prompt=question.digest,
            prompt_tokens=len(question.ids),
            output_ids=list(outcome.output_ids),
            stopped=outcome.stopped,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top1=f"{float((rank == 1).double().mean()):.9f}",
            nll=f"{float(nll.double().mean()):.9f}",
            entropy=f"{float(entropy(logits).double().mean()):.9f}",
            first_mismatch=missed[0] if missed else len(outcome.output_ids),
        )


def check(references: Any, settings: Settings, questions: Sequence[Question]) -> None:
    """Raises DriftError naming the first reference that does not belong to these questions and settings."""
    known = {q.problem: q for q in questions}
    for r in references:
        where = f"reference {r.problem}, sample {r.sample}"
        if r.problem not in known or r.sample >= settings.samples:
            raise DriftError(f"{where}: is not asked for; take its line out, or give its prompt and --samples")
        wanted = {
            "prompt": known[r.problem].digest,
            "model": settings.model_digest,
            "max_new_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": seed_of(settings, r.problem, r.sample),
        }
        for field, value in wanted.items():
            if getattr(r, field) != value:
                raise DriftError(
                    f"{where}: {field} is {getattr(r, field)}, but this run has {value}; run with what it was made "
                    "with, or without these references"
                )
