from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from cask_eval.decide.budgets import EVALUATIONS, tried
from cask_eval.protocol.keys import Key, dev_keys, expected_keys, search_keys
from cask_eval.verify.check import check
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.recorded import Row

_NEEDS = ("protocol", "dev_run", "select", "close", "dev_manifest", "heldout_manifest", "dev", "heldout")


@check("V11", "every trial exactly once", *_NEEDS)
def v11(e: Evidence) -> Iterator[str]:
    """The trials that protocol and manifests ask for are there, each once, and no others: on the dev split of every
    candidate, also at every budget that a search went through, on the held-out split of those that survived."""
    assert e.protocol and e.dev_run and e.select and e.dev and e.heldout and e.dev_manifest and e.heldout_manifest
    ids = [item.id for item in e.dev_manifest.items]
    budgets = tried(e.dev_run.matched)
    if any(len(steps) > EVALUATIONS for rows in budgets.values() for row in rows.values() for steps in row.values()):
        yield f"a search is said to have run more than the {EVALUATIONS} budgets that it may"
        return
    searches = search_keys(e.protocol, budgets, ids)
    yield from _grid("dev", dev_keys(e.protocol, ids) + searches, e.dev.rows)
    asked = expected_keys(e.protocol, [i.id for i in e.heldout_manifest.items], e.select.survivors)
    yield from _grid("held-out", asked, e.heldout.rows)


def _grid(name: str, keys: Iterable[Key], rows: Iterable[Row]) -> Iterator[str]:
    expected, found = Counter(keys), Counter(r.key for r in rows)
    missing, extra = expected - found, found - expected
    if missing:
        yield f"{missing.total()} of {expected.total()} {name} trials have no record, first {_show(min(missing))}"
    if extra:
        yield f"{extra.total()} {name} records are not asked for or come twice, first {_show(min(extra))}"


def _show(key: Key) -> str:
    return "/".join(str(part) for part in key if part != "")
