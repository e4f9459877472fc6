"""The grid of a replay folder: every arm at every budget over all references, block by block, resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock, Timeout

from cask_eval import jsonl
from cask_eval.canonical import digest_tree
from cask_eval.engine.contract import Host
from cask_eval.engine.method import Policy
from cask_eval.engine.model import geometry
from cask_eval.engine.registry import load as load_preset
from cask_eval.engine.registry import source_packages
from cask_eval.engine.replay import Given, Replayed, dense, replay
from cask_eval.errors import CaskError, DriftError, MethodError, StateError
from cask_eval.fidelity import Tokens, summarise
from cask_eval.ledger.events import Environment
from cask_eval.occupancy import terminal
from cask_eval.protocol.keys import chain_seed
from cask_eval.records import tokens as arrays
from cask_eval.records.model import FidelityRecord, RegionsRecord, ResidencyRecord, StagesRecord
from cask_eval.replay.blocks import blocks
from cask_eval.replay.records import (
    CEILING,
    Arm,
    CacheRecord,
    Folder,
    Reference,
    Settings,
    Trial,
    check_settings,
    digest_of,
    line_of,
    read,
    read_folder,
    write_folder,
)
from cask_eval.replay.references import Missing, Question, complete, generated, given_of, seed_of
from cask_eval.residency import join
from cask_eval.schedule import Schedule
from cask_eval.stages import regime, stages

Progress = Callable[[int, int], None]  # trials done, tokens


@dataclass(frozen=True)
class Cell:
    """One arm at one budget; the ceiling has budget 0."""

    arm: str
    budget: int
    policy: Policy

    @property
    def schedule(self) -> Schedule:
        return self.policy.schedule(self.budget or 1)

    @property
    def file(self) -> str:
        return f"{self.arm}@{self.budget}.safetensors" if self.budget else f"{self.arm}.safetensors"


# What one cell lacks of a block.
Lacking = list[tuple[Cell, list[Reference]]]

# Trials of a cell with their numbers per token, by reference.
Keep = Callable[[Cell, list[Trial], dict[tuple[str, int], Tokens]], None]


class Runs(Protocol):
    """What makes references and replays, and hands them out in this process alone."""

    environment: Environment

    def references(self, missing: list[Missing], keep: Callable[[Reference], None]) -> None: ...

    def replays(self, lacking: list[Lacking], keep: Keep) -> None: ...


class Place(Protocol):
    def bench(self, settings: Settings, say: Callable[[str], None]) -> AbstractContextManager[Runs]: ...


@dataclass(frozen=True)
class Here:
    """This process. `grid` as `cells` makes it, the full cache first."""

    decoder: Any
    questions: Sequence[Question]
    grid: Sequence[Cell]

    @contextmanager
    def bench(self, settings: Settings, say: Callable[[str], None]):
        yield _Bench(settings, self.decoder, self.questions, self.grid)


class _Bench:
    def __init__(self, settings: Settings, decoder: Any, questions: Sequence[Question], grid: Sequence[Cell]):
        self.settings, self.decoder, self.full_cache = settings, decoder, grid[0].policy
        self.asked, self.environment = {q.problem: q for q in questions}, settings.environment

    def references(self, missing: list[Missing], keep: Callable[[Reference], None]) -> None:
        for reference in generated(self.decoder, self.full_cache, self.settings, missing):
            keep(reference)

    def replays(self, lacking: list[Lacking], keep: Keep) -> None:
        for rows in lacking:
            given = requests(self.settings, self.asked, {r.key: r for _, some in rows for r in some}.values())
            full = {key: dense(self.decoder, request) for key, request in given.items()}
            for cell, some in rows:
                keep(cell, *replayed(cell, some, given, full, self.decoder, self.settings.slots))
            del full


def requests(settings: Settings, asked: Mapping[str, Question], references: Iterable[Reference]) -> dict[Any, Given]:
    """What is replayed, by reference."""
    return {r.key: given_of(r, asked[r.problem], int(seed_of(settings, *r.key), 16)) for r in references}


def sources(arms: Sequence[Arm]) -> dict[str, str]:
    """Package → digest of its source tree, of all that the arms are built from."""
    made = [load_preset(arm.preset).make(arm.preset, dict(arm.params)) for arm in arms]
    return {name: digest_tree(root) for name, root in source_packages(made).items()}


def cells(settings: Settings, decoder: Any, calibration: Path | None, encode: Callable) -> list[Cell]:
    """The ceiling, then every arm at every budget. Raises MethodError where an arm cannot be made."""
    host = Host(geometry(decoder), str(calibration) if calibration else None, encode)
    out = [Cell(CEILING, 0, load_preset("fullkv")().bind(host))]
    for arm in settings.arms:
        method = load_preset(arm.preset).make(arm.preset, dict(arm.params))
        if method.calibrated and calibration is None:
            raise MethodError(
                f"--arm {arm.name}: {arm.preset} needs calibration statistics of the model; run `cask-eval calibrate` "
                "and give --calibration FILE"
            )
        policy = method.bind(host)
        out += [Cell(arm.name, budget, policy) for budget in settings.budgets]
    return out


def check_cells(grid: Sequence[Cell], questions: Sequence[Question]) -> None:
    """Raises MethodError naming the arm and the budget that cannot take some prompt, before anything runs."""
    for cell in grid:
        try:
            for length in sorted({len(q.ids) for q in questions}):
                cell.policy.method.check(length, cell.budget or 1)
        except (MethodError, ValueError) as error:
            raise MethodError(f"--arm {cell.arm} --budgets {cell.budget}: {error}") from None


@contextmanager
def taken(path: Path):
    """The folder for one process. Raises StateError when another has it."""
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(path / ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StateError(f"{path.name}: another process replays into this folder; wait for it to end") from None
    try:
        yield
    finally:
        lock.release()


def run(
    path: Path,
    folder: Folder,
    decoder: Any,
    questions: Sequence[Question],
    grid: Sequence[Cell],
    references: Path | None,
    start: Callable[[int, int], None],
    advance: Progress,
    place: Place | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Make what the folder lacks. references: an earlier file of them, taken over when the folder has none. place:
    where it is made, by default here.

    A block's numbers reach the disk before its records, so that what a kill leaves half done is done again. Raises
    DriftError when the folder or a reference was made with other settings, StateError when another process has it.
    """
    place = place or Here(decoder, questions, grid)
    with taken(path), place.bench(folder.settings, say) as bench:
        settings = folder.settings.model_copy(update={"environment": bench.environment})
        locked = read_folder(path)
        if locked is None:
            write_folder(path, folder.model_copy(update={"settings": settings}))
        else:
            check_settings(path.name, locked.settings, settings)
        file, trials = path / "references.jsonl", path / "records.jsonl"
        if references is not None:
            _take_over(references, file)
        jsonl.repair(trials)
        done = {t.key for t in read(trials, Trial)}
        count = len(questions) * settings.samples
        known = sum(1 for _ in read(file, Reference)) if file.exists() else 0
        start(count * (1 + len(grid)), len(done) + known)
        found = complete(file, settings, questions, bench.references, advance)
        token_bytes = decoder.config.get_text_config().vocab_size * decoder.dtype.itemsize
        lacking = [
            [
                (cell, some)
                for cell in grid
                if (some := [r for r in block if (cell.arm, cell.budget, *r.key) not in done])
            ]
            for block in blocks(found, token_bytes, settings.block_bytes)
        ]

        files: dict[str, arrays.TokenFile] = {}

        def keep(cell: Cell, made: list[Trial], numbers: dict[tuple[str, int], Tokens]) -> None:
            if cell.file not in files:
                files[cell.file] = arrays.TokenFile(path / "tokens" / cell.file)
            files[cell.file].append({("", *key): tokens for key, tokens in numbers.items()})
            jsonl.append(trials, b"".join(line_of(t) + b"\n" for t in made))
            advance(len(made), sum(t.tokens for t in made))

        if lacking := [rows for rows in lacking if rows]:
            bench.replays(lacking, keep)
        for cell in grid:  # also of an earlier run that was cut off
            arrays.TokenFile(path / "tokens" / cell.file).settle()


