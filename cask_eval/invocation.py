"""How a command was called and from which commit, without what only one machine knows."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["argv", "commit"]

#: An option whose value stands behind an equals sign.
_GIVEN = re.compile(r"(--[a-z][a-z-]*=)(.+)", re.DOTALL)


def argv(arguments: Sequence[str], root: Path) -> list[str]:
    """The command line as public names: a path inside the workspace `root` relative to it with /, any other absolute
    path (or one that leads out of the current folder) by its last part, the address of a cluster as ADDRESS, everything
    else as it was typed."""
    out = ["cask-eval"]
    for before, argument in zip(["", *arguments], arguments):
        if before == "--ray" and argument != "auto":
            argument = "ADDRESS"
        elif argument.startswith("--ray=") and argument != "--ray=auto":
            argument = "--ray=ADDRESS"
        out.append(_public(argument, root))
    return out


def _public(argument: str, root: Path) -> str:
    if given := _GIVEN.fullmatch(argument):
        return given.group(1) + _public(given.group(2), root)
    if not (os.path.isabs(argument) or argument.startswith("~") or ".." in Path(argument).parts):
        return argument
    path = Path(os.path.abspath(os.path.expanduser(argument)))
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.name or "/"


def commit(folder: Path) -> str | None:
    """The commit of the git work tree around `folder` in hexadecimal digits, followed by ``+changes`` where tracked
    files differ from it; None where there is no git or no commit."""
    head = _git(folder, "rev-parse", "HEAD")
    if head is None or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", head):
        return None
    return head + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    # No prompts, no hooks, and no program that the folder's own configuration names.
    settings = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", *arguments],
            cwd=folder,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
