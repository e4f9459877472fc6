"""Which pre-registered branch an outcome falls into, and whether every branch can ever be taken."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from itertools import product

from cask_eval.protocol.model import Branch

#: What conditions may count, in the order in which counts are given.
FIELDS = ("positive_cells", "negative_cells", "void_cells", "non_inferior_cells")
_COMPARE = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


def holds(condition: str, count: int) -> bool:
    """Whether `count` meets a condition such as ``>=1``. Raises ValueError when it is not one."""
    sign, number = _parse(condition)
    return _COMPARE[sign](count, number)


def matches(branch: Branch, counts: Sequence[int]) -> bool:
    """Whether all of the branch's conditions hold; ``otherwise`` always does. counts: one for each of `FIELDS`."""
    if branch.when is None:
        return True
    given = zip((getattr(branch.when, f) for f in FIELDS), counts, strict=True)
    return all(condition is None or holds(condition, count) for condition, count in given)


def decide(branches: Sequence[Branch], counts: Sequence[int]) -> Branch:
    """The first branch that matches. Raises ValueError when none does, which `check` rules out beforehand."""
    for branch in branches:
        if matches(branch, counts):
            return branch
    said = ", ".join(f"{count} {field}" for field, count in zip(FIELDS, counts, strict=True))
    raise ValueError(f"no branch covers {said}")


def check(branches: Sequence[Branch], m: int) -> list[str]:
    """What is wrong with the branches of a study of m comparisons, one line per fault; empty when nothing is.

    Total: exactly one ``otherwise``, and it is last. Reachable: each branch is the first match of at least one
    possible outcome: positive, negative and void comparisons are m at most together, and so are void and non-inferior
    ones.
    """
    problems = []
    others = [i for i, b in enumerate(branches) if b.otherwise]
    if not others:
        problems.append("no branch says `otherwise: true`, so some outcomes have no decision; add one at the end")
    elif len(others) > 1:
        names = ", ".join(repr(branches[i].name) for i in others)
        problems.append(f"branches {names} all say `otherwise: true`; keep one")
    elif others[0] != len(branches) - 1:
        problems.append(
            f"branch {branches[others[0]].name!r} says `otherwise: true` but is not last, so the branches "
            "after it are never reached; move it to the end"
        )
    outcomes = _outcomes(branches, m)
    for i, branch in enumerate(branches):
        if others and i > others[0]:
            continue  # said above
        own = [o for o in outcomes if matches(branch, o)]
        if not own:
            problems.append(
                f"branch {branch.name!r} cannot be reached: its conditions never hold together "
                f"among {m} comparisons; change them or drop the branch"
            )
            continue
        before = [next((b for b in branches[:i] if matches(b, o)), None) for o in own]
        if all(before):
            names = ", ".join(repr(b.name) for b in branches[:i] if b in before)
            problems.append(
                f"branch {branch.name!r} cannot be reached: whatever it covers is taken by {names} before "
                "it; narrow those or drop the branch"
            )
    return problems


def _outcomes(branches: Sequence[Branch], m: int) -> list[tuple[int, ...]]:
    """One outcome for each way the conditions can come out, which stands for all possible outcomes.

    Conditions change only at a threshold and just above it, so they are constant on boxes. If any outcome of a
    box is possible, then the box's lowest corner is too; hence the corners are enough.
    """
    corners = []
    for field in FIELDS:
        values = {0}
        for branch in branches:
            condition = branch.when and getattr(branch.when, field)
            if condition:
                values |= {_parse(condition)[1], _parse(condition)[1] + 1}
        corners.append(sorted(values))
    return [o for o in product(*corners) if sum(o[:3]) <= m and sum(o[2:]) <= m]


def _parse(condition: str) -> tuple[str, int]:
    found = re.fullmatch(r"(>=|<=|==|!=|>|<) ?(\d+)", condition)
    if not found:
        raise ValueError(f'{condition!r} is not a condition; write one such as ">=1"')
    return found[1], int(found[2])
