from __future__ import annotations

from collections.abc import Iterator

from cask_eval.decide.budgets import text
from cask_eval.decide.selection import Choice, arm_of, rule, select, stated
from cask_eval.fields import Param
from cask_eval.ledger.events import ArmChoice
from cask_eval.protocol.keys import dev_runs, full_arms
from cask_eval.protocol.model import REFERENCE
from cask_eval.schedule import PROMPTS, TRIGGERS
from cask_eval.verify.check import Skip, check
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.order import faults

_NEEDS = ("dev_run", "dev", "dev_manifest")


@check("V17", "candidates and configurations chosen by the rules", "protocol", "select")
def v17(e: Evidence) -> Iterator[str]:
    """Scores, choices, gains and survivors follow from the dev records; every arm has the registered preset and
    parameters, and what was confirmed is what was tuned."""
    assert e.protocol and e.select
    yield from faults(e, "dev_run", "select")
    if not (e.dev_run and e.dev and e.dev_manifest):
        yield Skip(next(e.why(name) for name in _NEEDS if getattr(e, name) is None))
        return
    if e.select.rule != rule(e.protocol):
        yield f"the selection followed {e.select.rule!r}, registered is {rule(e.protocol)!r}"

    found = select(e.protocol, e.dev.records, [item.id for item in e.dev_manifest.items])
    if e.select.scores != stated(found.scores):
        yield "the dev scores are not those of the dev records"
    for cell, row in found.chosen.items():
        for name, config in row.items():
            chosen = e.select.chosen.get(cell, {}).get(name)
            if chosen != config:
                yield f"{e.protocol.comparison(name, cell)}: {chosen!r} was chosen, the rule gives {config!r}"
    if _shape(e.select.chosen) - _shape(found.chosen):
        yield "a configuration was chosen for an unregistered cell or candidate"
    for name, gain in found.gains.items():
        if e.select.gains.get(name) != text(gain):
            yield f"{name}: the gain is given as {e.select.gains.get(name)}, the dev records give {text(gain)}"
    if extra := e.select.gains.keys() - found.gains.keys():
        yield f"gains are given for unregistered candidates: {', '.join(sorted(extra))}"
    if e.select.survivors != found.survivors:
        yield f"{_names(e.select.survivors)} survived the screening, the rule gives {_names(found.survivors)}"
    yield from _arms(e)


def _shape(chosen: Choice) -> set[tuple[str, str]]:
    return {(cell, name) for cell, row in chosen.items() for name in row} | {(cell, "") for cell in chosen}


def _names(given: list[str]) -> str:
    return ", ".join(given) or "nobody"


def _arms(e: Evidence) -> Iterator[str]:
    assert e.protocol and e.dev_run and e.select
    cells, full = ([cell.name for cell in given] for given in (e.protocol.cells, e.protocol.reference_cells))
    if sorted(e.select.arms) != sorted(cells + full) or sorted(e.dev_run.matched) != sorted(cells + full):
        yield "the frozen arms are not those of the registered cells"
    for cell in full:
        yield from _full(e, cell)
    runs = {(arm, config) for arm, names in dev_runs(e.protocol).items() for config in names}
    held = e.protocol.heldout_arms(e.select.survivors)
    controls = {c.name for c in e.protocol.controls}
    for cell in cells:
        rows, frozen = e.dev_run.matched.get(cell, {}), e.select.arms.get(cell, {})
        tuned = {(arm, config): choice for arm, row in rows.items() for config, choice in row.items()}
        if tuned.keys() != runs:
            listed = (", ".join(_run(*run) for run in sorted(given)) for given in (tuned, runs))
            yield "{}: the dev run lists {}; registered are {}".format(cell, *listed)
        if frozen.keys() != held.keys():
            yield f"{cell}: frozen are {_names(sorted(frozen))}; to be confirmed were {_names(sorted(held))}"
        for run, choice in tuned.items():
            if run in runs and (choice.preset, choice.params) != arm_of(e.protocol, *run):
                yield f"{cell}: the dev run of {_run(*run)} had another preset or other parameters"
        named = {_run(*run): choice for run, choice in tuned.items()}
        for name, choice in (*named.items(), *frozen.items()):
            for field, value in _rescheduled(choice):
                yield (f"{cell}/{name}: the frozen schedule has {field} "
                       f"{getattr(choice.schedule, field)!r}, the arm's parameters say {value!r}")  # fmt: skip
        chosen = e.select.chosen.get(cell, {})
        for arm, choice in frozen.items():
            if arm in controls:
                if (choice.preset, choice.params) != arm_of(e.protocol, arm, ""):
                    yield f"{cell}/{arm}: another preset or other parameters than registered"
            elif arm in held and choice != tuned.get((arm, chosen.get(arm, ""))):
                yield f"{cell}/{arm}: what was frozen is not what ran on the dev split"


def _full(e: Evidence, cell: str) -> Iterator[str]:
    """References and ceiling are one arm, the one that ran on dev."""
    assert e.protocol and e.dev_run and e.select
    tuned, frozen = e.dev_run.matched.get(cell, {}), e.select.arms.get(cell, {})
    choice = tuned.get(REFERENCE, {}).get("")
    if choice is None or tuned != {REFERENCE: {"": choice}}:
        yield f"{cell}: the dev run lists {_names(sorted(tuned))}; registered is {REFERENCE} alone"
    elif frozen != dict.fromkeys(full_arms("heldout"), choice):
        yield f"{cell}: what was frozen is not the full cache that ran on the dev split"
    elif (choice.preset, choice.params) != arm_of(e.protocol, REFERENCE, ""):
        yield f"{cell}: references were made with {choice.preset} and not with the full cache"


def _run(arm: str, config: str) -> str:
    return f"{arm} {config}" if config else arm


def _rescheduled(choice: ArmChoice) -> Iterator[tuple[str, Param]]:
    """Parameters that name a part of the schedule and differ from it. A method of somebody else's may use such a name
    for another thing, so only values that a schedule can have are compared."""
    for field, possible in (("delta", None), ("prompt", PROMPTS), ("trigger", TRIGGERS)):
        value = choice.params.get(field)
        fits = type(value) is int if possible is None else value in possible
        if fits and value != getattr(choice.schedule, field):
            yield field, value
