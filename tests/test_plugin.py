"""The example package of docs/METHODS.md, installed for real: listed, through the invariants, and in a study of its own
outside the repository."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(*command, cwd) with the plug-in installed beside the project."""
    site = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(ROOT / "tests/plugin")],
        check=True,
    )
    env = {**os.environ, "PYTHONPATH": str(site)}

    def call(*command, cwd=ROOT, ok=True):
        result = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True)
        assert not ok or result.returncode == 0, result.stdout + result.stderr
        return result

    return call


@pytest.fixture(scope="module")
def cask_eval(run):
    return lambda *args, **kwargs: run(Path(sys.executable).with_name("cask-eval"), *args, **kwargs)


def test_it_is_listed_and_shown(cask_eval):
    assert "loudest" in cask_eval("methods", "list").stdout
    shown = json.loads(cask_eval("methods", "show", "loudest", "--json").stdout)
    assert shown["composition"]["selector"] == "top_k" and shown["parameters"]["window"]["default"] == 4
    plan = cask_eval("methods", "plan", "--preset", "loudest", "--prompt-tokens", 20, "--output-tokens", 400,
                     "--budget", 64, "--json")  # fmt: skip
    assert json.loads(plan.stdout)["terminal_cache"] <= 64 + 128


def test_it_passes_the_invariants_unchanged(run):
    result = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/invariants", "-k", "loudest")
    passed = int(result.stdout.split(" passed")[0].split()[-1])
    assert passed >= 15 and "failed" not in result.stdout


def test_a_study_with_it_runs_anywhere(cask_eval, tmp_path):
    root = tmp_path / "elsewhere"
    cask_eval("init", root, "--study", "loud", cwd=tmp_path)
    for role, seed, count in (("dev", 31, 4), ("heldout", 32, 8)):
        out = root / "splits" / f"chain-{role}.json"
        out.unlink()
        cask_eval("split", "freeze", out, "--task", "chain", "--role", role, "--param", f"seed={seed}",
                  "--param", f"count={count}", cwd=tmp_path)  # fmt: skip
    path = root / "prereg" / "loud.yaml"
    text = path.read_text()
    start, end = text.index("candidate:\n"), text.index("controls:")
    candidate = "candidate:\n  preset: loudest\n  params: {delta: 16}\n  tune: {window: [2, 4]}\n\n"
    text = text[:start] + candidate + text[end:]
    text = text.replace('  - {id: "embedded:chain-m", name: chain-m, dtype: float32, calibration: bundled}\n', "")
    lines = text.replace("budgets: [64, 96]", "budgets: [96]").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "name: B," not in line))  # out of reach with one cell
    cask_eval("register", path, "--device", "cpu", cwd=root)
    cask_eval("tune", "--device", "cpu", cwd=root)
    first = json.loads((root / "prereg" / "ledger.jsonl").read_text().splitlines()[0])["payload"]
    assert {"loudest", "cask_methods"} <= {lock["name"] for lock in first["methods"]}
    cask_eval("confirm", "--split", "heldout", "--yes", first["protocol_digest"][7:17], "--device", "cpu", cwd=root)
    # A reviewer needs no method: verification runs none.
    command = [Path(sys.executable).with_name("cask-eval"), "verify", "--require", "L0"]
    reviewed = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert reviewed.returncode == 0 and "nothing found wrong" in reviewed.stdout, reviewed.stdout
