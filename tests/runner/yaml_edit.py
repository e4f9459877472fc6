"""Editing a protocol in a workspace by text, failing when the text is not there."""


def replace(root, study, changes):
    path = root / "prereg" / f"{study}.yaml"
    text = path.read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)
