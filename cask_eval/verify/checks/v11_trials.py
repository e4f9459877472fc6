from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

from cask_eval.decide.budgets import EVALUATIONS, tried
from cask_eval.protocol.keys import Grid, Key, dev_keys, expected_keys, search_keys
from cask_eval.verify.check import check
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.recorded import Rows

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


def _grid(name: str, asked: Grid, rows: Rows) -> Iterator[str]:
    missing, extra = _Some(), _Some()
    both = heapq.merge(((key, 1) for key in asked.in_order()), ((key, -1) for key in rows.in_order()))
    for key, group in groupby(both, key=itemgetter(0)):
        balance = sum(one for _, one in group)
        missing.add(key, balance)
        extra.add(key, -balance)
    if missing.count:
        yield f"{missing.count} of {len(asked)} {name} trials have no record, first {_show(missing.first)}"
    if extra.count:
        yield f"{extra.count} {name} records are not asked for or come twice, first {_show(extra.first)}"


class _Some:
    """How many keys there are, and which is the first."""

    def __init__(self) -> None:
        self.count, self.first = 0, ()

    def add(self, key: Key, times: int) -> None:
        if times > 0:
            self.first = self.first or key
            self.count += times


def _show(key: Key) -> str:
    return "/".join(str(part) for part in key if part != "")
