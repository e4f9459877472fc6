"""LongBench's metrics: by hand, and against the packages that the official code calls, where they are installed."""

import random
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.tasks import longbench_metrics as metrics
from cask_eval.tasks.longbench_metrics import METRICS, score

F = Fraction


@pytest.mark.parametrize(
    "metric, output, answer, classes, expected",
    [
        # 3 shared of 4 and 3 words, without the article: F1 = 2·3/(4 + 3).
        ("qa_f1", "The  red, big house!!  there", "a red big house", [], F(6, 7)),
        ("qa_f1", "red red", "red", [], F(2, 3)),
        ("qa_f1", "blue", "red", [], F(0)),
        ("qa_f1", "", "red", [], F(0)),
        ("qa_f1", "the", "a", [], F(0)),  # both are nothing but articles
        ("classification", "It is a Location", "Location", ["Location", "City"], F(1)),
        ("classification", "Location or City", "Location", ["Location", "City"], F(1, 2)),
        ("classification", "nothing of the kind", "Location", ["Location", "City"], F(0)),
        # A class that is part of the right one is passed over, ...
        ("classification", "Number of something", "Number of something", ["Number", "Number of something"], F(1)),
        # ... and the walk then skips the one behind it, as the official code does.
        ("classification", "a ab abc", "abc", ["a", "ab", "abc"], F(1, 2)),
        ("retrieval", "Paragraph 7", "Paragraph 7", [], F(1)),
        ("retrieval", "Paragraph 7 or 17", "Paragraph 7", [], F(1, 2)),
        ("retrieval", "none", "Paragraph 7", [], F(0)),
        ("retrieval_zh", "段落12", "段落12", [], F(1)),
        ("count", "I count 5, not 6.", "5", [], F(1, 2)),
        ("count", "five", "5", [], F(0)),
        ("code_sim", "\n# a comment\nreturn x\nreturn y", "return x", [], F(1)),
        ("code_sim", "return y", "return x", [], F(88, 100)),  # 2·7/16 = 0.875 → 88 (half to even)
        ("code_sim", "// nothing else", "return x", [], F(0)),
    ],
)
def test_by_hand(metric, output, answer, classes, expected):
    assert METRICS[metric](output, answer, classes) == expected


def test_rouge_l_by_hand():
    # Lin 2004, §3.2: reference w1…w5, two sentences that share w1 w2 and w1 w3 w5 with it; united 4 words.
    reference, output = "w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8. w1 w3 w8 w9 w5"
    p, r = 4 / 8, 4 / 5  # 8 different words in the output
    assert float(METRICS["rouge_l"](output, reference, [])) == 2 * p * r / (p + r + 1e-8)
    assert METRICS["rouge_l"]("", reference, []) == METRICS["rouge_l"]("...", reference, []) == 0


def test_the_best_reference_counts():
    assert score("qa_f1", "red house", ["blue", "red house", "red"]) == 1


def test_a_reference_without_a_paragraph_is_refused():
    with pytest.raises(ValueError, match="names no paragraph"):
        score("retrieval", "1", ["the first"])


words = st.lists(st.sampled_from("a b c d the of . .. !, x.y 7 ,".split()), max_size=30).map(" ".join)


@given(words, words)
def test_scores_are_shares(output, answer):
    for name in ("qa_f1", "rouge_l", "count", "code_sim"):
        assert 0 <= METRICS[name](output, answer, []) <= 1


@settings(max_examples=300)
@given(words, words)
def test_rouge_l_is_the_official_packages(output, answer):
    rouge = pytest.importorskip("rouge").Rouge()
    try:
        expected = rouge.get_scores([output], [answer], avg=True)["rouge-l"]["f"]
    except (ValueError, AssertionError):  # the official code counts these 0
        expected = 0.0
    assert float(METRICS["rouge_l"](output, answer, [])) == expected


def test_rouge_l_of_long_texts_is_the_official_packages_with_room_to_recurse():
    rouge = pytest.importorskip("rouge").Rouge(metrics=["rouge-l"])
    rng = random.Random(5)
    output, answer = (" ".join(f"w{rng.randrange(80)}" for _ in range(n)) for n in (700, 500))
    before = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(10_000)
        expected = rouge.get_scores([output], [answer], avg=True)["rouge-l"]["f"]
    finally:
        sys.setrecursionlimit(before)
    assert float(METRICS["rouge_l"](output, answer, [])) == expected


@given(st.text("abc x=(1)", max_size=40), st.text("abc x=(1)", max_size=40))
def test_code_sim_is_fuzzywuzzys(output, answer):
    fuzz = pytest.importorskip("fuzzywuzzy.fuzz")
    if fuzz.SequenceMatcher.__module__ != "difflib":
        pytest.skip("fuzzywuzzy has found its C library, which computes something else")
    assert METRICS["code_sim"](output, answer, []) == Fraction(fuzz.ratio(output, answer), 100)


def test_chinese_is_cut_into_words():
    pytest.importorskip("jieba")
    assert metrics.segmenter()("今天天气很好") == ["今天天气", "很", "好"]
    assert METRICS["qa_f1_zh"]("北京 大学。", "北京大学", []) < 1  # cut where the text was
    assert METRICS["qa_f1_zh"]("今天,天气！", "今天天气", []) == 0  # 今天 / 天气 against 今天天气
    assert METRICS["qa_f1_zh"]("很好。", "很好", []) == 1
    same, other = "会议讨论了预算。下周再议", "天气很好"
    assert METRICS["rouge_l_zh"](same, same, []) > F(99, 100) and METRICS["rouge_l_zh"](other, same, []) == 0


def test_without_jieba_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(ValueError, match=r"pip install 'cask-eval\[longbench\]'"):
        METRICS["qa_f1_zh"]("a", "b", [])
