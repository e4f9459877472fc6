import csv
import io
import json
import os
import random
import re
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from cask_eval import cli
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.procedures import p_values
from cask_eval.stats.tango import tango_interval

REPLAY = Path(__file__).parents[1] / "stats" / "data" / "cask_aime24_replay_pairs.csv"
REPLAY_LINE = f"{REPLAY} --pair index --arms triattention,cask --arm-column method --by slice,budget"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """(exit code, stdout, stderr) of `cask-eval compare`, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(line: str):
        monkeypatch.setattr(sys, "argv", ["cask-eval", "compare", *line.split()])
        monkeypatch.setattr(sys, "stdin", open(os.devnull))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        return stop.value.code or 0, said.out, said.err

    return call


@pytest.fixture
def table(tmp_path):
    """Writes t.csv from its text; returns its name."""

    def write(text: str) -> str:
        (tmp_path / "t.csv").write_text(text)
        return "t.csv"

    return write


SMALL = "id,arm,right\n" + "".join(f"{i},{arm},{right}\n" for i in range(4) for arm, right in (("a", 0), ("b", i % 2)))


def rows(out: str) -> list[dict]:
    return json.loads(out)["rows"]


class TestPublishedReplay:
    """CASK's public replay records; six problems, so no p can be below 1/32."""

    WANT = {"256": (0.0233, -0.105), "384": (0.0244, -0.115), "512": (0.0226, -0.100)}

    def test_differences_and_exact_p(self, run):
        code, out, err = run(f"{REPLAY_LINE} --metrics top1,nll --json")
        assert (code, err) == (0, "")
        found = {(r["cell"]["budget"], r["metric"]): r for r in rows(out)}
        assert len(found) == 6
        for budget, (top1, nll) in self.WANT.items():
            assert round(found[budget, "top1"]["difference"], 4) == top1
            assert round(found[budget, "nll"]["difference"], 3) == nll
        for r in found.values():
            assert r["p"]["sign_flip"] == 1 / 32 and r["sign_flip_exact"]
            assert r["adjusted"]["bonferroni"] == r["adjusted"]["holm"] == 6 / 32

    def test_nobody_can_reach_bonferroni(self, run):
        found = json.loads(run(f"{REPLAY_LINE} --metrics top1,top5,nll --json")[1])
        assert found["family"] == 9 and found["max_t_exact"]
        assert any("cannot reach 0.05 after Bonferroni" in note for note in found["notes"])

    def test_off_lattice_procedures_agree_with_scipy(self, run):
        from scipy.stats import ttest_1samp

        (row,) = [r for r in rows(run(f"{REPLAY_LINE} --metrics nll --json")[1]) if r["cell"]["budget"] == "256"]
        with open(REPLAY) as file:
            values = {(r["method"], r["index"]): float(r["nll"]) for r in csv.DictReader(file) if r["budget"] == "256"}
        test = ttest_1samp([values["cask", str(i)] - values["triattention", str(i)] for i in range(6)], 0)
        assert row["p"]["t_test"] == pytest.approx(test.pvalue, rel=1e-9)
        assert row["intervals"]["t"] == pytest.approx(test.confidence_interval(0.95), rel=1e-9)

    def test_exchanging_the_arms(self, run):
        ours = rows(run(f"{REPLAY_LINE} --metrics top1,nll --json")[1])
        other = rows(
            run(f"{REPLAY_LINE.replace('triattention,cask', 'cask,triattention')} --metrics top1,nll --json")[1]
        )
        for a, b in zip(ours, other):
            assert (a["difference"], a["wins"], a["p"]) == (-b["difference"], b["losses"], b["p"])
            assert a["adjusted"] == b["adjusted"]

    def test_table(self, run):
        code, out, _ = run(f"{REPLAY_LINE} --metrics top1,nll")
        assert code == 0
        assert "+0.02327" in out and "-0.1046" in out and out.count("0.0312") > 5 and "…" not in out

    def test_page(self, run, tmp_path):
        code, out, err = run(f"{REPLAY_LINE} --metrics top1,nll --html page.html --json")
        assert (code, err) == (0, "wrote page.html\n") and len(rows(out)) == 6
        page = (tmp_path / "page.html").read_text()
        assert "cask minus triattention" in page and "+0.02327" in page and "<svg" in page
        outside = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
        assert "http" not in outside.replace("http-equiv", "") and "<script" not in page
        assert run(f"{REPLAY_LINE} --metrics top1,nll --html")[1] == page


