"""A folder of replays: what it holds, that it resumes, and what is refused."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from replaying import ARGS, ARMS, command, good
from safetensors.numpy import load_file

from cask_eval import jsonl
from cask_eval.cli import cli
from cask_eval.errors import CaskError, DriftError, MethodError, RecordError, StateError
from cask_eval.replay import run as grid
from cask_eval.replay.blocks import blocks
from cask_eval.replay.questions import read_prompts
from cask_eval.replay.records import CEILING, Reference, Trial, digest_of, read, read_folder
from cask_eval.replay.summary import compressed_from, table, tokens_of


def trials(folder):
    return list(read(folder / "records.jsonl", Trial))


def references(folder):
    return {r.key: r for r in read(folder / "references.jsonl", Reference)}


def test_every_arm_budget_and_reference_has_a_record(made):
    out, _ = made
    found, refs = trials(out), references(out)
    arms = [(CEILING, 0)] + [(a, b) for a in ("recency", "tri_vote", "tri_merge") for b in (48, 64)]
    assert len(refs) == 5
    assert {t.key for t in found} == {(a, b, *k) for a, b in arms for k in refs}
    for t in found:
        r = refs[t.problem, t.sample]
        assert t.reference == digest_of(r)
        assert (t.tokens, t.prompt_tokens) == (len(r.output_ids), r.prompt_tokens)
        assert len(t.chains) == (0 if t.arm != "tri_vote" else 2)
        assert t.cache.evicted + t.cache.terminal == (t.prompt_tokens + t.tokens - 1) * max(1, len(t.chains))


def test_the_ceiling_follows_its_own_references(made):
    """Greedy references: rank 1 throughout, no divergence, and the references' own numbers."""
    out, _ = made
    refs = references(out)
    for t in trials(out):
        if t.arm == CEILING:
            r = refs[t.problem, t.sample]
            assert (t.fidelity.whole.top1, r.top1) == ("1.000000000", "1.000000000")
            assert float(t.fidelity.whole.kl) < 1e-6
            assert float(t.fidelity.whole.nll) == pytest.approx(float(r.nll), abs=1e-6)
            assert t.fidelity.after is None and t.regime == "never_compressed"
            assert t.fidelity.first_mismatch == r.first_mismatch == t.tokens
            assert t.strict_prefix_ratio == "1.000000000"


def test_records_follow_from_the_numbers_per_token(made):
    out, _ = made
    for t in trials(out):
        tokens = tokens_of(out, t)
        assert tokens.nll.shape == (max(1, len(t.chains)), t.tokens)
        nll, rank = tokens.nll.astype(float), tokens.rank
        assert float(t.fidelity.whole.nll) == pytest.approx(nll.mean(), abs=1e-8)
        assert float(t.fidelity.whole.top1) == pytest.approx((rank == 1).mean(), abs=1e-9)
        assert float(t.fidelity.whole.top5) == pytest.approx((rank <= 5).mean(), abs=1e-9)
        assert float(t.fidelity.whole.kl) == pytest.approx(tokens.kl.astype(float).mean(), abs=1e-8)
        assert float(t.perplexity) == pytest.approx(math.exp(float(t.fidelity.whole.nll)), rel=1e-6)
        accounts = t.chains or [t.residency]
        for row, account in zip(tokens.compressed, accounts, strict=True):
            first = account.events[0][0] + 1 if account.events else t.tokens
            assert row.tolist() == [i >= first for i in range(t.tokens)]
        if tokens.compressed.any():
            assert float(t.fidelity.after.nll) == pytest.approx(nll[tokens.compressed].mean(), abs=1e-8)
        else:
            assert t.fidelity.after is None


def test_the_arrays_are_plain_safetensors(made):
    out, _ = made
    found = load_file(out / "tokens" / "recency@48.safetensors")
    assert len(found) == 5 * 3
    assert {a.dtype for a in found.values()} == {np.dtype("float32"), np.dtype("int32")}


