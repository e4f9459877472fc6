"""Which problems a registered rule leaves out of a comparison, because compression came to nothing there.

Nothing that an arm did may decide it, or problems would be selected by their result: a baseline that gives up early is
never compressed. So a prompt leaves a problem out where it alone decides the regime, and what was never compressed only
where that holds for both arms, which then did the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from cask_eval.decide.arms import ArmTrials
from cask_eval.decide.budgets import schedule_of
from cask_eval.decide.trial import Without
from cask_eval.ledger.events import ArmChoice
from cask_eval.protocol.model import Exclude
from cask_eval.records.model import Record
from cask_eval.schedule import Book, Schedule
from cask_eval.stages import of_events


def crowded_out(schedule: Schedule, prompt_tokens: int) -> bool:
    """Whether entries of a prompt of this length take up the whole budget at an event, whatever is generated. A prompt
    only loses entries, so the first events say it."""
    for part in schedule.split():
        book, done = Book(part, prompt_tokens), []
        if part.compresses_prompt(prompt_tokens):
            done.append(book.fire())
        for _ in range(3):
            if (wait := book.wait()) is None:
                break
            book.grow(wait)
            done.append(book.fire())
        if of_events(done, part.prompt).exhausted:
            return True
    return False


def excluding(rule: Exclude | None, arms: Mapping[str, Mapping[str, ArmChoice]]) -> Callable[[Record], bool]:
    """Whether a record's prompt alone leaves its problem out, under its cell's frozen baseline; `arms` is
    `Select.arms`. Where there is no such rule or baseline, none does. Raises ValueError when a schedule cannot be."""
    if rule is None or "prefix_budget_exhausted" not in rule.regimes:
        return lambda record: False
    schedules = {cell: schedule_of(row["baseline"]) for cell, row in arms.items() if "baseline" in row}
    known: dict[tuple[str, int], bool] = {}

    def found(record: Record) -> bool:
        if record.cell not in schedules:
            return False
        look = record.cell, record.prompt_tokens
        if look not in known:
            known[look] = crowded_out(schedules[record.cell], record.prompt_tokens)
        return known[look]

    return found


def left_out(rule: Exclude | None, baseline: ArmTrials, candidate: ArmTrials) -> set[str]:
    """The problems that the rule leaves out of a comparison: by their prompts (`excluding`), or because all trials of
    both arms left an account and none was ever compressed, so that both arms did the same."""
    if rule is None:
        return set()
    found = set()
    for problem, ours in baseline.trials.items():
        both = [*ours, *candidate.trials[problem]]
        whole = len(both) == baseline.samples + candidate.samples
        idle = whole and all(t.account and not t.account.active for t in both)
        if any(t.excluded for t in both) or (idle and "never_compressed" in rule.regimes):
            found.add(problem)
    return found


def without(arm: ArmTrials, problems: set[str]) -> ArmTrials:
    """The same arm without these problems."""
    if not problems:
        return arm
    return replace(arm, trials=Without(arm.trials, problems))
