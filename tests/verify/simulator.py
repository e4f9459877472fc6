"""A finished study without a model: the real chain task, ledger, records and analysis, with made-up outputs. And a
forger, who edits anything and then signs the whole chain again, as an author who controls the machine could."""

from __future__ import annotations

import base64
import copy
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import authority
import numpy as np

from cask_eval.anchor.token import beacon
from cask_eval.canonical import ZERO, canonical, digest, digest_bytes, merkle_root
from cask_eval.decide import selection
from cask_eval.decide.analysis import analyse
from cask_eval.decide.budgets import (
    at_budget,
    matched_choice,
    measured,
    reference_choice,
    schedule_of,
    searched_choice,
)
from cask_eval.decide.selection import arm_of
from cask_eval.errors import StateError
from cask_eval.fidelity import Tokens, summarise
from cask_eval.footprint import Footprint
from cask_eval.ledger.amend import changes
from cask_eval.ledger.events import (
    Amend,
    Analysis,
    Anchor,
    ArmChoice,
    Close,
    Consume,
    DevRun,
    Environment,
    Event,
    ModelLock,
    PackageLock,
    PromptLock,
    Records,
    Register,
    Select,
    SplitLock,
)
from cask_eval.ledger.log import TIME, Ledger, seal
from cask_eval.ledger.state import StudyState, guard
from cask_eval.occupancy import compressed_from
from cask_eval.protocol.keys import dev_keys, dev_runs, expected_keys, keys_root, step_config, trial_seed
from cask_eval.protocol.load import check, load
from cask_eval.protocol.model import FULL, REFERENCE, Cell, Protocol
from cask_eval.protocol.yaml import parse
from cask_eval.records.model import FidelityRecord, Record
from cask_eval.records.store import RecordStore, commit
from cask_eval.records.tokens import TokenFile, digest_of, path_of
from cask_eval.residency import Residency, expected, walk
from cask_eval.schedule import Schedule
from cask_eval.splits import store
from cask_eval.splits.freeze import freeze
from cask_eval.splits.model import Manifest
from cask_eval.tasks import chain
from cask_eval.workspace import Workspace

STUDY = "sim"
REASON = "The margin was written down wrongly."
PROTOCOL_PATH = "prereg/sim.yaml"
CAP = 120
START = datetime(2027, 1, 5, 9, 0, tzinfo=UTC)

PROTOCOL = """\
study: sim
hypothesis: At equal mean cache, the candidate solves more held-out problems than the baseline.
task: {name: chain, dev: splits/sim-dev.json, heldout: splits/sim-heldout.json}
models:
  - {id: "models/one", name: one}
  - {id: "models/two", name: two}
generation: {temperature: "0.6", top_p: "0.95", samples: 1, max_new_tokens: 120}
budgets: [24, 32]
baseline: {preset: triattention}
candidate: {preset: alpha, tune: {lambda: ["0.5", "1.0"]}}
controls: [{name: random, preset: random_pp}]
test:
  procedure: paired_bootstrap
  alpha: "0.05"
  veto: {alpha: "0.05"}
branches:
  - {name: A, when: {positive_cells: ">=1", negative_cells: "==0"}, decision: adopt the candidate}
  - {name: B, when: {positive_cells: ">=1", negative_cells: ">=1"}, decision: report as regime-dependent}
  - {name: C, otherwise: true, decision: reject the candidate}
"""

#: Three candidates, of which two may be confirmed: `near` gains on dev too, but less than the others.
SEVERAL = PROTOCOL.replace(
    """candidate: {preset: alpha, tune: {lambda: ["0.5", "1.0"]}}
""",
    """candidates:
  - {name: near, preset: vote}
  - {name: strong, preset: alpha, tune: {lambda: ["0.5", "1.0"]}}
  - {name: fair, preset: sentences, params: {delta: 24}}
screening: {survivors: 2, min_gain: "0.01"}
""",
)
#: A study that asks with a prompt file.
ASKED = PROTOCOL + "prompt: {file: prereg/prompts/sim.txt}\n"
PROMPT = b"Walk the path.\n{problem}\n"
#: The same candidates, judged by how closely they follow what the full cache puts out.
FIDELITY = (
    SEVERAL.replace("budgets: [24, 32]", "budgets: [24]")
    .replace('min_gain: "0.01"}', 'min_gain: "0.01"}\ntuning: {select: max_mean_endpoint}')
    .replace("  procedure:", "  endpoint: nll\n  procedure:")
)
NOBODY = SEVERAL.replace('min_gain: "0.01"', 'min_gain: "0.9"')

