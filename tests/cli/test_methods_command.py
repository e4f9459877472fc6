"""`methods list`, `show` and `plan`."""

import json
import os
import subprocess
import sys

import pytest

from cask_eval import cli

pytest.importorskip("torch")

MULTI_NEWS = "--prompt-tokens 2691 --output-tokens 512"


@pytest.fixture
def run(monkeypatch, capsys):
    def call(line: str, *more: str):
        monkeypatch.setattr(sys, "argv", ["cask-eval", "methods", *line.split(), *more])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        return stop.value.code or 0, said.out, said.err

    return call


@pytest.fixture
def plan(run):
    def call(line: str):
        code, out, err = run(f"plan {line} --json")
        assert code == 0, err
        return json.loads(out)

    return call


@pytest.mark.parametrize("budget", [256, 384])
def test_a_public_run_of_cask(plan, budget):
    found = plan(f"--preset cask {MULTI_NEWS} --budget {budget} --param count_prompt=true --param trigger=slack")
    assert (found["terminal_cache"], found["terminal_prefix"]) == (budget + 126, budget - 10)
    assert (found["prefix_events"], found["decode_events"], found["guards"]) == (2, 3, {})
    assert found["regime"] == "active" and found["refused"] is None and len(found["events"]) == 4


def test_a_public_run_that_exhausts_its_budget(plan):
    found = plan(
        "--preset cask --prompt-tokens 10011 --output-tokens 512 --budget 256 "
        "--param count_prompt=false --param trigger=periodic"
    )
    assert (found["regime"], found["decode_events"]) == ("prefix_budget_exhausted", 0)
    assert found["guards"] == {"prefix_budget_exhausted": 1}
    assert (found["terminal_cache"], found["terminal_prefix"]) == (410, 256)


@pytest.mark.parametrize(
    "published, ours",
    [
        ("count_prompt_tokens=false", "count_prompt=false"),
        ("slack_trigger=true", "trigger=slack"),
        ("slack_trigger=false", "trigger=periodic"),
        ("slack_budget_trigger=false", "trigger=periodic"),
        ("divide_length=64", "delta=64"),
        ("recent_window=3", "recent=3"),
        ("recent_window_size=3", "recent=3"),
    ],
)
def test_published_flags(plan, published, ours):
    line = f"--preset cask {MULTI_NEWS} --budget 256 --param"
    assert plan(f"{line} {published}") == plan(f"{line} {ours}")


def test_a_prompt_that_fills_the_budget_is_planned_and_said_to_be_refused(run):
    line = "plan --preset triattention --prompt-tokens 690 --output-tokens 1024 --budget 256 --json"
    flags = "--param count_prompt=false --param trigger=periodic"
    code, out, err = run(f"{line} {flags}")
    found = json.loads(out)
    assert code == 0 and "a study would be refused" in err and "690 are protected" in found["refused"]
    assert (found["terminal_cache"], found["terminal_prefix"]) == (945, 690)
    code, out, err = run(f"{line} {flags} --param overflow=first")
    first = json.loads(out)
    assert code == 0 and err == "" and first["refused"] is None
    assert {k: first[k] for k in ("events", "mean_cache")} == {k: found[k] for k in ("events", "mean_cache")}


def test_what_a_method_remembers_is_in_the_mean(plan):
    line = "--prompt-tokens 40 --output-tokens 2000 --budget 256"
    snapkv, plain = plan(f"--preset snapkv {line}"), plan(f"--preset triattention {line}")
    assert snapkv["mean_cache_exact"] == plain["mean_cache_exact"] == plain["state_included"]["mean_cache_exact"]
    assert snapkv["state_included"]["mean_cache"] == pytest.approx(snapkv["mean_cache"] + 28)


def test_a_plan_in_words(run):
    code, out, _ = run(f"plan --preset cask {MULTI_NEWS} --budget 384")
    assert code == 0
    assert "cask at b = 384, slack(128), prompt two_stage: active" in out
    assert "2692, 510 (of which prompt: 374)" in out
    assert "step 129: 512 → 384 (prompt, generated)" in out


@pytest.mark.parametrize(
    "line, message",
    [
        ("--preset csak --budget 9", "did you mean cask"),
        ("--preset cask --budget 0", "0 is not in the range"),
        ("--preset cask --budget 9 --param nope=1", "unknown parameter 'nope'"),
        ("--preset fullkv --budget 9 --param divide_length=4", "unknown parameter 'divide_length'"),
        ("--preset cask --budget 9 --param delta", "write NAME=VALUE"),
        ("--preset cask --budget 9 --param delta=x", "parameter delta is 'x'; write a whole number"),
        ("--preset cask --budget 9 --param delta=0", "it must be at least 1"),
        ("--preset cask --budget 9 --param count_prompt=yes", "write true or false"),
        ("--preset cask --budget 9 --param coverage=much", "write a decimal"),
        ("--preset cask --budget 9 --param trigger=often", "use one of slack, periodic"),
        ("--preset cask --budget 9 --param slack_trigger=maybe", "slack_trigger is 'maybe'; use one of true, false"),
        ("--preset cask --budget 9 --param delta=4 --param divide_length=8", "delta is given twice, as 4 and 8"),
        ("--preset tri_vote --budget 1", "cannot be split over 2 chains"),
    ],
)
def test_what_cannot_be_planned(run, line, message):
    code, _, err = run(f"plan --prompt-tokens 5 --output-tokens 5 {line}")
    assert code == 2 and message in err and "Traceback" not in err


def test_decimals_are_read_as_in_a_protocol(plan):
    found = plan(f"--preset alpha {MULTI_NEWS} --budget 4000 --param lambda=0.25 --param tau=1")
    assert found["params"] == {"lambda": "0.25", "tau": "1"}


def test_list_shows_compositions(run):
    code, out, _ = run("list")
    assert code == 0
    lines = out.splitlines()
    assert len(lines) % 2 == 0
    assert "tri_merge" in out and "[M2]" in out and "triattention + diverse + uniform + slack(128) + evict" in out
    code, out, _ = run("list --json")
    assert {row["name"] for row in json.loads(out)} >= {"triattention", "alpha", "cask", "fullkv"}


def test_show(run):
    code, out, _ = run("show tri_merge")
    assert code == 0
    assert "triattention, reproduced with fraction=0.0" in out and "mechanism       M2" in out
    assert "weight (4 bytes per entry of each layer and head): 448 bytes a cached token, 0.78% of its keys" in out
    code, out, _ = run("show snapkv")
    assert "newest 8 queries: 1,605,632 bytes a sequence, as much as 28 cached tokens of each layer" in out


def test_help_loads_nothing_heavy():
    script = (
        "import sys; from cask_eval import cli; cli.cli.main(['methods', 'plan', '--help'], standalone_mode=False); "
        "heavy = {'torch', 'pydantic', 'numpy'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}
    )
    assert done.returncode == 0, done.stderr
    assert "--prompt-tokens" in done.stdout