def test_saved_ratios_have_both_denominators(made):
    out, _ = made
    for t in trials(out):
        read_ = (t.prompt_tokens + t.tokens - 1) * max(1, len(t.chains))
        want = Fraction(t.cache.evicted, read_)
        assert float(t.cache.reference_terminal_saved_ratio) == pytest.approx(float(want), abs=1e-9)
        own = float(t.cache.terminal_saved_ratio)
        # What was evicted is gone, what was merged is still stood for.
        assert own <= float(t.cache.reference_terminal_saved_ratio)
        assert own > 0 if t.arm == "tri_merge" and t.stages.decode_events else own == 0


def test_the_table_is_the_mean_of_the_records_and_their_paired_differences(made):
    out, rows = made
    assert rows == json.loads(json.dumps([r.__dict__ | {} for r in table(out)], default=lambda d: d.__dict__))
    found = trials(out)
    ceiling = {t.problem: t for t in found if t.arm == CEILING}
    assert rows[0]["arm"] == CEILING and rows[0]["differences"] == {}
    for row in rows[1:]:
        some = [t for t in found if (t.arm, t.budget) == (row["arm"], row["budget"])]
        assert (row["problems"], row["records"]) == (5, 5)
        assert row["means"]["nll"] == pytest.approx(np.mean([float(t.fidelity.whole.nll) for t in some]))
        assert row["mean_cache"] == pytest.approx(np.mean([float(t.cache.mean) for t in some]))
        pairs = [float(t.fidelity.whole.nll) - float(ceiling[t.problem].fidelity.whole.nll) for t in some]
        d = row["differences"]["nll"]
        assert (d["n"], d["mean"]) == (5, pytest.approx(np.mean(pairs)))
        half = 2.7764451051977987 * np.std(pairs, ddof=1) / math.sqrt(5)
        assert (d["low"], d["high"]) == (pytest.approx(np.mean(pairs) - half), pytest.approx(np.mean(pairs) + half))
        # After the first event: the ceiling over the same tokens.
        after = []
        for t in some:
            if t.fidelity.after:
                own = tokens_of(out, ceiling[t.problem]).nll[0].astype(float)
                same = np.concatenate([own[first:] for first in compressed_from(t)])
                after.append(float(t.fidelity.after.nll) - same.mean())
        assert row["after"] == len(after)
        assert row["differences"]["nll_after"]["mean"] == pytest.approx(np.mean(after), abs=1e-8)


def test_provenance_has_no_paths_of_this_machine(made):
    out, _ = made
    text = (out / "replay.json").read_text()
    found = read_folder(out)
    assert str(out.parent) not in text and found.argv[0] == "cask-eval"
    assert found.settings.model_files and found.settings.environment.packages["torch"]
    assert set(found.settings.methods) == {"cask_methods"}


