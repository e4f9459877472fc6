from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from cask_eval.decide.budgets import matched_choice, measured, reference_choice, schedule_of
from cask_eval.ledger.events import ArmChoice, ModelLock
from cask_eval.records.model import Record
from cask_eval.residency import Residency, Schedule, walk
from cask_eval.verify.check import Skip, check
from cask_eval.verify.evidence import Evidence

_NEEDS = ("register", "protocol", "dev_run", "select", "dev", "heldout")


@check("V16", "caches measured and matched", *_NEEDS)
def v16(e: Evidence) -> Iterator[str]:
    """Every account adds up, has its model's geometry and is the one that the frozen schedule must leave; the matched
    budgets follow from the dev records; the verdicts on matching follow from the held-out ones."""
    yield from _accounts(e)
    yield from _budgets(e)
    yield from _verdicts(e)


def _accounts(e: Evidence) -> Iterator[str]:
    assert e.register and e.protocol and e.dev_run and e.select and e.dev and e.heldout
    models = {m.name: m for m in e.register.models}
    model_of = {cell.name: models.get(cell.model) for cell in e.protocol.cells}
    prompts: dict[tuple[str, str], int] = {}
    content: set[str] = set()
    for r in (*e.dev.records, *e.heldout.records):
        where = f"{r.phase}/{r.cell}/{r.arm}/{r.config}/{r.problem}/{r.sample}"
        lock = model_of.get(r.cell)
        if lock is None:
            yield f"{where}: its model is not locked"
            continue
        if r.phase == "dev":
            choice = e.dev_run.matched.get(r.cell, {}).get(r.arm, {}).get(r.config)
        else:
            choice = e.select.arms.get(r.cell, {}).get(r.arm)
        if choice is None:
            yield f"{where}: the ledger freezes no schedule for this arm"
            continue
        if choice.schedule.kind != "length":
            content.add(f"{r.cell}/{r.arm}")
        first = prompts.setdefault((lock.name, r.problem), r.prompt_tokens) if r.status != "failed" else r.prompt_tokens
        if r.prompt_tokens != first:
            yield f"{where}: {r.prompt_tokens} prompt tokens, another trial of this problem had {first}"
        for what in _account(r, lock, choice):
            yield f"{where}: {what}"
    for arm in sorted(content):
        yield Skip(f"{arm}: what it holds depends on what it generates, so its accounts cannot be replayed")


def _account(r: Record, lock: ModelLock, choice: ArmChoice) -> Iterator[str]:
    if r.prompt_tokens > lock.max_prompt_tokens:
        yield f"{r.prompt_tokens} prompt tokens, but the model lock allows {lock.max_prompt_tokens}"
    if r.residency is None:
        return
    account = r.residency.account()
    geometry = (lock.layers, lock.kv_heads, lock.entry_bytes)
    if (account.layers, account.kv_heads, account.entry_bytes) != geometry:
        yield "the account's layers, heads or entry bytes are not the locked model's"
    yield from _kept(r, account)
    if r.status == "failed":
        yield from _tally(account)
        return
    # The walk takes as long as the trial claims to be, so the claim must be borne out first.
    steps = max(len(r.output_ids) - 1, 0)
    if account.prompt_tokens != r.prompt_tokens or account.steps != steps:
        yield (f"the account is over {account.prompt_tokens} + {account.steps} tokens, "
               f"the trial over {r.prompt_tokens} + {steps}")  # fmt: skip
    elif choice.schedule.kind != "length":
        yield from _tally(account)
    elif account != _walked(schedule_of(choice.schedule), r.prompt_tokens, steps, *geometry):
        yield "the account is not the one that the frozen schedule leaves"
        yield from _tally(account)


def _tally(account: Residency) -> Iterator[str]:
    try:
        if account.tally() != (account.entries, account.peak_entries):
            yield "the account's entries or peak are not what its events give"
    except ValueError as error:
        yield f"the account contradicts itself: {error}"


@lru_cache(maxsize=4096)
def _walked(schedule: Schedule, prompt: int, steps: int, layers: int, kv_heads: int, entry_bytes: int) -> Residency:
    return walk(schedule, prompt, steps, layers=layers, kv_heads=kv_heads, entry_bytes=entry_bytes)


def _kept(r: Record, account: Residency) -> Iterator[str]:
    """What any head kept must be possible beside the sums over all heads."""
    if (r.kept_min is None) != (not account.events) or (r.kept_max is None) != (not account.events):
        yield "kept_min and kept_max must be given where there were events, and only there"
    elif account.events and r.kept_min is not None and r.kept_max is not None:
        after = [left for _, _, left in account.events]
        if not r.kept_min * account.heads <= min(after) <= max(after) <= r.kept_max * account.heads:
            yield f"heads are said to have kept {r.kept_min} to {r.kept_max}, which the events rule out"


def _budgets(e: Evidence) -> Iterator[str]:
    assert e.protocol and e.dev_run and e.select and e.dev
    for cell in e.protocol.cells:
        runs = e.dev_run.matched.get(cell.name, {})
        baseline = runs.get("baseline", {}).get("")
        if baseline is None:
            yield f"{cell.name}: the dev run froze no baseline"
            continue
        lengths, mean = measured([r for r in e.dev.records if r.cell == cell.name and r.arm == "baseline"])
        if baseline.schedule.budget != cell.budget:
            yield f"{cell.name}: the baseline ran at budget {baseline.schedule.budget}, not at the registered one"
        if baseline != reference_choice(baseline.preset, baseline.params, baseline.schedule, mean):
            yield f"{cell.name}: the baseline's dev cache is {baseline.dev_mean}, the records give {mean}"

        others = {
            f"dev {arm} {c}": choice for arm, row in runs.items() if arm != "baseline" for c, choice in row.items()
        }
        others |= {arm: c for arm, c in e.select.arms.get(cell.name, {}).items() if arm != "baseline"}
        for name, choice in others.items():
            lock = choice.schedule
            if lock.kind != "length":
                continue
            expected = matched_choice(
                choice.preset, choice.params, lambda b, lock=lock: schedule_of(lock, b), lengths, mean,
                nominal=cell.budget,
            )  # fmt: skip
            if choice != expected:
                yield (f"{cell.name}/{name}: the matched budget is {lock.budget} at {choice.dev_mean} entries, "
                       f"the dev records give {expected.schedule.budget} at {expected.dev_mean}")  # fmt: skip


def _verdicts(e: Evidence) -> Iterator[str]:
    if e.document is None or e.derived is None or isinstance(e.derived, str):
        return
    derived = {(c.candidate, c.cell): c.matched.verdict for c in e.derived.cells}
    for c in e.document.cells:
        found = derived.get((c.candidate, c.cell), c.matched.verdict)
        if c.matched.verdict != found:
            yield f"{c.candidate} {c.cell}: the caches are called {c.matched.verdict}, the records give {found}"
