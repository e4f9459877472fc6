"""The example protocol that `cask-eval init` writes: small enough for a laptop, complete enough to copy from."""

from __future__ import annotations

STUDY = "alpha-vs-triattention"

_TEXT = """\
# A study, written down before anything is run. `cask-eval register` locks this file; afterwards no field can change.
# Numbers that decide stand in quotes, so that every platform reads the same value.
study: {study}
hypothesis: At equal mean cache, alpha solves more held-out problems than TriAttention.

# For the power check: the accuracy difference you expect, and the share of problems that only one arm solves.
# expected_effect: "0.08"
# expected_discordance: "0.25"

# Where the problems come from. The held-out split is used once, by `cask-eval confirm`.
task: {{name: chain, dev: splits/chain-dev.json, heldout: splits/chain-heldout.json}}

# How the models are asked. Left out, as here, a model completes the problem's text. A prompt file holds {{problem}}
# where the problem goes; form chat puts it into the model's own chat template. Both are locked.
# prompt: {{file: prereg/prompts/boxed.txt, form: chat}}

# An id is embedded:NAME, smollm2:135m, a local folder, or a hub id, which also needs `revision: <commit>`.
# `calibration` is the file of query statistics that TriAttention's scorer reads.
models:
  - {{id: "embedded:chain-s", name: chain-s, dtype: float32, calibration: bundled}}
  - {{id: "embedded:chain-m", name: chain-m, dtype: float32, calibration: bundled}}

# Temperature "0" is greedy decoding.
generation: {{temperature: "0", samples: 1, max_new_tokens: 300}}

# Cache entries per layer and head after each compression. Every model is run at every budget: a cell each.
budgets: [64, 96]

# The arms: a preset and the parameters that differ from its defaults.
# `delta` is the number of steps between compressions; `prompt: pinned` keeps the prompt, inside the budget.
baseline:
  preset: triattention
  params: {{delta: 16, mode: per_layer_head, prompt: pinned}}
candidate:
  preset: alpha
  params: {{delta: 16, mode: per_layer_head, prompt: pinned}}
  tune: {{lambda: ["0.1", "0.25", "0.5", "1.0"]}}

# Several candidates stand under `candidates:` instead, a list of such arms with a `name` each. All of them are run on
# the dev split; a registered screening can choose there which of them the held-out split is spent on:
# screening: {{survivors: 2, rule: best_dev_gain, min_gain: "0"}}

# Controls are run and reported but decide nothing: the full cache is the ceiling, random eviction the floor.
controls:
  - {{name: full, preset: fullkv}}
  - {{name: random, preset: random_pp, params: {{delta: 16}}}}

# How the development split chooses among the values under `tune`.
tuning: {{select: max_mean_accuracy, scope: all_cells, ties: smallest}}

# Equal memory is measured, not assumed: a cell whose realised mean caches differ by more than this is void. So is one
# whose ratio has an interval beyond interval_tolerance (0.05), whose candidate peaks above peak_ratio (1.5) times the
# baseline's peak, of which fewer than min_active (0.8) of the trials were compressed, whose arms meet the length cap
# in shares that differ by more than max_cap_gap (0.10), or treat the prompt differently (prompt_policies: same).
matched_cache: {{tolerance: "0.03"}}

# A cell is positive when the candidate wins at `alpha`, shared out over the cells; it is negative when the
# candidate loses at `veto.alpha`, which is not shared out, so that the veto is not weak.
test:
  endpoint: accuracy
  procedure: paired_bootstrap
  alternative: two-sided
  alpha: "0.05"
  correction: bonferroni
  veto: {{alpha: "0.05"}}

# What each outcome will mean. The first branch whose conditions hold decides. A condition counts cells:
# positive_cells, negative_cells, void_cells, and non_inferior_cells where test.non_inferiority gives a margin. A void
# cell, whose caches cannot be compared, is neither positive nor negative: V keeps it from reading as a rejection.
branches:
  - {{name: A, when: {{positive_cells: ">=1", negative_cells: "==0"}}, decision: adopt the candidate}}
  - {{name: B, when: {{positive_cells: ">=1", negative_cells: ">=1"}}, decision: report as regime-dependent}}
  - {{name: V, when: {{positive_cells: "==0", void_cells: ">=1"}}, decision: undecided where the caches differ}}
  - {{name: C, otherwise: true, decision: reject the candidate}}
"""


def template(study: str = STUDY) -> str:
    """The commented example as YAML text, under the given study name."""
    return _TEXT.format(study=study)
