"""Each attack must fail verification with its own id. A *clever* one also repairs every digest that its author can
repair, so the chain must look whole."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from simulator import (
    CAP,
    PROBLEMS,
    PROTOCOL,
    STOP,
    STUDY,
    VOCABULARY,
    Forger,
    account_of,
    build,
    line,
    output_of,
    read_lines,
    regrade,
    split_lock,
    stored,
)

from cask_eval.canonical import digest, digest_bytes
from cask_eval.decide.budgets import at_budget, entries, measured, schedule_of, text
from cask_eval.ledger.amend import changes
from cask_eval.ledger.events import ArmChoice, Register
from cask_eval.protocol.keys import keys_root
from cask_eval.records.model import Record
from cask_eval.schedule import Schedule
from cask_eval.splits import store
from cask_eval.splits.freeze import item_of
from cask_eval.splits.model import Manifest
from cask_eval.tasks import chain
from cask_eval.verify import recorded, tokens
from cask_eval.verify.checks import CHECKS
from cask_eval.verify.run import verify
from cask_eval.workspace import Workspace


@dataclass(frozen=True)
class Attack:
    id: str
    clever: bool
    run: Callable[[Path], object]
    study: str


ATTACKS: list[Attack] = []


def attack(id: str, *, clever: bool = False, study: str = "root"):
    """`study` is the fixture that is attacked."""

    def add(run):
        ATTACKS.append(Attack(id, clever, run, study))
        return run

    return add


def ledger(root: Path) -> Path:
    return Workspace(root).ledger


def replace(path: Path, old: bytes, new: bytes, count: int = 1) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, count))


# --- protocol and registration


@attack("V01")
def protocol_file_edited(root):
    replace(root / "prereg/sim.yaml", b'alpha: "0.05"', b'alpha: "0.10"')


@attack("V01")
def protocol_file_reworded(root):
    replace(root / "prereg/sim.yaml", b"hypothesis: At", b"# a remark\nhypothesis: At")


@attack("V01", clever=True)
def digests_locked_again_but_not_the_document(root):
    forger = Forger(root)
    forger.protocol_file = forger.protocol_file.replace(b'alpha: "0.05"', b'alpha: "0.10"')
    register = forger.event("register")
    register["protocol_raw"] = digest_bytes(forger.protocol_file)
    register["protocol_digest"] = digest(forger.protocol.document())
    forger.resign("protocol").write()


@attack("V01", clever=True)
def document_edited_but_not_the_file(root):
    forger = Forger(root)
    register = forger.event("register")
    register["protocol"]["test"]["alpha"] = "0.10"
    register["protocol_digest"] = digest(register["protocol"])
    forger.resign("protocol").write()


@attack("V01", study="asked")
def prompt_file_edited(root):
    replace(root / "prereg/prompts/sim.txt", b"Walk the path.", b"Walk the path, and hurry.")


@attack("V01", clever=True, study="asked")
def another_prompt_files_digest_locked(root):
    forger = Forger(root)
    forger.event("register")["prompt"]["file"] = digest("a kinder prompt")
    forger.resign().write()


@attack("V01", clever=True, study="asked")
def prompt_lock_left_out(root):
    forger = Forger(root)
    forger.event("register")["prompt"] = None
    forger.resign().write()
    replace(root / "prereg/prompts/sim.txt", b"Walk", b"Skip")


@attack("V01", clever=True, study="asked")
def bare_problems_locked_under_a_prompt_file(root):
    forger = Forger(root)
    forger.event("register")["prompt"]["file"] = None
    forger.resign().write()


@attack("V01", clever=True, study="asked")
def chat_without_a_template_locked(root):
    forger = Forger(root)
    forger.protocol_file = forger.protocol_file.replace(b"sim.txt}", b"sim.txt, form: chat}")
    forger.resign().write()


@attack("V02", clever=True)
def registered_a_second_time(root):
    forger = Forger(root)
    forger.insert("register", forger.event("register"), after="select")
    forger.resign().write()


@attack("V02", clever=True)
def another_registration_in_the_analysis(root):
    forger = Forger(root)
    forger.resign()
    forger.conclude({**forger.analysis, "registration": digest("another")})
    forger.resign("analysis").write()


@attack("V02")
def registration_removed(root):
    lines = ledger(root).read_bytes().splitlines(keepends=True)
    ledger(root).write_bytes(b"".join(lines[1:]))


# --- the chain


@attack("V03")
def event_edited(root):
    replace(ledger(root), b'"expected":240', b'"expected":239')


@attack("V03")
def event_edited_and_hashed_again(root):
    events = read_lines(ledger(root))
    events[3]["payload"]["expected"] = 239
    events[3].pop("hash")
    events[3]["hash"] = digest(events[3])
    ledger(root).write_bytes(b"".join(line(e) + b"\n" for e in events))


@attack("V03")
def events_reordered(root):
    lines = ledger(root).read_bytes().splitlines(keepends=True)
    ledger(root).write_bytes(b"".join([*lines[:2], lines[3], lines[2], *lines[4:]]))


@attack("V03")
def event_removed(root):
    lines = ledger(root).read_bytes().splitlines(keepends=True)
    ledger(root).write_bytes(b"".join([*lines[:4], *lines[5:]]))


@attack("V03")
def event_inserted_twice(root):
    lines = ledger(root).read_bytes().splitlines(keepends=True)
    ledger(root).write_bytes(b"".join([*lines, lines[-1]]))


@attack("V03")
def ledger_gone(root):
    ledger(root).unlink()


# --- roots


@attack("V04")
def record_line_removed(root):
    path = Workspace(root).records(STUDY, "heldout")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


@attack("V04")
def dev_record_edited(root):
    replace(Workspace(root).records(STUDY, "dev"), b'"prompt_tokens":14', b'"prompt_tokens":15')


@attack("V04")
def regions_edited_in_a_record(root):
    """Nothing else in a record tells which regions were wiped out; the root over all of it does."""
    forger = Forger(root)
    forger.records()[0]["regions"] = {"bins": 8, "empty": 0, "longest": 0}
    forger.write()


@attack("V04", clever=True)
def records_replaced_after_close(root):
    forger = Forger(root)
    wrong = forger.records(arm="candidate", correct=False)[0]
    regrade(wrong, output_of(PROBLEMS["heldout"][wrong["problem"]], True))
    forger.resign("commits").write()


@attack("V04", clever=True)
def close_commits_to_other_records_than_the_session(root):
    forger = Forger(root)
    forger.resign()
    forger.event("close")["records"]["merkle_root"] = digest("other")
    forger.resign("commits").write()


@attack("V04", clever=True)
def a_session_takes_records_back(root):
    forger = Forger(root)
    forger.resign()
    forger.event("records")["records"]["count"] = 241
    forger.resign("commits").write()


@attack("V04", clever=True)
def an_interrupted_session_run_again(root):
    """The first session's records are made better before the second goes on; only its own commitment is left."""
    forger = Forger(root)
    first = copy.deepcopy(forger.event("records")["records"])
    wrong = next(r for r in forger.heldout[:100] if r["arm"] == "candidate" and not r["grade"]["correct"])
    regrade(wrong, output_of(PROBLEMS["heldout"][wrong["problem"]], True))
    forger.resign()
    forger.event("records")["records"] = first
    forger.resign("commits").write()


# --- seeds and the one attempt


@attack("V06", clever=True)
def outputs_drawn_before_registering(root):
    forger = Forger(root)
    old = {id(r): (r["registration"], r["seed"]) for r in forger.heldout}
    forger.protocol_file = forger.protocol_file.replace(b"At equal mean cache, the", b"At equal mean cache the")
    forger.resign()
    for r in forger.heldout:
        r["seed"] = old[id(r)][1]
    forger.resign("seeds").write()