def _take_over(references: Path, file: Path) -> None:
    """References of an earlier folder become this one's. Raises DriftError when this one has others already."""
    lines = [line_of(r) for r in read(references, Reference)]
    if not file.exists():
        jsonl.replace(file, b"".join(line + b"\n" for line in lines))
    elif not {line_of(r) for r in read(file, Reference)} >= set(lines):
        raise DriftError(
            f"--references {references.name}: the folder has other references already; leave the option out, or name "
            "another folder with --out"
        )


def replayed(
    cell: Cell, some: list[Reference], given: dict, full: dict, decoder: Any, slots: int
) -> tuple[list[Trial], dict[Any, Tokens]]:
    """These references through one cell, together: (trials, numbers per token). given, full: by reference, what is
    replayed and the full cache's logits. Raises MethodError, and CaskError when memory runs out."""
    parts: dict[Any, list[Replayed]] = {r.key: [] for r in some}
    for index, schedule in enumerate(cell.schedule.split()):
        requests = [
            Given(g.key, g.prompt_ids, chain_seed(g.seed, index), g.continuation) for g in (given[r.key] for r in some)
        ]
        try:
            for found in replay(decoder, requests, cell.policy, schedule, slots=slots, full=full):
                parts[found.key].append(found)
        except (FloatingPointError, MethodError) as error:
            raise MethodError(
                f"--arm {cell.arm} --budgets {cell.budget}: {error}; name another "
                "folder with --out and leave this one out"
            ) from None
        except (torch.OutOfMemoryError, MemoryError):
            raise CaskError(
                f"--slots {slots}, --block-mib: memory ran out at --arm {cell.arm} --budgets {cell.budget}; replay "
                "into another folder with fewer slots or smaller blocks"
            ) from None
    numbers = {key: Tokens.stacked([p.tokens for p in found]) for key, found in parts.items()}
    return [_trial(cell, r, parts[r.key], numbers[r.key]) for r in some], numbers


