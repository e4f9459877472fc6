"""A workspace that may be broken at any time, and what must hold in it nevertheless."""

import time
from collections import Counter
from pathlib import Path

from faults import Faults

from cask_eval import jsonl
from cask_eval.canonical import ZERO
from cask_eval.errors import StateError
from cask_eval.ledger.events import Anchor
from cask_eval.ledger.log import Ledger, audit
from cask_eval.ledger.state import StudyState
from cask_eval.records.model import Record
from cask_eval.records.store import RecordStore, evidence_of, parse

STUDY = "tiny"
ONCE = ("register", "dev_run", "select", "consume", "close", "analysis")


class Workplace:
    def __init__(self, root: Path):
        self.root = root
        self.ledger = root / "prereg" / "ledger.jsonl"
        self.protocol = root / "prereg" / f"{STUDY}.yaml"
        self.reports = root / "reports" / STUDY

    def edit(self, changes: dict[str, str], study: str = STUDY) -> None:
        text = self.protocol.read_text()
        for old, new in changes.items():
            assert old in text, old
            text = text.replace(old, new)
        self.protocol.with_name(f"{study}.yaml").write_text(text)

    def command(self, name: str) -> list[str]:
        """The arguments of a command on the study."""
        device, where = ["--device", "cpu"], ["-C", str(self.root), name]
        if name in ("register", "amend"):
            return [name, str(self.protocol), *device]
        if name == "confirm":
            digits = self.state.register[1].protocol_digest.removeprefix("sha256:")[:10]
            return [*where, STUDY, "--split", "heldout", "--yes", digits, *device, "--slots", "4"]
        return [*where, STUDY, *(device if name == "tune" else []), *(["--slots", "4"] if name == "tune" else [])]

    @property
    def state(self) -> StudyState:
        return StudyState.of(Ledger(self.ledger).events(), STUDY)

    def step(self) -> str | None:
        """The command that the study needs next, None when it has its analysis."""
        state = self.state
        steps = {"unregistered": "register", "registered": "tune", "tuned": "confirm", "consumed": "confirm"}
        if state.name == "closed":
            return None if state.analysis else "analyze"
        return steps[state.name]

    def store(self, phase: str) -> RecordStore:
        return RecordStore(self.reports / f"{phase}.jsonl")

    def complete(self) -> dict[str, list[bytes]]:
        """The complete lines of every append-only file."""
        found = {
            str(f.relative_to(self.root)): jsonl.read(f).lines for f in (self.ledger, *self.reports.glob("*.jsonl"))
        }
        for packed in self.reports.glob("*.jsonl.gz"):
            plain = packed.with_suffix("")
            found.setdefault(str(plain.relative_to(self.root)), jsonl.read_packed(plain).lines)
        return found

    def keys(self) -> set[str]:
        """The trials that have a record."""
        return {"/".join(str(part) for part in r.key) for r in self.records()}

    def records(self) -> list[Record]:
        return [parse(line, name) for name, lines in self.complete().items() if "reports" in name for line in lines]


def check(place: Workplace, before: dict[str, list[bytes]]) -> None:
    """What was complete is there byte for byte, nothing is doubled, and the ledger has no fault."""
    now = place.complete()
    for name, lines in before.items():
        assert now.get(name, [])[: len(lines)] == lines, f"{name} lost or changed a complete line"
    events, faults = audit(now.get("prereg/ledger.jsonl", []))
    assert not faults
    # An amendment asks for another dev run.
    since = max((e.seq for e in events if e.event == "amend"), default=0)
    kinds = Counter((e.study, e.event) for e in events if e.seq >= since or e.event not in ("dev_run", "select"))
    assert all(kinds[study, kind] == 1 for study, kind in kinds if kind in ONCE), kinds
    sessions = [payload.session for _, payload in StudyState.of(events, STUDY).sessions]
    assert sessions == list(range(1, len(sessions) + 1))
    records = place.records()
    assert len({(r.registration, r.key) for r in records}) == len(records)


def check_finished(place: Workplace, finished: list[str]) -> None:
    """Every trial that finished has its record; the last one may have died on its way to the file."""
    lost = [key for key in finished if key not in place.keys()]
    assert lost in ([], finished[-1:]), lost


def check_same(place: Workplace, whole: Workplace, server) -> None:
    """The study came to what it comes to when nothing interrupts it, and verifies."""
    for phase in ("dev", "heldout"):
        there = {r.key: evidence_of(r) for r in place.store(phase).read()}
        assert there == {r.key: evidence_of(r) for r in whole.store(phase).read()}
    ours, theirs = place.state, whole.state
    assert ours.register == theirs.register
    assert ours.select[1] == theirs.select[1]
    # How the commands were called is another matter.
    closes = [s.close[1].model_copy(update={"invocation": None}) for s in (ours, theirs)]
    assert closes[0] == closes[1]
    assert ours.analysis[1] == theirs.analysis[1]
    check_verdict(place, server)


def check_verdict(place: Workplace, server) -> None:
    done = server("-C", place.root, "verify", STUDY, "--require", "L0")
    assert done.status == 0, done.out + done.err


# --- what several processes do at once


def fake_anchor(number: int) -> Anchor:
    return Anchor(seq=number, hash=ZERO, tsa="nobody", gen_time="2026-01-01T00:00:00Z", beacon=ZERO, token="AAAA")


def append_events(path: str, study: str, count: int, faults: dict | None = None) -> list[str]:
    """Write `count` events; returns their hashes."""
    if faults:
        Faults(**faults).install()
    return [Ledger(path).append(study, "anchor", fake_anchor(i)).hash for i in range(count)]


def append_records(path: str, lines: list[str]) -> int:
    """Add those records that nobody has added, whenever the file is free; returns their number."""
    added = 0
    for line in lines:
        record = parse(line.encode(), path)
        while True:
            try:
                with RecordStore(path).open() as store:
                    if record.key not in store.done:
                        store.append([record])
                        added += 1
                break
            except StateError:
                time.sleep(0.001)
    return added
