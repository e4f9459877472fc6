"""LongBench 1 (https://github.com/THUDM/LongBench): long documents, their questions, its own metrics.

The files are the user's: ``longbench/DATASET.jsonl`` under ``--data``, rows with the fields input, context, answers,
length, dataset, language, all_classes and _id. Parameters: ``dataset``; ``file`` where it lies elsewhere;
``threshold``, the score from which an output counts as right; ``min_length`` and ``max_length``, bounds on the rows'
own length (words, in Chinese characters); ``prompts``, a JSON file of templates by data set with ``{context}`` and
``{input}``, such as the official config/dataset2prompt.json (MIT), which is not part of this package: without it
problems are put in words of ours; ``part``, ``dev`` and ``seed``, a part of the set.

Most metrics are shares, and what a study decides on is right or wrong. So the threshold is part of what is frozen, a
score is turned into right or wrong by it alone, and the score itself stands beside the verdict (docs/adr/0015). Nothing
is cut out of documents that are too long for a model: bound their length.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from cask_eval.tasks import Grade, Problem, data, graded, longbench_metrics, part

__all__ = ["DATASETS", "GRADER", "Passage", "describe", "grade", "problems", "score"]

GRADER = "longbench/1"

#: Data set → its official metric.
DATASETS = {
    "narrativeqa": "qa_f1",
    "qasper": "qa_f1",
    "multifieldqa_en": "qa_f1",
    "multifieldqa_zh": "qa_f1_zh",
    "hotpotqa": "qa_f1",
    "2wikimqa": "qa_f1",
    "musique": "qa_f1",
    "dureader": "rouge_l_zh",
    "gov_report": "rouge_l",
    "qmsum": "rouge_l",
    "multi_news": "rouge_l",
    "vcsum": "rouge_l_zh",
    "trec": "classification",
    "triviaqa": "qa_f1",
    "samsum": "rouge_l",
    "lsht": "classification",
    "passage_retrieval_en": "retrieval",
    "passage_count": "count",
    "passage_retrieval_zh": "retrieval_zh",
    "lcc": "code_sim",
    "repobench-p": "code_sim",
}
#: Only the first line of an output is scored here: few-shot prompts are answered with further examples.
FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")
#: Metrics of which anything less than the full score is wrong, unless another threshold is given.
_WHOLE = ("classification", "retrieval", "retrieval_zh", "count")
_FIELDS = ("dataset", "file", "threshold", "min_length", "max_length", "prompts", "prompts_sha256", "jieba")
# Words of our own, by metric; few-shot contexts end in examples, so their instruction stands in front.
_WORDING = {
    "qa_f1": "{context}\n\nAnswer this question about the text above with a few words and nothing else.\n"
    "Question: {input}\nAnswer:",
    "qa_f1_zh": "{context}\n\n请根据上文，用几个词回答问题，不要说别的。\n问题：{input}\n回答：",
    "rouge_l": "{context}\n\nSummarise the text above as asked. {input}\nSummary:",
    "rouge_l_zh": "{context}\n\n请根据上文作答。{input}\n回答：",
    "retrieval": "{context}\n\nWhich of the paragraphs above is summarised here? Answer with its name only, such as "
    "Paragraph 1.\n{input}\nAnswer:",
    "retrieval_zh": "{context}\n\n以下摘要出自上面哪一段？只回答段落名，例如：段落1。\n{input}\n回答：",
    "count": "{context}\n\nSome of the paragraphs above are repeated. How many different ones are there? Answer with "
    "the number only.\nAnswer:",
    "classification": "{context}\n{input}",
    "code_sim": "{context}{input}",
}


@dataclass(frozen=True)
class Passage(Problem):
    """A problem whose `answer` is the JSON text of ``{"answers": [...], "classes": [...]}``."""

    dataset: str = ""
    threshold: Fraction = Fraction(1)

    @property
    def metric(self) -> str:
        return DATASETS[self.dataset]


def describe(params: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """(`source` in full, the rule in words) for a manifest: with the digest of the templates, and the version of the
    segmenter where the metric needs one."""
    source = _full(params)
    templates = _templates(source)
    if templates is not None:
        source["prompts_sha256"] = templates[1]
    if DATASETS[source["dataset"]] in longbench_metrics.SEGMENTED:
        source["jieba"] = longbench_metrics.segmenter_version()
    low, high = source.get("min_length"), source.get("max_length")
    bounds = "".join(f" of {what} {n} words or characters" for what, n in (("at least", low), ("at most", high)) if n)
    said = f"LongBench {source['dataset']}, documents{bounds}. Right from {DATASETS[source['dataset']]} = "
    said += f"{source['threshold']}. A stratum is a range of lengths. {part.rule(source)}"
    return source, said


def problems(params: Mapping[str, Any]) -> list[Problem]:
    """The problems that `params` describe. Raises ValueError, OSError."""
    source = _full(params)
    name, metric = source["dataset"], DATASETS[source["dataset"]]
    if metric in longbench_metrics.SEGMENTED:
        installed = longbench_metrics.segmenter_version()
        if source.get("jieba", installed) != installed:
            raise ValueError(f"jieba is {source['jieba']!r}, but {installed} is installed, which may cut otherwise")
    templates = _templates(source)
    if templates is not None and source.get("prompts_sha256", templates[1]) != templates[1]:
        raise ValueError(f"prompts_sha256 is {source['prompts_sha256']}, but {source['prompts']} has {templates[1]}")
    template = _WORDING[metric] if templates is None else templates[0]
    threshold = _threshold(source, metric)
    low = part.whole(source, "min_length", 0) if "min_length" in source else 0
    high = part.whole(source, "max_length", max(1, low)) if "max_length" in source else None
    made: list[Problem] = []
    for number, row in enumerate(data.rows(source), 1):
        try:
            length = part.whole(row, "length", 0)
            if length < low or (high is not None and length > high):
                continue
            made.append(_passage(row, name, template, length, threshold))
        except KeyError as error:
            has = ", ".join(row)
            raise ValueError(f"row {number}: there is no field {error.args[0]!r}; it has {has}") from None
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
    if not made:
        raise ValueError(f"{source['file']} has no row with a length from {low} to {high}; widen the bounds")
    return part.cut(made, source)


def grade(problem: Problem, output: str) -> Grade:
    """Right where the score reaches the problem's threshold; `how` is the metric and the score."""
    found = score(problem, output)
    said = _said(problem, output).strip()
    return Grade(found >= problem.threshold, said or None, f"{problem.metric} {float(found):.6f}", GRADER)