@attack("V06", clever=True)
def one_trial_drawn_again(root):
    forger = Forger(root).resign()
    forger.heldout[7]["seed"] = "0" * 32
    forger.resign("seeds").write()


@attack("V07", clever=True)
def consumed_twice(root):
    forger = Forger(root)
    forger.insert("consume", forger.event("consume"), after="records")
    forger.resign().write()


@attack("V07", clever=True)
def records_before_consume(root):
    forger = Forger(root)
    at = [e["event"] for e in forger.events].index("consume")
    forger.events[at], forger.events[at + 1] = (
        {**forger.events[at + 1], "time": forger.events[at]["time"]},
        {**forger.events[at], "time": forger.events[at + 1]["time"]},
    )
    forger.resign().write()


@attack("V07", clever=True)
def run_again_after_a_complete_session(root):
    forger = Forger(root)
    forger.event("records")["complete"] = True
    forger.resign().write()


@attack("V07", clever=True)
def records_of_an_earlier_registration(root):
    forger = Forger(root).resign()
    for r in forger.records():
        r["registration"] = digest("an earlier registration")
    forger.resign("seeds", "analysis").write()


@attack("V07", clever=True)
def fewer_trials_announced(root):
    forger = Forger(root)
    keys = [tuple(r[k] for k in ("phase", "cell", "arm", "config", "problem", "sample")) for r in forger.heldout[:-30]]
    forger.event("consume").update(expected=len(keys), keys=keys_root(keys))
    forger.resign("keys").write()


@attack("V07", clever=True)
def consumed_only_afterwards(root):
    forger = Forger(root)
    at = [e["event"] for e in forger.events].index("consume")
    consume = forger.events.pop(at)
    forger.events.append({**consume, "time": forger.events[-1]["time"]})
    forger.resign().write()


# --- amendments


def amendments(forger: Forger) -> list[dict]:
    return [e["payload"] for e in forger.events if e["event"] == "amend"]


def truly(before: dict, after: dict) -> list[dict]:
    """What an amendment must say that it changes."""
    kept = Register.model_fields
    pair = [Register.model_validate({k: v for k, v in p.items() if k in kept}) for p in (before, after)]
    return [c.model_dump() for c in changes(*pair)]


@attack("V02", clever=True)
def amended_afterwards_and_still_confirmatory(root):
    """The rule for harm is loosened when the outcome is known, and nobody says exploratory."""
    forger = Forger(root)
    register = forger.event("register")
    loose = copy.deepcopy(register["protocol"])
    loose["test"]["veto"]["alpha"] = "0.001"
    later = {**register, "protocol": loose, "protocol_digest": digest(loose)}
    forger.insert("amend", {
        **later, "reason": "A slip of the pen.", "replaces": forger.events[0]["hash"],
        "changes": truly(register, later),
    }, after="close")  # fmt: skip
    forger.conclude({**forger.analysis, "label": "confirmatory"})
    forger.chain()
    forger.write()


@attack("V02", clever=True, study="amended")
def amendment_hides_what_it_changes(root):
    forger = Forger(root)
    amendments(forger)[-1]["changes"][0]["field"] = "hypothesis"
    forger.chain()
    forger.write()


@attack("V02", clever=True, study="amended")
def budgets_amended_after_the_run(root):
    forger = Forger(root)
    early, late = amendments(forger)
    late["protocol"]["budgets"] = [24]
    late["protocol_digest"] = digest(late["protocol"])
    late["changes"] = truly(early, late)
    forger.chain()
    forger.write()


@attack("V02", clever=True, study="amended")
def another_environment_amended_after_the_run(root):
    forger = Forger(root)
    early, late = amendments(forger)
    late["environment"]["packages"]["torch"] = "2.9.0"
    late["changes"] = truly(early, late)
    forger.chain()
    forger.write()


@attack("V02", clever=True, study="amended")
def method_code_swapped_under_another_heading(root):
    """An amendment before the held-out run that speaks of the hypothesis, and locks other code besides."""
    forger = Forger(root)
    first, late = amendments(forger)
    packages = copy.deepcopy(first["methods"])
    packages[0]["digest"] = digest("better code")
    for e in forger.events:
        if e["event"] != "register" and e["payload"].get("methods"):
            e["payload"]["methods"] = packages
    forger.chain()
    forger.write()


@attack("V14", clever=True, study="amended")
def the_first_dev_run_with_other_code_than_registered(root):
    forger = Forger(root)
    forger.event("dev_run")["methods"][0]["digest"] = digest("code that was tried first")
    forger.chain()
    forger.write()


@attack("V09", clever=True, study="retuned")
def dev_problems_amended_into_the_held_out_split(root):
    """The first dev split held problems that the study confirms on now; its run was cut off, so no record tells."""
    forger = Forger(root)
    part = copy.deepcopy({**forger.manifests["heldout"], "name": "pilot", "role": "dev"})
    part["items"] = part["items"][:5]
    part["merkle_root"] = Manifest.model_validate(part).root()
    made = Manifest.model_validate(part)
    store.write(root / "splits/pilot.json", made)
    first = forger.event("register")
    first["splits"]["dev"] = split_lock("splits/pilot.json", made).model_dump()
    del forger.events[1:3]  # dev_run and select
    amendments(forger)[0]["changes"] = truly(first, amendments(forger)[0])
    forger.chain()
    forger.write()


@attack("V02", clever=True, study="amended")
def an_amendment_left_out_of_the_line(root):
    forger = Forger(root)
    amendments(forger)[-1]["replaces"] = forger.events[0]["hash"]
    forger.chain()
    forger.write()


@attack("V04", study="amended")
def superseded_dev_records_edited(root):
    replace(Workspace(root).records(STUDY, "dev"), b'"prompt_tokens":14', b'"prompt_tokens":15')


@attack("V04", study="amended")
def superseded_dev_records_gone(root):
    Workspace(root).records(STUDY, "dev").unlink()


# --- dates


@attack("V05", clever=True, study="anchored")
def registration_rewritten_under_its_stamp(root):
    forger = Forger(root)
    forger.protocol_file = forger.protocol_file.replace(b'alpha: "0.05"', b'alpha: "0.10"', 1)
    forger.resign().write()


@attack("V05", clever=True, study="anchored")
def an_earlier_time_written_beside_the_stamp(root):
    forger = Forger(root)
    forger.event("anchor")["gen_time"] = "2025-12-05T09:01:00Z"
    forger.chain()
    forger.write()


@attack("V05", clever=True, study="anchored")
def whole_ledger_back_dated_around_its_stamps(root):
    forger = Forger(root)
    for e in forger.events:
        e["time"] = e["time"].replace("2027-01-05", "2026-12-05")
    forger.chain()
    forger.write()


@attack("V05", clever=True)
def a_stamp_that_was_asked_for_and_never_made(root):
    forger = Forger(root)
    forger.protocol_file += b"anchor: registration\n"
    forger.resign().write()


@attack("V06", clever=True, study="anchored")
def a_beacon_of_choice(root):
    """Seeds that the author likes, with a beacon that gives them."""
    forger = Forger(root)
    forger.event("anchor")["beacon"] = digest("lucky")
    forger.resign().write()


# --- stale outputs, grader, lineage


@attack("V22", clever=True)
def a_session_run_with_other_method_code(root):
    forger = Forger(root)
    forger.event("records")["methods"][0]["digest"] = digest("an older version")
    forger.resign().write()


@attack("V22", clever=True)
def a_session_run_with_other_packages(root):
    forger = Forger(root)
    forger.event("records")["environment"]["packages"]["torch"] = "2.5.0"
    forger.resign().write()


