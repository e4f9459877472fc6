import json
import os
import sys

import pytest

from cask_eval import cli


@pytest.fixture
def run(monkeypatch, capsys):
    """(exit code, stdout, stderr) of `cask-eval power`."""

    def call(line: str):
        monkeypatch.setattr(sys, "argv", ["cask-eval", "power", *line.split()])
        monkeypatch.setattr(sys, "stdin", open(os.devnull))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        return stop.value.code or 0, said.out, said.err

    return call


@pytest.mark.parametrize("n, points", [(100, 14.9), (250, 9.6), (400, 7.6), (500, 6.8)])
def test_detectable_differences(run, n, points):
    found = json.loads(run(f"--n {n} --discordance 0.2 --alpha 0.0125 --json")[1])
    assert points - 0.1 < 100 * found["mde"] <= points
    assert "exact_power" not in found and found["expected_discordant"] == pytest.approx(n / 5)


def test_five_points_in_250_problems(run):
    code, out, _ = run("--n 250 --discordance 0.2 --difference 0.05 --alpha 0.0125")
    assert code == 0
    for text in ("mcnemar_exact 8", "mcnemar_exact     19.0%", "9.6 points", "Connor):   890"):
        assert text in out
    assert run("--n 5 --discordance 0.2 --alpha 0.0125")[1].count("never") == 3


def test_several_samples(run):
    line = "--n 60 --discordance 0.3 --difference 0.1 --samples 4 --correlation {} --replicates 300 --json"
    alike, apart = (json.loads(run(line.format(rho))[1]) for rho in ("1", "0"))
    assert (alike["worth_problems"], apart["worth_problems"]) == (60, 240)
    assert set(alike["simulated_power"]) == {"paired_bootstrap", "sign_flip"}
    for name, found in alike["simulated_power"].items():
        assert found["power"] < apart["simulated_power"][name]["power"]
    assert "± " in run(line.format("0.5").replace(" --json", ""))[1]


def test_no_difference_gives_the_size(run):
    found = json.loads(run("--n 100 --discordance 0.06 --difference 0 --alpha 0.0125 --json")[1])
    assert 2 * found["exact_power"]["paired_bootstrap"] == pytest.approx(0.02, abs=5e-5)
    assert found["connor_sample_size"] is None


@pytest.mark.parametrize(
    "line, message",
    [
        ("--discordance 0.2", "Missing option '--n'"),
        ("--n 0 --discordance 0.2", "'--n': 0"),
        ("--n 5001 --discordance 0.2", "'--n': 5001"),
        ("--n 10 --discordance 0", "'--discordance': 0 must be above 0 and at most 1, such as 0.2"),
        ("--n 10 --discordance 1.2", "'--discordance': 1.2 must be above 0"),
        ("--n 10 --discordance 0.2 --difference 0.3", "--difference 0.3: is more than --discordance 0.2 allows"),
        ("--n 10 --discordance 0.2 --difference x", "'--difference': 'x' is not a decimal"),
        ("--n 10 --discordance 0.2 --alpha 0", "'--alpha': 0 must be above 0 and below 1"),
        ("--n 10 --discordance 0.2 --power 0.3", "--power 0.3: must be at least 0.5"),
        ("--n 10 --discordance 0.2 --samples 0", "'--samples': 0"),
        ("--n 10 --discordance 0.2 --samples 4", "--samples 4: also needs --correlation"),
        ("--n 10 --discordance 0.2 --samples 4 --correlation 2", "'--correlation': 2 must be at least 0 and at most 1"),
    ],
)
def test_what_is_typed_wrongly(run, line, message):
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert message in err and "Traceback" not in err