def test_right_answers_get_the_exact_procedures(run, table):
    chance = random.Random(3)
    right = [(chance.random() < 0.5, chance.random() < 0.7) for _ in range(80)]
    text = "id,arm,right\n" + "".join(f"{i},a,{int(a)}\n{i},b,{int(b)}\n" for i, (a, b) in enumerate(right))
    (row,) = rows(run(f"{table(text)} --pair id --arms a,b --metrics right --json")[1])
    wins, losses = sum(b > a for a, b in right), sum(a > b for a, b in right)
    pairs = Pairs.binary(80, wins, losses)
    assert (row["kind"], row["wins"], row["losses"], row["n"]) == ("binary", wins, losses, 80)
    assert row["p"]["sign_flip"] == row["p"]["mcnemar_exact"]
    for name, p in p_values(pairs, "two-sided").items():
        assert row["p"][name] == p
    assert row["intervals"]["tango"] == list(tango_interval(pairs, Fraction("0.95")))
    assert row["standard_error"] == pytest.approx(pairs.standard_error, rel=1e-12)
    words = text.replace(",1\n", ",True\n").replace(",0\n", ",False\n")
    assert rows(run(f"{table(words)} --pair id --arms a,b --metrics right --json")[1]) == [row]


@pytest.mark.parametrize("scale", [1, 0.25])
def test_counts_and_means_of_samples_lie_on_a_lattice(run, table, scale):
    chance = random.Random(5)
    right = [(chance.randint(0, 4), chance.randint(1, 4)) for _ in range(30)]
    text = "id,arm,k\n" + "".join(f"{i},a,{a * scale}\n{i},b,{b * scale}\n" for i, (a, b) in enumerate(right))
    (row,) = rows(run(f"{table(text)} --pair id --arms a,b --metrics k --json")[1])
    pairs = Pairs.from_differences([b - a for a, b in right], 4)
    assert row["kind"] == "lattice" and set(row["p"]) == {"sign_flip", "paired_bootstrap"}
    for name, p in p_values(pairs, "two-sided").items():
        assert row["p"][name] == pytest.approx(p, rel=1e-12)
    assert row["difference"] == pytest.approx(float(pairs.difference * 4) * scale)
    low, high = row["intervals"]["percentile"]
    assert low < row["difference"] < high


def test_two_candidates_are_one_family(run, table):
    text = "id,arm,x\n" + "".join(f"{i},{arm},{v}\n" for i in range(8) for arm, v in (("a", 0), ("b", 1), ("c", i % 2)))
    found = rows(run(f"{table(text)} --pair id --arms a,b,c --metrics x --json")[1])
    assert [r["arm"] for r in found] == ["b", "c"]
    assert found[0]["adjusted"]["bonferroni"] == 2 * found[0]["p"]["sign_flip"]
    assert "arm" in run(f"{table(text)} --pair id --arms a,b,c --metrics x")[1].splitlines()[2]


def test_other_arms_are_left_out(run, table):
    text = SMALL + "9,c,not a number\n"
    assert run(f"{table(text)} --pair id --arms a,b --metrics right --json")[0] == 0


