"""Whether a manifest is whole, and whether the problems at hand are the ones that it froze."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from cask_eval.splits.freeze import Problem, problem_digest
from cask_eval.splits.model import Manifest


def check_manifest(manifest: Manifest) -> list[str]:
    """One line per fault of the manifest itself; none means that it is whole."""
    out = []
    if (root := manifest.root()) != manifest.merkle_root:
        out.append(f"{manifest.name}: merkle_root is {manifest.merkle_root}, but the items have {root}")
    for what in ("id", "text"):
        counts = Counter(getattr(item, what) for item in manifest.items)
        out += [f"{manifest.name}: {what} {value!r} appears {n} times" for value, n in counts.items() if n > 1]
    return out


def check_problems(manifest: Manifest, problems: Iterable[Problem]) -> list[str]:
    """One line per problem that differs from its frozen digest, is missing, or is not in the manifest."""
    frozen = {item.id: item.digest for item in manifest.items}
    seen: set[str] = set()
    out = []
    for problem in problems:
        if problem.id in seen:
            out.append(f"{manifest.name}: problem {problem.id!r} was produced twice")
        elif problem.id not in frozen:
            out.append(f"{manifest.name}: problem {problem.id!r} is not in the manifest")
        elif (now := problem_digest(problem)) != frozen[problem.id]:
            out.append(f"{manifest.name}: problem {problem.id!r} now has digest {now}, frozen was {frozen[problem.id]}")
        seen.add(problem.id)
    out += [f"{manifest.name}: problem {id_!r} is missing" for id_ in frozen if id_ not in seen]
    return out
