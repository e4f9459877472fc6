"""Where the rows of a data set come from: a local file first, else the hub at a pinned revision.

A manifest's `source` says *what* (a file's name, a hub repository with its commit); it never says where on a machine.
Local copies are looked for under the place that ``--data`` or the environment variable `VARIABLE` names, then in the
workspace. Whatever is found is compared with the manifest's digests, problem by problem, by whoever asked for it.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

#: A folder with data sets in it, or one file.
VARIABLE = "CASK_EVAL_DATA"
#: The longest file that is read, unpacked.
MAX_BYTES = 256 << 20
#: Every row is an object in memory, however short it is.
MAX_ROWS = 1_000_000
FORMS = (".jsonl", ".json", ".jsonl.gz", ".parquet")

Row = dict[str, Any]


@dataclass(frozen=True)
class _Places:
    given: str | None = None
    workspace: Path | None = None
    offline: bool = False


_places: ContextVar[_Places] = ContextVar("places", default=_Places())


@contextmanager
def at(place: str | Path | None) -> Iterator[None]:
    """Inside, `place` (a folder or one file; None changes nothing) goes before the environment variable."""
    token = _places.set(replace(_places.get(), given=str(place) if place else _places.get().given))
    try:
        yield
    finally:
        _places.reset(token)


@contextmanager
def inside(workspace: Path, *, offline: bool = False) -> Iterator[None]:
    """Inside, files are also looked for in the workspace. `offline`: of the hub only what was fetched before."""
    token = _places.set(replace(_places.get(), workspace=workspace, offline=offline))
    try:
        yield
    finally:
        _places.reset(token)


def place() -> Path | None:
    """Where local copies are looked for first; None where nobody said."""
    given = _places.get().given or os.environ.get(VARIABLE)
    return Path(given).expanduser() if given else None


def rows(source: Mapping[str, Any]) -> list[Row]:
    """The rows that `source` names: `file`, a name such as ``math500/test.jsonl``, and `hub`, `revision` and
    `hub_file`, a data set's repository, its commit and the file in it. Raises ValueError saying what was looked for and
    where."""
    file, hub = source.get("file"), source.get("hub")
    if file is None and hub is None:
        raise ValueError("the source names neither a file nor a hub repository; give one of them")
    path, tried = _looked_for(_text(source, "file")) if file is not None else (None, [])
    if path is not None:
        return read(path)
    if hub is None:
        raise ValueError(_nowhere(file, tried))
    return read(_fetched(source, tried))


def find(name: str) -> Path:
    """The local file called `name`. Raises ValueError saying where it was looked for."""
    path, tried = _looked_for(name)
    if path is None:
        raise ValueError(_nowhere(name, tried))
    return path


def _looked_for(name: str) -> tuple[Path | None, list[str]]:
    """(the file, where it was not)."""
    tried = []
    for path in _candidates(name):
        if path.is_file():
            return path, tried
        tried.append(str(path))
    return None, tried


def _nowhere(name: str, tried: list[str]) -> str:
    where = "".join(f"; {place} is no file" for place in tried) or "; there is no workspace here"
    return f"{name} is not there{where}; give its folder with --data or ${VARIABLE}"


def _candidates(name: str) -> Iterator[Path]:
    """Paths at which a file may lie. Names come from manifests, which others wrote: they cannot lead out."""
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name:
        raise ValueError(f"file {name!r} must be a plain relative path, with /; the folder comes from --data")
    places = _places.get()
    if given := places.given or os.environ.get(VARIABLE):
        root = Path(given).expanduser()
        if not root.exists():
            raise ValueError(f"--data or ${VARIABLE} names {root}, which does not exist; correct it or leave it out")
        yield from (root,) if root.is_file() else (root / pure, root / pure.name)
    if places.offline and name.endswith(".parquet"):
        return  # a reviewer reads nothing that a study brought along by a parser of this size
    if places.workspace is not None and (path := places.workspace / pure).resolve().is_relative_to(places.workspace):
        yield path


def _fetched(source: Mapping[str, Any], tried: list[str]) -> Path:
    hub, revision, name = (_text(source, field) for field in ("hub", "revision", "hub_file"))
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(f"revision is {revision!r}; a hub repository is pinned by its commit, 40 hexadecimal digits")
    offline = _places.get().offline
    looked = f" (no local copy: {', '.join(tried)})" if tried else ""
    where = f"{name} of {hub} at {revision}"
    how = f"give a local copy with --data or ${VARIABLE}{looked}"
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise ValueError(f"{where} needs huggingface_hub: pip install 'cask-eval[data]'; or {how}") from None
    try:
        return Path(hf_hub_download(hub, name, repo_type="dataset", revision=revision, local_files_only=offline))
    except Exception as error:  # the hub client raises a dozen unrelated types; all mean "not available"
        why = "was not fetched before, and nothing is downloaded here" if offline else f"cannot be fetched: {error}"
        raise ValueError(f"{where} {why}; {how}") from None


def read(path: Path) -> list[Row]:
    """The rows of a file: JSON lines (also .gz), a JSON list of objects, or Parquet. Raises ValueError."""
    name = path.name
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: has more than {MAX_BYTES} bytes")
    if name.endswith(".parquet"):
        try:
            from pyarrow import parquet
        except ImportError:
            raise ValueError(f"{path}: Parquet needs pyarrow: pip install 'cask-eval[data]'; or convert it") from None
        return parquet.read_table(path).to_pylist()
    if not name.endswith(FORMS):
        raise ValueError(f"{path}: is none of {', '.join(FORMS)}; convert it")
    try:
        text = _bytes(path).decode("utf-8")
        found = json.loads(text) if name.endswith(".json") else [*_lines(text, path)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; write the file in UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path}: is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is no JSON ({error})") from None
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError(f"{path}: must hold objects, one a line or in one list")
    return found


def _bytes(path: Path) -> bytes:
    if not path.name.endswith(".gz"):
        return path.read_bytes()
    with gzip.open(path) as f:
        data = f.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path}: unpacks to more than {MAX_BYTES} bytes")
    return data


def _lines(text: str, path: Path) -> Iterator[Any]:
    if text.count("\n") > MAX_ROWS:
        raise ValueError(f"{path}: has more than {MAX_ROWS} lines; cut it into several files")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: is no JSON ({error})") from None


def _text(source: Mapping[str, Any], field: str) -> str:
    value = source.get(field)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{field} is {value!r}; give a text")
    return value
