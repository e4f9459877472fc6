"""Everything that a study left behind, read once. Faults are kept as text, never raised: a verifier must see all.

Files come from people who may want a wrong result to pass, so sizes are bounded, paths stay inside the workspace, and
the parsers are the strict ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from cask_eval import jsonl
from cask_eval.canonical import digest, digest_bytes, loads
from cask_eval.decide.analysis import analyse
from cask_eval.decide.model import AnalysisDocument
from cask_eval.errors import CaskError, ProtocolError, RecordError, StateError
from cask_eval.fields import first_fault
from cask_eval.ledger.events import Analysis, Close, Consume, DevRun, Event, Records, RecordsCommit, Register, Select
from cask_eval.ledger.lineage import Shared, shared
from cask_eval.ledger.lineage import manifests as splits_of
from cask_eval.ledger.log import audit
from cask_eval.ledger.state import Era, Label, StudyState
from cask_eval.protocol import load as protocol_files
from cask_eval.protocol import prompt as prompts
from cask_eval.protocol import yaml
from cask_eval.protocol.keys import dev_runs, full_arms
from cask_eval.protocol.model import REFERENCE, Protocol
from cask_eval.records import segments, tokens
from cask_eval.splits.model import Manifest
from cask_eval.tasks import data as local
from cask_eval.tasks import registry
from cask_eval.verify import recorded
from cask_eval.verify.recorded import Part, RecordFile
from cask_eval.workspace import Workspace

if TYPE_CHECKING:
    from cask_eval.anchor.check import Findings

#: Registrations from before registrations named the grader and sessions what ran them: those of the studies that this
#: project was published with. A date would let off whoever dates a registration back.
EARLY_FORM = frozenset(
    {
        "sha256:f43142ec8a4008644747443b48820f180ea83ba1ba00de26cef8eb572d61b467",  # design-space
        "sha256:34d3db7f5b074e1ac153c1e45fa7d9e1cfcde316356a6be23e11d8390a0d5bc6",  # alpha-vs-triattention
    }
)

MAX_DOCUMENT = 256 << 20
SPARE_PROBLEMS = 1000
MAX_WORDS = 50_000_000

Role = Literal["dev", "heldout"]


@dataclass(frozen=True)
class Problems:
    """The problems of one split, produced again by the installed task."""

    role: Role
    by_id: dict[str, Any]
    in_order: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Evidence:
    """One study's evidence. What is absent is None; `absent` says why. `register` … `analysis` are the payloads of
    the study's first event of each kind, `registration` is the hash of its register event."""

    workspace: Path
    study: str
    head: str | None
    lines: tuple[bytes, ...]
    torn: bool
    events: tuple[Event, ...]
    ledger_faults: tuple[str, ...]
    state: StudyState
    protocol: Protocol | None
    protocol_file: bytes | None
    manifests: dict[Role, Manifest]
    dev: RecordFile | None
    heldout: RecordFile | None
    document: AnalysisDocument | None
    document_digest: str | None
    task: Any | None
    problems: dict[Role, Problems]
    load_faults: tuple[str, ...]
    absent: dict[str, str]
    splits: dict[str, Manifest] = field(default_factory=dict)
    """Digest → split, of all that the ledger's studies may have looked at, as far as they are here."""
    superseded: tuple[tuple[Era, RecordFile | None], ...] = ()
    """The eras that an amendment ended and that left dev records, each with its file."""
    prompt_file: bytes | None = None
    """The file that the protocol's `prompt` names; None too where it names none."""
    arrays: dict[Role, dict[tuple[str, str], Path]] = field(default_factory=dict)
    """(cell, arm) → the file of its numbers per token, of replays; those that are not here are left out."""
    roots: tuple[Any, ...] | None = None
    """Certificates of the time-stamp authorities that the reviewer trusts; None stands for those that are pinned."""

    @property
    def own(self) -> list[Event]:
        return [e for e in self.events if e.study == self.study]

    def of_kind(self, kind: str) -> list[Event]:
        return [e for e in self.own if e.event == kind]

    @property
    def register(self) -> Register | None:
        return self.state.register[1] if self.state.register else None

    @property
    def registration(self) -> str | None:
        return self.state.register[0].hash if self.state.register else None

    @property
    def dev_run(self) -> DevRun | None:
        return self.state.dev_run[1] if self.state.dev_run else None

    @property
    def select(self) -> Select | None:
        return self.state.select[1] if self.state.select else None

    @property
    def consume(self) -> Consume | None:
        return self.state.consume[1] if self.state.consume else None

    @property
    def sessions(self) -> list[Records]:
        return [payload for _, payload in self.state.sessions]

    @property
    def close(self) -> Close | None:
        return self.state.close[1] if self.state.close else None

    @property
    def analysis(self) -> Analysis | None:
        return self.state.analysis[1] if self.state.analysis else None

    @property
    def dev_manifest(self) -> Manifest | None:
        return self.manifests.get("dev")

    @property
    def heldout_manifest(self) -> Manifest | None:
        return self.manifests.get("heldout")

    @property
    def label(self) -> Label:
        return self.state.label

    @property
    def early_form(self) -> bool:
        """Whether the study is one of those from before registrations named the grader and sessions what ran them."""
        return self.registration in EARLY_FORM

    @cached_property
    def shared(self) -> list[Shared]:
        """Who else had, or has, problems of the held-out split; empty without that split."""
        heldout = self.heldout_manifest
        return [*shared(self.events, self.study, heldout, self.splits)] if heldout else []

    @property
    def seed_root(self) -> str | None:
        """What every trial's seed is derived from; None where the token that it needs is not there."""
        try:
            return self.state.seed_root() if self.state.register else None
        except StateError:
            return None

    @cached_property
    def anchors(self) -> Findings:
        """What the time stamps in the ledger prove."""
        # Most studies have none, and cryptography is slow to load.
        from cask_eval.anchor.check import check_anchors
        from cask_eval.anchor.roots import pinned

        return check_anchors(self.events, self.study, pinned() if self.roots is None else self.roots)

    @cached_property
    def derived(self) -> AnalysisDocument | str | None:
        """The analysis, done again from the records; why it cannot be, as text; None where parts are absent."""
        if not (self.protocol and self.registration and self.select and self.heldout and self.heldout_manifest):
            return None
        ids = [item.id for item in self.heldout_manifest.items]
        try:
            return analyse(self.protocol, self.registration, self.select, self.heldout.records, ids, label=self.label)
        except (CaskError, ValueError, ArithmeticError, LookupError) as error:
            return f"the analysis cannot be done again: {error}"

    def why(self, name: str) -> str:
        """Why an attribute is None."""
        return self.absent.get(name, f"there is no {name.replace('_', ' ')}")

    @classmethod
    def load(
        cls, workspace: Workspace, study: str, head: str | None = None, roots: Sequence[Any] | None = None
    ) -> Evidence:
        return replace(_Loader(workspace).load(study, head), roots=None if roots is None else tuple(roots))


