"""Studies of fidelity: an honest one passes, and each attack on its replays fails with its own id, though every digest
was made again."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from simulator import (
    PROBLEMS,
    STUDY,
    VOCABULARY,
    Forger,
    arrays_of,
    full_cache,
    output_of,
    read_lines,
    regrade,
)

from cask_eval.bundle.read import examine
from cask_eval.bundle.write import export
from cask_eval.canonical import digest
from cask_eval.decide.analysis import analyse
from cask_eval.fidelity import Tokens, summarise
from cask_eval.ledger.amend import changes
from cask_eval.ledger.events import Amend, Register, Select
from cask_eval.protocol.keys import keys_root
from cask_eval.protocol.model import Protocol
from cask_eval.records.model import FidelityRecord, Record
from cask_eval.records.tokens import digest_of
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.run import verify
from cask_eval.workspace import Workspace

ATTACKS = []


def attack(id):
    def add(run):
        ATTACKS.append(pytest.param(id, run, id=f"{id}-{run.__name__}"))
        return run

    return add


def replay(forger: Forger, arm: str = "strong") -> dict:
    return forger.records(arm=arm)[0]


def tokens(forger: Forger, r: dict):
    """The trial's file, and its numbers per token as if nothing had been compressed."""
    file = arrays_of(forger.space, r["phase"], r["cell"], r["arm"])
    trial = r["config"], r["problem"], r["sample"]
    return file, trial, file.read(trial)


def other_output(r: dict) -> str:
    """Another output of the same length, graded as it deserves."""
    text = output_of(PROBLEMS["heldout"][r["problem"]], not r["grade"]["correct"])
    assert len(text.split()) == len(r["output"].split()) and text != r["output"]
    return text


@attack("V13")
def a_number_edited(forger):
    replay(forger)["fidelity"]["whole"]["nll"] = "0.010000000"


@attack("V13")
def a_number_after_compression_edited(forger):
    replay(forger)["fidelity"]["after"]["kl"] = "0.010000000"


@attack("V13")
def compression_denied(forger):
    replay(forger)["fidelity"]["after"] = None


@attack("V13")
def the_first_mismatch_put_off(forger):
    replay(forger)["fidelity"]["first_mismatch"] += 1


@attack("V13")
def arrays_replaced(forger):
    file, trial, found = tokens(forger, replay(forger))
    file.add({trial: replace(found, nll=found.nll / 2)})


@attack("V13")
def arrays_replaced_by_rank_alone(forger):
    file, trial, found = tokens(forger, replay(forger))
    file.add({trial: replace(found, rank=np.ones_like(found.rank))})


@attack("V13")
def arrays_replaced_and_committed_to(forger):
    """The record's digest follows, its numbers do not."""
    r = replay(forger)
    file, trial, found = tokens(forger, r)
    better = replace(found, nll=found.nll / 2)
    file.add({trial: better})
    r["fidelity"]["arrays"] = digest_of(better)


@attack("V13")
def the_worst_token_left_out(forger):
    """Numbers and digest of all tokens but one; the record goes on saying that it is of all."""
    r = replay(forger)
    file, trial, found = tokens(forger, r)
    left = np.arange(found.nll.shape[1]) != found.nll[0].argmax()
    fewer = Tokens(found.nll[:, left], found.rank[:, left], found.kl[:, left], found.compressed[:, left])
    file.add({trial: fewer})
    made = FidelityRecord.of(summarise(fewer), digest_of(fewer)).model_dump()
    r["fidelity"] = made | {"whole": made["whole"] | {"tokens": r["fidelity"]["whole"]["tokens"]}}


@attack("V13")
def numbers_that_leave_compression_out(forger):
    """Numbers that follow from the arrays if the cache had been compressed later than the schedule does."""
    r = replay(forger)
    _, _, found = tokens(forger, r)
    late = np.arange(found.nll.shape[1])[None] >= found.nll.shape[1] - 2
    r["fidelity"] = FidelityRecord.of(summarise(replace(found, compressed=late)), digest_of(found)).model_dump()


@attack("V13")
def arrays_of_the_arms_exchanged(forger):
    a, b = (arrays_of(forger.space, "heldout", "one/b24", arm).path for arm in ("strong", "baseline"))
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


@attack("V13")
def arrays_cut_off(forger):
    path = arrays_of(forger.space, "heldout", "one/b24", "strong").path
    path.write_bytes(path.read_bytes()[:-100])


@attack("V13")
def arrays_of_a_trial_that_has_no_record(forger):
    file, trial, found = tokens(forger, replay(forger))
    file.add({("", trial[1], 1): found})


@attack("V12")
def other_tokens_replayed(forger):
    """The arrays stay: nothing but the reference says that these tokens were not its own."""
    r = replay(forger)
    regrade(r, other_output(r))


