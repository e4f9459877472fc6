"""What `plan` says of a protocol, against what studies left behind, and of models that are not here."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors import safe_open

from cask_eval.cli import cli
from cask_eval.shapes import MODELS, of_config

ROOT = Path(__file__).parents[2]
READY = ["alpha-math500", "cask-aime", "ams-math500"]


def plan(name: str, *options: str) -> dict:
    result = CliRunner().invoke(cli, ["plan", str(ROOT / "prereg" / f"{name}.yaml"), "--json", *options])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def events(study: str, kind: str) -> list[dict]:
    lines = (ROOT / "prereg" / "ledger.jsonl").read_text().splitlines()
    return [e["payload"] for e in map(json.loads, lines) if (e["study"], e["event"]) == (study, kind)]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7_615_616_512),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", 14_770_033_664),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 8_030_261_248),
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-14B", 14_768_307_200),
        ("smollm2:135m", 134_515_008),
    ],
)
def test_sizes_add_up_to_the_published_number_of_parameters(name, published):
    assert MODELS[name].parameters == published


@pytest.mark.parametrize("name", ["chain-s", "chain-m"])
def test_sizes_read_from_a_folder_are_those_of_its_weights(name):
    folder = ROOT / "cask_eval" / "embedded" / name
    with safe_open(folder / "model.safetensors", "np") as weights:
        numbers = sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())
    assert of_config(folder / "config.json").parameters == numbers


def test_trials_are_those_of_the_finished_study():
    about = plan("alpha-vs-triattention")
    (run,), (consumed,) = events("alpha-vs-triattention", "dev_run"), events("alpha-vs-triattention", "consume")
    assert about["trials"] == {"dev": run["records"]["count"], "heldout": consumed["expected"]}
    assert plan("design-space")["trials"]["heldout"] == events("design-space", "consume")[0]["expected"]


def test_matched_budgets_give_equal_caches_and_memory_is_what_the_cache_holds():
    about = plan("ams-math500", "--prompt-tokens", "100", "--output-tokens", "3000")
    for cell in about["cells"]:
        arms = {arm["arm"]: arm for arm in cell["arms"]}
        for name in ("candidate", "uniform", "random"):
            assert arms[name]["mean_cache"] == pytest.approx(arms["baseline"]["mean_cache"], rel=0.01)
        assert arms["candidate"]["budget"] < arms["baseline"]["budget"]  # it pays for the queries that it remembers
        # all of prompt and output, 2 · 128 numbers of 2 bytes in 28 layers × 4 heads
        assert arms["full"]["slot_bytes"] == (100 + 8192 - 1) * 28 * 4 * 2 * 128 * 2
        assert arms["full"]["fit"] == (80 * 10**9 - 7_615_616_512 * 2 - 4 * 2**30) // arms["full"]["slot_bytes"]


def test_a_measured_rate_takes_the_place_of_the_model_of_time():
    about = plan("alpha-math500", "--tokens-per-second", "1000", "--output-tokens", "2000")
    tokens = about["tokens"]
    assert tokens == {phase: trials * 2000 for phase, trials in about["trials"].items()}
    assert about["hours"]["heldout"] == pytest.approx(tokens["heldout"] / 1000 / 3600)
    assert "efficiency" not in about["assumed"]


def test_what_does_not_fit_has_no_hours():
    about = plan("cask-aime", "--gpu", "rtx3090-24gb")
    full = next(a for a in about["cells"][0]["arms"] if a["arm"] == "full")
    assert full["fit"] == full["slots"] == 0 and full["tokens_per_second"] is None
    assert about["hours"]["heldout"] is None and about["hours"]["dev"] is not None
    shown = CliRunner().invoke(cli, ["plan", str(ROOT / "prereg" / "cask-aime.yaml"), "--gpu", "rtx3090-24gb"])
    assert shown.exit_code == 0 and "none fits" in shown.output and "does not fit" in shown.output


@pytest.mark.parametrize("name", READY)
def test_the_protocols_that_are_ready_to_run_have_no_errors(name):
    result = CliRunner().invoke(cli, ["lint", str(ROOT / "prereg" / f"{name}.yaml"), "--json"])
    assert result.exit_code == 0, result.output
    about = plan(name)
    assert not any(arm["refused"] for cell in about["cells"] for arm in cell["arms"])
    power = about["power"]
    assert power["expected_discordant"] == pytest.approx(power["n"] * power["discordance"])
    options = ["--n", str(power["n"]), "--discordance", str(power["discordance"]), "--alpha", f"{power['level']:.12f}"]
    told = json.loads(CliRunner().invoke(cli, ["power", *options, "--json"]).stdout)
    assert told["mde"] == pytest.approx(power["mde"])


def test_an_unknown_model_is_an_error_that_says_what_to_do(tmp_path):
    text = (ROOT / "prereg" / "ams-math500.yaml").read_text()
    (tmp_path / "prereg").mkdir()
    shutil.copytree(ROOT / "splits", tmp_path / "splits")
    path = tmp_path / "prereg" / "x.yaml"
    path.write_text(text.replace("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "someone/else"))
    result = CliRunner().invoke(cli, ["plan", str(path)])
    said = str(result.exception)
    assert "models[qwen-7b].id is 'someone/else'" in said and "local copy" in said


def test_prompts_are_the_studys_own_where_they_are_here(monkeypatch, tmp_path):
    (registered,) = events("alpha-vs-triattention", "register")
    about = plan("alpha-vs-triattention")
    longest = max(m["max_prompt_tokens"] for m in registered["models"])
    assert about["assumed"]["longest_prompt"] == longest >= about["assumed"]["prompt_tokens"] > 1
    assert plan("alpha-vs-triattention", "--prompt-tokens", "20")["assumed"]["longest_prompt"] == 20
    monkeypatch.setenv("CASK_EVAL_DATA", str(tmp_path))
    assert plan("cask-aime")["assumed"]["prompt_tokens"] == 150


def test_prompts_that_a_budget_cannot_hold_are_said():
    path = str(ROOT / "prereg" / "alpha-vs-triattention.yaml")
    result = CliRunner().invoke(cli, ["plan", path, "--prompt-tokens", "96"])
    assert result.exit_code == 0 and "would be refused" in result.stderr
