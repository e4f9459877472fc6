"""V16 on arms of every kind: packed entries, remembered queries, boundaries, chains, uneven heads, a guard. The
evidence is made of data only; each test changes one thing in it."""

import random
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import pytest

from cask_eval.canonical import ZERO
from cask_eval.decide.budgets import (
    at_budget,
    entries,
    footprint_of,
    matched_choice,
    measured,
    reference_choice,
    schedule_of,
    searched_choice,
)
from cask_eval.footprint import Footprint, Packing
from cask_eval.ledger.events import ModelLock
from cask_eval.protocol.keys import step_config
from cask_eval.records.model import ChainRecord, GradeRecord, Record, ResidencyRecord
from cask_eval.residency import expected
from cask_eval.schedule import Schedule
from cask_eval.verify.checks.v16_caches import v16

CELL = "m/b40"
MODEL = ModelLock(
    name="m", id="m", digest=ZERO, files={}, chat_template=None, calibration=None, layers=2, query_heads=4, kv_heads=2,
    head_dim=8, itemsize=2, max_prompt_tokens=60, stop_ids=[],
)  # fmt: skip
HELD = Footprint(4, 8, 2)

# arm → schedule at the nominal budget, and footprint
ARMS = {
    "baseline": (Schedule("slack", 40, 16, "pinned"), HELD),
    "packed": (Schedule("slack", 40, 16, "pinned"), replace(HELD, packing=Packing(2, 4, 8))),
    "sentences": (Schedule("boundary", 40, 16, "pinned", earliest=3, boundaries=(5,)), HELD),
    "vote": (Schedule("slack", 40, 16, "pinned", chains=2), HELD),
    "folding": (Schedule("slack", 40, 16, "two_stage", True, "last", 4), replace(HELD, shared_bytes=12)),
    "random": (Schedule("periodic", 40, 8, "compete"), replace(HELD, trait_bytes=2)),
    "window": (Schedule("boundary", 40, 16, "pinned", earliest=3, boundaries=(5,)), replace(HELD, fixed_bytes=64)),
}
CONTROLS = ("random", "window")


def output(arm, problem, phase, chain):
    draw = random.Random(f"{arm}{problem}{phase}{chain}")
    return draw.choices(range(8), k=draw.randint(60, 160))


def stored(account):
    return ResidencyRecord.model_validate({k: v for k, v in account.to_json().items() if k != "chains"})


