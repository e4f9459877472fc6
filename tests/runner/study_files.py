"""Reading and editing the files of a workspace."""

import json


def digits(root) -> str:
    """What `confirm --yes` wants for the first study of the ledger."""
    first = json.loads((root / "prereg" / "ledger.jsonl").read_text().splitlines()[0])
    return first["payload"]["protocol_digest"][7:17]


def replace(root, study, changes):
    """Edit a protocol by text, failing when the text is not there."""
    path = root / "prereg" / f"{study}.yaml"
    text = path.read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)