SOURCES = {
    "dev": {"seed": 1, "count": 10, "variables": 3, "distractors": 0, "recap": "never"},
    "heldout": {"seed": 2, "count": 20, "variables": 3, "distractors": 0, "recap": "never"},
}
PROBLEMS = {role: {p.id: p for p in chain.problems(source)} for role, source in SOURCES.items()}
VOCABULARY = {word: i for i, word in enumerate(chain.vocabulary())}
STOP = len(VOCABULARY)

# How often an arm is right, in percent: by arm and configuration.
SKILL = {("reference", ""): 85, ("ceiling", ""): 99, ("baseline", ""): 40, ("candidate", "lambda=0.5"): 60, ("candidate", "lambda=1.0"): 82, ("random", ""): 20,
         ("strong", "lambda=0.5"): 60, ("strong", "lambda=1.0"): 82, ("fair", "untuned"): 70,
         ("near", "untuned"): 50}  # fmt: skip

MODELS = [
    ModelLock(name=name, id=f"models/{name}", files={"model.safetensors": digest(name)},
              digest=digest({"files": {"model.safetensors": digest(name)}, "dtype": "float32"}),
              chat_template=None, calibration=None, layers=2, query_heads=4, kv_heads=2, head_dim=8, itemsize=4,
              max_prompt_tokens=20, stop_ids=[STOP])
    for name in ("one", "two")
]  # fmt: skip
TASK = PackageLock(name="cask_eval", version="0.1.0", digest=digest("task"))
METHODS = [PackageLock(name="cask-methods", version="0.1.0", digest=digest("methods"))]
ENVIRONMENT = Environment(python="3.11.7", platform="linux-x86_64", device="cpu", cuda=None, driver=None,
                          packages={"torch": "2.6.0"}, toolkit=digest("toolkit"))  # fmt: skip


# Every model has the same sizes, and every method keeps keys and values only.
HELD = Footprint(heads=4, head_dim=8, itemsize=4)


def schedule_for(preset: str, budget: int) -> Schedule:
    """Preset alpha compresses at every step, sentences at a full stop when it can, everything else every eighth; a vote
    has two chains. The search for a budget of sentences takes two steps or three."""
    if preset == FULL:
        return Schedule("never", 1, 1, "compete")
    if preset == "alpha":
        return Schedule("every_step", budget, 1, "pinned")
    if preset == "sentences":
        return Schedule("boundary", budget, 24, "pinned", earliest=2, boundaries=(VOCABULARY["."],))
    if preset == "vote":
        return Schedule("slack", budget, 8, "compete", chains=2)
    return Schedule("slack", budget, 8, "pinned")


def matched_arm(
    protocol: Protocol, cell: Cell, arm: str, config: str, lengths: list[tuple[int, int]], mean: Fraction
) -> ArmChoice:
    preset, params = arm_of(protocol, arm, config)
    return matched_choice(preset, params, schedule_for(preset, cell.budget), HELD, lengths, mean)


def output_of(problem: chain.Problem, right: bool) -> str:
    words = chain.scratchpad(problem).split()
    if not right:
        words[-1] = next(n for n in chain.NUMBERS if n not in words)
    return " ".join(words)


