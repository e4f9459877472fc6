"""What the dev split foretells of the held-out run, said while that run is not yet spent. No evidence, and no part of
the ledger: whoever reads it may amend the protocol, and nothing else follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from cask_eval.decide.arms import ArmTrials
from cask_eval.decide.budgets import footprint_of
from cask_eval.decide.exclusion import excluding, left_out, without
from cask_eval.decide.matched import compare
from cask_eval.decide.model import ArmResult
from cask_eval.decide.trial import Table, Trials
from cask_eval.errors import CaskError
from cask_eval.ledger.events import ArmChoice, Select
from cask_eval.ledger.log import Ledger
from cask_eval.ledger.state import StudyState
from cask_eval.protocol.model import Cell, Protocol
from cask_eval.records.model import Record
from cask_eval.records.store import RecordStore
from cask_eval.splits.store import read
from cask_eval.workspace import Workspace

# With more of an arm's trials at the length cap than this, most of what is compared is where outputs were cut off.
MANY_CUT = Fraction(1, 2)

MAX_SAID = 8


@dataclass(frozen=True)
class Rehearsal:
    """arms: cell → the baseline and each surviving candidate, at its chosen configuration → its dev numbers.
    warnings: what would make the held-out run say nothing."""

    arms: dict[str, dict[str, ArmResult]]
    warnings: list[str]


def rehearse(space: Workspace, name: str) -> Rehearsal:
    """The rehearsal of a study that is tuned. Where its dev records are not those that the ledger commits to, that is
    all it says: a run that may go on is not stopped by what is no evidence."""
    state = StudyState.of(Ledger(space.ledger).events(), name)
    registered = state.register[1]
    store = RecordStore(space.records(name, "dev", state.revision))
    try:
        ids = [item.id for item in read(space.resolve(registered.splits["dev"].path)).items]
        if store.commit(space.root) == state.dev_run[1].records:
            protocol = Protocol.model_validate(registered.protocol)
            return rehearsal(protocol, state.select[1], store.read(), ids)
    except CaskError:
        pass
    gone = f"{space.relative(store.path)} or its split is not what the ledger commits to, so nothing is said of the "
    return Rehearsal({}, [f"{gone}dev run; restore it from a copy, or `cask-eval verify {name}` will find it"])


def rehearsal(protocol: Protocol, select: Select, records: Iterable[Record], dev_ids: Sequence[str]) -> Rehearsal:
    """The comparisons of the held-out run made on the dev records, as far as their caches and their right answers go.
    Records of other arms and configurations are passed over."""
    trials = _sorted(protocol, select, records, dev_ids)
    arms, warnings = {}, []
    for cell in protocol.cells:
        row = {arm: trials[cell.name, arm] for arm in ("baseline", *select.survivors)}
        chosen = select.arms[cell.name]
        arms[cell.name] = {
            arm: own.result(chosen[arm].preset, chosen[arm].params, chosen[arm].schedule.budget)
            for arm, own in row.items()
        }
        for candidate in select.survivors:
            warnings += _void(protocol, select, cell, candidate, row["baseline"], row[candidate])
        if not protocol.fidelity:
            warnings += _says_nothing(cell, row, arms[cell.name])  # of outputs that were cut off more is said below
    return Rehearsal(arms, warnings if protocol.fidelity else [*warnings, *_cut_off(protocol, arms)])


def _sorted(
    protocol: Protocol, select: Select, records: Iterable[Record], dev_ids: Sequence[str]
) -> dict[tuple[str, str], ArmTrials]:
    samples, numbers = protocol.generation.samples, {p: i for i, p in enumerate(dev_ids)}
    configs = {(c.name, "baseline"): "" for c in protocol.cells}
    configs |= {(c.name, arm): select.chosen[c.name][arm] for c in protocol.cells for arm in select.survivors}
    tables = {place: Table(numbers, samples) for place in configs}
    excluded, made = excluding(protocol.exclude, select.arms), Trials()
    for r in records:
        place = r.cell, r.arm
        if r.phase == "dev" and configs.get(place) == r.config and r.problem in numbers and r.sample < samples:
            tables[place].add(r.problem, made.of(r, excluded(r)))

    def arm(choice: ArmChoice, table: Table) -> ArmTrials:
        return ArmTrials(samples, table, choice.schedule.prompt_policy, footprint_of(choice))

    return {(cell, name): arm(select.arms[cell][name], table) for (cell, name), table in tables.items()}


def _void(
    protocol: Protocol, select: Select, cell: Cell, candidate: str, ours: ArmTrials, theirs: ArmTrials
) -> Iterator[str]:
    excluded = left_out(protocol.exclude, ours, theirs)
    if len(excluded) == len(ours.trials):
        yield f"{protocol.comparison(candidate, cell.name)}: `exclude` leaves out every dev problem"
        return
    scores = select.scores[cell.name]
    difference = Fraction(scores[candidate][select.chosen[cell.name][candidate]]) - Fraction(scores["baseline"][""])
    found = compare(
        without(ours, excluded).caches, without(theirs, excluded).caches, difference, protocol.matched_cache, 0,
        better="better" if protocol.fidelity else "more accurate",
    )  # fmt: skip
    if found.verdict == "void":
        yield (
            f"{protocol.comparison(candidate, cell.name)}: on the dev split this comparison would be void, and one "
            f"that is void decides nothing: {'; '.join(found.reasons)}"
        )


def _mostly_cut(result: ArmResult) -> bool:
    return result.truncated > MANY_CUT * result.trials


def _cut_off(protocol: Protocol, arms: dict[str, dict[str, ArmResult]]) -> Iterator[str]:
    results = [(cell, arm, result) for cell, row in arms.items() for arm, result in row.items()]
    cut = [f"{c} {a} {r.truncated} of {r.trials}" for c, a, r in results if _mostly_cut(r)]
    if cut:
        yield (
            f"most dev trials met the length cap (generation.max_new_tokens {protocol.generation.max_new_tokens}); a "
            f"higher one lets them end: {', '.join(cut[:MAX_SAID])}"
            + (f" and {len(cut) - MAX_SAID} more" if len(cut) > MAX_SAID else "")
        )


def _says_nothing(cell: Cell, row: dict[str, ArmTrials], results: dict[str, ArmResult]) -> Iterator[str]:
    if any(map(_mostly_cut, results.values())):
        return
    rights = [arm.right for arm in row.values()]
    if all(right == rights[0] for right in rights[1:]) and len(rights) > 1:
        correct, trials = results["baseline"].correct, results["baseline"].trials
        which = {0: "none", trials: "all"}.get(correct, f"the same {correct}")
        yield (
            f"{cell.name}: every arm is right on {which} of {trials} dev trials, so there may be nothing for the "
            "held-out split to show; problems of another difficulty, or another budget, could tell the arms apart"
        )
