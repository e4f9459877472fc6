"""Prompts from a file: one a line of text, or JSON lines with an id and a prompt. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from cask_eval.errors import CaskError
from cask_eval.tasks import Problem


def read_prompts(path: Path) -> list[Problem]:
    """The prompts of a .jsonl file ({"id": …, "prompt": …} a line; the id may be left out) or of a text file (every
    line that is not blank). Without an id a prompt is called by its line. Raises CaskError naming the line at fault."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CaskError(f"--prompts {path.name}: cannot be read as UTF-8 text: {error}") from None
    found: dict[str, Problem] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"--prompts {path.name}:{number}"
        name, prompt = f"line-{number}", line
        if path.suffix == ".jsonl":
            name, prompt = _row(line, where, name)
        if name in found:
            raise CaskError(f"{where}: id {name!r} is there twice; give every prompt its own")
        found[name] = Problem(name, prompt, "")
    if not found:
        raise CaskError(f"--prompts {path.name}: holds no prompt; write one a line")
    return list(found.values())


def _row(line: str, where: str, name: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CaskError(f"{where}: is not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"]:
        raise CaskError(f'{where}: has no text under "prompt"; write {{"id": "…", "prompt": "…"}}')
    given = row.get("id", name)
    if not isinstance(given, str) or not given:
        raise CaskError(f"{where}: id is {given!r}; it must be a text")
    return given, row["prompt"]