@attack("V12")
def the_reference_generated_again(forger):
    r = replay(forger)
    (reference,) = [x for x in forger.records("one/reference", "reference") if x["problem"] == r["problem"]]
    regrade(reference, other_output(reference))


@attack("V12")
def another_chain_replayed(forger):
    r = next(r for r in forger.dev if r["chains"])
    r["chains"][1]["output_ids"][0] = VOCABULARY["."]


@attack("V12")
def a_replay_of_a_reference_that_failed(forger):
    ok = replay(forger)
    failed = next(r for r in forger.heldout if r["arm"] == "reference" and r["status"] == "failed")
    r = next(r for r in forger.heldout if (r["cell"], r["arm"], r["problem"]) == (ok["cell"], ok["arm"],
                                                                                 failed["problem"]))  # fmt: skip
    keep = {name: r[name] for name in ("problem", "problem_digest", "sample", "seed", "prompt_tokens")}
    r.update(copy.deepcopy(ok) | keep)


@attack("V12")
def fidelity_left_out(forger):
    del replay(forger)["fidelity"]


@attack("V12")
def fidelity_of_a_reference(forger):
    forger.records("one/reference", "reference")[0]["fidelity"] = replay(forger)["fidelity"]


@attack("V07")
def the_ceiling_not_run(forger):
    forger.heldout = [r for r in forger.heldout if r["arm"] != "ceiling"]
    keys = [tuple(Record.model_validate(r).key) for r in forger.heldout]
    forger.event("consume").update(expected=len(keys), keys=keys_root(keys))
    sessions = [e["payload"] for e in forger.events if e["event"] == "records"]
    sessions[0]["records"]["count"] -= 20
    return "keys"


@attack("V11")
def references_generated_twice(forger):
    r = copy.deepcopy(forger.records("one/reference", "reference")[0])
    forger.heldout.append(r | {"sample": 1})
    return "analysis"


@attack("V17")
def references_of_another_method(forger):
    for event in ("dev_run", "select"):
        rows = forger.event(event)["matched" if event == "dev_run" else "arms"]["one/reference"]
        for choice in [row.get("", row) for row in rows.values()]:
            choice["preset"] = "random_pp"


@attack("V17")
def a_ceiling_of_another_cache(forger):
    forger.event("select")["arms"]["one/reference"]["ceiling"]["schedule"]["budget"] = 2


@attack("V17")
def a_dev_score_edited(forger):
    scores = forger.event("select")["scores"]["one/b24"]
    scores["strong"]["lambda=0.5"], scores["strong"]["lambda=1.0"] = (
        scores["strong"]["lambda=1.0"], scores["strong"]["lambda=0.5"])  # fmt: skip


@attack("V17")
def a_baseline_cell_without_its_reference_cell(forger):
    del forger.event("select")["arms"]["two/reference"]


@attack("V16")
def references_from_a_compressed_cache(forger):
    for event in ("dev_run", "select"):
        rows = forger.event(event)["matched" if event == "dev_run" else "arms"]["one/reference"]
        for choice in [row.get("", row) for row in rows.values()]:
            choice["schedule"].update(trigger="slack", budget=500, delta=8)


@attack("V16")
def the_references_cache_misstated(forger):
    choice = full_cache(Fraction(1)).model_dump(mode="json")
    forger.event("dev_run")["matched"]["one/reference"]["reference"][""] = choice
    forger.event("select")["arms"]["one/reference"] = {"reference": choice, "ceiling": copy.deepcopy(choice)}


@attack("V20")
def another_endpoint_analysed(forger):
    """Of all that was measured, the endpoint that came out best."""
    forger.resign()
    document = copy.deepcopy(forger.event("register")["protocol"])
    document["test"]["endpoint"] = "kl"
    ids = [i["id"] for i in forger.manifests["heldout"]["items"]]
    select = Select.model_validate(forger.event("select"))
    records = map(Record.model_validate, forger.heldout)
    protocol = Protocol.model_validate(document)
    made = analyse(protocol, forger.registration, select, records, ids, label="confirmatory")
    forger.conclude(made.model_dump(mode="json"))
    return "analysis"


@attack("V18")
def the_ceiling_hidden(forger):
    forger.resign()
    del forger.analysis["arms"]["one/reference"]
    forger.conclude(forger.analysis)
    return "analysis"


@attack("V21")
def an_improvement_edited(forger):
    forger.resign()
    forger.analysis["cells"][0]["values"][0]["improvement"] = "1.5"
    forger.conclude(forger.analysis)
    return "analysis"


