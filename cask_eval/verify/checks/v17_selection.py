from __future__ import annotations

from collections.abc import Iterator

from cask_eval.decide.budgets import text
from cask_eval.decide.selection import arm_of, choose, rule, scores
from cask_eval.fields import Param
from cask_eval.ledger.events import ArmChoice
from cask_eval.protocol.keys import configs
from cask_eval.residency import PROMPTS, TRIGGERS
from cask_eval.verify.check import Skip, check
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.order import faults

_NEEDS = ("dev_run", "dev", "dev_manifest")


@check("V17", "configuration chosen by the rule", "protocol", "select")
def v17(e: Evidence) -> Iterator[str]:
    """Scores and choice follow from the dev records; every arm has the registered preset and parameters, and what was
    confirmed is what was tuned."""
    assert e.protocol and e.select
    yield from faults(e, "dev_run", "select")
    if not (e.dev_run and e.dev and e.dev_manifest):
        yield Skip(next(e.why(name) for name in _NEEDS if getattr(e, name) is None))
        return
    if e.select.rule != rule(e.protocol):
        yield f"the selection followed {e.select.rule!r}, registered is {rule(e.protocol)!r}"

    found = scores(e.protocol, e.dev.records, [item.id for item in e.dev_manifest.items])
    stated = {cell: {name: text(score) for name, score in row.items()} for cell, row in found.items()}
    if e.select.scores != stated:
        yield "the dev scores are not those of the dev records"
    chosen = choose(e.protocol, found)
    for cell, config in chosen.items():
        if e.select.chosen.get(cell) != config:
            yield f"{cell}: {e.select.chosen.get(cell)!r} was chosen, the rule gives {config!r}"
    if extra := e.select.chosen.keys() - chosen.keys():
        yield f"a configuration was chosen for unregistered cells: {', '.join(sorted(extra))}"
    yield from _arms(e)


def _arms(e: Evidence) -> Iterator[str]:
    assert e.protocol and e.dev_run and e.select
    cells = [cell.name for cell in e.protocol.cells]
    if sorted(e.select.arms) != sorted(cells) or sorted(e.dev_run.matched) != sorted(cells):
        yield "the frozen arms are not those of the registered cells"
    runs = {"": ("baseline", "")}
    runs |= {name: ("candidate", name) for name, _ in configs(e.protocol.candidate)}
    for cell in cells:
        tuned, frozen = e.dev_run.matched.get(cell, {}), e.select.arms.get(cell, {})
        if tuned.keys() != runs.keys():
            yield f"{cell}: the dev run lists {sorted(tuned)}, registered are {sorted(runs)}"
        if frozen.keys() != e.protocol.arms.keys():
            yield f"{cell}: frozen are {sorted(frozen)}, registered are {sorted(e.protocol.arms)}"
        for name, choice in tuned.items():
            if name in runs and (choice.preset, choice.params) != arm_of(e.protocol, *runs[name]):
                yield f"{cell}: the dev run of {name or 'the baseline'} had another preset or other parameters"
        for name, choice in (*tuned.items(), *frozen.items()):
            for field, value in _rescheduled(choice):
                yield (f"{cell}/{name or 'baseline'}: the frozen schedule has {field} "
                       f"{getattr(choice.schedule, field)!r}, the arm's parameters say {value!r}")  # fmt: skip
        config = e.select.chosen.get(cell, "")
        for arm, choice in frozen.items():
            if arm not in e.protocol.arms:
                continue
            if arm in ("baseline", "candidate"):
                if choice != tuned.get("" if arm == "baseline" else config):
                    yield f"{cell}/{arm}: what was frozen is not what ran on the dev split"
            elif (choice.preset, choice.params) != arm_of(e.protocol, arm, ""):
                yield f"{cell}/{arm}: another preset or other parameters than registered"


def _rescheduled(choice: ArmChoice) -> Iterator[tuple[str, Param]]:
    """Parameters that name a part of the schedule and differ from it. A method of somebody else's may use such a name
    for another thing, so only values that a schedule can have are compared."""
    for field, possible in (("delta", None), ("prompt", PROMPTS), ("trigger", TRIGGERS)):
        value = choice.params.get(field)
        fits = type(value) is int if possible is None else value in possible
        if fits and value != getattr(choice.schedule, field):
            yield field, value