def score(problem: Problem, output: str) -> Fraction:
    """The official metric of the problem's data set, 0 to 1, the best over its references."""
    if not isinstance(problem, Passage):
        raise ValueError(f"problem {problem.id!r} is none of LongBench's; make it with `problems`")
    gold = json.loads(problem.answer)
    return longbench_metrics.score(problem.metric, _said(problem, output), gold["answers"], gold["classes"])


def _said(problem: Passage, output: str) -> str:
    """What of an output is scored."""
    return output.lstrip("\n").split("\n")[0] if problem.dataset in FIRST_LINE else output


def _passage(row: data.Row, name: str, template: str, length: int, threshold: Fraction) -> Passage:
    if row["dataset"] != name:
        raise ValueError(f"dataset is {row['dataset']!r} and not {name!r}; name the right file")
    answers, classes = _texts(row, "answers"), _texts(row, "all_classes") if row["all_classes"] is not None else []
    if not answers:
        raise ValueError("answers is empty; at least one reference is needed")
    metric = DATASETS[name]
    for answer in answers:  # a reference that the metric cannot read is found here and not while a study runs
        longbench_metrics.score(metric, "", [answer], classes)
    if metric == "classification" and not set(answers) <= set(classes):
        raise ValueError(f"answers {answers} are not among all_classes")
    own, context = row["input"], row["context"]
    if not isinstance(own, str) or not isinstance(context, str) or not context.strip():
        raise ValueError("input and context must be texts, and context not empty")
    stratum = "0-4k" if length < 4000 else "4-8k" if length < 8000 else "8k+"
    prompt = _filled(template, context, own)
    answer = json.dumps({"answers": answers, "classes": classes}, ensure_ascii=False, separators=(",", ":"))
    return Passage(f"longbench/{name}/{graded.text(row, '_id')}", prompt, answer, stratum, name, threshold)


def _filled(template: str, context: str, own: str) -> str:
    """Both texts may hold braces, so they are put in at once and nothing else is read as a field."""
    before, _, behind = template.partition("{context}")
    return before.replace("{input}", own) + context + behind.replace("{input}", own)


def _templates(source: Mapping[str, Any]) -> tuple[str, str] | None:
    """(the data set's template, SHA-256 of the file), None where ours is used."""
    if "prompts" not in source:
        return None
    path = data.find(source["prompts"])
    raw = path.read_bytes()
    try:
        found = json.loads(raw)
        template = found[source["dataset"]]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"prompts: {path} is no JSON object with a text for {source['dataset']!r}") from None
    if not isinstance(template, str) or template.count("{context}") != 1:
        raise ValueError(f"prompts: the template for {source['dataset']!r} in {path} must hold {{context}} once")
    return template, hashlib.sha256(raw).hexdigest()


def _threshold(source: Mapping[str, Any], metric: str) -> Fraction:
    try:
        found = Decimal(str(source["threshold"]))
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite() or not 0 < found <= 1:
        raise ValueError(f"threshold is {source['threshold']!r}; give a decimal above 0 and at most 1, such as 0.5")
    return Fraction(found)


def _texts(row: data.Row, name: str) -> list[str]:
    value = row[name]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{name} is {str(value)[:40]!r}; a list of texts is needed")
    return value


def _full(params: Mapping[str, Any]) -> dict[str, Any]:
    for name in params:
        if name not in (*_FIELDS, *part.FIELDS):
            raise ValueError(f"{name} is no parameter of this task; use {', '.join((*_FIELDS, *part.FIELDS))}")
    name = params.get("dataset")
    if name not in DATASETS:
        raise ValueError(f"dataset is {name!r}; use one of {', '.join(DATASETS)}")
    metric = DATASETS[name]
    source = {"file": f"longbench/{name}.jsonl", **({"threshold": "1"} if metric in _WHOLE else {}), **params}
    if "threshold" not in source:
        raise ValueError(
            f"threshold is missing; {name} is scored by {metric}, a share: say from which score on an output is right, "
            "such as 0.5"
        )
    _threshold(source, metric)
    return source
