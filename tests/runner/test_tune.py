"""The arms that tuning freezes: each with its own footprint and schedule on its cell's model, matched in bytes."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from cask_eval.canonical import ZERO
from cask_eval.decide.budgets import footprint_of, measured, replay, schedule_of
from cask_eval.engine.contract import Geometry
from cask_eval.engine.registry import load
from cask_eval.errors import MethodError, StateError
from cask_eval.ledger.events import ModelLock
from cask_eval.protocol.model import Protocol
from cask_eval.records.model import Failure, GradeRecord, Record, ResidencyRecord
from cask_eval.residency import expected
from cask_eval.runner import tune
from cask_eval.runner.tune import Ground

LOCK = ModelLock(
    name="m", id="m", digest=ZERO, files={}, chat_template=None, calibration=None, layers=2, query_heads=4, kv_heads=2,
    head_dim=32, itemsize=2, max_prompt_tokens=60, stop_ids=[],
)  # fmt: skip
BOUNDARIES = {"preset": "tri_boundaries", "params": {"earliest": 16}}
# Every chain holds the prompt, which a third of the budget could not keep.
VOTE = {"preset": "tri_vote", "params": {"chains": 3, "prompt": "compete"}}

NEWLINES = {"\n": [3], "\n\n": [7], ".\n": [5, 3], ".\n\n": [5, 7]}


def ground(lock=LOCK):
    return Ground(lock, lambda text: NEWLINES.get(text, [1, 2]))


def protocol(*candidates, controls=(), budget=128, baseline=None):
    return Protocol.model_validate(
        {
            "study": "toy",
            "hypothesis": "Some candidate solves more problems.",
            "task": {"name": "chain", "dev": "splits/dev.json", "heldout": "splits/heldout.json"},
            "models": [{"id": "embedded:m", "name": "m"}],
            "generation": {"temperature": "0.6", "max_new_tokens": 4000},
            "budgets": [budget],
            "baseline": baseline or {"preset": "triattention"},
            "candidates": [{"name": f"c{i}", **c} for i, c in enumerate(candidates)],
            "screening": {"survivors": 1} if len(candidates) > 1 else None,
            "controls": [{"name": f"k{i}", **c} for i, c in enumerate(controls)],
            "test": {"procedure": "mcnemar_exact", "alpha": "0.05", "veto": {"alpha": "0.05"}},
            "branches": [{"name": "A", "otherwise": True, "decision": "reject"}],
        }
    )


def trials(choice, arm="baseline", config=""):
    """Dev records of an arm with made-up outputs, in which every 25th token ends a line."""
    schedule, out = schedule_of(choice), []
    for problem in range(5):
        tokens = [3 if t % 25 == 0 else 9 for t in range(2000 + 100 * problem)]
        account = expected(schedule, footprint_of(choice), 40 + problem, [tokens] * schedule.chains, LOCK.layers)
        stored = {k: v for k, v in account.to_json().items() if k != "chains"}
        out.append(record(problem, arm, config, tokens, ResidencyRecord.model_validate(stored)))
    return out


def record(problem, arm, config, tokens, residency, **rest):
    return Record(
        study="toy",
        registration=ZERO,
        phase="dev",
        cell="m/b128",
        arm=arm,
        config=config,
        problem=f"p{problem}",
        problem_digest=ZERO,
        sample=0,
        seed="0" * 32,
        prompt_tokens=40 + problem,
        output_tokens=len(tokens),
        output="",
        output_ids=tokens,
        grade=GradeRecord(correct=False, extracted=None, how="test", grader="test/1"),
        residency=residency,
        **{"status": "finished", **rest},
    )


def failures(arm="baseline"):
    fault = Failure(kind="method", error="ValueError", message="broken")
    return [record(p, arm, "", [], None, status="failed", failure=fault) for p in range(3)]


def matched(study):
    cell = study.cells[0]
    base = tune.baseline(study, cell, ground())
    return tune.match(study, cell, ground(), trials(base)), measured(trials(base))[1]


def test_the_baseline_runs_at_its_nominal_budget():
    study = protocol({"preset": "alpha"})
    choice = tune.baseline(study, study.cells[0], ground(), Fraction(7, 2))
    assert (choice.preset, choice.schedule.budget, choice.dev_mean, choice.reference_mean) == (
        "triattention", 128, "7/2", "7/2",
    )  # fmt: skip
    assert schedule_of(choice) == load("triattention")().schedule(128)


@pytest.mark.parametrize("preset", ["snapkv", "tri_kivi", "h2o", "cask", "tri_pyramid"])
def test_footprints_are_those_of_the_cells_model(preset):
    geometry = Geometry(2, 4, 2, 32, torch.ones(16, dtype=torch.float64), 1.0, torch.float16)
    rows, _ = matched(protocol({"preset": preset}))
    assert footprint_of(rows["c0"]["untuned"]) == load(preset)().footprint(geometry)


def test_state_is_paid_for_and_packing_pays():
    rows, mean = matched(protocol({"preset": "alpha"}, {"preset": "snapkv"}, {"preset": "tri_kivi"}))
    plain, queries, packed = (rows[f"c{i}"]["untuned"] for i in range(3))
    assert plain.schedule.budget == 128
    # 8 queries of 4 heads weigh as much as 8 entries of 2 KV heads; short trials blur the exchange.
    assert abs(queries.schedule.budget - 120) <= 2
    assert packed.schedule.budget > 3 * 128
    for choice in (plain, queries, packed):
        assert abs(Fraction(choice.dev_mean) / mean - 1) < Fraction(1, 100)
        assert abs(Fraction(choice.reference_mean) - mean) < Fraction(1, 10**8)


def test_every_configuration_is_matched():
    rows, _ = matched(
        protocol({"preset": "alpha", "params": {"trigger": "every_step"}, "tune": {"lambda": ["0.5", "1.0"]}})
    )
    assert set(rows) == {"baseline", "c0"} and set(rows["c0"]) == {"lambda=0.5", "lambda=1.0"}
    budgets = {c.schedule.budget for c in rows["c0"].values()}
    assert len(budgets) == 1 and budgets.pop() > 160


def test_controls_are_matched_without_trials_of_their_own():
    study = protocol({"preset": "alpha"}, controls=[{"preset": "fullkv"}, VOTE, {"preset": "tova"}])
    cell, records = study.cells[0], trials(tune.baseline(study, study.cells[0], ground()))
    found = tune.controls(study, cell, ground(), records)
    lengths, mean = measured(records)
    assert list(found) == ["k0", "k1", "k2"]
    assert (found["k0"].schedule.budget, found["k0"].schedule.trigger) == (128, "never")
    for choice in (found["k1"], found["k2"]):
        assert abs(replay(schedule_of(choice), footprint_of(choice), lengths) / mean - 1) < Fraction(1, 100)
        assert choice.searched == []
    assert found["k1"].schedule.chains == 3


def test_boundaries_are_token_ids_of_the_model():
    rows, _ = matched(protocol(BOUNDARIES))
    assert rows["c0"]["untuned"].schedule.boundaries == [3, 7]


@pytest.mark.parametrize("candidate", [BOUNDARIES, VOTE])
def test_the_search_runs_the_candidate_where_it_was_matched(candidate):
    study = protocol(candidate)
    rows, mean = matched(study)
    draft, ran = rows["c0"]["untuned"], []

    def evaluate(choice):
        ran.append(choice.schedule.budget)
        return trials(choice, "c0", "untuned")

    found = tune.searched(study.cells[0], ground(), draft, evaluate)
    assert ran[0] == draft.schedule.budget and [s.budget for s in found.searched] == ran and len(ran) <= 4
    best = min(ran, key=lambda b: abs(measured(trials(at(draft, b)))[1] - mean))
    assert found.schedule.budget == best and abs(Fraction(found.dev_mean) / mean - 1) <= Fraction(1, 100)
    assert replace(schedule_of(found), budget=1000) == replace(schedule_of(draft), budget=1000)


def at(choice, budget):
    return choice.model_copy(update={"schedule": choice.schedule.model_copy(update={"budget": budget})})


def test_what_follows_from_lengths_runs_nothing():
    study = protocol({"preset": "alpha"})
    draft = matched(study)[0]["c0"]["untuned"]
    assert tune.searched(study.cells[0], ground(), draft, lambda c: pytest.fail("nothing is to be run")) is draft


def test_a_search_whose_trials_all_fail_says_why():
    study = protocol(BOUNDARIES)
    draft = matched(study)[0]["c0"]["untuned"]
    with pytest.raises(StateError, match="at budget .* failed, so its budget cannot be searched; the first said Value"):
        tune.searched(study.cells[0], ground(), draft, lambda choice: failures("c0"))


def test_a_baseline_without_accounts():
    study = protocol({"preset": "alpha"})
    with pytest.raises(StateError, match="m/b128: every dev trial of the baseline failed.*said ValueError: broken"):
        tune.match(study, study.cells[0], ground(), failures())


@pytest.mark.parametrize("where", ["candidate", "control"])
def test_a_budget_that_cannot_hold_the_prompt_is_refused_before_it_runs(where):
    greedy = {"preset": "snapkv", "params": {"delta": 256}}
    study = protocol(*([greedy] if where == "candidate" else [{"preset": "alpha"}]),
                     controls=[greedy] if where == "control" else [])  # fmt: skip
    long = ground(LOCK.model_copy(update={"max_prompt_tokens": 100}))
    records = trials(tune.baseline(study, study.cells[0], ground()))
    with pytest.raises(MethodError, match=f"m/b128, arm {'c' if where == 'candidate' else 'k'}0, matched from budget"):
        tune.match(study, study.cells[0], long, records)


def test_state_beyond_the_reference_names_the_arm():
    study = protocol({"preset": "expected_attention"})
    with pytest.raises(MethodError, match="arm c0: what the method remembers besides keys and values"):
        tune.match(study, study.cells[0], ground(), trials(tune.baseline(study, study.cells[0], ground())))


def test_a_schedule_that_changes_with_its_budget_cannot_be_matched(monkeypatch):
    study = protocol({"preset": "snapkv"})
    cls = load("snapkv")
    honest = cls.schedule
    monkeypatch.setattr(cls, "schedule", lambda self, b, encode=None: replace(honest(self, b, encode), delta=b))
    with pytest.raises(MethodError, match="changes more of its schedule than the budget"):
        tune.match(study, study.cells[0], ground(), trials(tune.baseline(study, study.cells[0], ground())))