@attack("V22")
def dev_outputs_served_again(root):
    forger = Forger(root)
    tuned = next(r for r in forger.dev if r["arm"] == "candidate" and r["grade"]["correct"])
    forger.records(arm="candidate")[0].update(output_ids=tuned["output_ids"], seed=tuned["seed"])
    forger.resign("seeds", "analysis").write()


@attack("V22", clever=True)
def a_session_that_says_nothing(root):
    forger = Forger(root)
    for e in forger.events:
        if e["event"] == "records":
            e["payload"].update(methods=None, environment=None)
    forger.resign().write()


@attack("V23", clever=True)
def a_registration_that_names_no_grader(root):
    forger = Forger(root)
    forger.event("register").update(task=None, grader=None)
    forger.event("close")["task"] = None
    for r in (*forger.dev, *forger.heldout):
        r["grade"]["grader"] = "chain/0"
    forger.resign().write()


@attack("V23", clever=True)
def graded_by_another_version(root):
    forger = Forger(root)
    for r in (*forger.dev, *forger.heldout):
        r["grade"]["grader"] = "chain/0"
    forger.resign().write()


@attack("V23", clever=True)
def grader_changed_before_the_end(root):
    forger = Forger(root)
    forger.event("close")["task"]["digest"] = digest("a kinder grader")
    forger.resign().write()


def run_before(root: Path, kinds: int, role: str = "heldout", path: str | None = None) -> None:
    """Another study of the ledger, registered and run up to its first `kinds` events before this one was."""
    forger = Forger(root)
    earlier = copy.deepcopy(forger.events[:kinds])
    for e in earlier:
        e.update(study="earlier", time=forger.events[0]["time"])
    if path:
        part = copy.deepcopy({**forger.manifests["heldout"], "name": "part"})
        part["items"].pop()
        part["merkle_root"] = Manifest.model_validate(part).root()
        made = Manifest.model_validate(part)
        store.write(root / path, made)
        earlier[0]["payload"]["splits"][role] = split_lock(path, made).model_dump()
    forger.events[:0] = earlier
    forger.resign().write()


@attack("V24", clever=True)
def the_same_problems_consumed_before(root):
    run_before(root, 4)


@attack("V24", clever=True)
def all_but_one_of_the_problems_consumed_before(root):
    """Leaving out a problem gives another root, so the problems are compared."""
    run_before(root, 4, "heldout", "splits/part.json")


@attack("V24", clever=True)
def the_held_out_problems_tuned_on_before(root):
    run_before(root, 2, "dev", "splits/part.json")


@attack("V24", clever=True)
def the_held_out_problems_registered_as_dev_before(root):
    """The dev run was cut off, so no event says that it began."""
    run_before(root, 1, "dev", "splits/part.json")


@attack("V24", clever=True)
def the_other_study_amended_out_of_sight(root):
    """The study that had tuned on the problems was amended to other ones, still before this one was registered."""
    run_before(root, 2, "dev", "splits/part.json")
    forger = Forger(root)
    first = forger.events[0]["payload"]
    now = {**first, "splits": copy.deepcopy(forger.event("register")["splits"])}
    body = {**now, "reason": "Other problems, please.", "replaces": digest("x"), "changes": truly(first, now)}
    forger.events.insert(2, {**copy.deepcopy(forger.events[1]), "event": "amend", "payload": body})
    forger.chain()
    forger.events[2]["payload"]["replaces"] = forger.events[0]["hash"]
    forger.resign().write()


@attack("V24", clever=True)
def nearly_the_same_problems_consumed_before(root):
    """Every text is changed a little, so that no two are equal; the sketches still agree."""
    run_before(root, 4, "heldout", "splits/part.json")
    forger = Forger(root)
    part = json.loads((root / "splits/part.json").read_bytes())
    for item in part["items"]:
        item["text"] = digest(item["id"])
        item["minhash"] = item["minhash"][:-8] + "00000000"
    part["merkle_root"] = Manifest.model_validate(part).root()
    made = Manifest.model_validate(part)
    store.write(root / "splits/part.json", made, overwrite=True)
    forger.events[0]["payload"]["splits"]["heldout"] = split_lock("splits/part.json", made).model_dump()
    forger.resign().write()


def test_a_split_of_another_study_that_is_gone_leaves_the_question_open(root):
    run_before(root, 2, "dev", "splits/part.json")
    (root / "splits/part.json").unlink()
    verdict = verify(root, STUDY, require="L0")
    assert [r.id for r in verdict.undone] == ["V24"] and verdict.exit_code == 3


def test_who_looks_at_the_problems_later_is_mentioned(root):
    forger = Forger(root)
    forger.events += [{**copy.deepcopy(e), "study": "later"} for e in forger.events[:4]]
    for e in forger.events[-4:]:
        e["time"] = forger.events[-5]["time"]
    forger.resign().write()
    verdict = verify(root, STUDY, require="L0")
    (v24,) = (r for r in verdict.results if r.id == "V24")
    assert v24.status == "pass" and "study 'later' consumed the same problems later, at" in v24.details[0]


# --- what records say of themselves


@attack("V10", clever=True)
def dev_records_of_another_study(root):
    forger = Forger(root)
    forger.dev[0]["study"] = "pilot"
    forger.resign().write()


@attack("V16", clever=True)
def stages_that_the_schedule_does_not_have(root):
    forger = Forger(root)
    r = next(r for r in forger.records() if r["residency"]["events"])
    r["stages"] = {"prefix_events": 7, "decode_events": 0, "exhausted": 0, "guards": {}}
    forger.resign().write()


@attack("V16", clever=True)
def more_regions_wiped_out_than_there_are(root):
    forger = Forger(root)
    forger.records()[0]["regions"] = {"bins": 2, "empty": 3, "longest": 1}
    forger.resign().write()


# --- splits


@attack("V08")
def manifest_edited(root):
    replace(root / "splits/sim-heldout.json", b'"name": "sim-heldout"', b'"name": "sim-other"')


@attack("V08", clever=True)
def hard_problems_dropped_from_the_split(root):
    forger = Forger(root)
    hard = {r["problem"] for r in forger.records(arm="candidate", correct=False)}
    forger.manifests["heldout"]["items"] = [i for i in forger.manifests["heldout"]["items"] if i["id"] not in hard]
    forger.heldout = [r for r in forger.heldout if r["problem"] not in hard]
    forger.event("records")["records"]["count"] = 1
    forger.resign().write()


@attack("V08", clever=True)
def answer_key_edited(root):
    forger = Forger(root)
    wrong = forger.records(arm="candidate", correct=False)[0]
    problem = PROBLEMS["heldout"][wrong["problem"]]
    key = digest([problem.id, problem.prompt, " ".join(wrong["output"].split()[-6:])])
    for item in forger.manifests["heldout"]["items"]:
        if item["id"] == problem.id:
            item["digest"] = key
    for r in forger.heldout:
        if r["problem"] == problem.id:
            r["problem_digest"] = key
    forger.resign().write()


@attack("V08", clever=True)
def records_made_from_another_text(root):
    forger = Forger(root)
    forger.records()[0]["problem_digest"] = digest("an easier question")
    forger.resign().write()


@attack("V08", clever=True)
def sketch_blunted(root):
    forger = Forger(root)
    forger.manifests["heldout"]["items"][0]["minhash"] = "0" * 256
    forger.resign().write()


@attack("V08", clever=True)
def source_asks_for_other_problems(root):
    forger = Forger(root)
    forger.manifests["heldout"]["source"]["seed"] = 3
    forger.resign().write()


