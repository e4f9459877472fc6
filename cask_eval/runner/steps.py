"""The steps that write to the ledger: register, amend, tune, confirm. Each checks the state, does its work, and commits
to what it left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from cask_eval.canonical import digest
from cask_eval.decide.budgets import tried
from cask_eval.errors import DriftError, SplitError, StateError
from cask_eval.ledger.amend import READ_BY_THE_ANALYSIS, changes, forbidden
from cask_eval.ledger.events import (
    Amend,
    ArmChoice,
    Close,
    Consume,
    DevRun,
    Event,
    Records,
    RecordsCommit,
    Register,
    Select,
)
from cask_eval.ledger.lineage import manifests, shared
from cask_eval.ledger.log import Ledger
from cask_eval.ledger.state import StudyState, guard, require
from cask_eval.protocol.keys import (
    Grid,
    dev_keys,
    expected_keys,
    full_arms,
    is_step,
    keys_root,
    search_keys,
    step_config,
)
from cask_eval.protocol.load import load
from cask_eval.protocol.model import REFERENCE
from cask_eval.records.model import Record
from cask_eval.records.store import RecordStore
from cask_eval.records.tokens import TokenFile, path_of
from cask_eval.runner import fingerprint
from cask_eval.runner import tune as tuning
from cask_eval.runner.full import copies, output_digest
from cask_eval.runner.place import Place, Runs
from cask_eval.runner.study import Study, described, facts, open_study, refuse
from cask_eval.runner.trials import Batch, Replays
from cask_eval.workspace import Workspace


@dataclass
class Watch:
    """What a step tells the outside while it works: never an accuracy."""

    start: Callable[[int, int], None] = lambda total, done: None
    advance: Callable[[int, int], None] = lambda trials, tokens: None
    say: Callable[[str], None] = lambda text: None


def register(workspace: Workspace, path: Path, device: str, warnings: list[str]) -> Event:
    """Lock a protocol. Raises StateError when the study id is taken, and whatever `open_study` and `facts` find."""
    study = open_study(workspace, path)
    name = study.protocol.study
    ledger = Ledger(workspace.ledger)
    require(StudyState.of(ledger.events(), name), "register")
    payload = facts(study, device, warnings)
    return ledger.append(name, "register", payload, allow=guard(name, "register"))


def amend(workspace: Workspace, path: Path, reason: str, device: str, warnings: list[str]) -> Event:
    """Put another protocol of the same name in the place of the registered one. Until the held-out split is consumed
    everything is locked anew; afterwards only what the analysis reads may change. Raises StateError when there is no
    such study, nothing changed, or what changed is a field of trials that have been run."""
    loaded = load(path)
    name, ledger = loaded.protocol.study, Ledger(workspace.ledger)
    state = StudyState.of(ledger.events(), name)
    require(state, "amend")
    before = (state.amendments[-1] if state.amendments else state.register)[0].hash
    locked = state.register[1]
    if state.consume is None:
        study = open_study(workspace, path)
        _refuse_dev_problems(workspace, ledger, study)
        now = facts(study, device, warnings)
    else:
        now = locked.model_copy(
            update={
                "protocol_path": workspace.relative(path),
                "protocol_raw": loaded.raw_digest,
                "protocol_digest": loaded.digest,
                "protocol": loaded.protocol.document(),
                "warnings": warnings,
                "invocation": fingerprint.invocation(workspace.root),
            }
        )
    made = changes(locked, now)
    if not made:
        raise StateError(f"{path} says what is registered already, and nothing else differs; edit it, then amend")
    if state.consume and (fields := forbidden(made)):
        raise StateError(
            f"the held-out split of {name!r} is consumed, so {', '.join(fields)} cannot change any more; only "
            f"{', '.join(sorted(READ_BY_THE_ANALYSIS))} can. Register a new study under another name"
        )
    own = {field: getattr(now, field) for field in Register.model_fields}
    payload = Amend(**own, reason=reason, replaces=before, changes=made)
    if state.consume:
        return ledger.append(name, "amend", payload, allow=guard(name, "amend"))
    # While the records are held no dev run can go on that the amendment puts aside.
    with RecordStore(workspace.records(name, "dev", state.revision)).open() as store:
        finished = StudyState.of(ledger.events(), name).dev_run
        if finished is None and store.done:
            payload = payload.model_copy(update={"dev": _commit(store, workspace)})

        def allow(events: list[Event]) -> None:
            guard(name, "amend", before)(events)
            if StudyState.of(events, name).consume:
                raise StateError(f"the held-out split of {name!r} was consumed while this ran; amend again")

        return ledger.append(name, "amend", payload, allow=allow)


def _refuse_dev_problems(workspace: Workspace, ledger: Ledger, study: Study) -> None:
    """Raises SplitError when a held-out problem was a dev problem of the same study before."""
    events, heldout = ledger.events(), study.heldout.manifest
    for found in shared(events, study.protocol.study, heldout, manifests(workspace, events)):
        if found.look.study != study.protocol.study:
            continue
        if found.count is None:
            path = found.look.lock.path
            raise SplitError(
                f"task.dev: {path} was the dev split until now and is not there as it was; it must stay, or nobody can "
                "tell which problems have been looked at. Restore it, and freeze the new one under another name"
            )
        if found.count:
            raise SplitError(
                f"task.heldout: {found.count} of {len(heldout.items)} problems in {study.heldout.path} were dev "
                f"problems of this study ({found.look.lock.path}), so they can confirm nothing; freeze fresh ones"
            )


def tune(workspace: Workspace, name: str, place: Place, watch: Watch) -> Event:
    """Run the dev split, match budgets, apply the registered rules. An interrupted run goes on where it stopped."""
    ledger = Ledger(workspace.ledger)
    state = StudyState.of(ledger.events(), name)
    if state.dev_run is None:
        require(state, "dev_run")
    else:
        require(state, "select")
    event, registered = state.register
    study = _reopen(workspace, registered, place)
    protocol = study.protocol
    ids = [p.id for p in study.dev.problems]
    grounds = tuning.grounds(study, registered.models, place.device)
    with RecordStore(workspace.records(name, "dev", state.revision)).open() as store:
        # Another process may have tuned meanwhile; while the records are held none can.
        events = ledger.events()
        state = StudyState.of(events, name)
        guard(name, "dev_run" if state.dev_run is None else "select", event.hash)(events)
        if state.dev_run is None:
            expected = dev_keys(protocol, ids)
            # How many budgets a search will try is not known; its trials show as tokens only.
            watch.start(len(expected), sum(key in expected for key in store.done))
            with place.bench(study, state, watch.say) as bench:
                matched = _matched(study, state, grounds, bench, store, watch)
                _say_usage(bench, watch)
                lost = bench.lost
            _complete(store, expected + search_keys(protocol, tried(matched), ids))
            locks = fingerprint.methods(protocol)
            if locks != registered.methods:
                raise DriftError("the method packages changed while the dev split ran; restore them and tune again")
            payload = DevRun(
                records=_commit(store, workspace),
                matched=matched,
                methods=locks,
                invocation=fingerprint.invocation(workspace.root),
                lost=lost,
            )
            ledger.append(name, "dev_run", payload, allow=guard(name, "dev_run", event.hash))
            state = StudyState.of(ledger.events(), name)
        elif _commit(store, workspace) != state.dev_run[1].records:
            raise DriftError("the dev records differ from what the dev_run event committed to; restore them")
        _say_failures(store, watch, protocol.fidelity)
        chosen = tuning.select(protocol, ids, store.read, state.dev_run[1], grounds)
        _refuse_broken(store, chosen)
    return ledger.append(name, "select", chosen, allow=guard(name, "select", event.hash))


def _matched(
    study: Study, state: StudyState, grounds: dict[str, tuning.Ground], bench: Runs, store: RecordStore, watch: Watch
) -> dict[str, dict[str, dict[str, ArmChoice]]]:
    """Run the dev split of a study in this state; returns `DevRun.matched`. Arms wait for the baseline of their cell,
    whose cache they are matched to, and baselines for the references that they replay; everything else may run at once.
    """

    known: dict[str, Batch] = {}

    def run(batches: list[Batch]) -> None:
        repeated = []
        for batch in batches:
            outputs = output_digest(registered, batch)
            if outputs is not None and known.setdefault(outputs, batch) is not batch:
                repeated.append((known[outputs], batch))
        again = [batch for _, batch in repeated]
        first = [batch for batch in batches if batch not in again]
        bench.run_all(given(study, store, first), store.done, store.append, watch.advance)
        settle(study, store, first)
        for source, batch in repeated:
            found = list(copies(store, source, batch, seed_root, store.done))
            store.append(found)
            watch.advance(len(found), 0)
        if again:  # what is not known yet
            bench.run_all(given(study, store, again), store.done, store.append, watch.advance)

    protocol, (_, registered), seed_root = study.protocol, state.register, state.seed_root()
    references = [
        Batch("dev", cell, REFERENCE, "", tuning.full(cell, grounds[cell.model])) for cell in protocol.reference_cells
    ]
    run(references)
    baselines = [
        Batch("dev", cell, "baseline", "", tuning.baseline(protocol, cell, grounds[cell.model]))
        for cell in protocol.cells
    ]
    run(baselines)
    matched = {}
    for batch in references:
        own = list(store.read(batch.cell.name))
        measured = tuning.measured_full(batch.cell, grounds[batch.cell.model], own)
        matched[batch.cell.name] = {REFERENCE: {"": measured}}
    for batch in baselines:
        cell = batch.cell
        own = list(store.read(cell.name, "baseline"))
        matched[cell.name] = tuning.match(protocol, cell, grounds[cell.model], own)
    arms = []
    for cell in protocol.cells:
        for arm, row in matched[cell.name].items():
            for config, draft in row.items() if arm != "baseline" else ():
                batch = Batch("dev", cell, arm, config, draft)
                row[config] = _search(study, bench, batch, grounds[cell.model], store, watch)
                arms.append(replace(batch, choice=row[config]))
    run(arms)
    return matched


def _search(
    study: Study, bench: Runs, draft: Batch, ground: tuning.Ground, store: RecordStore, watch: Watch
) -> ArmChoice:
    """The budget of a configuration whose cache depends on what it generates. The trials at every budget that is tried
    stand in the dev records under a name of their own (`step_config`), so that an interrupted search runs no trial
    twice and a reviewer can follow it; those of the last one stand under the configuration's name too."""

    ran: dict[int, list[Record]] = {}

    def evaluate(choice: ArmChoice) -> list[Record]:
        budget = choice.schedule.budget
        step = replace(draft, config=step_config(draft.config, budget), choice=choice)
        work = given(study, store, [step])
        bench.run_all(work, store.done, store.append, lambda _, tokens: watch.advance(0, tokens))
        ran[budget] = list(store.read(draft.cell.name, draft.arm, step.config))
        return ran[budget]

    choice = tuning.searched(draft.cell, ground, draft.choice, evaluate)
    if choice.searched:
        done = store.done
        last = [r.model_copy(update={"config": draft.config}) for r in ran[choice.schedule.budget]]
        new = [r for r in last if r.key not in done]
        if study.protocol.fidelity:
            file, ended = token_file(study, store, draft), step_config(draft.config, choice.schedule.budget)
            ids = [(r.problem, r.sample) for r in new if r.fidelity]
            file.add({(draft.config, *id): file.read((ended, *id)) for id in ids})
        store.append(new)
        watch.advance(len(new), 0)
    return choice


