"""The study as the runner needs it: protocol, manifests, problems and locks, checked against the registration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cask_eval.engine import registry
from cask_eval.errors import DriftError, MethodError, SplitError
from cask_eval.ledger.amend import changes
from cask_eval.ledger.events import Change, PromptLock, Register, SplitLock
from cask_eval.protocol.keys import configs
from cask_eval.protocol.load import Loaded, load
from cask_eval.protocol.model import Protocol
from cask_eval.runner import fingerprint, models
from cask_eval.runner.asking import Asking, digest_of
from cask_eval.splits.check import check_manifest, check_problems
from cask_eval.splits.disjoint import overlaps
from cask_eval.splits.model import Manifest
from cask_eval.splits.store import read
from cask_eval.tasks import Problem, data
from cask_eval.tasks import registry as tasks
from cask_eval.workspace import Workspace

MAX_SAID = 20


@dataclass(frozen=True)
class Split:
    path: str
    manifest: Manifest
    problems: list[Problem]

    def lock(self) -> SplitLock:
        return SplitLock(
            path=self.path,
            digest=self.manifest.digest(),
            merkle_root=self.manifest.merkle_root,
            count=len(self.problems),
        )


@dataclass(frozen=True)
class Study:
    """A protocol with its splits, ready to run or to register."""

    workspace: Workspace
    loaded: Loaded
    task: Any
    dev: Split
    heldout: Split
    asking: Asking = Asking()

    @property
    def protocol(self) -> Protocol:
        return self.loaded.protocol

    @property
    def problems(self) -> list[Problem]:
        """Those of both splits."""
        return [*self.dev.problems, *self.heldout.problems]

    def split(self, phase: str) -> Split:
        return self.dev if phase == "dev" else self.heldout


def open_study(workspace: Workspace, path: Path, *, offline: bool = False) -> Study:
    """Read a protocol and its manifests, load the problems (`offline`: without fetching any), check everything that can
    be checked without a model. Raises ProtocolError, SplitError."""
    loaded = load(path)
    protocol = loaded.protocol
    task = tasks.load(protocol.task.name)
    frozen = frozen_splits(workspace, protocol)
    dev, heldout = (
        Split(path, manifest, problems_of(workspace, task, manifest, path, offline=offline))
        for path, manifest in frozen.values()
    )
    return Study(workspace, loaded, task, dev, heldout, Asking.read(workspace, protocol.prompt))


def frozen_splits(workspace: Workspace, protocol: Protocol) -> dict[str, tuple[str, Manifest]]:
    """Role → (path in the workspace, manifest) of both splits. Raises SplitError when one is missing or is not of its
    role and task, or they overlap."""
    found = {role: (getattr(protocol.task, role), _manifest(workspace, protocol, role)) for role in ("dev", "heldout")}
    if shared := overlaps(found["dev"][1], found["heldout"][1]):
        raise SplitError(
            "dev and held-out overlap; freeze them again from disjoint sources:\n" + "\n".join(shared[:10])
        )
    return found


def _manifest(workspace: Workspace, protocol: Protocol, role: str) -> Manifest:
    relative = getattr(protocol.task, role)
    path = workspace.resolve(relative)
    if not path.is_file():
        raise SplitError(f"task.{role}: {path} does not exist; write it with `cask-eval split freeze`")
    manifest = read(path)
    if manifest.role != role or manifest.task != protocol.task.name:
        raise SplitError(
            f"task.{role}: {relative} is the {manifest.role} split of task {manifest.task!r}, "
            f"not the {role} split of {protocol.task.name!r}"
        )
    return manifest


def problems_of(
    workspace: Workspace, task: Any, manifest: Manifest, name: str, *, offline: bool = False
) -> list[Problem]:
    """The problems of a manifest, as they were frozen. Raises SplitError naming those that are not."""
    with data.inside(workspace.root, offline=offline):
        try:
            problems = task.problems(manifest.source)
        except (ValueError, OSError) as error:
            raise SplitError(f"{name}: {error}") from None
    faults = check_manifest(manifest) + check_problems(manifest, problems)
    if faults:
        more = [f"and {len(faults) - 10} more"] if len(faults) > 10 else []
        raise SplitError(f"{name}: " + "\n".join(faults[:10] + more))
    return problems


class Prompted(NamedTuple):
    """What a method must know of a model before it runs there."""

    name: str
    longest: int
    """Tokens of the longest prompt of both splits."""
    calibrated: bool


def check_methods(protocol: Protocol, models: list[Prompted]) -> None:
    """Every arm can be made, has its calibration, and its prompt policy fits every budget. Raises MethodError."""
    for name, arm in protocol.arms.items():
        preset = registry.load(arm.preset)
        for _, params in configs(arm):
            method = preset.make(arm.preset, params)
            for model in models:
                if method.calibrated and not model.calibrated:
                    raise MethodError(
                        f"{name}: {arm.preset} needs calibration statistics, but models[{model.name}]"
                        ".calibration is missing; run `cask-eval calibrate` or use 'bundled'"
                    )
                for budget in protocol.budgets:
                    try:
                        method.check(model.longest, budget)
                    except MethodError as error:
                        raise MethodError(f"{name} ({arm.preset}), model {model.name}: {error}") from None


def facts(study: Study, device: str, warnings: list[str]) -> Register:
    """The registration's payload, measured now."""
    problems, new, tokens, locks = study.problems, study.protocol.generation.max_new_tokens, {}, []
    for model in study.protocol.models:
        ask = study.asking.asker(models.loaded(model, study.workspace, device)[1], model.name)
        prompts = [ask(p) for p in problems]
        locks.append(models.lock(model, study.workspace, device, max(map(len, prompts)), new))
        tokens[model.name] = digest_of(prompts)
    check_methods(study.protocol, [Prompted(m.name, m.max_prompt_tokens, bool(m.calibration)) for m in locks])
    return Register(
        **described(study),
        models=locks,
        environment=fingerprint.environment(device),
        warnings=warnings,
        prompt=PromptLock(file=study.asking.digest, tokens=tokens),
        invocation=fingerprint.invocation(study.workspace.root),
    )