@attack("V09", clever=True)
def heldout_problem_frozen_into_dev(root):
    forger = Forger(root)
    forger.manifests["dev"]["items"][0] = forger.manifests["heldout"]["items"][0]
    forger.resign().write()


@attack("V09", clever=True)
def near_duplicate_across_the_splits(root):
    forger = Forger(root)
    problem = PROBLEMS["heldout"]["chain/1/v3d0n0never/2/4"]
    twin = chain.Problem("twin", problem.prompt + " then", problem.answer, problem.stratum)
    forger.manifests["dev"]["items"][0] = item_of(twin).model_dump()
    forger.resign().write()


@attack("V10", clever=True)
def tuned_on_heldout_problems(root):
    forger = Forger(root)
    for r in [r for r in forger.heldout if r["cell"] == "one/b24" and r["arm"] == "candidate"]:
        forger.dev.append({**copy.deepcopy(r), "phase": "dev", "config": "lambda=1.0"})
    forger.resign().write()


@attack("V10", clever=True)
def dev_outputs_counted_as_heldout(root):
    forger = Forger(root)
    ids = [i["id"] for i in forger.manifests["dev"]["items"]]
    for r, id in zip(forger.records(arm="candidate", correct=False), ids, strict=False):
        r.update(problem=id, problem_digest=digest("x"))
    forger.resign("analysis").write()


# --- trials


@attack("V11", clever=True)
def wrong_answers_dropped(root):
    forger = Forger(root)
    wrong = forger.records(arm="candidate", correct=False)
    forger.heldout = [r for r in forger.heldout if not any(r is w for w in wrong)]
    forger.resign().write()


@attack("V11", clever=True)
def problem_dropped_from_every_arm(root):
    forger = Forger(root)
    problem = forger.records(arm="candidate", correct=False)[0]["problem"]
    forger.heldout = [r for r in forger.heldout if r["problem"] != problem]
    forger.resign().write()


@attack("V11", clever=True)
def a_second_try_kept_beside_the_first(root):
    forger = Forger(root)
    forger.heldout.append(copy.deepcopy(forger.heldout[0]))
    forger.resign("analysis").write()


@attack("V11", clever=True)
def dev_configuration_left_out(root):
    forger = Forger(root)
    forger.dev = [r for r in forger.dev if r["config"] != "lambda=0.5" or r["cell"] != "two/b32"]
    forger.retune().resign().write()


@attack("V12", clever=True)
def right_answers_relabelled_as_failures(root):
    forger = Forger(root)
    for r in forger.records(correct=True)[:1]:
        r.update(status="failed", failure={"kind": "infrastructure", "error": "OSError", "message": "disk"})
        r["grade"]["correct"] = False
    forger.resign().write()


@attack("V12", clever=True)
def failure_relabelled_as_finished(root):
    forger = Forger(root)
    failed = next(r for r in forger.heldout if r["status"] == "failed")
    failed["status"] = "finished"
    forger.resign().write()


@attack("V12", clever=True)
def cut_off_below_the_cap(root):
    forger = Forger(root)
    forger.records(correct=False)[0]["status"] = "truncated"
    forger.resign().write()


@attack("V12", clever=True)
def more_tokens_than_the_cap(root):
    forger = Forger(root)
    r = forger.records(correct=False)[0]
    regrade(r, "we " * (CAP + 1))
    r["output_tokens"] = CAP + 1
    forger.resign().write()


@attack("V13", clever=True)
def grade_flipped(root):
    forger = Forger(root)
    forger.records(arm="candidate", correct=False)[0]["grade"]["correct"] = True
    forger.resign().write()


@attack("V13", clever=True)
def dev_grades_flipped_and_retuned(root):
    forger = Forger(root)
    for r in forger.dev:
        if r["config"] == "lambda=0.5":
            r["grade"]["correct"] = True
    forger.retune().resign().write()


@attack("V13", clever=True)
def output_edited_but_not_its_grade(root):
    forger = Forger(root)
    r = forger.records(correct=True)[0]
    r["output"] = output_of(PROBLEMS["heldout"][r["problem"]], False)
    forger.resign().write()


@attack("V13", clever=True)
def some_records_graded_by_a_milder_grader(root):
    forger = Forger(root)
    r = forger.records(arm="candidate", correct=False)[0]
    r["grade"].update(correct=True, grader="chain-lenient/1")
    forger.resign().write()


def votes(forger: Forger, right: bool) -> list[dict]:
    """The dev trials of `near`, whose two chains disagree; the first one wins and is right or wrong."""
    return [r for r in forger.dev if r["arm"] == "near" and r["grade"]["correct"] == right]


@attack("V13", clever=True, study="several")
def the_right_chain_taken_for_the_winner(root):
    forger = Forger(root)
    for r in votes(forger, right=False):
        regrade(r, r["chains"][1]["output"])
        r["output_tokens"] = len(r["output_ids"])
        assert r["grade"]["correct"]
    forger.resign("analysis").write()


@attack("V13", clever=True, study="several")
def a_chain_said_to_abstain(root):
    forger = Forger(root)
    votes(forger, right=False)[0]["chains"][0]["extracted"] = None
    forger.resign().write()


@attack("V12", clever=True, study="several")
def a_chain_that_goes_on_after_its_stop_token(root):
    forger = Forger(root)
    votes(forger, right=True)[0]["chains"][1]["output_ids"][3] = STOP
    forger.resign().write()


@attack("V16", clever=True, study="several")
def a_chain_left_out(root):
    forger = Forger(root)
    votes(forger, right=True)[0]["chains"].pop()
    forger.resign().write()


# --- code and environment


@attack("V14", clever=True)
def method_changed_after_tuning(root):
    forger = Forger(root)
    forger.event("close")["methods"][0]["digest"] = digest("patched")
    forger.resign().write()


@attack("V14", clever=True)
def method_package_added(root):
    forger = Forger(root)
    forger.event("dev_run")["methods"].append({"name": "extra", "version": "1", "digest": digest("extra")})
    forger.resign().write()


@attack("V15", clever=True)
def another_models_files_under_the_locked_digest(root):
    forger = Forger(root)
    forger.event("register")["models"][0]["files"]["model.safetensors"] = digest("another model")
    forger.resign().write()


@attack("V15", clever=True)
def library_changed_before_the_heldout_run(root):
    forger = Forger(root)
    forger.event("consume")["environment"]["packages"]["torch"] = "2.7.0"
    forger.resign().write()


@attack("V15", clever=True)
def toolkit_changed_before_close(root):
    forger = Forger(root)
    forger.event("close")["environment"]["toolkit"] = digest("patched")
    forger.resign().write()


# --- caches


def with_account(r: dict, schedule: Schedule, ids: Sequence[int] = ()) -> None:
    """Give a record the account that another schedule leaves, `ids` being what it looks at."""
    old = r["residency"]
    new = account_of(schedule, old["prompt_tokens"], old["steps"], ids)
    kept = schedule.budget if new.events else None
    r.update(residency=json.loads(json.dumps(stored(new))), kept_min=kept, kept_max=kept)


@attack("V16", clever=True)
def account_understated(root):
    forger = Forger(root)
    for r in forger.records(arm="candidate"):
        r["residency"]["entries"] -= 400
        r["residency"]["payload_bytes"] -= 400 * 64
    forger.resign().write()


@attack("V16", clever=True)
def account_of_a_smaller_budget(root):
    forger = Forger(root)
    for r in forger.records(arm="candidate"):
        with_account(r, Schedule("every_step", 20, 1, "pinned"))
    forger.resign().write()


@attack("V16", clever=True)
def bytes_understated(root):
    forger = Forger(root)
    for r in forger.records(arm="candidate"):
        r["residency"]["payload_bytes"] //= 2
    forger.resign().write()


