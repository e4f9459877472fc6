"""`cask-eval frontier` over a folder of replays: against the records, added up by hand."""

import csv
import json
from fractions import Fraction

import pytest
from click.testing import CliRunner

from cask_eval.cli import cli
from cask_eval.errors import CaskError, DriftError, RecordError
from cask_eval.replay.records import Trial, line_of
from cask_eval.replay.summary import trials_of


def ask(folder, *args, ok=True):
    result = CliRunner().invoke(cli, ["frontier", str(folder), *args])
    if ok and result.exception:
        raise result.exception
    return result


def test_points_and_losses_are_means_over_problems(folder):
    found = json.loads(ask(folder, "--epsilon", "0.05", "--json").stdout)
    trials = {t.key: t for t in trials_of(folder)}
    ceiling = {k[2]: t for k, t in trials.items() if k[0] == "ceiling"}
    assert len(found["points"]) == 1 + 3 * 2 and found["problems"] == len(ceiling) == 5
    for p in found["points"]:
        own = [t for k, t in trials.items() if k[:2] == (p["arm"], p["budget"])]
        lost = [t.fidelity.endpoint("nll") - ceiling[t.problem].fidelity.endpoint("nll") for t in own]
        assert p["loss"] == pytest.approx(float(sum(lost) / 5)) and p["loss_low"] <= p["loss"] <= p["loss_high"]
        assert p["cache"] == pytest.approx(float(sum(Fraction(t.cache.mean) for t in own) / 5))
    # Three methods at two budgets: every two methods, each at the smaller one.
    assert len(found["crossings"]) == 6 and all(c["one"] == 48 and c["other"] == 64 for c in found["crossings"])


def test_top1_is_oriented(folder):
    found = json.loads(ask(folder, "--metric", "top1", "--epsilon", "0.5", "--json").stdout)
    by = {(p["arm"], p["budget"]): p for p in found["points"]}
    top = by["ceiling", 0]["mean"]
    assert all(p["loss"] == pytest.approx(top - p["mean"]) for p in found["points"])
    for c in found["crossings"]:
        advantage = by[c["first"], c["one"]]["mean"] - by[c["second"], c["other"]]["mean"]
        assert c["difference"] == pytest.approx(advantage)


def test_after_compares_the_same_tokens(folder):
    found = json.loads(ask(folder, "--metric", "nll_after", "--epsilon", "0.05", "--json").stdout)
    (ceiling,) = (p for p in found["points"] if p["arm"] == "ceiling")
    assert ceiling["mean"] == pytest.approx(
        sum(float(t.fidelity.endpoint("nll")) for t in trials_of(folder) if t.arm == "ceiling") / 5
    )
    assert all(p["loss"] > -1e-4 for p in found["points"])


def test_a_question_that_was_asked_first_is_not_changed_later(folder, tmp_path):
    said = ask(tmp_path / "new", "--epsilon", "0.05").stderr
    assert "now make the replays" in said and json.loads((tmp_path / "new/frontier.json").read_text())["records"] == 0
    ask(folder, "--epsilon", "0.05")
    assert "may have been chosen by what came out" in (folder / "frontier.html").read_text()
    with pytest.raises(DriftError, match="epsilon is 0.05, and 0.5 was given"):
        ask(folder, "--epsilon", "0.5")
    with pytest.raises(DriftError, match="metric is nll, and kl was given"):
        ask(folder, "--epsilon", "0.05", "--metric", "kl")


def test_the_page_and_the_tables(folder):
    ask(folder, "--epsilon", "0.05", "--position-of", "recency@48")
    page = (folder / "frontier.html").read_text()
    assert page.count("<svg") == 3 and "http-equiv" in page and "src=" not in page.replace("img-src", "")
    with open(folder / "frontier.csv") as f:
        rows = list(csv.DictReader(f))
    assert [(r["arm"], r["budget"]) for r in rows[:2]] == [("ceiling", "0"), ("recency", "48")]
    with open(folder / "frontier-crossings.csv") as f:
        pairs = list(csv.DictReader(f))
    caches = {(r["arm"], r["budget"]): r["mean_cache"] for r in rows}
    assert len(pairs) == 6 and all(r["cache_first"] == caches[r["first"], r["one"]] for r in pairs)
    first = page
    ask(folder, "--epsilon", "0.05", "--position-of", "recency@48")
    assert (folder / "frontier.html").read_text() == first


def test_what_is_wrong_is_named(folder, tmp_path):
    with pytest.raises(CaskError, match="--metric accuracy: is none; use one of top1"):
        ask(folder, "--epsilon", "0.1", "--metric", "accuracy")
    assert "'-1' is not a decimal above 0" in ask(folder, "--epsilon", "-1", ok=False).output
    with pytest.raises(CaskError, match="--alpha 0.7: must be below 0.5"):
        ask(folder, "--epsilon", "0.1", "--alpha", "0.7")
    with pytest.raises(CaskError, match="--position-of recency@7: the folder has no such replays; it has recency@48"):
        ask(folder, "--epsilon", "0.1", "--position-of", "recency@7")


def test_a_grid_that_is_not_complete_is_not_judged(folder):
    records = folder / "records.jsonl"
    lines = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(b"".join(lines[:-1]))
    last = Trial.model_validate(json.loads(lines[-1]))
    assert line_of(last) + b"\n" == lines[-1]
    with pytest.raises(RecordError, match=f"{last.arm} at budget {last.budget} is not complete"):
        ask(folder, "--epsilon", "0.1")


def test_a_keep_map_shows_what_the_events_left(tmp_path):
    """Recency keeps the newest entries, so after its last event the map is a band that ends where the text did."""
    import numpy as np
    from cask_methods.presets.recency import Recency

    from cask_eval.engine.contract import Host
    from cask_eval.engine.model import geometry
    from cask_eval.engine.replay import Given
    from cask_eval.protocol.model import Model
    from cask_eval.replay.trace import kept
    from cask_eval.runner import models
    from cask_eval.workspace import Workspace

    decoder, _ = models.loaded(Model(id="embedded:chain-s", name="m"), Workspace(tmp_path), "cpu")
    policy = Recency(delta=16, prompt="compete", sink=0).bind(Host(geometry(decoder)))
    given = Given("x", tuple(range(20)), 0, tuple(range(5, 65)))
    shares, at = kept(decoder, given, policy, policy.schedule(32))
    assert len(at) == len(shares) >= 2
    for row, step in zip(shares, at):
        length = 20 + step
        assert np.isnan(row[length:]).all() and set(np.unique(row[:length])) <= {0.0, 1.0}
        assert row[:length].sum() == 32 and row[length - 32 : length].all()


def test_a_keep_map_is_drawn_beside_the_replays(made, tmp_path):
    import shutil

    from replaying import command, good

    out = shutil.copytree(made[0], tmp_path / "out")
    good("--keep-map", "recency@48", out=out)
    assert (out / "keep-recency@48.svg").read_text().startswith("<?xml")
    with pytest.raises(CaskError, match="recency@7 is not replayed; use one of recency@48"):
        raise command("--keep-map", "recency@7", out=out).exception


def test_the_same_tolerance_may_be_written_otherwise(folder):
    ask(folder, "--epsilon", "0.05")
    ask(folder, "--epsilon", "0.050")


def test_what_a_study_left_is_no_folder_of_replays(tmp_path):
    (tmp_path / "heldout.jsonl").touch()
    with pytest.raises(CaskError, match="use --study"):
        ask(tmp_path, "--epsilon", "0.05")
    assert not (tmp_path / "frontier.json").exists()