def record(
    protocol: Protocol,
    registration: str,
    seed_root: str,
    key: tuple,
    choice: ArmChoice,
    config: str = "",
    status: str = "finished",
    given: Record | None = None,
) -> Record:
    """One honest trial. What is right depends on arm, cell and problem only, so that every build is the same. given:
    the reference that it replays."""
    phase, cell, arm, in_key, problem_id, sample = key
    problem = PROBLEMS[phase][problem_id]
    luck = int(hashlib.sha256(f"{cell}/{problem_id}".encode()).hexdigest(), 16) % 100
    output = output_of(problem, luck < SKILL[arm, config])
    if given and status != "failed":
        output, status = given.output, given.status
    elif status == "truncated":
        output = " ".join((output.split()[:20] * 9)[:CAP])
    if status == "failed":
        output = ""
    ids = ids_of(output, status)
    tokens, prompt = len(ids), len(problem.prompt.split())
    # The second chain says the opposite; the first, which is earlier, wins. Of a replay it says the same.
    other = output if given else output_of(problem, luck >= SKILL[arm, config])
    outputs = [ids, ids_of(other, status if given else "finished")][: choice.schedule.chains]
    schedule = schedule_of(choice)
    account = expected(schedule, HELD, prompt, outputs, MODELS[0].layers) if status != "failed" else None
    grade = chain.grade(problem, output)
    parts = (account.chains or [account]) if account else []
    kept = [left // HELD.heads for part in parts for _, _, left in part.events]
    chains = [
        {"status": status if given else "finished", "output": text, "output_ids": list(own),
         "extracted": chain.grade(problem, text).extracted, "residency": stored(part)}
        for text, own, part in zip((output, other), outputs, parts)
    ]  # fmt: skip
    fidelity = None
    if given and status != "failed":
        each = tokens_of(key, config, choice, prompt, ids)
        fidelity = FidelityRecord.of(summarise(each), digest_of(each)).model_dump()
    return Record.model_validate({
        "study": protocol.study,
        "registration": registration,
        "phase": phase,
        "cell": cell,
        "arm": arm,
        "config": in_key,
        "problem": problem_id,
        "problem_digest": digest([problem.id, problem.prompt, problem.answer]),
        "sample": sample,
        "seed": trial_seed(seed_root, cell, problem_id, sample, phase=phase),
        "status": status,
        "failure": {"kind": "method", "error": "FloatingPointError", "message": "NaN"} if status == "failed" else None,
        "prompt_tokens": prompt,
        "output_tokens": tokens,
        "output": output,
        "output_ids": ids,
        "grade": asdict(grade),
        "residency": stored(account) if account else None,
        "kept_min": min(kept, default=None),
        "kept_max": max(kept, default=None),
        "chains": chains if len(chains) > 1 else [],
        "fidelity": fidelity,
    })  # fmt: skip


def tokens_of(key: tuple, config: str, choice: ArmChoice, prompt: int, ids: Sequence[int]) -> Tokens:
    """Numbers per token of one honest replay: better ones for an arm of more skill, and before anything is compressed.
    The steps of a search measure what its end does."""
    phase, cell, arm, _, problem, sample = key
    name = f"{phase}/{cell}/{arm}/{config}/{problem}/{sample}"
    draw = np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest(), 16))
    parts = schedule_of(choice).split()
    first = np.array([compressed_from(part, HELD, prompt, ids) for part in parts])
    compressed = np.arange(len(ids))[None] >= first[:, None]
    loss = np.where(compressed, 2 - SKILL[arm, config] / 100, 0.2)
    nll, kl = (draw.gamma(2, loss / k).astype(np.float32) for k in (2, 8))
    rank = 1 + (draw.random(nll.shape) < loss / 4) * draw.integers(1, 9, nll.shape)
    return Tokens(nll, rank.astype(np.int32), kl, compressed)


def keep(space: Workspace, phase: str, records: Sequence[Record], arms: dict, chosen: dict | None = None) -> None:
    """Store the numbers per token of replays. arms: cell → arm → configuration → choice; chosen: the configurations
    that held-out arms have."""
    found: dict[tuple[str, str], dict] = {}
    for r in records:
        if r.fidelity:
            config, _, budget = r.config.partition("@")
            choice = arms[r.cell][r.arm][config]
            choice = at_budget(choice, int(budget)) if budget else choice
            config = (chosen or {}).get(r.cell, {}).get(r.arm, config)
            tokens = tokens_of(r.key, config, choice, r.prompt_tokens, r.output_ids)
            found.setdefault((r.cell, r.arm), {})[r.config, r.problem, r.sample] = tokens
    for place, several in found.items():
        arrays_of(space, phase, *place).add(several)


def arrays_of(space: Workspace, phase: str, cell: str, arm: str) -> TokenFile:
    return TokenFile(space.resolve(path_of(space.relative(space.records(STUDY, phase)), cell, arm)))


def full_cache(mean: Fraction) -> ArmChoice:
    return reference_choice(FULL, {}, schedule_for(FULL, 1), HELD, mean)


def account_of(schedule: Schedule, prompt: int, steps: int, ids: Sequence[int] = ()) -> Residency:
    return walk(schedule, HELD, prompt, steps, MODELS[0].layers, ids)


