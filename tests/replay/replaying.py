"""`cask-eval replay` on the embedded model, at a size that a test can afford."""

from pathlib import Path

from click.testing import CliRunner

from cask_eval.cli import cli

ROOT = Path(__file__).parents[2]
ARGS = ["--model", "embedded:chain-s", "--budgets", "48,64", "--max-new-tokens", "120", "--limit", "5"]
ARMS = ["--arm", "recency:delta=16", "--arm", "tri_vote:prompt=outside,delta=8", "--arm", "tri_merge:delta=16"]


def command(*args, out, arms=ARMS, base=ARGS):
    """The command in this process; the result's exception is what a user would be told."""
    space = [] if "--prompts" in args else ["--split", str(ROOT / "splits" / "chain-dev.json")]
    line = ["-C", str(ROOT), "replay", *base, *arms, *space, *map(str, args), "--device", "cpu", "-o", str(out)]
    return CliRunner().invoke(cli, line)


def good(*args, **kwargs):
    result = command(*args, **kwargs)
    if result.exception:
        raise result.exception
    return result