@attack("V16", clever=True)
def geometry_of_a_smaller_model(root):
    forger = Forger(root)
    for r in forger.heldout:
        if r["residency"] and r["cell"].startswith("one/"):
            r["residency"]["entry_bytes"], r["residency"]["payload_bytes"] = 32, r["residency"]["entries"] * 32
    forger.resign().write()


@attack("V16", clever=True)
def larger_budget_for_the_candidate(root):
    """Everything says b′ + 8 and was run so: dev, selection, held-out. Only the solver disagrees."""
    forger = Forger(root)
    larger = {}
    for cell, rows in forger.event("dev_run")["matched"].items():
        for choice in rows["candidate"].values():
            choice["schedule"]["budget"] += 8
            choice["dev_mean"] = choice["reference_mean"]
            larger[cell] = choice["schedule"]["budget"]
    for r in (*forger.dev, *forger.heldout):
        if r["arm"] == "candidate" and r["residency"]:
            with_account(r, Schedule("every_step", larger[r["cell"]], 1, "pinned"))
    forger.retune().resign().write()


@attack("V16", clever=True)
def prompts_made_longer_in_one_arm(root):
    forger = Forger(root)
    r = forger.records(arm="baseline")[0]
    r["prompt_tokens"] += 1
    r["residency"]["prompt_tokens"] += 1
    with_account(r, Schedule("slack", 24, 8, "pinned"))
    forger.resign().write()


@attack("V16", clever=True)
def void_cell_called_matched(root):
    """The registered rule voids every cell here; the analysis says otherwise and is signed."""
    forger = Forger(root)
    forger.protocol_file = forger.protocol_file.replace(b"test:\n", b'matched_cache: {max_cap_gap: "0"}\ntest:\n')
    forger.resign()
    assert {c["matched"]["verdict"] for c in forger.analysis["cells"]} == {"void"}
    document = copy.deepcopy(forger.analysis)
    for cell in document["cells"]:
        cell["matched"].update(verdict="matched", reasons=[])
    forger.conclude(document)
    forger.resign("analysis").write()


@attack("V16", clever=True)
def heads_kept_more_than_said(root):
    forger = Forger(root)
    forger.records(arm="candidate")[0]["kept_max"] = 20
    forger.resign().write()


def sentences(forger: Forger):
    """The records of `fair`, whose cache depends on what it generates, at the budget that it was given."""
    own = [r for r in (*forger.dev, *forger.heldout) if r["arm"] == "fair" and r["residency"]]
    return [r for r in own if r["config"] in ("", "untuned", _last_step(forger, r["cell"]))]


def _last_step(forger: Forger, cell: str) -> str:
    return f"untuned@{forger.event('dev_run')['matched'][cell]['fair']['untuned']['schedule']['budget']}"


@attack("V16", clever=True, study="several")
def account_of_another_text(root):
    """A trial that met fewer full stops held more."""
    forger = Forger(root)
    for r in sentences(forger):
        schedule = schedule_of(ArmChoice.model_validate(forger.event("select")["arms"][r["cell"]]["fair"]))
        with_account(r, schedule)  # as if no full stop had come
    forger.resign().write()


@attack("V16", clever=True, study="several")
def search_ended_at_another_budget(root):
    """One more entry throughout, run so, and the last step of the search says so."""
    forger = Forger(root)
    moved = [(r, int(r["config"].partition("@")[2]) + 1) for r in sentences(forger) if "@" in r["config"]]
    for frozen in forger.event("dev_run")["matched"], forger.event("select")["arms"]:
        for rows in frozen.values():
            choice = rows["fair"].get("untuned", rows["fair"])
            choice["schedule"]["budget"] += 1
            choice["searched"][-1]["budget"] += 1
    for r, budget in moved:
        r["config"] = f"untuned@{budget}"
    for r in sentences(forger):
        schedule = schedule_of(ArmChoice.model_validate(forger.event("select")["arms"][r["cell"]]["fair"]))
        with_account(r, schedule, r["output_ids"])
    forger.resign().write()


@attack("V16", clever=True, study="several")
def search_said_to_have_met_the_reference(root):
    """The mean at which the search ended is made up; the dev records are of another."""
    forger = Forger(root)
    for frozen in forger.event("dev_run")["matched"], forger.event("select")["arms"]:
        for rows in frozen.values():
            choice = rows["fair"].get("untuned", rows["fair"])
            choice["dev_mean"] = choice["searched"][-1]["dev_mean"] = choice["reference_mean"]
    forger.resign().write()


def way_point(forger: Forger) -> tuple[str, str]:
    """(cell, configuration) of dev records that the search for the budget of `fair` passed and did not end at."""
    for cell, rows in forger.event("dev_run")["matched"].items():
        choice = rows["fair"]["untuned"]
        for step in choice["searched"]:
            if step["budget"] != choice["schedule"]["budget"]:
                return cell, f"untuned@{step['budget']}"
    raise AssertionError("no search of this study takes more than one step")


def of_way_point(forger: Forger) -> list[dict]:
    return [r for r in forger.dev if r["arm"] == "fair" and (r["cell"], r["config"]) == way_point(forger)]


def steps_stated(forger: Forger) -> list[dict]:
    """Where the ledger states the mean of that way-point."""
    cell, config = way_point(forger)
    choices = forger.event("dev_run")["matched"][cell]["fair"]["untuned"], forger.event("select")["arms"][cell]["fair"]
    return [s for choice in choices for s in choice["searched"] if config == f"untuned@{s['budget']}"]


@attack("V11", clever=True, study="several")
def trials_of_a_way_point_dropped(root):
    forger = Forger(root)
    gone = of_way_point(forger)
    forger.dev = [r for r in forger.dev if not any(r is g for g in gone)]
    forger.resign().write()


@attack("V11", clever=True, study="several")
def one_trial_of_a_way_point_dropped(root):
    forger = Forger(root)
    last = of_way_point(forger)[-1]
    forger.dev = [r for r in forger.dev if r is not last]
    forger.resign().write()


@attack("V11", clever=True, study="several")
def a_budget_tried_that_the_search_does_not_mention(root):
    forger = Forger(root)
    forger.dev += [{**copy.deepcopy(r), "config": "untuned@1000"} for r in of_way_point(forger)]
    forger.resign().write()


@attack("V16", clever=True, study="several")
def mean_of_a_way_point_edited(root):
    """By so little that the search goes on as it did; the records are as they were."""
    forger = Forger(root)
    for step in steps_stated(forger):
        step["dev_mean"] = text(Fraction(step["dev_mean"]) + Fraction(1, 10**9))
    forger.resign().write()


@attack("V16", clever=True, study="several")
def way_point_of_another_cache(root):
    """The trials of a way-point are given the account of a larger budget, and the ledger the mean of that."""
    forger = Forger(root)
    cell, config = way_point(forger)
    choice = ArmChoice.model_validate(forger.event("select")["arms"][cell]["fair"])
    larger = at_budget(choice, int(config.partition("@")[2]) + 1)
    for r in of_way_point(forger):
        with_account(r, schedule_of(larger), r["output_ids"])
    mean = entries(measured(Record.model_validate(r) for r in of_way_point(forger))[1])
    for step in steps_stated(forger):
        step["dev_mean"] = mean
    forger.resign().write()