def token_file(study: Study, store: RecordStore, batch: Batch) -> TokenFile:
    """Where the numbers per token of a batch of replays lie."""
    space = study.workspace
    return TokenFile(space.resolve(path_of(space.relative(store.path), batch.cell.name, batch.arm)))


def given(study: Study, store: RecordStore, batches: list[Batch]) -> list[tuple[Batch, Replays | None]]:
    """The batches, each with what it needs to replay the references of its model, which have been generated; with None
    where its trials generate their own output."""
    replaying = {b.cell.model for b in batches if study.protocol.fidelity and b.arm != REFERENCE}
    references = {
        c.model: {(r.problem, r.sample): r for r in store.read(c.name, REFERENCE)}
        for c in study.protocol.reference_cells
        if c.model in replaying
    }

    files: dict[tuple[str, str], TokenFile] = {}

    def keep(batch: Batch) -> Callable[[dict], None]:
        # Several batches may write to the file of one arm in turns.
        def append(found: dict) -> None:
            place = batch.cell.name, batch.arm
            files[place] = files.get(place) or token_file(study, store, batch)
            files[place].append(found)

        return append

    return [
        (b, Replays(references[b.cell.model], keep(b)) if study.protocol.fidelity and b.arm != REFERENCE else None)
        for b in batches
    ]


