"""The tracking task: frozen sampling, the length that was declared, answers that another walker finds, exact grades."""

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cask_eval.tasks import tracking

GOLDEN = {
    (1, 0): "780e68aea4c7f4be",
    (2, 199): "3db788f429131680",
}


@pytest.mark.parametrize(("seed", "index"), GOLDEN)
def test_golden_hashes(seed, index):
    p = tracking.problem(seed, index, tracking.Difficulty())
    found = hashlib.sha256("\n".join((p.id, p.prompt, p.answer, p.stratum)).encode()).hexdigest()[:16]
    assert found == GOLDEN[seed, index]


def walked(prompt: str) -> dict[str, str]:
    """Name → number, by going through the text once."""
    held = {}
    for name, said in re.findall(r"The (\w+ \w+) holds (\d{4}|what the \w+ \w+ holds)\.", prompt):
        assert name not in held
        held[name] = said if said.isdecimal() else held[re.match(r"what the (\w+ \w+) holds", said)[1]]
    return held


difficulties = st.builds(
    tracking.Difficulty,
    words=st.integers(600, 3000),
    hops=st.integers(0, 6),
    chains=st.integers(1, 6),
    ask=st.sampled_from(tracking.ASKS),
)


@given(difficulties, st.integers(0, 50))
def test_answers(difficulty, index):
    p = tracking.problem(3, index, difficulty)
    assert difficulty.words - 16 <= len(p.prompt.split()) <= difficulty.words
    held = walked(p.prompt)
    assert len(held) == difficulty.chains * (difficulty.hops + 1)
    if difficulty.ask == "value":
        name = re.search(r"Which number does the (\w+ \w+) hold\?", p.prompt)[1]
        assert held[name] == p.answer
        assert list(held.values()).count(p.answer) == difficulty.hops + 1
        said = f"It is {p.answer}."
    else:
        number = re.search(r"Which ones hold (\d{4}), directly or through others\?", p.prompt)[1]
        names = [name for name, n in held.items() if n == number]
        assert p.answer == ", ".join(sorted(names)) and len(names) == difficulty.hops + 1
        said = "The " + ", the ".join(names)
        assert not tracking.grade(p, said + ", the amber ibis" * ("amber ibis" not in names)).correct or (
            "amber ibis" in names
        )
    assert tracking.grade(p, said).correct


def test_grades_of_names():
    p = tracking.problem(1, 0, tracking.Difficulty(ask="names", hops=2))
    a, b, c = p.answer.split(", ")
    twice = f"{a}, {b}, {c}, {a}"
    for right in (f"{c}, {a} and {b}.", f"The {a.title()}; the {b}; the {c}", twice, f"\n{a} {b} {c}\nx"):
        assert tracking.grade(p, right).correct, right
    for wrong in ("", "nobody", f"{a}, {b}", f"{a}, {b}, {c[:-1]}", f"{a}\n{b}\n{c}"):
        assert not tracking.grade(p, wrong).correct, wrong
    assert tracking.grade(p, "nobody").how == "none" and tracking.grade(p, f"{a}").extracted == a


def test_grades_of_values():
    p = tracking.problem(1, 0, tracking.Difficulty())
    assert tracking.grade(p, f" {p.answer}\nand 1234").correct
    for wrong, how in ((f"{p.answer} 1234", "line"), (f"{p.answer}.0", "malformed"), ("what it holds", "none")):
        assert not tracking.grade(p, wrong).correct and tracking.grade(p, wrong).how == how


@pytest.mark.parametrize(
    "params, match",
    [
        ({"seed": 1, "count": 1, "hops": 17}, "hops is 17"),
        ({"seed": 1, "count": 1, "ask": "sum"}, "ask is 'sum'"),
        ({"seed": 1, "count": 1, "depth": 3}, "depth is no parameter"),
        ({"seed": 1, "count": 1, "words": 150, "chains": 9}, "allow more words"),
    ],
)
def test_bad_parameters_are_named(params, match):
    with pytest.raises(ValueError, match=match):
        tracking.problems(params)


def test_what_is_described_makes_the_same_problems():
    params = {"seed": 4, "count": 3, "start": 2, "words": 500}
    source, rule = tracking.describe(params)
    assert tracking.problems(source) == tracking.problems(params) and "Problems 2 to 4 of stream 4" in rule