def described(study: Study) -> dict[str, Any]:
    """The fields of the registration that neither a model nor a device is needed for, measured now."""
    return {
        "protocol_path": study.workspace.relative(study.loaded.path),
        "protocol_raw": study.loaded.raw_digest,
        "protocol_digest": study.loaded.digest,
        "protocol": study.protocol.document(),
        "splits": {"dev": study.dev.lock(), "heldout": study.heldout.lock()},
        "methods": fingerprint.methods(study.protocol),
        "task": fingerprint.task(study.task),
        "grader": study.task.GRADER,
    }


def refuse_drift(study: Study, registered: Register, device: str) -> None:
    """Measure everything again and compare it with what was locked. Raises DriftError naming each difference."""
    refuse(study, registered, facts(study, device, registered.warnings))


def refuse(study: Study, registered: Register, now: Register) -> None:
    """Raises DriftError naming each difference between what was locked and what was measured `now`."""
    made = drift(registered, now)
    said = [f"{c.field} was {c.before or 'none'}, is {c.after or 'none'}" for c in made]
    if registered.protocol_raw != now.protocol_raw and all(c.field.startswith("locked.") for c in made):
        said.append(f"protocol_raw was {registered.protocol_raw}, is {now.protocol_raw}")
    if said:
        more = [f"and {len(said) - MAX_SAID} more"] if len(said) > MAX_SAID else []
        raise DriftError(
            "something differs from the registration, so nothing was run:\n  "
            + "\n  ".join(said[:MAX_SAID] + more)
            + f"\nRestore what was registered. Or say that it changed, and why: `cask-eval amend {study.loaded.path} "
            "--reason TEXT`, which asks for another dev run, as long as the held-out split is not consumed. Or "
            "register a new study under another name."
        )


def drift(registered: Register, now: Register) -> list[Change]:
    """In what two registrations differ, but for locks that an earlier form of the first does not have."""
    absent = {f"locked.{name}" for name in ("task", "grader", "prompt") if getattr(registered, name) is None}
    return [c for c in changes(registered, now) if c.field not in absent]