def trial(choice, arm, problem, phase):
    schedule, prompt = schedule_of(choice), 10 + 7 * problem
    outputs = [output(arm, problem, phase, chain) for chain in range(schedule.chains)]
    account = expected(schedule, footprint_of(choice), prompt, outputs, MODEL.layers)
    after = [left // account.heads for part in account.chains or [account] for *_, left in part.events]
    # Heads of one arm hold unequally many: one more here, one fewer there.
    spread = 1 if arm == "random" else 0
    return Record(
        study="s",
        registration=ZERO,
        phase=phase,
        cell=CELL,
        arm=arm,
        config="" if phase == "heldout" or arm == "baseline" else "untuned",
        problem=f"p{problem}",
        problem_digest=ZERO,
        sample=0,
        seed="0" * 32,
        status="finished",
        prompt_tokens=prompt,
        output_tokens=len(outputs[-1]),
        output="",
        output_ids=outputs[-1],
        grade=GradeRecord(correct=True, extracted=None, how="test", grader="test/1"),
        residency=stored(account),
        kept_min=min(after) - spread if after else None,
        kept_max=max(after) + spread if after else None,
        chains=[
            ChainRecord(status="finished", output="", output_ids=o, extracted=None, residency=stored(a))
            for o, a in zip(outputs, account.chains)
        ],
    )


def trials(choice, arm, phase):
    return [trial(choice, arm, problem, phase) for problem in range(6)]


def honest():
    """Evidence of one cell as V16 reads it."""
    base = reference_choice("base", {}, *ARMS["baseline"], Fraction(0))
    lengths, mean = measured(trials(base, "baseline", "dev"))
    matched, frozen = {"baseline": {"": reference_choice("base", {}, *ARMS["baseline"], mean)}}, {}
    for arm, held in ARMS.items():
        if arm == "baseline":
            frozen[arm] = matched[arm][""]
            continue
        frozen[arm] = matched_choice(arm, {}, *held, lengths, mean)
        if arm not in CONTROLS:
            frozen[arm] = searched_choice(frozen[arm], lambda c, arm=arm: measured(trials(c, arm, "dev"))[1])
            matched[arm] = {"untuned": frozen[arm]}
    dev = [r for arm, row in matched.items() for c in row.values() for r in trials(c, arm, "dev")]
    dev += [
        r.model_copy(update={"config": step_config("untuned", step.budget)})
        for arm, row in matched.items()
        for c in row.values()
        for step in c.searched
        for r in trials(at_budget(c, step.budget), arm, "dev")
    ]
    heldout = [r for arm, c in frozen.items() for r in trials(c, arm, "heldout")]
    return SimpleNamespace(
        register=SimpleNamespace(models=[MODEL]),
        protocol=SimpleNamespace(
            cells=[SimpleNamespace(name=CELL, model="m", budget=40)],
            reference_cells=[],
            candidates=[SimpleNamespace(name=a) for a in ARMS if a != "baseline" and a not in CONTROLS],
        ),
        dev_run=SimpleNamespace(matched={CELL: matched}),
        select=SimpleNamespace(arms={CELL: frozen}),
        dev=SimpleNamespace(records=dev),
        heldout=SimpleNamespace(records=heldout),
        document=None,
        derived=None,
    )


HONEST = honest()


@pytest.fixture
def evidence():
    e = SimpleNamespace(**vars(HONEST))
    e.dev_run = SimpleNamespace(matched={CELL: {arm: dict(row) for arm, row in HONEST.dev_run.matched[CELL].items()}})
    e.select = SimpleNamespace(arms={CELL: dict(HONEST.select.arms[CELL])})
    e.dev = SimpleNamespace(records=list(HONEST.dev.records))
    e.heldout = SimpleNamespace(records=list(HONEST.heldout.records))
    return e


def faults(e):
    found = v16.run(e)
    return found.status, " ".join(found.details)


def edit(e, arm, change, phase="heldout"):
    """Change the first record of an arm that had an event."""
    records = getattr(e, phase).records
    at = next(i for i, r in enumerate(records) if r.arm == arm and r.kept_min is not None)
    records[at] = change(records[at])


def test_honest_evidence_passes(evidence):
    found = v16.run(evidence)
    assert found.status == "pass", found.details
    assert all(r.kept_min is not None for r in HONEST.heldout.records)
    assert HONEST.select.arms[CELL]["vote"].searched and HONEST.select.arms[CELL]["sentences"].searched
    assert not HONEST.select.arms[CELL]["window"].searched


def passed(arm):
    """A budget that the arm's search went through and did not end at."""
    choice = HONEST.dev_run.matched[CELL][arm]["untuned"]
    return next(s.budget for s in choice.searched if s.budget != choice.schedule.budget)


def test_budgets_on_the_way_are_checked_against_their_own_records(evidence):
    arm = next(a for a, row in HONEST.dev_run.matched[CELL].items() for c in row.values() if len(c.searched) > 1)

    def restated(choice):
        """So little that the search goes on as it did."""
        steps = [
            s.model_copy(update={"dev_mean": entries(Fraction(s.dev_mean) + Fraction(1, 10**9))})
            if s.budget == passed(arm)
            else s
            for s in choice.searched
        ]
        return choice.model_copy(update={"searched": steps})

    for phase in ("select", "dev_run"):
        freeze(evidence, arm, restated, phase)
    found = v16.run(evidence)
    assert found.status == "fail" and len(found.details) == 1
    assert f"at budget {passed(arm)}, the records give" in found.details[0]


def test_records_of_a_budget_on_the_way_are_needed_and_replayed(evidence):
    arm = next(a for a, row in HONEST.dev_run.matched[CELL].items() for c in row.values() if len(c.searched) > 1)
    config = step_config("untuned", passed(arm))
    own = [i for i, r in enumerate(evidence.dev.records) if (r.arm, r.config) == (arm, config)]
    whole = list(evidence.dev.records)
    evidence.dev.records = [r for i, r in enumerate(whole) if i not in own]
    assert "no dev trials at budget" in faults(evidence)[1]
    evidence.dev.records = list(whole)
    changed = whole[own[0]]
    evidence.dev.records[own[0]] = account(changed, entries=changed.residency.entries + 1)
    assert "is not the one that the frozen schedule leaves" in faults(evidence)[1]


def test_what_counts_as_the_configuration_is_what_the_search_ended_with(evidence):
    at = next(i for i, r in enumerate(evidence.dev.records) if r.arm == "vote" and r.config == "untuned")
    evidence.dev.records[at] = evidence.dev.records[at].model_copy(update={"output": "another"})
    assert "not those of the budget that the search ended at" in faults(evidence)[1]


def account(r, **change):
    return r.model_copy(update={"residency": r.residency.model_copy(update=change)})


def longer(ids):
    return [*ids, 0]


def chain(r, at, **change):
    chains = list(r.chains)
    chains[at] = chains[at].model_copy(update=change)
    return r.model_copy(update={"chains": chains})


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("name", ["entries", "payload_bytes", "aux_bytes", "peak_entries", "peak_bytes", "entry_bytes"])
def test_every_number_of_an_account_is_checked(evidence, arm, name):
    edit(evidence, arm, lambda r: account(r, **{name: getattr(r.residency, name) + 1}))
    status, said = faults(evidence)
    assert status == "fail" and f"{name} is " in said and f"heldout/{CELL}/{arm}/" in said


@pytest.mark.parametrize(
    "arm, change, message",
    [
        ("baseline", lambda r: r.model_copy(update={"output_ids": longer(r.output_ids)}), "steps is"),
        ("baseline", lambda r: account(r, events=r.residency.events[:-1]), "events, where"),
        ("baseline", lambda r: r.model_copy(update={"prompt_tokens": 61}), "the model lock allows 60"),
        ("baseline", lambda r: r.model_copy(update={"prompt_tokens": 59}), "another trial of this problem had"),
        ("sentences", lambda r: r.model_copy(update={"output_ids": [0] * len(r.output_ids)}), "events"),
        ("vote", lambda r: r.model_copy(update={"chains": r.chains[:1]}), "it has 1 chains, the frozen schedule 2"),
        ("vote", lambda r: r.model_copy(update={"chains": []}), "it has 0 chains"),
        ("vote", lambda r: r.model_copy(update={"chains": r.chains[::-1]}), "is not the one"),
        ("vote", lambda r: chain(r, 1, output_ids=r.chains[1].output_ids[:-9]), "is not the one"),
        ("vote", lambda r: chain(r, 0, residency=r.chains[1].residency), "chains, where 2 follow"),
        ("vote", lambda r: account(r, events=r.chains[0].residency.events), "events, where 0 follow"),
        ("packed", lambda r: r.model_copy(update={"chains": [HONEST_CHAIN]}), "it has 1 chains"),
        ("folding", lambda r: r.model_copy(update={"status": "failed"}), "has an account all the same"),
        ("folding", lambda r: r.model_copy(update={"config": "x"}), "freezes no schedule"),
        ("folding", lambda r: r.model_copy(update={"arm": "other"}), "freezes no schedule"),
    ],
)
def test_a_record_that_its_schedule_does_not_leave(evidence, arm, change, message):
    edit(evidence, arm, change)
    status, said = faults(evidence)
    assert status == "fail" and message in said


HONEST_CHAIN = next(r for r in HONEST.heldout.records if r.arm == "vote").chains[0]


@pytest.mark.parametrize(
    "arm, low, high, possible",
    [
        ("baseline", 0, 0, True),
        ("baseline", -1, 0, False),  # the others would have to make up for it
        ("baseline", 0, 1, False),
        ("baseline", -1, 1, True),
        ("baseline", -3, 1, True),
        ("baseline", -4, 1, False),  # three heads with one more are not four fewer
        ("baseline", -1, 3, True),
        ("baseline", -1, 4, False),
        ("baseline", 1, 1, False),
        ("baseline", -1, -1, False),
    ],
)
def test_heads_may_differ_as_far_as_their_sum_allows(evidence, arm, low, high, possible):
    # All events of this arm leave 40 in each of 4 heads.
    edit(evidence, arm, lambda r: r.model_copy(update={"kept_min": 40 + low, "kept_max": 40 + high}))
    status, said = faults(evidence)
    assert (status == "pass") is possible and ("events rule out" in said) is not possible


@pytest.mark.parametrize("change", [{"kept_min": None}, {"kept_max": None}, {"kept_min": None, "kept_max": None}])
def test_what_heads_kept_must_be_given(evidence, change):
    edit(evidence, "vote", lambda r: r.model_copy(update=change))
    assert "kept_min and kept_max must be given" in faults(evidence)[1]


def freeze(e, arm, change, phase="select"):
    rows = e.select.arms[CELL] if phase == "select" else e.dev_run.matched[CELL][arm]
    key = arm if phase == "select" else next(iter(rows))
    rows[key] = change(rows[key])


def held(choice, **change):
    return choice.model_copy(update={"footprint": choice.footprint.model_copy(update=change)})


def planned(choice, **change):
    return choice.model_copy(update={"schedule": choice.schedule.model_copy(update=change)})


@pytest.mark.parametrize("phase", ["select", "dev_run"])
@pytest.mark.parametrize(
    "arm, change, message",
    [
        ("packed", lambda c: held(c, packing=None), "the matched budget is"),
        ("packed", lambda c: held(c, head_dim=16), "another geometry"),
        ("packed", lambda c: held(c, packing=c.footprint.packing.model_copy(update={"bits": 3})), "bits is 3"),
        ("folding", lambda c: held(c, shared_bytes=0), "the matched budget is"),
        ("folding", lambda c: held(c, fixed_bytes=10**6), "it cannot be matched: what the method remembers"),
        ("folding", lambda c: planned(c, budget=c.schedule.budget + 1), "the matched budget is"),
        ("folding", lambda c: planned(c, trigger="often"), "trigger is 'often'"),
        ("folding", lambda c: c.model_copy(update={"reference_mean": "1/1"}), "the matched budget is"),
        ("vote", lambda c: c.model_copy(update={"searched": []}), "nothing more was run"),
        ("vote", lambda c: planned(c, budget=c.schedule.budget + 1), "the search ends at"),
        ("vote", lambda c: planned(c, chains=4000), "cannot be split"),
        ("sentences", lambda c: planned(c, boundaries=[]), "is not the one that the frozen schedule leaves"),
        ("baseline", lambda c: planned(c, budget=41), "the baseline ran at budget 41"),
        ("baseline", lambda c: c.model_copy(update={"dev_mean": "1/1"}), "dev cache is 1/1, the records give"),
    ],
)
def test_a_choice_that_the_dev_records_do_not_give(evidence, phase, arm, change, message):
    freeze(evidence, arm, change, phase)
    status, said = faults(evidence)
    assert status == "fail" and message in said


@pytest.mark.parametrize("arm", CONTROLS)
def test_a_control_has_the_budget_that_the_lengths_give(evidence, arm):
    freeze(evidence, arm, lambda c: planned(c, budget=c.schedule.budget - 1))
    assert "the dev records give" in faults(evidence)[1]


def test_a_search_that_ends_at_a_mean_of_no_record(evidence):
    """Everything about the search agrees with itself, but the dev trials at its end held something else."""

    def shifted(choice):
        steps = list(choice.searched)
        steps[-1] = steps[-1].model_copy(update={"dev_mean": choice.reference_mean})
        return choice.model_copy(update={"dev_mean": choice.reference_mean, "searched": steps})

    for phase in ("select", "dev_run"):
        freeze(evidence, "vote", shifted, phase)
    assert "the search is said to have met a dev cache of" in faults(evidence)[1]


def test_a_model_that_is_not_locked(evidence):
    evidence.register = SimpleNamespace(models=[])
    assert "its model is not locked" in faults(evidence)[1]


def test_no_baseline(evidence):
    del evidence.dev_run.matched[CELL]["baseline"]
    assert "the dev run froze no baseline" in faults(evidence)[1]