def settle(study: Study, store: RecordStore, batches: list[Batch]) -> None:
    """Let the numbers per token of replays that have ended go into their files."""
    for batch in batches if study.protocol.fidelity else ():
        token_file(study, store, batch).settle()


def _refuse_broken(store: RecordStore, chosen: Select) -> None:
    """A candidate that failed every dev trial of a cell would spend the held-out split on nothing. One that is screened
    out does not."""
    frozen = [(cell, arm, row[arm]) for cell, row in chosen.chosen.items() for arm in chosen.survivors]
    for cell, arm, config in frozen:
        mine = list(store.read(cell, arm, config))
        if mine and all(r.failure for r in mine):
            fault = mine[0].failure
            raise StateError(
                f"cell {cell}: every dev trial of the candidate {arm!r} ({config}) failed, so nothing is frozen; the "
                f"first said {fault.error}: {fault.message}. Mend the method and register a new study"
            )


def consumption(workspace: Workspace, name: str) -> tuple[StudyState, str]:
    """(state, protocol digest) of a study that `confirm` may run or resume. Raises StateError, ConsumedError."""
    state = StudyState.of(Ledger(workspace.ledger).events(), name)
    if state.consume is None or state.close is not None:
        require(state, "consume")
    return state, state.register[1].protocol_digest


