"""What holds for any text: extraction and reading never raise, repeat themselves, and take linear time."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cask_eval.grading import ExtractionRule, extract, read_gold
from cask_eval.grading.answers import read
from cask_eval.grading.cascade import exact
from cask_eval.grading.compare import same_answer
from cask_eval.grading.normalise import normalise, tokens

PIECES = st.sampled_from(
    r"\frac \sqrt \left( \right) \text{ \mathrm{cm} \begin{pmatrix} \end{pmatrix} \\ & { } ( ) [ ] \{ \} , ; . : = < > "
    r"\le \pm \cup \in \pi \infty ^ _ ! | / + - * $ % "
    r"\$ \% \boxed{ 1 2.5 10 .5 1,234 x y ab sin \sin \log e i cm or and "
    "½ √ ² ₈ π ° − × ① ٣ １ ∞ é \\overline{3} 0. ^\\circ "
    "\\, \\! {,} ' \" ` ~ # @ \\ \n \\quad ** 1e5 \\binom \\dfrac12 a_1".split(" ")
)
SOUP = st.lists(PIECES, max_size=25).map("".join) | st.lists(PIECES, max_size=25).map(" ".join) | st.text(max_size=40)

NUMBER = st.integers(-9999, 9999).map(str) | st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(
    lambda f: rf"\frac{{{f[0]}}}{{{f[1]}}}"
) | st.decimals(-99, 99, places=2).map(str)
ATOM = NUMBER | st.sampled_from([r"\sqrt{2}", r"3\pi", "x+1", "2k", r"\frac{x}{2}", r"\infty", "90^\\circ",
r"5\text{ cm}"])
ANSWER = (
    ATOM
    | st.lists(ATOM, min_size=2, max_size=4).map(lambda v: "(" + ", ".join(v) + ")")
    | st.lists(ATOM, min_size=1, max_size=4).map(lambda v: r"\{" + ", ".join(v) + r"\}")
    | st.lists(ATOM, min_size=2, max_size=4).map(", ".join)
    | st.tuples(ATOM, ATOM).map(lambda v: f"[{v[0]}, {v[1]})")
    | st.sampled_from([r"\text{east}", r"\text{(C)}", "52_8", "5:30", "y = 2x + 3", "x > 5"])
)


@given(SOUP)
@example("1\\frac12")
@example("\\\\frac12")
@settings(max_examples=400, deadline=None)
def test_normalising_twice_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once


@given(SOUP, SOUP)
@settings(max_examples=400, deadline=None)
def test_no_text_makes_a_stage_raise(gold, answer):
    for rule in ExtractionRule:
        found = extract(answer, rule)
        assert found.text is None or isinstance(found.text, str)
        assert (found.text is None) == (found.where == "none")
    read_gold(gold)
    read(tokens(answer))
    exact(gold, answer)
    exact(gold, answer, integers=True)


@given(ANSWER)
@settings(deadline=None)
def test_an_answer_is_itself(answer):
    x = read(tokens(answer))
    assert same_answer(x, x)[0] is True
    assert exact(answer, f" ${answer}$ .").correct


@given(ANSWER, ANSWER)
@settings(max_examples=300, deadline=None)
def test_the_exact_paths_treat_both_sides_alike(a, b):
    forth, back = exact(a, b), exact(b, a)
    assert (forth and forth.correct) == (back and back.correct)


@given(st.lists(ATOM, min_size=2, max_size=5, unique=True), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_a_set_does_not_matter(items, rng):
    # With blanks, because 1,100 could be a thousand and a hundred.
    shuffled = rng.sample(items, len(items))
    assert exact(r"\{" + ", ".join(items) + r"\}", r"\{" + ", ".join(shuffled) + r"\}").correct


@given(st.integers(), st.integers(0, 6))
def test_trailing_zeros_do_not_matter(n, zeros):
    assert exact(str(n), f"{n}." + "0" * zeros).correct
    assert not exact(str(n), f"{n}." + "0" * zeros + "1").correct


@given(st.text(max_size=200).filter(lambda t: "\\" not in t and "{" not in t and "}" not in t and "</think>" not in t))
def test_what_stands_in_the_last_box_is_found(text):
    assert extract(rf"first \boxed{{0}}, then \boxed{{{text}}} so").text == text.strip()


HOSTILE = {
    "braces": "{", "closing": "}", "boxes": r"\boxed{", "boxes that close": r"\boxed{1}", "parentheses": r"\( ",
    "dollars": "$ ", "answers": "the answer is ", "hashes": "#### ", "text": r"\text{", "backslashes": "\\",
    "digits": "7", "groups": "123,", "spaces": " ", "spaces between": "1 ", "fractions": r"\frac{",
    "boxed spaces": "\\boxed  ",
}  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("rule", list(ExtractionRule))
def test_extraction_takes_linear_time(piece, rule):
    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        best = 9.0
        for _ in range(3):
            began = time.process_time()
            extract(text, rule)
            best = min(best, time.process_time() - began)
        return best

    seconds(1_000)
    # Ten times the text may take ten times as long; the floor takes up the clock's noise.
    assert seconds(16_000) < 40 * max(seconds(1_600), 2e-4)
    assert seconds(1_000_000) < 0.5


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_reading_takes_little_time_whatever_the_text(piece):
    for text in (piece * (4_000 // len(piece)), piece * (2_000 // len(piece)) + "}" * 1_000):
        began = time.perf_counter()
        exact("5", text)
        assert time.perf_counter() - began < 2
