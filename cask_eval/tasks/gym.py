"""Problems of reasoning-gym (https://github.com/open-thought/reasoning-gym), an optional extra.

Parameters: ``dataset``, ``seed``, ``count``, optionally ``start``, ``rule`` (`final` by default), ``version``, and
whatever the data set's own configuration takes as numbers or texts. Problem i of seed s is what reasoning-gym makes of
seed s + i, so seeds that lie close to each other share problems; ids name s + i, and splits that overlap are refused.

An output is right when what it answers is the reference, character by character but for white space: reasoning-gym's
own scorers give part of a point, and what is tested here is whole points.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from cask_eval.grading import extract
from cask_eval.tasks import Grade, Problem, graded, part

__all__ = ["GRADER", "describe", "grade", "problems"]

GRADER = "exact/1"
#: Generators whose problems change with PYTHONHASHSEED or from call to call (measured with 0.1.25): no digest of theirs
#: would hold.
UNSTABLE = {"codeio", "isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
OWN = ("dataset", "seed", "count", "start", "rule", "version")


def describe(params: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """(`source` in full, the rule in words) for a manifest; the version of reasoning-gym is part of the source."""
    source = {"start": 0, "rule": "final", "version": _installed(), **params}
    first = source["seed"] + source["start"]
    last = first + source["count"] - 1
    return source, f"reasoning-gym {source['version']}, {source['dataset']}: item seeds {first} to {last}."


def problems(params: Mapping[str, Any]) -> list[Problem]:
    """The problems that `params` describe. Raises ValueError."""
    params = dict(params)
    name, installed = params.get("dataset"), _installed()
    if params.get("version", installed) != installed:
        raise ValueError(f"version is {params['version']!r}, but reasoning-gym {installed} is installed; install it")
    seed, count = part.whole(params, "seed", 0), part.whole(params, "count", 1)
    start = part.whole({"start": 0, **params}, "start", 0)
    rule = graded.rule_of({"rule": "final", **params})
    if name in UNSTABLE:
        raise ValueError(f"dataset {name} makes other problems in every process; choose another")
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS or name == "composite":
        raise ValueError(f"dataset is {name!r}; reasoning-gym {installed} has {', '.join(sorted(DATASETS))}")
    own = {k: v for k, v in params.items() if k not in OWN}
    try:
        made = reasoning_gym.create_dataset(name, seed=seed + start, size=count, **own)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"reasoning-gym refuses {own}: {error}") from None
    setting = "".join(f"/{k}={own[k]}" for k in sorted(own))
    return [
        graded.Question(
            id=f"reasoning-gym/{installed}/{name}{setting}/{seed + start + i}",
            prompt=made[i]["question"],
            answer=str(made[i]["answer"]),
            stratum=str(name),
            rule=rule,
        )
        for i in range(count)
    ]


def grade(problem: Problem, output: str) -> Grade:
    """Whether the output's answer is the reference, but for white space."""
    found = extract(output, getattr(problem, "rule", "final"))
    correct = found.text is not None and found.text.split() == problem.answer.split()
    return Grade(correct, found.text, f"{found.where}/exact", GRADER)


def _installed() -> str:
    try:
        return metadata.version("reasoning-gym")
    except metadata.PackageNotFoundError:
        raise ValueError("this task needs reasoning-gym: pip install 'cask-eval[reasoning-gym]'") from None
