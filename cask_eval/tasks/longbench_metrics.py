"""LongBench's metrics, worked out from what the official code computes (https://github.com/THUDM/LongBench, metrics.py
and eval.py of LongBench 1, MIT): scores from 0 to 1, one output against one reference.

They are the official ones where these are well defined, quirks included, so that figures can be compared:

- ``rouge_l`` is the summary-level ROUGE-L of the package `rouge` 1.0.1, over *sets* of words; where that package runs
  into Python's recursion limit, and the official code then counts 0, this gives the value that was meant;
- ``classification`` removes classes that are part of the reference while it walks over them, which skips the class
  behind a removed one; the official comparison for outputs that name no class can never be reached, and they score 0;
- ``code_sim`` is difflib's ratio in whole percent, which is what `fuzzywuzzy` computes without its optional C library.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib import metadata

__all__ = ["METRICS", "SEGMENTED", "score", "segmenter"]

Metric = Callable[[str, str, Sequence[str]], Fraction]

#: The metrics that need Chinese text cut into words, by `segmenter`.
SEGMENTED = ("qa_f1_zh", "rouge_l_zh")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DIGITS = re.compile(r"\d+")
_ASCII = frozenset(string.punctuation)
# The official list of Chinese punctuation, by code point: half of it looks like something else in many fonts.
_CHINESE = frozenset(
    "\uff01\uff1f\uff61\u3002\uff02\uff03\uff04\uff05\uff06\uff07\uff08\uff09\uff0a\uff0b\uff0c\uff0d\uff0f\uff1a\uff1b"
    "\uff1c\uff1d\uff1e\uff20\uff3b\uff3c\uff3d\uff3e\uff3f\uff40\uff5b\uff5c\uff5d\uff5e\uff5f\uff60\uff62\uff63\uff64"
    "\u3001\u3003\u300b\u300c\u300d\u300e\u300f\u3010\u3011\u3014\u3015\u3016\u3017\u3018\u3019\u301a\u301b\u301c\u301d"
    "\u301e\u301f\u3030\u303e\u303f\u2013\u2014\u2018\u2019\u201b\u201c\u201d\u201e\u201f\u2026\u2027\ufe4f."
)


def score(metric: str, output: str, answers: Sequence[str], classes: Sequence[str] = ()) -> Fraction:
    """The best score over the references. `metric` is a key of `METRICS`. Raises ValueError for a reference that the
    metric cannot read, and when a segmenter is needed and not installed."""
    return max(METRICS[metric](output, answer, classes) for answer in answers)


def qa_f1(output: str, answer: str, classes: Sequence[str] = ()) -> Fraction:
    """F1 of the words, as multisets, without case, punctuation and English articles (SQuAD's)."""
    return _f1(_english(output), _english(answer))


def qa_f1_zh(output: str, answer: str, classes: Sequence[str] = ()) -> Fraction:
    """F1 of the segmented words, as multisets, without case and punctuation."""
    return _f1(_chinese(output), _chinese(answer))


def rouge_l(output: str, answer: str, classes: Sequence[str] = ()) -> Fraction:
    """Summary-level ROUGE-L, F = 2PR/(P + R + 1e-8), of texts cut at full stops: for every sentence of the reference
    the words that any sentence of the output shares with it in order, united over all, against the different words of
    either text. 0 where a text is empty."""
    sentences = [_sentences(text) for text in (output, answer)]
    if not all(sentences):
        return Fraction(0)
    sizes = [len({word for sentence in text for word in sentence}) for text in sentences]
    united: set[str] = set()
    for reference in sentences[1]:
        for said in sentences[0]:
            united |= _common(reference, said)
    p, r = (len(united) / size for size in sizes)
    return Fraction(2.0 * ((p * r) / (p + r + 1e-8)))


def rouge_l_zh(output: str, answer: str, classes: Sequence[str] = ()) -> Fraction:
    """`rouge_l` of segmented texts."""
    cut = segmenter()
    return rouge_l(" ".join(cut(output)), " ".join(cut(answer)))


def classification(output: str, answer: str, classes: Sequence[str] = ()) -> Fraction:
    """1 over the number of classes that the output names, when the right one is among them."""
    named = [name for name in classes if name in output]
    at = 0
    while at < len(named):
        if named[at] in answer and named[at] != answer:
            del named[at]
        at += 1  # past a removed one too: see the module's text
    return Fraction(1, len(named)) if answer in named else Fraction(0)


def retrieval(output: str, answer: str, classes: Sequence[str] = ()) -> Fraction:
    """Share of the numbers in the output that are the paragraph's."""
    return _share(output, _paragraph(r"Paragraph (\d+)", answer))


def retrieval_zh(output: str, answer: str, classes: Sequence[str] = ()) -> Fraction:
    """`retrieval` where paragraphs are called 段落."""
    return _share(output, _paragraph(r"段落(\d+)", answer))


def count(output: str, answer: str, classes: Sequence[str] = ()) -> Fraction:
    """Share of the numbers in the output that are the right one."""
    return _share(output, answer)


def code_sim(output: str, answer: str, classes: Sequence[str] = ()) -> Fraction:
    """Similarity of the reference to the first line of the output that is no comment, in whole percent."""
    lines = output.lstrip("\n").split("\n")
    said = next((line for line in lines if not ("`" in line or "#" in line or "//" in line)), "")
    if said == answer:
        return Fraction(1)
    if not said or not answer:
        return Fraction(0)
    return Fraction(round(100 * difflib.SequenceMatcher(None, said, answer).ratio()), 100)


METRICS: dict[str, Metric] = {
    "qa_f1": qa_f1,
    "qa_f1_zh": qa_f1_zh,
    "rouge_l": rouge_l,
    "rouge_l_zh": rouge_l_zh,
    "classification": classification,
    "retrieval": retrieval,
    "retrieval_zh": retrieval_zh,
    "count": count,
    "code_sim": code_sim,
}


def segmenter() -> Callable[[str], list[str]]:
    """Chinese text → words, by jieba's default dictionary. Raises ValueError when jieba is not installed."""
    try:
        import jieba
    except ImportError:
        raise ValueError("Chinese data sets need jieba: pip install 'cask-eval[longbench]'") from None
    jieba.setLogLevel(30)  # it reports its start on stderr
    return jieba.lcut


def segmenter_version() -> str:
    """The installed jieba: another dictionary may cut otherwise. Raises ValueError as `segmenter`."""
    segmenter()
    return metadata.version("jieba")


def _english(text: str) -> list[str]:
    bare = "".join(c for c in text.lower() if c not in _ASCII)
    return _ARTICLES.sub(" ", bare).split()


def _chinese(text: str) -> list[str]:
    words = (
        "".join("".join(c for c in word.lower() if c not in _ASCII and c not in _CHINESE).split())
        for word in segmenter()(text)
    )
    return [word for word in words if word]


def _f1(output: Sequence[str], answer: Sequence[str]) -> Fraction:
    shared = sum((Counter(output) & Counter(answer)).values())
    return Fraction(2 * shared, len(output) + len(answer)) if shared else Fraction(0)


def _share(output: str, right: str) -> Fraction:
    numbers = _DIGITS.findall(output)
    return Fraction(numbers.count(right), len(numbers)) if numbers else Fraction(0)


def _paragraph(pattern: str, answer: str) -> str:
    found = re.search(pattern, answer)
    if found is None:
        raise ValueError(f"the reference {answer[:40]!r} names no paragraph; it must hold {pattern}")
    return found[1]


def _sentences(text: str) -> list[list[str]]:
    """Sentences as lists of words; one of nothing but white space is one empty word, as the official package has it."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common(reference: Sequence[str], said: Sequence[str]) -> set[str]:
    """The words of one longest common subsequence, the one that the official package walks back to."""
    m = len(said)
    table = [[0] * (m + 1)]
    for word in reference:
        above, row = table[-1], [0]
        for j, other in enumerate(said):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        table.append(row)
    i, j, out = len(reference), m, set()
    while i and j:
        if reference[i - 1] == said[j - 1]:
            i, j = i - 1, j - 1
            out.add(reference[i])
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return out