@attack("V16", clever=True, study="several")
def way_point_left_out_altogether(root):
    """The search is said to have begun where it ended."""
    forger = Forger(root)
    cell, config = way_point(forger)
    for choice in (
        forger.event("dev_run")["matched"][cell]["fair"]["untuned"],
        forger.event("select")["arms"][cell]["fair"],
    ):
        choice["searched"] = [s for s in choice["searched"] if s["budget"] == choice["schedule"]["budget"]]
    kept = {f"untuned@{s['budget']}" for s in choice["searched"]} | {"untuned"}
    forger.dev = [r for r in forger.dev if r["arm"] != "fair" or r["cell"] != cell or r["config"] in kept]
    forger.resign().write()


@attack("V16", clever=True, study="several")
def better_answers_than_the_search_had(root):
    """What counts as the configuration is not what the search ended with."""
    forger = Forger(root)
    for r in forger.dev:
        if r["arm"] == "fair" and r["config"] == "untuned" and not r["grade"]["correct"]:
            regrade(r, output_of(PROBLEMS["dev"][r["problem"]], True))
    forger.retune().resign("analysis").write()


# --- selection


@attack("V17", clever=True)
def another_configuration_chosen(root):
    forger = Forger(root)
    select, matched = forger.event("select"), forger.event("dev_run")["matched"]
    for cell, row in select["arms"].items():
        select["chosen"][cell]["candidate"] = "lambda=0.5"
        row["candidate"] = matched[cell]["candidate"]["lambda=0.5"]
    forger.resign().write()


@attack("V17", clever=True)
def dev_scores_invented(root):
    forger = Forger(root)
    forger.event("select")["scores"]["one/b24"]["candidate"]["lambda=0.5"] = "1/1"
    forger.resign().write()


@attack("V17", clever=True)
def unregistered_parameter_for_the_baseline(root):
    forger = Forger(root)
    forger.event("select")["arms"]["one/b24"]["baseline"]["params"] = {"noise": "0.5"}
    forger.event("dev_run")["matched"]["one/b24"]["baseline"][""]["params"] = {"noise": "0.5"}
    forger.resign().write()


@attack("V17", clever=True)
def control_swapped_for_another_preset(root):
    forger = Forger(root)
    forger.event("select")["arms"]["two/b24"]["random"]["preset"] = "fullkv"
    forger.resign().write()


@attack("V17", clever=True)
def rule_changed(root):
    forger = Forger(root)
    forger.event("select")["rule"] = "max_mean_accuracy, scope per_cell, ties first"
    forger.resign().write()


# --- screening


@attack("V17", clever=True, study="several")
def a_survivor_exchanged(root):
    Forger(root).exchange("fair", "near").resign().write()


@attack("V17", clever=True, study="several")
def a_survivor_dropped(root):
    Forger(root).exchange("fair", None).resign().write()


@attack("V17", clever=True, study="several")
def one_more_confirmed_than_registered(root):
    Forger(root).exchange(None, "near").resign("analysis").write()


@attack("V11", clever=True, study="several")
def run_on_heldout_though_screened_out(root):
    """Run, looked at, and left out of everything but the records."""
    forger = Forger(root)
    select = copy.deepcopy(forger.event("select"))
    forger.exchange(None, "near")
    forger.event("select").update(select)
    forger.resign("analysis").write()


@attack("V07", clever=True, study="several")
def consumed_for_one_more_candidate(root):
    """The announced trials hold a candidate that the rule left out; the selection says so nowhere."""
    forger = Forger(root)
    select = copy.deepcopy(forger.event("select"))
    forger.exchange(None, "near").resign("analysis")
    forger.event("select").update(select)
    forger.resign("keys", "analysis").write()


@attack("V17", clever=True, study="several")
def dev_scores_of_a_candidate_edited(root):
    """`near` is said to have been right throughout, and confirmed accordingly; the dev records say otherwise."""
    forger = Forger(root).exchange("fair", "near")
    select = forger.event("select")
    for row in select["scores"].values():
        row["near"]["untuned"] = "1/1"
    baseline = sum(Fraction(row["baseline"][""]) for row in select["scores"].values()) / len(select["scores"])
    select["gains"]["near"] = text(1 - baseline)
    forger.resign().write()


@attack("V13", clever=True, study="several")
def dev_grades_of_a_candidate_flipped(root):
    """The records say it too; only the outputs do not."""
    forger = Forger(root)
    for r in forger.dev:
        if r["arm"] == "near":
            r["grade"]["correct"] = True
    forger.exchange("fair", "near").retune()
    assert forger.event("select")["survivors"] == ["near", "strong"]
    forger.resign().write()


@attack("V17", clever=True, study="several")
def dev_score_of_the_baseline_lowered(root):
    forger = Forger(root)
    for row in forger.event("select")["scores"].values():
        row["baseline"][""] = "0/1"
    forger.resign().write()


@attack("V17", clever=True, study="several")
def gain_edited(root):
    forger = Forger(root)
    forger.event("select")["gains"]["near"] = "-1/2"
    forger.resign().write()


@attack("V17", clever=True, study="several")
def screening_rule_changed(root):
    forger = Forger(root)
    forger.event("select")["rule"] = forger.event("select")["rule"].replace("survivors 2", "survivors 3")
    forger.resign().write()


@attack("V17", clever=True, study="several")
def dev_configuration_of_another_candidate_confirmed(root):
    forger = Forger(root)
    for cell, row in forger.event("select")["arms"].items():
        row["fair"] = copy.deepcopy(forger.event("dev_run")["matched"][cell]["near"]["untuned"])
    forger.resign().write()


@attack("V01", clever=True, study="several")
def more_survivors_allowed_in_the_document_than_in_the_file(root):
    forger = Forger(root)
    register = forger.event("register")
    register["protocol"]["screening"]["survivors"] = 3
    register["protocol_digest"] = digest(register["protocol"])
    forger.resign("protocol").write()


@attack("V18", clever=True, study="several")
def family_shrunk_to_one_candidate(root):
    rewritten(root, lambda d: d.update(family=4))


@attack("V18", clever=True, study="several")
def comparisons_of_a_survivor_hidden(root):
    rewritten(root, lambda d: d.update(cells=[c for c in d["cells"] if c["candidate"] != "fair"]))


@attack("V18", clever=True, study="several")
def screened_out_candidate_not_mentioned(root):
    rewritten(root, lambda d: d.update(screening=[s for s in d["screening"] if s["survived"]]))


@attack("V18", clever=True, study="several")
def screened_out_candidate_called_confirmed(root):
    rewritten(root, lambda d: d["screening"][0].update(survived=True))


@attack("V21", clever=True, study="several")
def candidates_exchanged_in_the_analysis(root):
    """The numbers of one survivor under the name of the other."""

    def swap(d):
        other = {"strong": "fair", "fair": "strong"}
        for c in d["cells"]:
            c["candidate"] = other[c["candidate"]]
        d["cells"].sort(key=lambda c: (c["candidate"] == "fair", c["model"], c["budget"]))

    rewritten(root, swap)


# --- the analysis


def rewritten(root: Path, edit) -> None:
    forger = Forger(root).resign()
    document = copy.deepcopy(forger.analysis)
    edit(document)
    forger.conclude(document)
    forger.resign("analysis").write()


@attack("V18", clever=True)
def cells_hidden(root):
    rewritten(root, lambda d: (d["cells"].pop(), d.update(family=3)))


@attack("V18", clever=True)
def family_shrunk(root):
    rewritten(root, lambda d: d.update(family=1))


@attack("V18", clever=True)
def control_hidden(root):
    rewritten(root, lambda d: d["arms"]["one/b24"].pop("random"))


@attack("V19", clever=True)
def interim_analysis(root):
    forger = Forger(root)
    forger.insert("analysis", forger.event("analysis"), after="consume")
    forger.resign().write()


@attack("V19", clever=True)
def analysed_twice(root):
    forger = Forger(root)
    forger.insert("analysis", forger.event("analysis"), after="analysis")
    forger.resign().write()


