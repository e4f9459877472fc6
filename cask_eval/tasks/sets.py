"""The public sets: MATH-500, GSM8K, AIME 2024 and 2025. Their texts are not here; manifests hold ids and digests.

Sizes and seeds of the parts are those of the committed manifests under ``splits/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cask_eval.tasks import part
from cask_eval.tasks.data import Row
from cask_eval.tasks.graded import Rows, text

__all__ = ["AIME", "AIME24", "AIME25", "GSM8K", "MATH500"]


def _math500(row: Row, number: int, source: Mapping[str, Any]) -> dict[str, str]:
    stratum = f"{text(row, 'subject')} / level {text(row, 'level')}"
    own = {"id": text(row, "unique_id"), "prompt": text(row, "problem"), "answer": text(row, "answer")}
    return {**own, "stratum": stratum}


def _gsm8k(row: Row, number: int, source: Mapping[str, Any]) -> dict[str, str]:
    solution = text(row, "answer")
    steps, mark, final = solution.rpartition("####")
    if not mark or not final.strip():
        raise ValueError("answer has no #### with the final answer behind it")
    lines = sum(1 for line in steps.split("\n") if line.strip())
    return {
        "id": f"gsm8k/test/{number}",
        "prompt": text(row, "question"),
        "answer": final.strip(),
        "stratum": f"{lines} step{'s' if lines > 1 else ''}" if lines < 7 else "7 steps or more",
    }


def _aime(row: Row, number: int, source: Mapping[str, Any]) -> dict[str, str]:
    year = str(source["year"])
    answer = text(row, "expected_answer" if "expected_answer" in row else "answer").strip()
    if not answer.isdecimal():
        raise ValueError(f"the answer is {answer!r}; AIME's are whole numbers")
    # Other copies order and number the problems in other ways; ids are those of the copy that was frozen.
    return {"id": f"aime{year[2:]}-{number}", "prompt": text(row, "problem"), "answer": answer, "stratum": year}


MATH500 = Rows(
    defaults={
        "file": "math500/test.jsonl",
        "sha256": "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
        "hub": "HuggingFaceH4/MATH-500",
        "revision": "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        "hub_file": "test.jsonl",
        "rule": "boxed",
        "part": "all",
        "dev": 100,
        "seed": 500,
    },
    question=_math500,
    origin="MATH-500: github.com/openai/prm800k, commit 7ecc794703b2877f63226f2477a49b34f9b25163, "
    "prm800k/math_splits/test.jsonl. A stratum is a subject at a level.",
)

GSM8K = Rows(
    defaults={
        "file": "gsm8k/test.jsonl",
        "sha256": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        "hub": "openai/gsm8k",
        "revision": "cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
        "hub_file": "main/test-00000-of-00001.parquet",
        "rule": "final",
        "part": "all",
        "dev": 200,
        "seed": 8000,
    },
    question=_gsm8k,
    origin="GSM8K's test set: github.com/openai/grade-school-math, commit 3101c7d5072418e28b9008a6636bde82a006892c, "
    "grade_school_math/data/test.jsonl. Ids are row numbers from 0. A stratum is a number of lines of the reference "
    "solution before ####.",
)

_NEMO = "github.com/NVIDIA/NeMo-Skills, commit 0b012df8a09cd4730d31b16e90a0d8f13d145fb8, nemo_skills/dataset/"
_YEARS: dict[str, dict[str, Any]] = {
    "2024": {
        "file": "aime24/test.nemo-skills.jsonl",
        "sha256": "e428f83ec735201c9db2a232727f4c20dbce87079ed386b6e3fb7f756d078756",
    },
    "2025": {
        "file": "aime25/test.nemo-skills.jsonl",
        "sha256": "b672f9c6660b68dd42f5fc705b17405f24eaa9991c98991d63463c6b683468a8",
    },
}


class Aime(Rows):
    """AIME of the year that the parameter ``year`` names (2024 or 2025)."""

    def _full(self, params: Mapping[str, Any]) -> dict[str, Any]:
        year = str(params.get("year", self.defaults.get("year", "")))
        if year not in _YEARS:
            raise ValueError(f"year is {params.get('year')!r}; use {' or '.join(_YEARS)}")
        if "file" in params or "hub" in params:
            return super()._full({"year": int(year), **params})
        return {**super()._full(params), **_YEARS[year], "year": int(year)}

    def describe(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        source, said = super().describe(params)
        return source, f"{_NEMO}aime{str(source['year'])[2:]}/test.txt. Ids are row numbers from 0. {said}"


def _year(**fixed: int) -> Aime:
    free = ("year", *part.FIELDS, "rule", "file", "sha256", "hub", "revision", "hub_file")
    return Aime({"rule": "boxed", "part": "all", **fixed}, _aime, integers=True, free=free)


AIME = _year()
AIME24 = _year(year=2024)
AIME25 = _year(year=2025)
