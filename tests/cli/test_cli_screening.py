"""What `tune` and `confirm` say about who is confirmed: a user must know on what the held-out split would be spent."""

from __future__ import annotations

import os
import sys

import pytest

from cask_eval import cli
from cask_eval.canonical import ZERO
from cask_eval.cli.tune import show
from cask_eval.decide.model import ArmResult
from cask_eval.ledger.events import (
    ArmChoice,
    DevRun,
    Environment,
    FootprintLock,
    RecordsCommit,
    Register,
    ScheduleLock,
    Select,
    SplitLock,
)
from cask_eval.ledger.log import Ledger
from cask_eval.protocol.model import Protocol
from cask_eval.protocol.template import template
from cask_eval.protocol.yaml import parse

GAINS = {"one": "7/100", "two": "-1/80", "three": "1/1000"}


def protocol() -> Protocol:
    document = Protocol.model_validate(parse(template().encode()).value).document()
    candidates = [{"name": name, "preset": "alpha"} for name in GAINS]
    return Protocol.model_validate({**document, "candidates": candidates, "screening": {"survivors": 2}})


def choice(budget: int) -> ArmChoice:
    return ArmChoice(
        preset="alpha",
        params={},
        schedule=ScheduleLock(trigger="slack", budget=budget, delta=16, prompt="pinned"),
        footprint=FootprintLock(heads=2, head_dim=2, itemsize=4),
        dev_mean="64/1",
        reference_mean="64/1",
    )


def select(study: Protocol, *survivors: str, gains: dict[str, str] = GAINS) -> Select:
    return Select(
        rule="",
        scores={},
        chosen={c.name: dict.fromkeys(gains, "untuned") for c in study.cells},
        gains=gains,
        survivors=list(survivors),
        arms={c.name: {name: choice(c.budget + 1) for name in study.heldout_arms(survivors)} for c in study.cells},
    )


def result(budget: int, **numbers) -> ArmResult:
    given = {"trials": 20, "correct": 9, "missing": 0, "failed": 0, "truncated": 0}
    given |= {"accuracy": "0.45", "mean_cache": "63.25", "active": "0.95"}
    return ArmResult(**{"preset": "alpha", "params": {}, "budget": budget, "pooled_cache": "", "peak_cache": "",
                        "mean_output_tokens": "", "kept_min": None, "kept_max": None, "wiped_regions": "",
                        "longest_wiped": None, **given, **numbers})  # fmt: skip


def results(study: Protocol, *arms: str, **numbers) -> dict:
    return {c.name: {arm: result(c.budget + 1, **numbers) for arm in ("baseline", *arms)} for c in study.cells}


def test_tune_names_candidates_and_comparisons(capsys):
    study = protocol()
    show(study, select(study, "one", "three"), results(study, "one", "three"))
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == [
        "one: dev gain +7.0 points, confirmed",
        "two: dev gain -1.2 points, screened out",
        "three: dev gain +0.1 points, confirmed",
    ]
    assert out[4] == "chain-s/b64 one: budget 65, on dev 9 of 20 right, 95% compressed, mean cache 63.25"
    assert len(out) == 3 + 3 * len(study.cells)


def test_tune_names_cells_alone_where_there_is_one_candidate(capsys):
    study = Protocol.model_validate(parse(template().encode()).value)
    chosen = select(study, "candidate", gains={"candidate": "1/100"})
    show(study, chosen, results(study, "candidate", truncated=3))
    assert capsys.readouterr().out.splitlines()[0] == (
        "chain-s/b64 baseline: budget 65, on dev 9 of 20 right, 3 at the length cap, 95% compressed, mean cache 63.25"
    )
    show(study, chosen, results(study, "candidate", active="", mean_cache=""))
    assert "no trial left an account of its cache" in capsys.readouterr().out


def test_tune_names_the_chosen_values_where_there_was_a_choice(capsys):
    document = protocol().document()
    [first, *_] = document["candidates"]
    only = [{**first, "tune": {"lambda": ["0.5", "1.0"]}}]
    study = Protocol.model_validate({**document, "candidates": only, "screening": None})
    chosen = select(study, "one", gains={"one": "1/100"})
    chosen.chosen.update({c.name: {"one": "lambda=0.5"} for c in study.cells})
    show(study, chosen, results(study, "one"))
    assert capsys.readouterr().out.splitlines()[1].startswith("chain-s/b64 one lambda=0.5: budget 65")


@pytest.fixture
def tuned(tmp_path):
    """tuned(*survivors) → a workspace whose study has come so far."""

    def make(*survivors: str):
        study, ledger = protocol(), Ledger(tmp_path / "prereg" / "ledger.jsonl")
        ledger.path.parent.mkdir()
        split = SplitLock(path="splits/chain-heldout.json", digest=ZERO, merkle_root=ZERO, count=200)
        environment = Environment(
            python="3", platform="any", device="cpu", cuda=None, driver=None, packages={}, toolkit=ZERO
        )
        register = Register(
            protocol_path="prereg/s.yaml",
            protocol_raw=ZERO,
            protocol_digest=ZERO,
            protocol=study.document(),
            splits={"dev": split, "heldout": split},
            methods=[],
            models=[],
            environment=environment,
            warnings=[],
        )
        commit = RecordsCommit(path="reports/s/dev.jsonl", count=1, merkle_root=ZERO)
        ledger.append(study.study, "register", register)
        ledger.append(study.study, "dev_run", DevRun(records=commit, matched={}, methods=[]))
        ledger.append(study.study, "select", select(study, *survivors))
        return tmp_path

    return make


@pytest.mark.parametrize("survivors, arms, warned", [(("one", "three"), 5, False), (("one",), 4, False), ((), 3, True)])
def test_confirm_says_on_how_many_arms_the_split_would_be_spent(tuned, survivors, arms, warned, monkeypatch, capsys):
    root = tuned(*survivors)
    before = (root / "prereg" / "ledger.jsonl").read_bytes()
    monkeypatch.setattr(sys, "argv", ["cask-eval", "-C", str(root), "confirm", "--split", "heldout", "--device", "cpu"])
    monkeypatch.setattr(sys, "stdin", open(os.devnull))
    # There are no problems and no model to compare with what is registered.
    monkeypatch.setattr("cask_eval.runner.steps.refuse_changed", lambda *_: None)
    monkeypatch.setattr("cask_eval.cli.confirm._refuse_spent", lambda *_: None)
    monkeypatch.setattr("cask_eval.cli.confirm.rehearsed", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "nothing was consumed" in said
    assert f"(200 problems, 4 cells, {arms} arms)" in said
    assert ("the outcome is certain: branch C, reject the candidate" in said) == warned
    assert (root / "prereg" / "ledger.jsonl").read_bytes() == before