@attack("V20", clever=True)
def another_test_reported(root):
    rewritten(root, lambda d: d.update(procedure="mcnemar_exact"))


@attack("V20", clever=True)
def another_p_decides(root):
    rewritten(root, lambda d: d["cells"][0].update(p_registered=d["cells"][0]["p"]["mcnemar_exact"]))


@attack("V20", clever=True)
def another_level_reported(root):
    rewritten(root, lambda d: d.update(alpha="0.10"))


@attack("V21")
def analysis_file_edited(root):
    replace(Workspace(root).analysis(STUDY), b'"losses": 0', b'"losses": 1')


@attack("V21", clever=True)
def p_value_forged(root):
    rewritten(root, lambda d: d["cells"][0].update(p_adjusted="0.04"))


@attack("V21", clever=True)
def regions_made_better_in_the_analysis(root):
    rewritten(root, lambda d: d["arms"]["one/b24"]["candidate"].update(wiped_regions="0", longest_wiped=0))


@attack("V21", clever=True)
def branch_forged(root):
    rewritten(root, lambda d: d.update(branch="B", decision="report as regime-dependent", negative_cells=1))


@attack("V21", clever=True)
def only_the_ledgers_branch_forged(root):
    forger = Forger(root).resign()
    forger.event("analysis").update(branch="C", decision="reject the candidate")
    forger.resign("analysis").write()


@attack("V21", clever=True)
def hypothesis_reworded_afterwards(root):
    rewritten(root, lambda d: d.update(hypothesis="The baseline solves more held-out problems."))


@attack("V25")
def analysis_not_json(root):
    Workspace(root).analysis(STUDY).write_bytes(b"{")


# --- form


@attack("V25", clever=True)
def clock_turned_back(root):
    forger = Forger(root)
    forger.events[5]["time"] = "2027-01-04T00:00:00Z"
    forger.resign().write()


@attack("V25")
def nan_in_a_record(root):
    replace(Workspace(root).records(STUDY, "heldout"), b'"peak_entries":', b'"peak_entries":NaN,"peak_entries":')


@attack("V25")
def nan_in_the_analysis(root):
    replace(Workspace(root).analysis(STUDY), b'"losses": 0', b'"losses": NaN')


@attack("V25")
def duplicate_key_in_the_ledger(root):
    replace(ledger(root), b'"expected":240', b'"expected":240,"expected":240')


@attack("V25")
def unknown_field_in_a_record(root):
    replace(Workspace(root).records(STUDY, "dev"), b'"arm":"baseline"', b'"accuracy":1,"arm":"baseline"')


@attack("V25")
def default_left_out_of_a_record(root):
    replace(Workspace(root).records(STUDY, "dev"), b'"failure":null,', b"")


@attack("V25")
def spaces_in_a_record(root):
    replace(Workspace(root).records(STUDY, "dev"), b'"arm":"baseline"', b'"arm": "baseline"')


@attack("V25")
def torn_record(root):
    path = Workspace(root).records(STUDY, "heldout")
    path.write_bytes(path.read_bytes()[:-20])


@attack("V25")
def torn_ledger(root):
    with open(ledger(root), "ab") as f:
        f.write(b'{"event":"analysis"')


@attack("V25")
def nested_without_end(root):
    with open(ledger(root), "ab") as f:
        f.write(b"[" * 200_000 + b"\n")


@attack("V25", clever=True)
def manifest_outside_the_workspace(root):
    forger = Forger(root)
    forger.event("register")["splits"]["heldout"]["path"] = "../elsewhere.json"
    forger.resign().write()


@attack("V25")
def records_behind_a_link(root):
    path = Workspace(root).records(STUDY, "heldout")
    outside = root.parent / "outside.jsonl"
    os.replace(path, outside)
    path.symlink_to(outside)


@attack("V25")
def unknown_event(root):
    replace(ledger(root), b'"event":"close"', b'"event":"amend"')


@attack("V12", clever=True)
def cut_off_called_finished(root):
    """Cut-off trials void a cell when there are too many of them."""
    forger = Forger(root)
    for r in forger.heldout:
        if r["status"] == "truncated":
            r["status"] = "finished"
    forger.resign().write()


@attack("V12", clever=True)
def a_second_try_after_the_stop_token(root):
    forger = Forger(root)
    r = forger.records(correct=False)[0]
    r["output_ids"][len(r["output_ids"]) // 2] = STOP
    forger.resign().write()


@attack("V12", clever=True)
def failed_with_an_account_that_moves_the_mean(root):
    forger = Forger(root)
    r = forger.records(arm="candidate", correct=False)[0]
    r.update(status="failed", failure={"kind": "method", "error": "E", "message": "m"}, output="", output_ids=[],
             output_tokens=0)  # fmt: skip
    r["grade"].update(correct=False, extracted=None)
    forger.resign().write()


@attack("V17", clever=True)
def schedule_that_the_parameters_do_not_give(root):
    """The candidate compresses at another pace than the protocol says, in every event alike."""
    forger = Forger(root)
    arm = b"{preset: alpha, tune"
    forger.protocol_file = forger.protocol_file.replace(arm, b"{preset: alpha, params: {delta: 4}, tune")
    for rows in forger.event("dev_run")["matched"].values():
        for choice in rows["candidate"].values():
            choice["params"]["delta"] = 4
    for row in forger.event("select")["arms"].values():
        row["candidate"]["params"]["delta"] = 4
    forger.resign().write()


def without(kind):
    """An event that others rest on is left out, and the chain closed over the gap."""

    def run(root):
        forger = Forger(root)
        forger.events = [e for e in forger.events if e["event"] != kind]
        forger.chain()
        forger.write()

    run.__name__ = f"{kind}_left_out"
    return run


attack("V17", clever=True)(without("dev_run"))
attack("V07", clever=True)(without("consume"))
attack("V19", clever=True)(without("close"))


def nested(depth):
    def run(root):
        nest = b"[" * depth + b"]" * depth
        replace(ledger(root), b'"protocol":{', b'"protocol":{"more":' + nest + b",")

    run.__name__ = f"protocol_nested_{depth}_deep"
    return attack("V25")(run)


for _depth in (100, 300, 900):
    nested(_depth)


def in_a_circle(name):
    def run(root):
        (root / name).unlink()
        (root / name).symlink_to(root / name)

    run.__name__ = f"{name}_links_to_itself"
    return attack("V25")(run)


for _name in ("prereg/ledger.jsonl", "prereg/sim.yaml", "splits/sim-dev.json", "reports/sim/heldout.jsonl",
              "reports/sim/analysis.json"):  # fmt: skip
    in_a_circle(_name)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: f"{a.id}-{a.run.__name__}")
def test_attack_fails_with_its_id(attack, request):
    root = request.getfixturevalue(attack.study)
    attack.run(root)
    verdict = verify(root, STUDY, require="L0", roots=request.getfixturevalue("roots"))
    failed = {r.id for r in verdict.failed}
    assert attack.id in failed, verdict.lines
    assert verdict.exit_code == 1
    if attack.clever and attack.id != "V25":
        assert "V03" not in failed, "a clever attacker's chain is whole"


def test_every_check_has_an_attack():
    assert {a.id for a in ATTACKS} == {c.id for c in CHECKS}


def test_every_check_has_a_clever_attack_where_one_is_possible():
    assert {c.id for c in CHECKS} - {a.id for a in ATTACKS if a.clever} == {"V03"}


# --- what only a head catches, and what nothing here catches