def test_sign_patterns_that_are_drawn_say_so(run, table):
    chance = random.Random(1)
    text = "id,arm,x\n" + "".join(f"{i},{arm},{chance.random()}\n" for i in range(30) for arm in "ab")
    found = json.loads(run(f"{table(text)} --pair id --arms a,b --metrics x --json")[1])
    assert not found["rows"][0]["sign_flip_exact"] and "moving a little with the seed" in found["notes"][-1]
    again = json.loads(run(f"{table(text)} --pair id --arms a,b --metrics x --json --seed 0")[1])
    assert again == found
    assert found["rows"][0]["adjusted"]["max_t"] >= found["rows"][0]["p"]["sign_flip"]


class TestAbsent:
    LINE = "--pair id --arms a,b --metrics right"

    def test_a_row_without_a_partner_is_an_error(self, run, table):
        code, out, err = run(f"{table(SMALL + '7,a,1' + chr(10))} {self.LINE}")
        assert (code, out) == (2, "")
        assert "there is no row for arm b, id 7, but one for a in line 10" in err
        assert "--missing drop or --missing worst" in err

    @pytest.mark.parametrize("value", ["", "NaN", "NA"])
    def test_a_value_that_is_none_is_an_error(self, run, table, value):
        code, _, err = run(f"{table(SMALL.replace('3,b,1', '3,b,' + value))} {self.LINE}")
        assert code == 2 and "t.csv line 9: right is empty for arm b, id 3" in err

    def test_rules(self, run, table):
        name = table(SMALL.replace("3,b,1", "3,b,") + "7,a,1\n")
        (dropped,) = rows(run(f"{name} {self.LINE} --missing drop --json")[1])
        assert (dropped["n"], dropped["dropped"], dropped["wins"], dropped["losses"]) == (3, 2, 1, 0)
        (worst,) = rows(run(f"{name} {self.LINE} --missing worst --json")[1])
        assert (worst["n"], worst["filled"], worst["wins"], worst["losses"]) == (5, 2, 1, 1)
        assert "2 absent values count as 0" in run(f"{name} {self.LINE} --missing worst")[1]

    def test_worst_needs_right_answers(self, run, table):
        text = "id,arm,nll\n1,a,0.123456\n1,b,0.7654321\n2,a,0.33333\n"
        code, _, err = run(f"{table(text)} --pair id --arms a,b --metrics nll --missing worst")
        assert code == 2 and "nll does not count right answers" in err

    def test_a_cell_without_pairs_stays_in_the_family(self, run, table):
        text = (
            "id,arm,b,x\n"
            + "".join(f"{i},{arm},64,{int(arm == 'b')}\n" for i in range(8) for arm in "ab")
            + "1,a,128,1\n"
        )
        found = json.loads(run(f"{table(text)} --pair id --arms a,b --by b --metrics x --missing drop --json")[1])
        there, lost = found["rows"]
        assert lost["n"] == 0 and lost["adjusted"] == {"bonferroni": 1, "holm": 1, "max_t": 1}
        assert there["adjusted"]["bonferroni"] == there["adjusted"]["max_t"] == 2 * there["p"]["sign_flip"]
        code, out, _ = run(f"{table(text)} --pair id --arms a,b --by b --metrics x --missing drop --html page.html")
        assert code == 0 and "stay in the family" in out


