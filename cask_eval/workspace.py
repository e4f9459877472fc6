"""Where things lie: the folder that holds ``prereg/``, and every path below it that the toolkit uses."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from cask_eval.errors import CaskError


class Workspace:
    """A workspace rooted at a folder. Paths that are stored are relative to it and written with ``/``."""

    def __init__(self, root: str | Path):
        self.root = Path(root).resolve()

    @classmethod
    def find(cls, start: str | Path = ".") -> Workspace:
        """The workspace that `start` (a file or a folder) lies in. Raises CaskError when there is none."""
        here = Path(start).resolve()
        for folder in (here, *here.parents):
            if (folder / "prereg").is_dir():
                return cls(folder)
        raise CaskError(
            f"{here}: neither this folder nor one above it holds prereg/; run `cask-eval init` in the one that should"
        )

    @property
    def ledger(self) -> Path:
        return self.root / "prereg" / "ledger.jsonl"

    def study(self, name: str) -> Path:
        """The folder of what a study produces."""
        return self.resolve(f"reports/{name}")

    def records(self, name: str, phase: str, revision: int = 0) -> Path:
        """The records of one phase, ``dev`` or ``heldout``. An amended study tunes anew and keeps what was there: its
        dev records lie in ``dev-2.jsonl`` and so on."""
        if phase not in ("dev", "heldout"):
            raise ValueError(f"phase is {phase!r}; use 'dev' or 'heldout'")
        again = f"-{revision + 1}" if phase == "dev" and revision else ""
        return self.study(name) / f"{phase}{again}.jsonl"

    def analysis(self, name: str) -> Path:
        return self.study(name) / "analysis.json"

    def resolve(self, rel: str) -> Path:
        """The file at a stored path. Raises CaskError when the path is absolute, is not written with ``/``, or leaves
        the workspace, be it through ``..`` or through a link."""
        pure = PurePosixPath(rel)
        if not rel or pure.is_absolute() or ".." in pure.parts or "\\" in rel or ":" in rel or "\0" in rel:
            raise CaskError(f"path {rel!r} must stay inside the workspace; write it relative to {self.root}, with /")
        path = self.root / pure
        if not path.resolve().is_relative_to(self.root):
            raise CaskError(f"path {rel!r} leads out of the workspace {self.root}; remove the link or copy the file in")
        return path

    def relative(self, path: str | Path) -> str:
        """The stored form of a path. Raises CaskError when it lies outside the workspace."""
        try:
            return Path(path).resolve().relative_to(self.root).as_posix()
        except ValueError:
            raise CaskError(f"{path} lies outside the workspace {self.root}; copy it in") from None