def test_a_ledger_cut_off_after_close_needs_a_head(root):
    events = read_lines(ledger(root))
    head = events[-1]["hash"]
    ledger(root).write_bytes(b"".join(line(e) + b"\n" for e in events[:-1]))
    assert not verify(root, STUDY).failed
    assert [r.id for r in verify(root, STUDY, head=head).failed] == ["V04"]


def test_a_ledger_cut_off_before_close_needs_a_head(root):
    events = read_lines(ledger(root))
    ledger(root).write_bytes(b"".join(line(e) + b"\n" for e in events[:3]))
    Workspace(root).analysis(STUDY).unlink()
    assert verify(root, STUDY).exit_code == 3
    assert [r.id for r in verify(root, STUDY, head=events[3]["hash"]).failed] == ["V04"]


def rewritten_from_the_start(root):
    """A whole study signed again with a milder protocol."""
    forger = Forger(root)
    forger.protocol_file = forger.protocol_file.replace(b'alpha: "0.05"', b'alpha: "0.10"')
    forger.resign().write()


def outputs_invented(root):
    """Right answers written over wrong ones, of the same length."""
    forger = Forger(root)
    for r in forger.records(arm="candidate", correct=False):
        regrade(r, output_of(PROBLEMS["heldout"][r["problem"]], True))
    forger.resign().write()


def right_answers_thrown_away_as_failures(root):
    forger = Forger(root)
    r = forger.records(correct=True)[0]
    r.update(status="failed", failure={"kind": "infrastructure", "error": "OSError", "message": "disk"}, output="",
             output_ids=[], output_tokens=0, residency=None, kept_min=None, kept_max=None)  # fmt: skip
    r["grade"].update(correct=False, extracted=None)
    forger.resign().write()


@pytest.mark.parametrize("forge", [rewritten_from_the_start, outputs_invented, right_answers_thrown_away_as_failures])
def test_a_consistent_forgery_is_never_called_anchored(forge, root):
    """At level L0 these pass every check, so the exit code must not be 0 by default; a reviewer's head shows them."""
    head = read_lines(ledger(root))[-1]["hash"]
    forge(root)
    verdict = verify(root, STUDY)
    assert not verdict.failed and verdict.exit_code == 3
    assert [r.id for r in verify(root, STUDY, head=head).failed] == ["V04"]


def test_an_unknown_grader_is_not_claimed(root):
    forger = Forger(root)
    for r in (*forger.dev, *forger.heldout):
        r["grade"].update(correct=r["status"] != "failed", grader="chain-exact/0")
    forger.event("register")["grader"] = "chain-exact/0"
    forger.retune().resign().write()
    verdict = verify(root, STUDY, require="L0")
    assert [r.id for r in verdict.undone] == ["V13"] and verdict.exit_code == 3


def test_oversized_lines_are_not_parsed(root, monkeypatch):
    monkeypatch.setattr(recorded, "MAX_LINE", 1000)
    verdict = verify(root, STUDY, require="L0")
    assert "V25" in {r.id for r in verdict.failed}


def test_a_search_of_very_many_steps_is_not_followed(several):
    forger = Forger(several)
    for choice in forger.event("dev_run")["matched"]["one/b24"]["fair"].values():
        choice["searched"] = [{"budget": b, "dev_mean": "1/1"} for b in range(1, 90_000)]
    forger.resign().write()
    failed = {r.id: r for r in verify(several, STUDY, require="L0").failed}
    assert {"V11", "V16"} <= failed.keys()
    assert "more than the 4 budgets" in failed["V11"].details[0]


def test_steps_of_a_search_are_no_configurations(several):
    """What became of them moves neither a score nor the number of failures that is told."""
    forger = Forger(several)
    before = verify(several, STUDY, require="L0")
    told = [r for r in before.results if r.id == "V12"][0].details
    for r in of_way_point(forger):
        r.update(status="failed", failure={"kind": "method", "error": "E", "message": "m"}, output="", output_ids=[],
                 output_tokens=0, residency=None, kept_min=None, kept_max=None)  # fmt: skip
        r["grade"].update(correct=False, extracted=None)
    forger.resign().write()
    after = {r.id: r for r in verify(several, STUDY, require="L0").results}
    assert after["V12"].details == told and after["V17"].status == "pass"


def test_a_trial_that_claims_to_be_endless_does_not_stall(root):
    forger = Forger(root)
    r = forger.records(arm="candidate")[0]
    r["output_tokens"], r["residency"]["steps"] = 10**15, 10**15 - 1
    forger.resign("analysis").write()
    assert {"V12", "V16"} <= {r.id for r in verify(root, STUDY, require="L0").failed}


def test_a_source_that_asks_for_millions_is_not_followed(root):
    forger = Forger(root)
    forger.manifests["heldout"]["source"]["count"] = 10**9
    forger.resign().write()
    verdict = verify(root, STUDY, require="L0")
    assert {r.id for r in verdict.undone} == {"V08", "V13"} and verdict.exit_code == 3


def test_a_source_that_asks_for_many_more_than_there_are_is_not_followed(root):
    forger = Forger(root)
    forger.manifests["heldout"]["source"]["count"] = 900_000
    forger.resign().write()
    assert {r.id for r in verify(root, STUDY, require="L0").undone} == {"V08", "V13"}


@pytest.fixture
def tokenizer(tmp_path, monkeypatch):
    """The first model's tokenizer is at hand: a list of words, as the embedded models have."""
    words = {
        "model": {"type": "WordLevel", "vocab": VOCABULARY},
        "decoder": None,
        "added_tokens": [{"id": STOP, "special": True}],
    }
    root = tmp_path / "ws"
    build(root, PROTOCOL.replace("models/one", "embedded:one"))
    (tmp_path / "one").mkdir()
    data = json.dumps(words).encode()
    (tmp_path / "one" / "tokenizer.json").write_bytes(data)
    monkeypatch.setattr(tokens, "EMBEDDED", tmp_path)
    forger = Forger(root)
    lock = forger.event("register")["models"][0]
    lock["files"]["tokenizer.json"] = digest_bytes(data)
    lock["digest"] = digest({"files": lock["files"], "dtype": "float32"})
    forger.resign().write()
    assert not verify(root, STUDY).failed
    return root


def test_an_output_edited_beside_its_token_ids(tokenizer):
    forger = Forger(tokenizer)
    r = forger.records(arm="candidate", correct=False)[0]
    ids = r["output_ids"]
    regrade(r, output_of(PROBLEMS["heldout"][r["problem"]], True))
    r["output_ids"] = ids
    forger.resign().write()
    assert [r.id for r in verify(tokenizer, STUDY).failed] == ["V13"]


def test_outputs_are_not_believed_where_another_tokenizer_was_locked(tokenizer):
    forger = Forger(tokenizer)
    lock = forger.event("register")["models"][0]
    lock["files"]["tokenizer.json"] = digest("another")
    lock["digest"] = digest({"files": lock["files"], "dtype": "float32"})
    forger.resign().write()
    verdict = verify(tokenizer, STUDY, require="L0")
    assert [r.id for r in verdict.undone] == ["V13"] and verdict.exit_code == 3


def test_token_ids_that_the_model_does_not_have(tokenizer):
    forger = Forger(tokenizer)
    forger.records()[0]["output_ids"][0] = 10**6
    forger.resign().write()
    failed = verify(tokenizer, STUDY).failed
    assert [r.id for r in failed] == ["V13"] and "no token 1000000" in failed[0].details[0]


def test_what_is_absent_is_printed_safely(root):
    forger = Forger(root)
    forger.event("register")["protocol_path"] = "prereg/\x1b[2K\nV01  ok" + "a" * 5000
    forger.resign().write()
    for line_ in verify(root, STUDY).lines:
        assert line_.isprintable() and len(line_) < 600