@pytest.mark.parametrize(
    "text, options, message",
    [
        (
            SMALL,
            "--pair id --arms a,b --metrics wrong",
            "--metrics wrong: there is no such column; it has id, arm, right",
        ),
        (SMALL, "--pair key --arms a,b --metrics right", "--pair key: there is no such column"),
        (SMALL, "--pair id --arms a,b --metrics right --by budget", "--by budget: there is no such column"),
        (SMALL, "--pair id --arms a,b --metrics right --arm-column m", "--arm-column m: there is no such column"),
        (SMALL, "--pair id --arms a,z --metrics right", "--arms z: column arm has no such value; it has a, b"),
        (SMALL, "--pair id --arms a --metrics right", "name the baseline and at least one other arm"),
        (SMALL, "--pair id --arms a,a --metrics right", "--arms a is named twice"),
        (SMALL, "--pair id --arms a,b --metrics right --by id", "column id is named twice"),
        (SMALL, "--pair id --arms a,b, --metrics right", "a name is empty"),
        (SMALL + "0,a,1\n", "--pair id --arms a,b --metrics right", "lines 2 and 10 are both arm a, id 0; keep one"),
        (SMALL.replace("3,b,1", "3,b,x"), "--pair id --arms a,b --metrics right", "line 9: right is 'x'"),
        (SMALL.replace("3,b,1", "3,b,inf"), "--pair id --arms a,b --metrics right", "line 9: right is 'inf'"),
        (SMALL.replace("3,b,1", "3,b,1e9999"), "--pair id --arms a,b --metrics right", "line 9: right is '1e9999'"),
        (SMALL.replace("3,b,1", "3,b,1,1"), "--pair id --arms a,b --metrics right", "line 9: has not 3 fields"),
        (SMALL.replace("3,b,1", "3,b"), "--pair id --arms a,b --metrics right", "line 9: has not 3 fields"),
        ("id,arm,arm\n", "--pair id --arms a,b --metrics right", "the header has 'arm' twice"),
        ("id,arm,right\n", "--pair id --arms a,b --metrics right", "has no rows"),
        ("", "--pair id --arms a,b --metrics right", "has no rows"),
        (SMALL, "--pair id --arms a,b --metrics right --alpha 5", "'--alpha': 5 must be above 0 and below 1"),
        (SMALL, "--pair id --arms a,b --metrics right --missing zero", "'--missing': 'zero' is not one of"),
        (SMALL, "--pair id --arms a,b --metrics right --html --json", "both want stdout"),
        (SMALL, "--pair id --arms a,b --metrics right --html t.csv", "--html t.csv: is the table itself"),
        (SMALL, "--arms a,b --metrics right", "Missing option '--pair'"),
        (
            SMALL.replace(",1\n", ",0.1234567\n").replace("0,b,0", "0,b,0.7654"),
            "--pair id --arms a,b --metrics right --replicates 99 --level 0.999",
            "--replicates 99: 99 replicates are too few for level",
        ),
    ],
)
def test_what_is_wrong_gets_one_message(run, table, text, options, message):
    code, out, err = run(f"{table(text)} {options}")
    assert (code, out) == (2, "")
    assert message in err and "Traceback" not in err


def test_texts_of_the_table_cannot_become_markup(run, table, tmp_path):
    text = "id,arm,s,x\n" + "".join(f"{i},{arm},<b>[red]&,{int(arm == 'b')}\n" for i in range(3) for arm in "ab")
    code, out, _ = run(f"{table(text)} --pair id --arms a,b --by s --metrics x --html page.html")
    assert code == 0 and "<b>[red]&" in out
    page = (tmp_path / "page.html").read_text()
    assert "<b>" not in page and "&lt;b&gt;[red]&amp;" in page


def test_not_text(run, tmp_path):
    (tmp_path / "t.csv").write_bytes(b"id,arm,right\n\xff\xfe,a,1\n")
    code, _, err = run("t.csv --pair id --arms a,b --metrics right")
    assert code == 2 and "is not UTF-8 text" in err
    assert run("nowhere.csv --pair id --arms a,b --metrics right")[0] == 2


def test_ids_may_need_two_columns(run, table):
    rows_ = [("x", i, arm, int(arm == "b")) for i in range(3) for arm in "ab"]
    rows_ += [("y", i, arm, 0) for i in range(3) for arm in "ab"]
    out = io.StringIO()
    csv.writer(out).writerows([("set", "id", "arm", "x"), *rows_])
    (row,) = rows(run(f"{table(out.getvalue())} --pair set,id --arms a,b --metrics x --json")[1])
    assert row["n"] == 6
    assert "keep one" in run("t.csv --pair id --arms a,b --metrics x")[2]
