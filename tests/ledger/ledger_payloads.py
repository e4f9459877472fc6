"""Valid payloads of every kind of event, as small as they can be."""

from __future__ import annotations

from cask_eval.canonical import ZERO
from cask_eval.fields import Strict
from cask_eval.ledger.events import (
    Amend,
    Analysis,
    Anchor,
    ArmChoice,
    Change,
    Close,
    Consume,
    DevRun,
    Environment,
    FootprintLock,
    Records,
    RecordsCommit,
    Register,
    ScheduleLock,
    Select,
    SplitLock,
)

COMMIT = RecordsCommit(path="reports/s/dev.jsonl", count=1, merkle_root=ZERO)
ENVIRONMENT = Environment(
    python="3.11.7", platform="any", device="cpu", cuda=None, driver=None, packages={}, toolkit=ZERO
)
CHOICE = ArmChoice(
    preset="alpha",
    params={"delta": 16},
    schedule=ScheduleLock(trigger="slack", budget=64, delta=16, prompt="pinned"),
    footprint=FootprintLock(heads=2, head_dim=2, itemsize=4),
    dev_mean="64/1",
    reference_mean="64/1",
)
SPLIT = SplitLock(path="splits/a.json", digest=ZERO, merkle_root=ZERO, count=1)


def make_payload(kind: str, *, session: int = 1, complete: bool = True) -> Strict:
    """A valid payload of `kind`; only `records` reads the options."""
    register = Register(
        protocol_path="prereg/s.yaml",
        protocol_raw=ZERO,
        protocol_digest=ZERO,
        protocol={"study": "s"},
        splits={"dev": SPLIT, "heldout": SPLIT},
        methods=[],
        models=[],
        environment=ENVIRONMENT,
        warnings=["ä \u2028"],
    )
    change = Change(field="hypothesis", before="", after='"x"')
    return {
        "register": register,
        "amend": Amend(**dict(register), reason="It was wrong.", replaces=ZERO, changes=[change]),
        "dev_run": DevRun(records=COMMIT, matched={"m/b64": {"baseline": {"": CHOICE}}}, methods=[]),
        "select": Select(
            rule="max", scores={}, chosen={}, gains={}, survivors=[], arms={"m/b64": {"baseline": CHOICE}}
        ),
        "consume": Consume(expected=1, keys=ZERO, environment=ENVIRONMENT),
        "records": Records(session=session, complete=complete, records=COMMIT),
        "close": Close(records=COMMIT, methods=[], environment=ENVIRONMENT),
        "analysis": Analysis(digest=ZERO, branch="A", decision="adopt"),
        "anchor": Anchor(seq=0, hash=ZERO, tsa="CN=TSA", gen_time="2026-03-01T12:00:00Z", beacon=ZERO, token="MAA="),
    }[kind]
