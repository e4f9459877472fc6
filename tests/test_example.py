"""The committed example is a finished study, and verifies from a clone."""

from pathlib import Path

from click.testing import CliRunner

from cask_eval.cli import cli

ROOT = Path(__file__).parents[1]


def test_the_committed_study_verifies():
    result = CliRunner().invoke(cli, ["-C", str(ROOT), "verify", "--require", "L0"], standalone_mode=False)
    assert result.exception is None, result.exception
    assert result.return_value == 0, result.output
    assert " fail" not in result.output


def test_the_committed_report_is_that_of_the_committed_analysis():
    (study,) = (p for p in (ROOT / "reports").iterdir() if p.is_dir())
    page = (study / "report.html").read_text(encoding="utf-8")
    assert "confirmatory" in page and study.name in page