def _trial(cell: Cell, reference: Reference, parts: list[Replayed], tokens: Tokens) -> Trial:
    footprint, schedule = cell.policy.footprint, cell.schedule
    accounts = [p.residency for p in parts]
    account = accounts[0] if len(parts) == 1 else join(accounts, footprint)
    outputs = [reference.output_ids] * len(parts)
    prompt, length = reference.prompt_tokens, len(reference.output_ids)
    left, read_ = terminal(schedule, prompt, outputs), (prompt + length - 1) * len(parts)
    events = stages(schedule, prompt, outputs)
    fidelity = summarise(tokens)
    kept = [(p.kept_min, p.kept_max) for p in parts if p.kept_min is not None]
    return Trial(
        arm=cell.arm,
        budget=cell.budget,
        problem=reference.problem,
        sample=reference.sample,
        reference=digest_of(reference),
        prompt_tokens=prompt,
        tokens=length,
        fidelity=FidelityRecord.of(fidelity, arrays.digest_of(tokens)),
        perplexity=f"{fidelity.whole.perplexity:.9g}",
        strict_prefix_ratio=f"{fidelity.strict_prefix_ratio:.9f}",
        cache=CacheRecord(
            mean=f"{float(account.mean):.9f}",
            peak=f"{float(account.peak):.9f}",
            terminal=left,
            evicted=read_ - left,
            terminal_saved_ratio=f"{max(0.0, 1 - left / sum(p.stands_for for p in parts)):.9f}",
            reference_terminal_saved_ratio=f"{1 - left / read_:.9f}",
        ),
        stages=StagesRecord.of(events),
        regime=regime(events, account.active),
        residency=ResidencyRecord.of(account),
        chains=[ResidencyRecord.of(a) for a in account.chains],
        kept_min=min((low for low, _ in kept), default=None),
        kept_max=max((high for _, high in kept), default=None),
        regions=RegionsRecord(
            bins=sum(p.regions.bins for p in parts),
            empty=sum(p.regions.empty for p in parts),
            longest=max(p.regions.longest for p in parts),
        ),
        measures=_measures(parts),
    )


def _measures(parts: list[Replayed]) -> dict[str, str]:
    """The method's own numbers, chains counting alike."""
    names = sorted({name for p in parts for name in p.measures})
    values = {name: [p.measures[name] for p in parts if name in p.measures] for name in names}
    return {name: format(sum(v) / len(v), ".9g") for name, v in values.items()}