def test_again_changes_nothing(folder):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    good(out=folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("where", ["before the arrays", "between arrays and records", "in a line", "in the references"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(made, tmp_path, monkeypatch, where):
    """One reference a block, so that blocks are the same whatever was there before."""
    small = [*ARGS, "--block-mib", "1"]
    monkeypatch.setattr("cask_eval.replay.blocks.MOST", 2)
    want = tmp_path / "want"
    good(out=want, base=small)
    out = tmp_path / "out"
    if where == "in a line":
        good(out=out, base=small)
        for name in ("records", "references"):
            lines = (out / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
            keep = lines[:15] if name == "records" else lines
            (out / f"{name}.jsonl").write_bytes(b"".join(keep)[: -20 if name == "records" else None])
    else:
        calls = {"before the arrays": ("TokenFile.add", 4), "between arrays and records": ("append", 9)}
        target, number = calls.get(where, ("append", 3))
        place = f"cask_eval.replay.run.arrays.{target}" if "." in target else f"cask_eval.jsonl.{target}"
        real, count = {"append": jsonl.append, "TokenFile.add": grid.arrays.TokenFile.add}[target], 0

        def dies(*args):
            nonlocal count
            count += 1
            if count == number:
                raise KeyboardInterrupt
            return real(*args)

        with monkeypatch.context() as m:
            m.setattr(place, dies)
            assert command(out=out, base=small).exit_code != 0
        assert count == number
    good(out=out, base=small)
    for path in want.rglob("*"):
        if path.suffix == ".safetensors":
            assert (out / path.relative_to(want)).read_bytes() == path.read_bytes()
    assert (out / "records.jsonl").read_bytes() == (want / "records.jsonl").read_bytes()
    assert sorted(references(out)) == sorted(references(want))


@pytest.mark.parametrize(
    "args, arms, field",
    [
        (["--budgets", "48"], ARMS, r"budgets is \[48\], but the folder was made with \[48, 64\]"),
        (["--seed", "4"], ARMS, "seed is 4, but the folder was made with 0"),
        (["--max-new-tokens", "60"], ARMS, "max_new_tokens is 60"),
        (["--limit", "3"], ARMS, "prompts is .*; give that, or name another folder with --out"),
        ([], ARMS[:2], "arms is"),
        (["--slots", "3"], ARMS, "slots is 3, but the folder was made with 64"),
    ],
)
def test_other_settings_are_refused(folder, args, arms, field):
    before = (folder / "records.jsonl").read_bytes()
    with pytest.raises(DriftError, match=field):
        good(*args, out=folder, arms=arms)
    assert (folder / "records.jsonl").read_bytes() == before


def test_references_serve_another_folder(made, tmp_path):
    out = tmp_path / "other"
    good("--references", made[0] / "references.jsonl", out=out, arms=["--arm", "keydiff:delta=16"])
    assert (out / "references.jsonl").read_bytes() == (made[0] / "references.jsonl").read_bytes()
    assert {t.arm for t in trials(out)} == {CEILING, "keydiff"}
    lines = (made[0] / "references.jsonl").read_text().replace('"entropy":"0', '"entropy":"1')
    (tmp_path / "others.jsonl").write_text(lines)
    with pytest.raises(DriftError, match="--references others.jsonl: the folder has other references already"):
        good("--references", tmp_path / "others.jsonl", out=out, arms=["--arm", "keydiff:delta=16"])


@pytest.mark.parametrize(
    "field, value", [("prompt", "sha256:" + "0" * 64), ("model", "sha256:" + "1" * 64), ("temperature", "0.5")]
)
def test_references_of_something_else_are_refused(made, tmp_path, field, value):
    lines = [json.loads(line) for line in (made[0] / "references.jsonl").read_text().splitlines()]
    lines[2][field] = value
    path = tmp_path / "references.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DriftError, match=f"{field} is {value}, but this run has"):
        good("--references", path, out=tmp_path / "out")


def test_changed_arrays_are_noticed(folder):
    path = folder / "tokens" / "ceiling.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RecordError, match="tokens/ceiling.safetensors: .* is missing or changed"):
        table(folder)


def test_sampled_references_have_a_ceiling_of_their_own(tmp_path):
    """What was sampled is not what the full cache finds most probable; the ceiling says by how much."""
    out = tmp_path / "out"
    args = ["--temperature", "1.5", "--samples", "2", "--limit", "3", "--json"]
    rows = json.loads(good(*args, out=out, arms=["--arm", "recency:delta=16"]).stdout)
    ceiling = rows[0]
    assert ceiling["records"] == 6 and ceiling["problems"] == 3
    assert ceiling["means"]["top1"] < 1 and ceiling["means"]["kl"] < 1e-6
    a, b = (references(out)["chain/1/v7d1n0z/1/0", s] for s in range(2))
    assert a.output_ids != b.output_ids and a.seed != b.seed


def test_prompts_from_a_file(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"id": "one", "prompt": "a = 1 ;"}\n\n{"prompt": "b = 2 ; c = b ;"}\n')
    good("--prompts", path, out=tmp_path / "out", arms=["--arm", "recency:delta=16"])
    assert set(references(tmp_path / "out")) == {("one", 0), ("line-3", 0)}
    plain = tmp_path / "some.txt"
    plain.write_text("first\n\nthird\n")
    assert [(p.id, p.prompt) for p in read_prompts(plain)] == [("line-1", "first"), ("line-3", "third")]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "some.jsonl:1: is not JSON"),
        ('{"id": "a"}', 'has no text under "prompt"'),
        ('{"id": 3, "prompt": "x"}', "id is 3; it must be a text"),
        ('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}', "some.jsonl:2: id 'a' is there twice"),
        ("", "holds no prompt"),
    ],
)
def test_prompts_that_are_none(tmp_path, text, message):
    path = tmp_path / "some.jsonl"
    path.write_text(text)
    with pytest.raises(CaskError) as error:
        read_prompts(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "args, arms, error, message",
    [
        ([], ["--arm", "nothing"], MethodError, "no method is called 'nothing'"),
        ([], ["--arm", "recency:delta=x"], MethodError, "parameter delta is 'x'"),
        ([], [*ARMS[:2], *ARMS[:2]], CaskError, "--arm recency: is given twice"),
        (["--budgets", "8"], ["--arm", "triattention"], MethodError, "--arm triattention --budgets 8: budget 8 leaves"),
        (["--calibration", "no.safetensors"], ARMS, CaskError, "--calibration no.safetensors: does not exist"),
    ],
)
def test_refusals_before_anything_runs(tmp_path, args, arms, error, message):
    with pytest.raises(error) as found:
        good(*args, out=tmp_path / "out", arms=arms)
    assert message in str(found.value)
    assert not (tmp_path / "out" / "records.jsonl").exists()


def test_a_method_that_breaks_is_named(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise FloatingPointError("Scorer produced NaN scores; the event is refused")

    monkeypatch.setattr("cask_eval.engine.method.Policy.compress", broken)
    with pytest.raises(MethodError, match="--arm recency --budgets 48: Scorer produced NaN scores.*; name another"):
        good(out=tmp_path / "out")


def test_memory_that_runs_out_has_a_remedy(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr("cask_eval.replay.run.replay", full)
    with pytest.raises(CaskError, match="--slots 64, --block-mib: memory ran out at --arm ceiling"):
        good(out=tmp_path / "out")


def test_two_processes_do_not_share_a_folder(folder):
    with grid.taken(folder), pytest.raises(StateError, match="another process replays"):
        good(out=folder)


def test_a_source_is_needed(tmp_path):
    line = ["replay", *ARGS, *ARMS, "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, line)
    assert "--split, --prompts: give one of them" in str(result.exception)
    for bad in ("0,4", "4,4", "x"):
        assert CliRunner().invoke(cli, [*line, "--budgets", bad]).exit_code == 2


def test_blocks_are_bounded_by_memory():
    class R:
        def __init__(self, n):
            self.output_ids = [0] * n

    refs = [R(n) for n in (3, 4, 10, 1, 1, 1, *[1] * 70)]
    found = list(blocks(refs, 2, 14))
    assert [r for block in found for r in block] == refs
    assert [len(b) for b in found[:2]] == [2, 1]
    assert all(len(b) == 1 or sum(len(r.output_ids) * 2 for r in b) <= 14 for b in found)
    assert [len(b) for b in blocks(refs, 1, 10**9)] == [64, 12]


def test_the_table_on_the_terminal(folder):
    text = good(out=folder).stdout
    assert "5 problems × 1, greedy" in text
    for word in ("ceiling", "recency", "after: KL", "5 active", "5 never compressed"):
        assert word in text
