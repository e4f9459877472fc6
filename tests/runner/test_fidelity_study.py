"""A study whose endpoint is how closely caches follow the full cache's output, on an embedded model: from protocol to
verdict, after a crash, and executed again."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from study_files import digits, replace

from cask_eval.errors import StateError
from cask_eval.fidelity import summarise
from cask_eval.ledger.log import Ledger
from cask_eval.ledger.state import StudyState
from cask_eval.records.model import Failure, FidelityRecord
from cask_eval.records.store import RecordStore
from cask_eval.records.tokens import TokenFile, digest_of
from cask_eval.runner import trials
from cask_eval.runner.reexecute import reexecute
from cask_eval.runner.study import open_study
from cask_eval.runner.trials import Bench
from cask_eval.workspace import Workspace


@pytest.fixture(scope="module")
def prepared(fresh, tmp_path_factory):
    """Registered with endpoint nll: one budget, two samples of few problems, a vote of two chains among the arms."""
    root = shutil.copytree(fresh, tmp_path_factory.mktemp("fidelity") / "ws")
    replace(
        root,
        "small",
        {
            "select: max_mean_accuracy": "select: max_mean_endpoint",
            "endpoint: accuracy": "endpoint: nll",
            "procedure: paired_bootstrap": "procedure: sign_flip",
            "{name: random, preset: random_pp, params: {delta: 16}}":
                "{name: vote, preset: tri_vote, params: {prompt: compete}}",
        },
    )
    return root


@pytest.fixture(scope="module")
def done(prepared, cask):
    cask("register", prepared / "prereg" / "small.yaml", "--device", "cpu")
    cask("-C", prepared, "tune", "--device", "cpu")
    cask("-C", prepared, "confirm", "--split", "heldout", "--yes", digits(prepared), "--device", "cpu")
    return prepared


class Killed(BaseException):
    """Nothing catches it."""


def records(root, phase):
    return list(RecordStore(root / "reports" / "small" / f"{phase}.jsonl").read())


def test_a_study_of_fidelity_runs_from_protocol_to_verdict(done, cask):
    heldout = records(done, "heldout")
    assert {(r.cell, r.arm) for r in heldout} == {
        *(("chain-s/reference", arm) for arm in ("reference", "ceiling")),
        *(("chain-s/b64", arm) for arm in ("baseline", "candidate", "vote")),
    }
    document = json.loads((done / "reports" / "small" / "analysis.json").read_text())
    (cell,) = document["cells"]
    assert document["endpoint"] == "nll" and cell["n"] == 10 and len(cell["values"]) == 10
    value = {(r.arm, r.problem): float(r.fidelity.whole.nll) for r in heldout if r.fidelity}
    problems = {r.problem for r in heldout}
    by_hand = sum(value["baseline", p] - value["candidate", p] for p in problems) / 10
    assert float(cell["difference"]) == pytest.approx(by_hand, rel=1e-8)
    result = cask("-C", done, "verify", "--require", "L0")
    assert result.return_value == 0, result.output


def test_replays_are_of_the_references_tokens(done):
    heldout = records(done, "heldout")
    given = {(r.problem, r.sample): r for r in heldout if r.arm == "reference"}
    for r in heldout:
        reference = given[r.problem, r.sample]
        assert (r.output_ids, r.status, r.grade) == (reference.output_ids, reference.status, reference.grade)
        assert (r.fidelity is None) == (r.arm == "reference")
        assert r.residency.steps == len(reference.output_ids) - 1 or r.chains
    ceiling = [r for r in heldout if r.arm == "ceiling"]
    assert all(float(r.fidelity.whole.kl) < 1e-5 and r.fidelity.after is None for r in ceiling)
    # Greedy references are their own argmax, near-ties apart.
    assert sum(r.fidelity.whole.top1 == "1.000000000" for r in ceiling) >= 9
    assert any(float(r.fidelity.whole.nll) > float(c.fidelity.whole.nll) + 1e-3
               for c in ceiling for r in heldout if (r.arm, r.problem) == ("baseline", c.problem))  # fmt: skip


def test_records_follow_from_their_numbers_per_token(done):
    for phase in ("dev", "heldout"):
        for r in records(done, phase):
            if r.fidelity is None:
                continue
            file = TokenFile(done / "reports" / "small" / f"{phase}.tokens" / r.cell / f"{r.arm}.safetensors")
            found = file.read((r.config, r.problem, r.sample))
            assert found.nll.shape == (max(1, len(r.chains)), len(r.output_ids))
            assert digest_of(found) == r.fidelity.arrays
            made = FidelityRecord.of(summarise(found), r.fidelity.arrays)
            assert made.whole == r.fidelity.whole and made.first_mismatch == r.fidelity.first_mismatch
            if r.fidelity.after:
                assert r.residency.events or r.chains
                assert 0 < r.fidelity.after.tokens < r.fidelity.whole.tokens


def test_numbers_per_token_are_plain_safetensors(done):
    from safetensors.numpy import load_file

    path = done / "reports" / "small" / "heldout.tokens" / "chain-s" / "b64" / "baseline.safetensors"
    found, own = load_file(path), TokenFile(path)
    assert len(found) == 30
    for config, problem, sample in own.trials:
        mine = own.read((config, problem, sample))
        for field in ("nll", "rank", "kl"):
            assert np.array_equal(found[json.dumps([config, problem, sample, field], separators=(",", ":"))],
                                  getattr(mine, field))  # fmt: skip


@pytest.mark.slow
def test_trials_come_out_the_same_when_they_are_run_again(done, cask):
    result = cask("-C", done, "verify", "--require", "L3", "--reexecute", "100", "--device", "cpu")
    assert result.return_value == 0, result.output
    assert "50 of 50 trials" in result.output


@pytest.mark.slow
def test_an_invented_fidelity_is_found_by_running_again(done, copy, cask):
    """Arrays and record forged together: nothing but another run tells."""
    space = Workspace(copy(done))
    state = StudyState.of(Ledger(space.ledger).events(), "small")
    stored = records(space.root, "heldout")
    forged = next(r for r in stored if r.arm == "candidate")
    whole = forged.fidelity.whole.model_copy(update={"nll": f"{0.9 * float(forged.fidelity.whole.nll) - 0.002:.9f}"})
    made = forged.model_copy(update={"fidelity": forged.fidelity.model_copy(update={"whole": whole})})
    again = reexecute(space, state, [made if r is forged else r for r in stored], "draw", 50, "cpu")
    assert again.differ == (f"{forged.cell}/candidate/{forged.problem}/0 came out otherwise",)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stopped(done, copy, cask, monkeypatch):
    """A kill between numbers and records, and one in the middle of an arm, leave the same study."""
    root = copy(done)
    ledger = root / "prereg" / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:3]))  # up to the selection
    for path in (root / "reports" / "small").glob("heldout*"):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    (root / "reports" / "small" / "analysis.json").unlink()
    monkeypatch.setattr(trials, "KEPT_AT_ONCE", 3)
    append, calls = RecordStore.append, []

    def dies(self, found):
        calls.append(len(found))
        if found[0].arm == "candidate" and calls.count(3) > 8:
            raise Killed
        append(self, found)

    monkeypatch.setattr(RecordStore, "append", dies)
    with pytest.raises(Killed):
        cask("-C", root, "confirm", "--split", "heldout", "--yes", digits(root), "--device", "cpu")
    left = len(records(root, "heldout"))
    assert 0 < left < 50
    monkeypatch.setattr(RecordStore, "append", append)
    cask("-C", root, "confirm", "--split", "heldout", "--yes", digits(root), "--device", "cpu")
    assert cask("-C", root, "verify", "--require", "L0").return_value == 0
    same = {r.key: r for r in records(done, "heldout")}
    for r in records(root, "heldout"):
        whole = same[r.key]
        assert r.model_copy(update={"fidelity": None, "measures": {}}) == whole.model_copy(
            update={"fidelity": None, "measures": {}}
        )
        assert r.fidelity is None or r.fidelity.near(whole.fidelity)


def test_replays_need_their_references(done):
    study = open_study(Workspace(done), done / "prereg" / "small.yaml")
    state = StudyState.of(Ledger(Workspace(done).ledger).events(), "small")
    bench = Bench(study, state.register[0].hash, state.seed_root(), "cpu")
    (cell,) = study.protocol.cells
    batch = trials.Batch("heldout", cell, "baseline", "", state.select[1].arms[cell.name]["baseline"])
    with pytest.raises(StateError, match="10 trials replay references that are not among the records"):
        bench.run(batch, set(), print, print, trials.Replays({}, print))


class Reference:
    """Just what a replay looks at."""

    def __init__(self, ids, failure=None):
        self.output_ids, self.failure = ids, failure


def test_blocks_leave_room_for_the_full_caches_logits():
    given = [trials.Given(i, (1,), 0, tuple(range(n))) for i, n in enumerate([3, 4, 9, 2, 2, 2])]
    blocks = [[r.key for r in block] for block in trials._blocks(given, 7)]
    assert blocks == [[0, 1], [2], [3, 4, 5]]


def test_a_replay_fails_as_its_reference_did(monkeypatch):
    bench = Bench.__new__(Bench)
    bench.slots, bench._dense = 4, ("m", {})
    decoder = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=8)),
        dtype=SimpleNamespace(itemsize=4),
    )
    keys = [("heldout", "m/b64", "a", "", p, 0) for p in ("x", "y", "z")]
    requests = [trials.Request(k, (1, 2), 0) for k in keys]
    failed = Failure(kind="infrastructure", error="OutOfMemoryError", message="gone")
    references = {("x", 0): Reference([1]), ("y", 0): Reference([], failed), ("z", 0): Reference([2])}

    def dense(_, request):
        if request.key[4] == "z":
            raise FloatingPointError("no logits")
        return "logits"

    monkeypatch.setattr(trials, "dense", dense)
    monkeypatch.setattr(
        bench, "_trials", lambda d, rs, p, s, sampling, full: iter(trials._Chains(r.key, [full[r.key]]) for r in rs),
        raising=False,
    )  # fmt: skip
    found = {r.key[4]: r for r in bench._replays(decoder, requests, None, None, references)}
    assert found["x"].outcomes == ["logits"]
    assert (found["y"].kind, found["y"].error) == ("infrastructure", "OutOfMemoryError")
    assert found["y"].message == "its reference failed: gone"
    assert (found["z"].kind, found["z"].error) == ("method", "FloatingPointError")


def test_the_next_arm_reads_the_full_cache_no_second_time(monkeypatch):
    bench = Bench.__new__(Bench)
    bench._dense = "m", {}
    asked = []
    monkeypatch.setattr(trials, "dense", lambda decoder, r: asked.append((decoder, r.continuation)) or r.continuation)

    def block(arm, *continuations):
        return [trials.Given((arm, ids), (1,), 0, ids) for ids in continuations]

    one, two, three = (7,), (7, 8), (9,)
    assert bench._full("model", block("a", one, two)) == {("a", one): one, ("a", two): two}
    assert bench._full("model", block("b", one, two)) == {("b", one): one, ("b", two): two}
    assert asked == [("model", one), ("model", two)]
    bench._full("model", block("b", two, three))
    assert asked[2:] == [("model", three)]
    assert bench._dense[1].keys() == {((1,), two), ((1,), three)}, "no more than one block is kept"


def test_near_is_rounding_and_no_more():
    rates = {"tokens": 200, "top1": "0.900000000", "top5": "0.990000000", "nll": "0.400000000", "kl": "0.100000000"}
    made = {"whole": rates, "after": rates, "first_mismatch": 3, "arrays": "sha256:" + "0" * 64}
    one = FidelityRecord.model_validate(made)

    def other(**changes):
        return FidelityRecord.model_validate({**made, "after": {**rates, **changes}})

    assert one.near(other(nll="0.405000000", top1="0.891000000")) and other(kl="0.098000000").near(one)
    for changes in ({"nll": "0.410000000"}, {"top1": "0.880000000"}, {"kl": "0.104000000"}, {"tokens": 199}):
        assert not one.near(other(**changes)), changes
    assert not one.near(FidelityRecord.model_validate({**made, "after": None}))
    assert math.isclose(one.endpoint("nll_after"), 0.4) and one.endpoint("top1") == one.endpoint("top1_after")