def refuse_changed(workspace: Workspace, name: str, place: Place) -> None:
    """Raises DriftError when protocol, splits, code, models or environment are not as they were registered."""
    _reopen(workspace, StudyState.of(Ledger(workspace.ledger).events(), name).register[1], place)


def confirm(
    workspace: Workspace,
    name: str,
    place: Place,
    watch: Watch,
    *,
    exploratory: bool = False,
    begun: Callable[[], None] = lambda: None,
) -> Event:
    """Run the held-out split once. `consume` is written before the first held-out prompt; a run that was cut off
    resumes inside the same attempt with the trials that are missing. An `exploratory` run says so in `consume`, and
    nothing that comes of it is ever confirmatory. `begun` is called when `consume` is in the ledger."""
    ledger = Ledger(workspace.ledger)
    state, _ = consumption(workspace, name)
    event, registered = state.register
    study = _reopen(workspace, registered, place)
    survivors = state.select[1].survivors
    expected = expected_keys(study.protocol, [p.id for p in study.heldout.problems], survivors)
    with RecordStore(workspace.records(name, "heldout")).open() as store:
        # Another process may have begun, or ended, the run meanwhile; while the records are held none can.
        before, (state, _) = state, consumption(workspace, name)
        if (state.register, state.select) != (before.register, before.select):
            raise StateError(f"study {name!r} was amended while this ran; look at `cask-eval status {name}`")
        # Whatever runs the trials is there, and is what was registered, before anything is spent.
        with place.bench(study, state, watch.say) as bench:
            session = 1
            if state.consume is None:
                payload = Consume(
                    expected=len(expected),
                    keys=keys_root(expected),
                    environment=bench.environment,
                    exploratory=exploratory,
                    invocation=fingerprint.invocation(workspace.root),
                )
                _refuse_early(store)
                ledger.append(name, "consume", payload, allow=guard(name, "consume", event.hash))
            elif not _is_complete(state):
                watch.say(f"resuming: {len(store.done)} of {len(expected)} trials are done")
                session = 1 + len(state.sessions)
                _end_session(ledger, study, session, False, store, bench)
                session += 1
            begun()
            if not _is_complete(state):
                watch.start(len(expected), len(store.done))
                rows = [(cell, full_arms("heldout")) for cell in study.protocol.reference_cells]
                rows += [(cell, list(study.protocol.heldout_arms(survivors))) for cell in study.protocol.cells]
                batches = [
                    Batch("heldout", cell, arm, "", state.select[1].arms[cell.name][arm])
                    for cell, arms in rows
                    for arm in arms
                ]
                for some in ([b for b in batches if b.arm == REFERENCE], [b for b in batches if b.arm != REFERENCE]):
                    bench.run_all(given(study, store, some), store.done, store.append, watch.advance)
                    settle(study, store, some)
                _say_usage(bench, watch)
                _complete(store, expected)
                _end_session(ledger, study, session, True, store, bench)
            _say_failures(store, watch, study.protocol.fidelity)
            payload = Close(
                records=_commit(store, workspace),
                methods=fingerprint.methods(study.protocol),
                environment=bench.environment,
                task=fingerprint.task(study.task),
                invocation=fingerprint.invocation(workspace.root),
            )
        return ledger.append(name, "close", payload, allow=guard(name, "close"))


