"""Likeness against brute force, and tokens of any script."""

import difflib
import random
import time
from fractions import Fraction
from functools import lru_cache
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.bridge.likeness import common_prefix, lcs, lcs_ratio, prefix_ratio, repetition, sequence_ratio
from cask_eval.bridge.tokens import characters, tokens

sequences = st.lists(st.sampled_from("abcd"), max_size=9)


def every_subsequence(a):
    return {picked for n in range(len(a) + 1) for picked in combinations(a, n)}


@settings(max_examples=150)
@given(sequences, sequences)
def test_lcs_is_the_longest_of_all_common_subsequences(a, b):
    assert lcs(a, b) == max(map(len, every_subsequence(a) & every_subsequence(b)))


def table(a, b):
    @lru_cache(None)
    def of(i, j):
        if not i or not j:
            return 0
        return of(i - 1, j - 1) + 1 if a[i - 1] == b[j - 1] else max(of(i - 1, j), of(i, j - 1))

    return of(len(a), len(b))


@given(st.lists(st.integers(0, 9), max_size=80), st.lists(st.integers(0, 9), max_size=80))
def test_lcs_is_the_tables_and_a_metric(a, b):
    assert lcs(a, b) == table(tuple(a), tuple(b)) == lcs(b, a) == lcs(a[::-1], b[::-1])
    assert lcs_ratio(a, a) == 1 and lcs(a, a + b) == len(a)


@given(sequences, sequences)
def test_ratios(a, b):
    expected = Fraction(difflib.SequenceMatcher(None, a, b).ratio()).limit_denominator(1000)
    assert sequence_ratio(a, b) == expected
    # Matching blocks are a common subsequence, and the longest is no shorter.
    assert sequence_ratio(a, b) * (len(a) + len(b)) <= 2 * lcs(a, b)
    assert 0 <= prefix_ratio(a, b) <= lcs_ratio(a, b) <= 1
    assert a[: common_prefix(a, b)] == b[: common_prefix(a, b)]
    assert a[: common_prefix(a, b) + 1] != b[: common_prefix(a, b) + 1] or a == b


def test_empty_sequences():
    for ratio in (lcs_ratio, sequence_ratio, prefix_ratio):
        assert ratio([], []) == 1 and ratio([], ["a"]) == ratio(["a"], []) == 0
    assert repetition([]) == repetition(list("abc")) == 0


def test_repetition_by_hand():
    assert repetition(list("abcdabcd")) == Fraction(1, 5)  # abcd bcda cdab dabc abcd
    assert repetition(["a"] * 103) == Fraction(99, 100)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Don't stop, it's 3.14 or 1,000!", ["Don't", "stop", ",", "it's", "3.14", "or", "1,000", "!"]),
        ("北京大学在这里。OK3吗", ["北", "京", "大", "学", "在", "这", "里", "。", "OK3", "吗"]),
        ("こんにちは", ["こ", "ん", "に", "ち", "は"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("السَّلامُ عليكم", ["السَّلامُ", "عليكم"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("👨‍👩‍👧‍👦👍🏽 🇩🇪🇫🇷", ["👨‍👩‍👧‍👦", "👍🏽", "🇩🇪", "🇫🇷"]),
        ("cafe\u0301 caf\u00e9", ["caf\u00e9", "caf\u00e9"]),
        ("\\frac{1}{2}", ["\\", "frac", "{", "1", "}", "{", "2", "}"]),
        ("\r\n\t \u3000", []),
        ("", []),
    ],
)
def test_tokens(text, expected):
    assert tokens(text) == expected


@given(st.text(max_size=80))
def test_no_visible_sign_is_lost(text):
    def bare(t):
        return "".join(t.split())

    assert bare("".join(tokens(text))) == bare("".join(characters(text)))


def test_a_chinese_paragraph_is_more_than_one_token():
    a, b = "今天天气很好，我们去公园。", "今天天气不好，我们去学校。"
    assert len(tokens(a)) == 13 and lcs_ratio(tokens(a), tokens(b)) == Fraction(10, 13)
    assert a.split() == [a]  # what whitespace makes of it


@pytest.mark.slow
@pytest.mark.parametrize(
    "alphabet, joint", [([f"w{i}" for i in range(3000)], " "), (list("的一是不了人我在有他这"), "")]
)
def test_100_kilobytes_take_seconds(alphabet, joint):
    rng = random.Random(1)
    texts = []
    for _ in range(2):
        words = rng.choices(alphabet, [1 / (i + 1) for i in range(len(alphabet))], k=100_000)
        texts.append(joint.join(words).encode()[:100_000].decode(errors="ignore"))
    began = time.perf_counter()
    a, b = map(tokens, texts)
    assert 0 < lcs_ratio(a, b) < 1 and 0 <= sequence_ratio(a, b) <= 1 and min(len(a), len(b)) > 10_000
    assert time.perf_counter() - began < 30  # about 4 s; wide for a busy machine
