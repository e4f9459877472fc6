"""The workspace of the tests, and what is compared of it."""

import shutil
from pathlib import Path

from cask_eval.ledger.log import Ledger
from cask_eval.ledger.state import StudyState
from cask_eval.records.store import RecordStore

# One cell of one model, four configurations' trials, outputs drawn so that they show their seeds.
ONE_CELL = {
    '  - {name: B, when: {positive_cells: ">=1", negative_cells: ">=1"}, decision: report as regime-dependent}\n': "",
    '  - {id: "embedded:chain-m", name: chain-m, dtype: float32, calibration: bundled}\n': "",
    "  - {name: full, preset: fullkv}\n": "",
    "budgets: [64, 96]": "budgets: [64]",
    '["0.1", "0.25", "0.5", "1.0"]': '["0.25", "1.0"]',
    'temperature: "0", samples: 1, max_new_tokens: 300': 'temperature: "0.6", samples: 1, max_new_tokens: 300',
}


class Place:
    study = "shared"

    def __init__(self, root: Path):
        self.root = root
        self.protocol = root / "prereg" / f"{self.study}.yaml"

    def copy(self, folder: Path) -> "Place":
        return Place(Path(shutil.copytree(self.root, folder / "ws")))

    def edit(self, changes: dict[str, str]) -> None:
        text = self.protocol.read_text()
        for old, new in changes.items():
            assert old in text, old
            text = text.replace(old, new)
        self.protocol.write_text(text)

    def confirm(self, *options) -> list[str]:
        """The arguments of `confirm`."""
        digits = self.state.register[1].protocol_digest.removeprefix("sha256:")[:10]
        return ["-C", str(self.root), "confirm", "--split", "heldout", "--yes", digits, "--slots", "2", *options]

    @property
    def state(self) -> StudyState:
        return StudyState.of(Ledger(self.root / "prereg" / "ledger.jsonl").events(), self.study)

    def store(self, phase: str) -> RecordStore:
        return RecordStore(self.root / "reports" / self.study / f"{phase}.jsonl")


def same_heldout(place: Place, whole: Place) -> None:
    """The run came to what it comes to in one process: the records, byte for byte in what is digested, and the
    decision."""
    ours, theirs = place.state, whole.state
    assert ours.close[1].records.merkle_root == theirs.close[1].records.merkle_root
    assert ours.close[1].records == theirs.close[1].records
    assert ours.close[1].environment == theirs.close[1].environment
    assert ours.analysis[1] == theirs.analysis[1]
