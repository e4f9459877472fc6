"""What `tune` and `confirm` say about who is confirmed: a user must know on what the held-out split would be spent."""

from __future__ import annotations

import os
import sys

import pytest

from cask_eval import cli
from cask_eval.canonical import ZERO
from cask_eval.cli.tune import show
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


def test_tune_names_candidates_and_comparisons(capsys):
    study = protocol()
    show(select(study, "one", "three"))
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == [
        "one: dev gain +7.0 points, confirmed",
        "two: dev gain -1.2 points, screened out",
        "three: dev gain +0.1 points, confirmed",
    ]
    assert out[3] == "one chain-s/b64: untuned, budget 65"
    assert len(out) == 3 + 2 * len(study.cells)


def test_tune_names_cells_alone_where_there_is_one_candidate(capsys):
    study = Protocol.model_validate(parse(template().encode()).value)
    show(select(study, "candidate", gains={"candidate": "1/100"}))
    assert capsys.readouterr().out.splitlines()[0] == "chain-s/b64: untuned, budget 65"


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
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "nothing was consumed" in said
    assert f"(200 problems, 4 cells, {arms} arms)" in said
    assert ("the outcome is certain: branch C, reject the candidate" in said) == warned
    assert (root / "prereg" / "ledger.jsonl").read_bytes() == before
