"""Whatever cites docs/DEFINITIONS.md cites a section that is there, and no docstring cites what is not in the
repository."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECTIONS = set(re.findall(r"^## (\d+)\.", (ROOT / "docs" / "DEFINITIONS.md").read_text(encoding="utf-8"), re.M))


def faults(text: str) -> list[str]:
    found = []
    for name, sections in re.findall(r"([\w/.-]+\.md)((?:,?\s+§\d[\d.–]*)*)", text):
        if name.startswith("docs/") and not (ROOT / name).is_file():
            found.append(f"{name} is not in the repository")
        cited = set(re.findall(r"§(\d+)", sections))
        if cited and not (name == "docs/DEFINITIONS.md" and cited <= SECTIONS):
            found.append(f"{name}{sections}")
    return found


def test_sections_are_numbered():
    assert SECTIONS == {str(n) for n in range(1, len(SECTIONS) + 1)} and len(SECTIONS) >= 9


def test_what_is_cited_is_there():
    files = [p for folder in ("cask_eval", "methods") for p in sorted((ROOT / folder).rglob("*.py"))]
    cited = {p.relative_to(ROOT).as_posix(): faults(p.read_text(encoding="utf-8")) for p in files}
    assert {name: found for name, found in cited.items() if found} == {}


def test_what_is_not_there_is_found():
    assert faults("as in docs/NOTHING.md") and faults("(methods.md §4)") and faults("docs/DEFINITIONS.md §2, §99")
    assert faults("docs/DEFINITIONS.md §2, §3 and docs/REPLAY.md") == []