def _is_complete(state: StudyState) -> bool:
    return bool(state.sessions) and state.sessions[-1][1].complete


def _refuse_early(store: RecordStore) -> None:
    if store.done:
        raise DriftError(
            f"{store.path} holds {len(store.done)} held-out records, but the split was never consumed; "
            "move the file away and find out where it comes from"
        )


def _end_session(ledger: Ledger, study: Study, session: int, complete: bool, store: RecordStore, bench: Runs) -> None:
    name = study.protocol.study
    payload = Records(
        session=session,
        complete=complete,
        records=_commit(store, study.workspace),
        methods=fingerprint.methods(study.protocol),
        environment=bench.environment,
        invocation=fingerprint.invocation(study.workspace.root),
        lost=bench.lost,
    )
    ledger.append(name, "records", payload, allow=guard(name, "records"))


def _say_usage(bench: Runs, watch: Watch) -> None:
    if text := bench.usage.text():
        watch.say(text)


def _say_failures(store: RecordStore, watch: Watch, fidelity: bool) -> None:
    """Failed trials count as wrong, replays as the worst; they are not outcomes, so naming them does not unblind."""
    failed = sorted(((r.key, r.failure) for r in store.failed()), key=itemgetter(0))
    for (cell, arm, config), group in groupby(failed, key=lambda pair: pair[0][1:4]):
        faults = list(group)
        first = faults[0][1]
        counts = "count as the worst" if fidelity else "count as wrong"
        what = "failed and are not part of its mean cache" if is_step(config) else f"failed and {counts}"
        watch.say(
            f"{len(faults)} trials of {' '.join(filter(None, (cell, arm, config)))} {what}; the first said "
            f"{first.error}: {first.message}"
        )


def _reopen(workspace: Workspace, registered, place: Place) -> Study:
    path = workspace.resolve(registered.protocol_path)
    if not path.is_file():
        raise DriftError(f"the registered protocol {registered.protocol_path} is gone; restore it")
    study = open_study(workspace, path)
    if digest(study.protocol.document()) != registered.protocol_digest:
        refuse(study, registered, registered.model_copy(update=described(study)))
    place.check(study, registered)
    return study


def _commit(store: RecordStore, workspace: Workspace) -> RecordsCommit:
    return store.commit(workspace.root)


def _complete(store: RecordStore, expected: Grid) -> None:
    done = store.done
    missing = [k for k in expected if k not in done]
    if missing:
        raise StateError(f"{len(missing)} trials have no record, the first being {missing[0]}; run the command again")
    extra = [key for key in done if key not in expected]
    if extra:
        raise DriftError(
            f"{store.path} holds {len(extra)} records that the protocol does not ask for, such as "
            f"{min(extra)}; move the file away and find out where they come from"
        )