@attack("V02")
def the_endpoint_amended_after_the_run(forger):
    """Another endpoint of the same replays, which the dev split did not choose by."""
    before = next(e for e in forger.events if e["event"] == "register")
    register = Register.model_validate(before["payload"])
    document = {**register.protocol, "test": {**register.protocol["test"], "endpoint": "kl"}}
    after = register.model_copy(update={"protocol": document, "protocol_digest": digest(document)})
    made = Amend(**dict(after), reason="Looked better.", replaces=before["hash"], changes=changes(register, after))
    forger.resign()
    forger.insert("amend", made.model_dump(mode="json"), "analysis")
    forger.chain()
    return "all"


@pytest.mark.parametrize("id, run", ATTACKS)
def test_attack_fails_with_its_id(id, run, fidelity):
    before = {path: path.read_bytes() for path in fidelity.rglob("*") if path.is_file()}
    forger = Forger(fidelity)
    keep = run(forger)
    if keep != "all":
        forger.resign(*[keep] if keep else [])
    forger.write()
    assert {p: p.read_bytes() for p in fidelity.rglob("*") if p.is_file()} != before, "the attack changed nothing"
    verdict = verify(fidelity, STUDY)
    failed = {r.id for r in verdict.failed}
    assert id in failed, verdict.lines
    assert "V03" not in failed and verdict.exit_code == 1


def test_an_honest_study_of_fidelity_passes(honest_fidelity):
    verdict = verify(honest_fidelity, STUDY, require="L0")
    assert verdict.exit_code == 0, verdict.lines
    e = Evidence.load(Workspace(honest_fidelity), STUDY)
    assert e.document.endpoint == "nll" and set(e.document.arms) == {f"{m}/{c}" for m in ("one", "two")
                                                                   for c in ("b24", "reference")}  # fmt: skip
    ceiling, baseline = (e.document.arms[c][a].fidelity for c, a in (("one/reference", "ceiling"),
                                                                    ("one/b24", "baseline")))  # fmt: skip
    assert float(ceiling["nll"]) < float(baseline["nll"]) and "nll_after" not in ceiling and "nll_after" in baseline
    assert all(len(c.values) == c.n == 19 and not c.flips for c in e.document.cells)
    # One reference failed, and both arms with it; one replay of `strong` failed and counts as the worst.
    strong = [note for note in e.document.notes if "left no result" in note]
    assert strong[0].startswith("strong one/b24: 1 baseline and 2 candidate trials left no result; 1 pairs")


def test_without_numbers_per_token_fidelity_is_not_checked(fidelity):
    arrays_of(Workspace(fidelity), "heldout", "one/b24", "strong").path.unlink()
    verdict = verify(fidelity, STUDY, require="L0")
    assert verdict.exit_code == 3 and [r.id for r in verdict.undone] == ["V13"]
    assert "numbers per token are not here" in verdict.undone[0].details[0]


def test_fidelity_has_no_place_in_a_study_of_answers(root, honest_fidelity):
    given = replay(Forger(honest_fidelity))["fidelity"]
    forger = Forger(root)
    forger.records()[0]["fidelity"] = given
    forger.resign().write()
    assert "V12" in {r.id for r in verify(root, STUDY).failed}


def test_references_made_up_with_all_that_follows_pass(fidelity):
    """As outputs that were made up do in any study: at level L0 nobody but the author says what the models wrote."""
    forger = Forger(fidelity)
    head = read_lines(forger.space.ledger)[-1]["hash"]
    one = forger.records("one/reference", "reference")[0]
    text = other_output(one)
    for r in forger.heldout:
        if (r["problem"], r["sample"], r["cell"][:4]) == (one["problem"], one["sample"], "one/"):
            regrade(r, text)
    forger.resign().write()
    verdict = verify(fidelity, STUDY)
    assert not verdict.failed and verdict.exit_code == 3
    assert [r.id for r in verify(fidelity, STUDY, head=head).failed] == ["V04"]


def test_a_bundle_holds_the_numbers_per_token(fidelity, tmp_path):
    made = export(Workspace(fidelity), STUDY, tmp_path / "b.zip")
    assert f"reports/{STUDY}/heldout.tokens/one/b24/strong.safetensors" in made.files
    verdict = examine(tmp_path / "b.zip", lambda space, study: verify(space, study, require="L0"))
    assert verdict.exit_code == 0, verdict.lines


def test_numbers_per_token_lie_beside_the_records(honest_fidelity):
    found = {p.relative_to(honest_fidelity).as_posix() for p in Path(honest_fidelity).rglob("*.safetensors")}
    assert f"reports/{STUDY}/dev.tokens/one/b24/near.safetensors" in found
    assert not any("/reference/reference" in p for p in found)
    assert json.dumps(sorted(found)).count("ceiling") == 2
