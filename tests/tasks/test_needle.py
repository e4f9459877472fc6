"""The needle task: frozen sampling, the length that was declared, no ambiguity, a grader that no surplus passes."""

import hashlib
import os
import random
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cask_eval.splits.disjoint import overlaps
from cask_eval.splits.freeze import freeze
from cask_eval.tasks import line, needle, prose, registry

GOLDEN = {
    (1, 0): "8b76f1ca3dcc6ff2",
    (2, 199): "0214a352edb4f959",
}

difficulties = st.builds(
    needle.Difficulty,
    words=st.integers(400, 3000),
    needles=st.integers(1, 24),
    asked=st.just(1),
    depth=st.integers(-1, 100),
    query=st.sampled_from(needle.QUERIES),
)


@pytest.mark.parametrize(("seed", "index"), GOLDEN)
def test_golden_hashes(seed, index):
    p = needle.problem(seed, index, needle.Difficulty())
    found = hashlib.sha256("\n".join((p.id, p.prompt, p.answer, p.stratum)).encode()).hexdigest()[:16]
    assert found == GOLDEN[seed, index]


def test_same_problems_under_another_hash_seed():
    code = "from cask_eval.tasks import needle; print(needle.problems({'seed': 3, 'count': 3}))"
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == str(needle.problems({"seed": 3, "count": 3}))


@given(difficulties, st.integers(0, 50))
def test_prompts_have_the_declared_length_and_one_answer(difficulty, index):
    p = needle.problem(7, index, difficulty)
    assert difficulty.words - 16 <= len(p.prompt.split()) <= difficulty.words
    told = dict(re.findall(r"The number of the (\w+ \w+) is (\d{4})\.", p.prompt))
    assert len(told) == difficulty.needles == len(set(told.values()))
    asked = re.findall(r"What is the number of the (\w+ \w+)\?", p.prompt)
    assert len(asked) == (1 if difficulty.query == "after" else 2) and len(set(asked)) == 1
    assert told[asked[0]] == p.answer
    filler = re.sub(r"The number of the (\w+ \w+) is (\d{4})\.", "", p.prompt)
    assert not set(re.findall(r"\d", filler))


def test_depth_says_where_the_needles_stand():
    for depth, low, high in ((0, 0, 0.05), (50, 0.4, 0.6), (100, 0.9, 1)):
        p = needle.problem(1, 0, needle.Difficulty(words=2000, needles=2, depth=depth))
        text = p.prompt.split("\n\n")[1]
        assert low <= text.index("The number of") / len(text) <= high


def test_several_numbers_are_asked_for_in_an_order():
    p = needle.problem(1, 0, needle.Difficulty(needles=6, asked=3))
    told = dict(re.findall(r"The number of the (\w+ \w+) is (\d{4})\.", p.prompt))
    named = re.search(r"What are the numbers of the (\w+ \w+), the (\w+ \w+) and the (\w+ \w+)\?", p.prompt).groups()
    assert p.answer == " ".join(told[name] for name in named)
    a, b, c = p.answer.split()
    assert needle.grade(p, f"{a}, {b}, {c}").correct and needle.grade(p, f"{a},{b},{c}").correct
    for wrong in (f"{b}, {a}, {c}", f"{a}, {b}", f"{a}, {b}, {c}, 1000", f"{a} {b}{c}"):
        assert not needle.grade(p, wrong).correct


@pytest.mark.parametrize(
    "output, correct, how",
    [
        ("{a}", True, "line"),
        (" The number of the amber falcon is {a}.\nQuestion: and another? 1234", True, "line"),
        ("**{a}**", True, "line"),
        ("<think>maybe 1111 or 2222</think>\n\n{a}", True, "line"),
        ("{a}0", False, "line"),  # RULER's substring match would pass these
        ("0{a}", False, "line"),
        ("{a} or 1111", False, "line"),
        ("1111\n{a}", False, "line"),
        ("{a}.5", False, "malformed"),
        ("-{a}", False, "malformed"),
        ("x{a}", False, "malformed"),
        ("I do not know", False, "none"),
        ("", False, "none"),
        ("\n \n", False, "none"),
    ],
)
def test_grades(output, correct, how):
    p = needle.problem(1, 0, needle.Difficulty())
    grade = needle.grade(p, output.format(a=p.answer))
    assert (grade.correct, grade.how, grade.grader) == (correct, how, needle.GRADER)
    assert (grade.extracted is None) == (how != "line")


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("4,821", ["4821"]),
        ("4821,7151", ["4821", "7151"]),
        ("4821, 7151", ["4821", "7151"]),
        ("1,234,567", ["1234567"]),
        ("#4821!", ["4821"]),
        ("4821-7151", None),
        ("4821th", None),
        ("none", []),
    ],
)
def test_numbers(text, numbers):
    assert line.numbers_in(text) == numbers


@given(st.text(max_size=60))
def test_any_line_is_read(text):
    found = line.numbers_in(line.first(text))
    assert found is None or all(n.isascii() and n.isdecimal() for n in found)


def test_streams_and_filler_do_not_repeat():
    dev, heldout = (
        freeze(role, "needle", role, {}, "r", needle.problems({"seed": seed, "count": 40}))
        for role, seed in (("dev", 1), ("heldout", 2))
    )
    assert overlaps(dev, heldout, "0.3") == []  # sketches of different prompts agree on few positions
    rng = random.Random(0)
    sentences = [prose.sentence(rng) for _ in range(2000)]
    assert len(set(sentences)) > 1990 and all(8 <= len(s.split()) <= 16 for s in sentences)
    filler = {w.strip(".,").lower() for s in sentences for w in s.split()}
    assert not filler & {*prose.ADJECTIVES, *prose.NOUNS}


@pytest.mark.parametrize(
    "params, match",
    [
        ({"count": 1}, "seed is None"),
        ({"seed": 1, "count": 0}, "count is 0"),
        ({"seed": 1, "count": 1, "words": 50}, "words is 50"),
        ({"seed": 1, "count": 1, "needles": 2, "asked": 3}, "asked is 3"),
        ({"seed": 1, "count": 1, "query": "before"}, "query is 'before'"),
        ({"seed": 1, "count": 1, "keys": 3}, "keys is no parameter"),
        ({"seed": 1, "count": 1, "words": 100, "needles": 20}, "allow more words"),
    ],
)
def test_bad_parameters_are_named(params, match):
    with pytest.raises(ValueError, match=match):
        needle.problems(params)


def test_what_is_described_makes_the_same_problems(points):
    assert {"needle", "tracking"} <= set(points) and registry.load("needle") is needle
    params = {"seed": 4, "count": 3, "start": 2, "words": 500}
    source, rule = needle.describe(params)
    assert needle.problems(source) == needle.problems(params) and "Problems 2 to 4 of stream 4" in rule
    assert needle.problems(source)[0] == needle.problem(4, 2, needle.Difficulty(words=500))
