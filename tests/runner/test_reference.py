"""What a model answers with its full cache, as problems for a study of what compression leaves of it."""

import json

import pytest

from cask_eval.errors import CaskError


def reference(cask, root, out, *more, ok=True):
    return cask(
        "-C", root, "reference", "--model", "embedded:chain-s", "--split", root / "splits" / "chain-dev.json",
        "--max-new-tokens", "150", "--device", "cpu", "-o", out, *more, ok=ok,
    )  # fmt: skip


def test_answers_are_the_model_s_own_and_make_a_split(fresh, cask, tmp_path):
    out = tmp_path / "own.jsonl"
    assert "6 problems; 0 left out" in reference(cask, fresh, out, "--rule", "last-number").stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    manifest = json.loads((fresh / "splits" / "chain-dev.json").read_text())
    assert [r["id"] for r in rows] == [i["id"] for i in manifest["items"]]
    assert all(r["answer"].isdigit() and r["problem"].endswith(",") for r in rows)
    again = tmp_path / "again.jsonl"
    reference(cask, fresh, again, "--rule", "last-number", "--slots", "2")
    assert again.read_bytes() == out.read_bytes()


def test_nothing_is_overwritten_and_no_answer_is_said(fresh, cask, tmp_path):
    (tmp_path / "there.jsonl").write_text("")
    with pytest.raises(CaskError, match="is not overwritten"):
        reference(cask, fresh, tmp_path / "there.jsonl")
    with pytest.raises(CaskError, match="rule boxed finds a clear answer in none of 6 outputs"):
        reference(cask, fresh, tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()