def stored(account: Residency) -> dict:
    """An account as a record holds it."""
    return {name: value for name, value in account.to_json().items() if name != "chains"}


def build(
    root: Path,
    text: str = PROTOCOL,
    *,
    early: str | None = None,
    late: str | None = None,
    stamp: Callable[[str, datetime], dict] | None = None,
    exploratory: bool = False,
) -> Workspace:
    """An honest study from registration to analysis, through the real ledger and stores.

    early: the protocol after an amendment that was made when the dev split had been run. late: the one after an
    amendment that followed the analysis. stamp: (hash, time) → what an anchor says beside the event that it is over.
    """
    author = Author(root, stamp)
    author.register(text)
    author.tune()
    if early:
        author.amend(early)
        author.tune()
    author.confirm(exploratory)
    author.analyse()
    if late:
        author.amend(late)
        author.analyse()
    return author.space


def stamped_by(signer: authority.Identity) -> Callable[[str, datetime], dict]:
    """What an anchor says when this authority has stamped a hash."""

    def stamp(hash: str, when: datetime) -> dict:
        token = authority.forge(signer, hash, when)
        return {
            "tsa": signer.certificate.subject.rfc4514_string(),
            "gen_time": when.strftime(TIME),
            "beacon": beacon(token),
            "token": base64.b64encode(token).decode(),
        }

    return stamp


