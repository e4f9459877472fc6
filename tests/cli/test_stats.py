import json
import os
import sys
from pathlib import Path

import pytest

from cask_eval import cli

VECTORS = json.loads((Path(__file__).parents[1] / "stats" / "vectors.json").read_text())


@pytest.fixture
def run(monkeypatch, capsys):
    """(exit code, stdout, stderr) of `cask-eval stats`."""

    def call(line: str):
        monkeypatch.setattr(sys, "argv", ["cask-eval", "stats", *line.split()])
        monkeypatch.setattr(sys, "stdin", open(os.devnull))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        return stop.value.code or 0, said.out, said.err

    return call


@pytest.mark.parametrize("v", VECTORS["binary"], ids=lambda v: f"{v['n']}-{v['w']}-{v['l']}")
def test_reference_values(run, v):
    code, out, _ = run(f"--wins {v['w']} --losses {v['l']} --n {v['n']} --level 0.95 --json")
    found = json.loads(out)
    assert code == 0
    assert found["mcnemar_exact"]["two_sided"] == found["sign_flip"]["two_sided"]
    assert found["mcnemar_exact"]["two_sided"] == pytest.approx(v["mcnemar_exact"], rel=1e-12)
    assert found["mcnemar_midp"]["two_sided"] == pytest.approx(v["midp"], rel=1e-12)
    if "boot_two" in v:
        assert found["paired_bootstrap"]["two_sided"] == pytest.approx(v["boot_two"], rel=1e-12)
        assert found["paired_bootstrap"]["greater"] == pytest.approx(v["boot_le0"], rel=1e-12)
    if "tango95" in v:
        assert [found["tango_interval"][end] for end in ("low", "high")] == pytest.approx(v["tango95"], abs=1e-9)


def test_non_inferiority(run):
    (v,) = VECTORS["non_inferiority"]
    found = json.loads(run(f"--wins {v['w']} --losses {v['l']} --n {v['n']} --margin {v['margin']} --json")[1])
    assert round(found["non_inferiority"]["z"], 6) == v["z"]
    assert round(found["non_inferiority"]["p"], 6) == v["p"]
    assert found["non_inferiority"]["interval"]["level"] == 0.9
    assert json.loads(run("--wins 1 --losses 1 --n 5 --json")[1])["non_inferiority"] is None


def test_alpha_sets_the_level_of_the_intervals(run):
    wide, narrow = (json.loads(run(f"--wins 18 --losses 7 --n 100 {o} --json")[1]) for o in ("--alpha 0.0125", ""))
    assert (wide["percentile_interval"]["level"], narrow["percentile_interval"]["level"]) == (0.9875, 0.95)
    for name in ("percentile_interval", "tango_interval"):
        assert wide[name]["low"] < narrow[name]["low"] < narrow[name]["high"] < wide[name]["high"]


def test_table(run):
    code, out, _ = run("--wins 18 --losses 7 --n 100 --margin 0.03")
    assert code == 0
    for text in (
        "+0.1100",
        "0.0432853 *",
        "0.0149444",
        "+0.0128",
        "+0.2103",
        "shown at 0.05",
        "z 2.7405",
        "0.00306755",
    ):
        assert text in out
    assert "note" not in out
    out = run("--wins 5 --losses 0 --n 100 --alpha 0.0125")[1]
    assert "0.0118411 *" in out and "0.0625 " in out and "non-inferiority" not in out
    assert "note: 5 problems differ, fewer than 20" in out
    assert "margin 0.01: not shown" in run("--wins 5 --losses 6 --n 100 --margin 0.01")[1]


def test_the_extremes_are_answered(run):
    for line in ("--wins 0 --losses 0 --n 1", "--wins 9 --losses 0 --n 9", "--wins 0 --losses 9 --n 9 --margin 0.5"):
        code, out, err = run(line)
        assert (code, err) == (0, "") and "nan" not in out


@pytest.mark.parametrize(
    "line, message",
    [
        ("--wins 60 --losses 50 --n 100", "--wins 60 and --losses 50: together 110, more than --n 100"),
        ("--wins -1 --losses 0 --n 9", "'--wins': -1"),
        ("--wins 1 --losses 0 --n 0", "'--n': 0"),
        ("--wins 1 --losses 0 --n 50001", "'--n': 50001"),
        ("--losses 0 --n 9", "Missing option '--wins'"),
        ("--wins 1.5 --losses 0 --n 9", "'--wins': '1.5'"),
        ("--wins 1 --losses 0 --n 9 --alpha 5%", "'--alpha': '5%' is not a decimal number; give one such as 0.05"),
        ("--wins 1 --losses 0 --n 9 --alpha nan", "'--alpha': 'nan' is not"),
        ("--wins 1 --losses 0 --n 9 --alpha 1", "'--alpha': 1 must be above 0 and below 1, such as 0.05"),
        ("--wins 1 --losses 0 --n 9 --level 95", "'--level': 95 must be above 0 and below 1, such as 0.95"),
        ("--wins 1 --losses 0 --n 9 --margin -0.1", "'--margin': -0.1 must be above 0"),
        ("--wins 1 --losses 0 --n 9 --margin 0.1 --alpha 0.5", "--alpha 0.5: non-inferiority needs a level below 0.5"),
    ],
)
def test_what_is_typed_wrongly(run, line, message):
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert message in err and "Traceback" not in err