class _Loader:
    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.faults: list[str] = []
        self.absent: dict[str, str] = {}

    def load(self, study: str, head: str | None) -> Evidence:
        data = self.bytes_of(self.workspace.ledger, "ledger", recorded.MAX_FILE)
        found = jsonl.split(data or b"")
        lines = tuple(self.bounded(found.lines, "prereg/ledger.jsonl"))
        events, ledger_faults = audit(lines)
        state = StudyState.of(events, study)
        for kind in ("register", "dev_run", "select", "consume", "close", "analysis"):
            if getattr(state, kind) is None:
                self.absent[kind] = f"the ledger has no {kind} event of study {study!r}"

        register = state.register[1] if state.register else None
        protocol, protocol_file, prompt_file, manifests = None, None, None, {}
        task, problems = None, {}
        if register is None:
            for name in ("registration", "protocol", "protocol_file", "dev_manifest", "heldout_manifest", "task"):
                self.absent[name] = self.absent["register"]
        else:
            protocol = self.embedded_protocol(register)
            protocol_file = self.stored(register.protocol_path, "protocol_file", yaml.MAX_BYTES)
            for role in ("dev", "heldout"):
                if manifest := self.manifest(register, role):
                    manifests[role] = manifest
            if protocol:
                task = self.task(protocol.task.name)
                if protocol.prompt and protocol.prompt.file:
                    prompt_file = self.stored(protocol.prompt.file, "prompt_file", prompts.MAX_BYTES)
            if task:
                problems = {role: p for role, m in manifests.items() if (p := self.problems(task, role, m))}

        superseded = tuple((x, self.records("superseded", x.records)) for x in state.superseded if x.records)
        dev = self.records("dev", state.dev_run[1].records if state.dev_run else None)
        commits = [pair[1].records for pair in (state.close, *reversed(state.sessions)) if pair]
        heldout = self.records("heldout", commits[0] if commits else None)
        document, document_digest = self.document(study)
        return Evidence(
            self.workspace.root, study, head, lines, bool(found.torn), tuple(events), tuple(ledger_faults), state,
            protocol, protocol_file, manifests, dev, heldout, document, document_digest, task, problems,
            tuple(self.faults), self.absent, splits_of(self.workspace, events), superseded,
            prompt_file, self.arrays(state, protocol, dev, heldout),
        )  # fmt: skip

    def bytes_of(self, path: Path, name: str, limit: int) -> bytes | None:
        where = path.relative_to(self.workspace.root).as_posix()
        try:
            if not path.resolve().is_relative_to(self.workspace.root):
                raise CaskError("leads out of the workspace")
            if not path.is_file():
                self.absent[name] = f"{where} is not there"
                return None
            if path.stat().st_size > limit:
                raise CaskError(f"has {path.stat().st_size} bytes, more than {limit}")
            data = path.read_bytes()
            if data.count(b"\n") > jsonl.MAX_LINES:
                raise CaskError(f"has more than {jsonl.MAX_LINES} lines")
            return data
        except (OSError, RuntimeError, CaskError) as error:  # RuntimeError: links that lead in a circle
            self.absent[name] = f"{where} cannot be read: {error}"
            self.faults.append(self.absent[name])
            return None

    def stored(self, rel: str, name: str, limit: int) -> bytes | None:
        """The bytes at a path that the ledger names."""
        try:
            return self.bytes_of(self.workspace.resolve(rel), name, limit)
        except (OSError, RuntimeError, CaskError) as error:
            self.absent[name] = str(error)
            self.faults.append(str(error))
            return None

    def bounded(self, lines: list[bytes], where: str) -> Iterator[bytes]:
        for number, line in enumerate(lines, 1):
            if len(line) > recorded.MAX_LINE:
                self.faults.append(f"{where}:{number}: {len(line)} bytes, more than {recorded.MAX_LINE}")
                line = b""
            yield line

    def arrays(
        self, state: StudyState, protocol: Protocol | None, dev: RecordFile | None, heldout: RecordFile | None
    ) -> dict[Role, dict[tuple[str, str], Path]]:
        """Where numbers per token lie; `records.tokens` reads them with bounds of its own."""
        out: dict[Role, dict[tuple[str, str], Path]] = {}
        if protocol is None or not protocol.fidelity:
            return out
        survivors = state.select[1].survivors if state.select else []
        phases = (("dev", dev, dev_runs(protocol)), ("heldout", heldout, protocol.heldout_arms(survivors)))
        for role, file, arms in phases:
            places = [(c.name, arm) for c in protocol.cells for arm in arms]
            places += [(c.name, a) for c in protocol.reference_cells for a in full_arms(role) if a != REFERENCE]
            for cell, arm in places if file else ():
                where = tokens.path_of(file.path, cell, arm)
                try:
                    path = self.workspace.resolve(where)
                    journal = self.workspace.resolve(f"{where}.journal")  # must not lead out of it either
                    if path.is_file() or journal.is_file():
                        out.setdefault(role, {})[cell, arm] = path
                except (OSError, RuntimeError, CaskError) as error:
                    self.faults.append(f"{where} cannot be read: {error}")
        return out

    def embedded_protocol(self, register: Register) -> Protocol | None:
        try:
            return Protocol.model_validate(register.protocol)
        except ValidationError as error:
            self.absent["protocol"] = f"the registered protocol is not valid: {first_fault(error)}"
            self.faults.append(self.absent["protocol"])
            return None

    def manifest(self, register: Register, role: Role) -> Manifest | None:
        lock = register.splits.get(role)
        name = f"{role}_manifest"
        if lock is None:
            self.absent[name] = f"the registration locks no {role} split"
            self.faults.append(self.absent[name])
            return None
        return self.parsed(self.stored(lock.path, name, MAX_DOCUMENT), name, lock.path, Manifest.model_validate)

    def document(self, study: str) -> tuple[AnalysisDocument | None, str | None]:
        where = f"reports/{study}/analysis.json"
        data = self.stored(where, "document", MAX_DOCUMENT)
        found = self.parsed(data, "document", where, lambda v: (AnalysisDocument.model_validate(v), digest(v)))
        return found or (None, None)

    def parsed(self, data: bytes | None, name: str, where: str, model: Callable[[Any], Any]) -> Any | None:
        if data is None:
            return None
        try:
            return model(loads(data))
        except ValidationError as error:
            fault = f"{where}: {first_fault(error)}"
        except ValueError as error:
            fault = f"{where}: is not strict JSON: {error}"
        self.absent[name] = fault
        self.faults.append(fault)
        return None

    def records(self, role: str, committed: RecordsCommit | None) -> RecordFile | None:
        """The records at the path that the ledger names, with the sealed segments in front of them, or their packed
        forms."""
        if committed is None:
            self.absent[role] = f"the ledger commits to no {role} records"
            return None
        try:
            for _ in range(2):  # they may have been packed between two looks
                parts = self.parts(committed)
                gone = next((part for part in parts if not part.file.is_file()), None)
            if gone:
                self.absent[role] = f"{gone.path} is not there"
                return None
            return recorded.load(committed.path, parts, self.workspace.root, committed.count)
        except (OSError, RuntimeError, CaskError) as error:  # RuntimeError: links that lead in a circle
            self.absent[role] = str(error)
            self.faults.append(str(error))
            return None

    def parts(self, committed: RecordsCommit) -> list[Part]:
        """The files of a phase's records. A segment that the ledger does not know of has no more than any other."""
        sealed = [p.relative_to(self.workspace.root).as_posix() for p in self.sealed(committed.path)]
        counts = [segment.count for segment in committed.segments][: len(sealed)]
        counts += [0] * (len(sealed) - len(counts))
        last = max(0, committed.count - sum(counts))
        return [
            Part(rel, self.either(rel), count)
            for rel, count in zip((*sealed, committed.path), (*counts, last), strict=True)
        ]

    def sealed(self, rel: str) -> list[Path]:
        """The sealed segments in front of a file of records. Raises CaskError when one is gone, or when they lie behind
        a link."""
        path = self.workspace.resolve(rel)
        folder = segments.folder(path)
        if not folder.is_relative_to(self.workspace.root):
            raise CaskError(f"{rel}: is no file of records; the path must lie inside the workspace")
        if folder.is_symlink():
            where = folder.relative_to(self.workspace.root).as_posix()
            raise CaskError(f"{where}: is a link; put the segments themselves there")
        try:
            return segments.sealed(path)
        except RecordError as error:
            raise RecordError(str(error).replace(f"{self.workspace.root}/", "")) from None

    def either(self, rel: str) -> Path:
        """A records file or its packed form. Raises CaskError when both are there."""
        plain, packed = self.workspace.resolve(rel), self.workspace.resolve(f"{rel}.gz")
        if not os.path.lexists(packed):
            return plain
        if os.path.lexists(plain):
            raise CaskError(
                f"{rel} is there, and so is {packed.name}; one of them must go: `cask-eval pack` removes the plain one "
                "if they agree"
            )
        return packed

    def task(self, name: str) -> Any | None:
        try:
            return registry.load(name)
        except Exception as error:  # a plug-in may fail in any way
            self.absent["task"] = f"the task {name!r} cannot be loaded here: {error}"
            return None

    def problems(self, task: Any, role: Role, manifest: Manifest) -> Problems | None:
        """The problems, produced again. A source that asks for far more than the manifest holds is not followed."""
        try:
            count, words = (manifest.source.get(name, 1) for name in ("count", "words"))
            if isinstance(count, int) and count > SPARE_PROBLEMS + 2 * len(manifest.items):
                raise ValueError(f"source asks for {count} problems, and there are {len(manifest.items)}")
            if isinstance(count, int) and isinstance(words, int) and count * words > MAX_WORDS:
                raise ValueError(f"source asks for {count} problems of {words} words")
            with local.inside(self.workspace.root, offline=True):
                made = tuple(task.problems(manifest.source))
        except Exception as error:
            self.absent[f"{role}_problems"] = f"the {role} problems cannot be produced again here: {error}"
            return None
        return Problems(role, {p.id: p for p in made}, made)


def protocol_of(data: bytes, name: str) -> Protocol | str:
    """The protocol in a file's bytes, or why there is none."""
    try:
        return protocol_files.check(yaml.parse(data, name), name)
    except ProtocolError as error:
        return error.problems[0]


def raw_digests(data: bytes) -> set[str]:
    """The file's digest, and the one it has when a checkout turned its line ends into CRLF."""
    return {digest_bytes(data), digest_bytes(data.replace(b"\r\n", b"\n"))}