class Author:
    """Does one step of a study after the other, a minute apart."""

    def __init__(self, root: Path, stamp: Callable[[str, datetime], dict] | None = None):
        self.space, self.stamp = Workspace(root), stamp
        (self.space.root / "prereg").mkdir(parents=True)
        self.ledger, self.clock = Ledger(self.space.ledger), START

    def write(self, kind: str, payload: Any) -> Event:
        event = self.ledger.append(STUDY, kind, payload, now=self.clock, allow=guard(STUDY, kind))
        self.clock += timedelta(minutes=1)
        if self.stamp and kind in ("register", "amend", "consume", "close"):
            said = self.stamp(event.hash, self.clock)
            self.ledger.append(STUDY, "anchor", Anchor(seq=event.seq, hash=event.hash, **said), now=self.clock)
            self.clock += timedelta(minutes=1)
        return event

    @property
    def state(self) -> StudyState:
        return StudyState.of(self.ledger.events(), STUDY)

    def lock(self, text: str) -> Register:
        (self.space.root / PROTOCOL_PATH).write_bytes(text.encode())
        loaded = load(self.space.root / PROTOCOL_PATH)
        self.protocol = loaded.protocol
        locks = {}
        for role, path in (("dev", self.protocol.task.dev), ("heldout", self.protocol.task.heldout)):
            made = freeze(f"sim-{role}", "chain", role, SOURCES[role], "all of the stream", PROBLEMS[role].values())
            store.write(self.space.root / path, made)
            locks[role] = split_lock(path, made)
        asked = self.protocol.prompt
        if asked and asked.file:
            path = self.space.root / asked.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PROMPT)
        prompt = PromptLock(
            file=digest_bytes(PROMPT) if asked and asked.file else None, tokens={m.name: digest(m.name) for m in MODELS}
        )
        models = [lock.model_copy(update={"id": m.id}) for lock, m in zip(MODELS, self.protocol.models)]
        return Register(
            protocol_path=PROTOCOL_PATH, protocol_raw=loaded.raw_digest, protocol_digest=loaded.digest,
            protocol=self.protocol.document(), splits=locks, methods=METHODS, models=models, environment=ENVIRONMENT,
            warnings=[], task=TASK, grader=chain.GRADER, prompt=prompt,
        )  # fmt: skip

    def register(self, text: str) -> None:
        self.write("register", self.lock(text))

    def amend(self, text: str) -> None:
        before = (self.state.amendments or (self.state.register,))[-1]
        now = self.lock(text)
        made = changes(before[1], now)
        self.write("amend", Amend(**dict(now), reason=REASON, replaces=before[0].hash, changes=made))

    def tune(self) -> None:
        protocol, space = self.protocol, self.space
        dev, baseline = RecordStore(space.records(STUDY, "dev", self.state.revision)), {}
        grid = dev_keys(protocol, PROBLEMS["dev"])
        matched: dict[str, dict[str, dict[str, ArmChoice]]] = {}
        state = self.state
        made = functools.partial(record, protocol, state.register[0].hash, state.seed_root())
        given: dict[tuple, Record] = {}
        with dev.open():
            for cell in protocol.reference_cells:
                keys = [k for k in grid if k[1] == cell.name]
                runs = [made(k, full_cache(Fraction(0))) for k in keys]
                dev.append(runs)
                given |= {(cell.model, *r.key[4:]): r for r in runs}
                matched[cell.name] = {REFERENCE: {"": full_cache(measured(runs)[1])}}
            for cell in protocol.cells:
                preset, params = arm_of(protocol, "baseline", "")
                schedule = schedule_for(preset, cell.budget)
                draft = reference_choice(preset, params, schedule, HELD, Fraction(0))
                own = [k for k in grid if k[1] == cell.name]
                runs = [made(k, draft, given=given.get((cell.model, *k[4:]))) for k in own if k[2] == "baseline"]
                lengths, mean = baseline[cell.name] = measured(runs)
                rows = {"baseline": {"": reference_choice(preset, params, schedule, HELD, mean)}}
                for arm, names in dev_runs(protocol).items():
                    for config in names if arm != "baseline" else ():
                        keys = [k for k in own if k[2:4] == (arm, config)]

                        def run(choice: ArmChoice, keys=keys, config=config, model=cell.model) -> list[Record]:
                            return [made(k, choice, config, given=given.get((model, *k[4:]))) for k in keys]

                        draft = matched_arm(protocol, cell, arm, config, lengths, mean)
                        choice = searched_choice(draft, lambda c, run=run: measured(run(c))[1])
                        rows.setdefault(arm, {})[config] = choice
                        runs += run(choice)
                        for step in choice.searched:
                            name, ran = step_config(config, step.budget), at_budget(choice, step.budget)
                            runs += [r.model_copy(update={"config": name}) for r in run(ran)]
                dev.append(runs)
                matched[cell.name] = rows
        keep(space, "dev", list(dev.read()), matched)
        self.write("dev_run", DevRun(records=dev.commit(space.root), matched=matched, methods=METHODS))

        controls = {
            c.name: {k.name: matched_arm(protocol, c, k.name, "", *baseline[c.name]) for k in protocol.controls}
            for c in protocol.cells
        }
        found = selection.select(protocol, dev.read(), PROBLEMS["dev"])
        self.write("select", selection.freeze(protocol, found, matched, controls))

    def confirm(self, exploratory: bool = False) -> None:
        chosen = self.state.select[1]
        keys = expected_keys(self.protocol, PROBLEMS["heldout"], chosen.survivors)
        root, about = self.space.root, {"methods": METHODS, "environment": ENVIRONMENT}
        self.write("consume", Consume(expected=len(keys), keys=keys_root(keys), environment=ENVIRONMENT,
                                      exploratory=exploratory))  # fmt: skip
        state, heldout = self.state, RecordStore(self.space.records(STUDY, "heldout"))
        odd = {("random", 3): "failed", ("baseline", 5): "truncated"}
        if self.protocol.fidelity:
            odd = {("random", 3): "failed", ("strong", 4): "failed", ("reference", 5): "truncated",
                   ("reference", 7): "failed"}  # fmt: skip
        place = {id: i for i, id in enumerate(PROBLEMS["heldout"])}
        runs, given = [], {}
        for k in keys:
            reference, status = given.get((k[1].partition("/")[0], *k[4:])), odd.get((k[2], place[k[4]]), "finished")
            if reference and reference.status == "failed":
                status = "failed"
            config = chosen.chosen.get(k[1], {}).get(k[2], "")
            runs.append(record(self.protocol, state.register[0].hash, state.seed_root(), k, chosen.arms[k[1]][k[2]],
                               config, status, reference))  # fmt: skip
            if k[2] == REFERENCE:
                given[k[1].partition("/")[0], *k[4:]] = runs[-1]
        arms = {cell: {arm: {"": choice} for arm, choice in row.items()} for cell, row in chosen.arms.items()}
        keep(self.space, "heldout", runs, arms, chosen.chosen)
        for number, part in enumerate((runs[:100], runs[100:]), 1):
            with heldout.open():
                heldout.append(part)
            self.write("records", Records(session=number, complete=number == 2, records=heldout.commit(root), **about))
        self.write("close", Close(records=heldout.commit(root), task=TASK, **about))

    def analyse(self) -> None:
        state, records = self.state, RecordStore(self.space.records(STUDY, "heldout")).read()
        ids = list(PROBLEMS["heldout"])
        document = analyse(
            self.protocol, state.register[0].hash, state.select[1], records, ids, label=state.label
        ).model_dump(mode="json")
        write_json(self.space.analysis(STUDY), document)
        said = {name: document[name] for name in ("branch", "decision")}
        self.write("analysis", Analysis(digest=digest(document), **said))


def split_lock(path: str, manifest: Manifest) -> SplitLock:
    return SplitLock(path=path, digest=manifest.digest(), merkle_root=manifest.merkle_root, count=len(manifest.items))


def write_json(path: Path, value: Any) -> None:
    path.write_bytes(json.dumps(value, indent=1).encode() + b"\n")


class Forger:
    """The study in memory, everything editable. `write` stores it as it is; `resign` first makes every digest, root,
    seed, commitment and the analysis fit again, except for the parts named in `keep`."""

    def __init__(self, root: Path):
        self.space = Workspace(root)
        self.protocol_file = (self.space.root / PROTOCOL_PATH).read_bytes()
        self.events: list[dict] = read_lines(self.space.ledger)
        self.dev: list[dict] = read_lines(self.space.records(STUDY, "dev"))
        self.heldout: list[dict] = read_lines(self.space.records(STUDY, "heldout"))
        self.manifests = {r: json.loads((self.space.root / f"splits/sim-{r}.json").read_bytes()) for r in PROBLEMS}
        self.analysis: dict = json.loads(self.space.analysis(STUDY).read_bytes())

    def event(self, kind: str) -> dict:
        """The payload of the study's first event of a kind."""
        return next(e["payload"] for e in self.events if (e["study"], e["event"]) == (STUDY, kind))

    @property
    def registration(self) -> str:
        return next(e["hash"] for e in self.events if (e["study"], e["event"]) == (STUDY, "register"))

    def insert(self, kind: str, payload: dict, after: str) -> None:
        at = max(i for i, e in enumerate(self.events) if e["event"] == after)
        self.events.insert(at + 1, {**self.events[at], "event": kind, "payload": copy.deepcopy(payload)})

    def records(self, cell: str = "one/b24", arm: str = "baseline", correct: bool | None = None) -> list[dict]:
        """The held-out records of an arm, or those of them that are right (or wrong)."""
        own = [r for r in self.heldout if r["cell"] == cell and r["arm"] == arm and r["status"] == "finished"]
        return own if correct is None else [r for r in own if r["grade"]["correct"] == correct]

    @property
    def state(self) -> StudyState:
        return StudyState.of(map(Event.model_validate, self.events), STUDY)

    @property
    def protocol(self) -> Protocol:
        return check(parse(self.protocol_file), "forged")

    def resign(self, *keep: str) -> Forger:
        """`keep`: protocol, manifests, seeds, dev_commit, keys, commits, analysis."""
        register = self.event("register")
        if "protocol" not in keep:
            register |= {"protocol_raw": digest_bytes(self.protocol_file), "protocol": self.protocol.document()}
            register["protocol_digest"] = digest(register["protocol"])
        if "manifests" not in keep:
            for role, manifest in self.manifests.items():
                manifest["merkle_root"] = merkle_root(canonical(i) for i in manifest["items"])
                lock = split_lock(register["splits"][role]["path"], Manifest.model_validate(manifest))
                register["splits"][role] = lock.model_dump()
        self.chain()
        registration = self.registration
        try:
            root = self.state.seed_root()
        except StateError:  # the stamp that it needs is over another registration
            root = registration
        for r in (*self.dev, *self.heldout):
            if "seeds" not in keep:
                r["registration"] = registration
                r["seed"] = trial_seed(root, r["cell"], r["problem"], r["sample"], phase=r["phase"])
        if "dev_commit" not in keep:
            self.event("dev_run")["records"] = committed(self.dev, "dev")
        if "keys" not in keep:
            ids = [i["id"] for i in self.manifests["heldout"]["items"]]
            keys = expected_keys(self.protocol, ids, self.event("select")["survivors"])
            self.event("consume").update(expected=len(keys), keys=keys_root(keys))
        if "commits" not in keep:
            sessions = [e["payload"] for e in self.events if (e["study"], e["event"]) == (STUDY, "records")]
            for session in sessions[:-1]:
                session["records"] = committed(self.heldout[: session["records"]["count"]], "heldout")
            sessions[-1]["records"] = self.event("close")["records"] = committed(self.heldout, "heldout")
        if "analysis" not in keep:
            ids = [i["id"] for i in self.manifests["heldout"]["items"]]
            self.conclude(analyse(
                Protocol.model_validate(register["protocol"]), registration,
                Select.model_validate(self.event("select")), map(Record.model_validate, self.heldout), ids,
                label=self.state.label,
            ).model_dump(mode="json"))  # fmt: skip
        self.chain()
        return self

    def retune(self) -> Forger:
        """Let scores, choices, survivors and frozen arms follow from the dev records as they are now."""
        protocol, frozen = self.protocol, Select.model_validate(self.event("select"))
        ids = [i["id"] for i in self.manifests["dev"]["items"]]
        found = selection.select(protocol, [Record.model_validate(r) for r in self.dev], ids)
        controls = {cell: {"random": row["random"]} for cell, row in frozen.arms.items()}
        matched = DevRun.model_validate(self.event("dev_run")).matched
        self.event("select").update(selection.freeze(protocol, found, matched, controls).model_dump(mode="json"))
        return self

    def exchange(self, out: str | None, into: str | None) -> Forger:
        """Confirm another candidate than the rule did: frozen, run on the held-out split and graded like the others.
        Neither `out` nor `into` need be given."""
        protocol, event = self.protocol, self.event("select")
        chosen, matched = event["chosen"], self.event("dev_run")["matched"]
        registration = self.registration
        names = [c.name for c in protocol.candidates]
        event["survivors"] = [n for n in names if n == into or (n in event["survivors"] and n != out)]
        self.heldout = [r for r in self.heldout if r["arm"] != out]
        ids = [i["id"] for i in self.manifests["heldout"]["items"]]
        for cell, row in event["arms"].items():
            row.pop(out, None)
            if into:
                row[into] = matched[cell][into][chosen[cell][into]]
                choice = ArmChoice.model_validate(row[into])
                keys = [("heldout", cell, into, "", id, 0) for id in ids]
                made = (record(protocol, registration, registration, k, choice, chosen[cell][into]) for k in keys)
                self.heldout += [r.model_dump(mode="json") for r in made]
        return self

    def conclude(self, document: dict) -> None:
        """Put a finished analysis in place and commit to it."""
        self.analysis = document
        self.event("analysis").update(digest=digest(document), branch=document["branch"], decision=document["decision"])

    def chain(self) -> None:
        prev = ZERO
        for seq, e in enumerate(self.events):
            self.events[seq] = e = json.loads(
                canonical(seal(seq, prev, e["study"], e["event"], e["time"], e["payload"]).model_dump(mode="json"))
            )
            prev = e["hash"]

    def write(self) -> Workspace:
        (self.space.root / PROTOCOL_PATH).write_bytes(self.protocol_file)
        write_lines(self.space.ledger, self.events)
        write_lines(self.space.records(STUDY, "dev"), self.dev)
        write_lines(self.space.records(STUDY, "heldout"), self.heldout)
        for role, manifest in self.manifests.items():
            write_json(self.space.root / f"splits/sim-{role}.json", manifest)
        write_json(self.space.analysis(STUDY), self.analysis)
        return self.space


def ids_of(output: str, status: str) -> list[int]:
    """The token ids of an output; one that finished ends with the stop token."""
    return [VOCABULARY[w] for w in output.split()] + [STOP] * (status == "finished")


def regrade(r: dict, output: str) -> None:
    """Give a record another output, with its true grade and ids; its length is left for the caller to fit."""
    grade = chain.grade(PROBLEMS[r["phase"]][r["problem"]], output)
    r.update(output=output, output_ids=ids_of(output, r["status"]), grade=asdict(grade))


def committed(records: list[dict], phase: str) -> dict:
    return commit([Record.model_validate(r) for r in records], f"reports/{STUDY}/{phase}.jsonl").model_dump()


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def write_lines(path: Path, values: list[dict]) -> None:
    path.write_bytes(b"".join(line(v) + b"\n" for v in values))


def line(value: dict) -> bytes:
    """The canonical form of records and events, which hold neither floats nor names beyond ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
