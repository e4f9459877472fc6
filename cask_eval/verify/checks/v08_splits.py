from __future__ import annotations

from collections.abc import Iterable, Iterator

from cask_eval.splits.check import check_manifest, check_problems
from cask_eval.splits.freeze import item_of
from cask_eval.verify.check import Skip, check
from cask_eval.verify.evidence import Evidence, Role
from cask_eval.verify.recorded import Row


@check("V08", "splits as frozen", "register", "protocol", "dev_manifest", "heldout_manifest")
def v08(e: Evidence) -> Iterator[str]:
    """Manifests have the registered digests, the problems can be produced again and have theirs, and every record
    is about such a problem."""
    for role in ("dev", "heldout"):
        yield from _lock(e, role)
        yield from _problems(e, role)
    for role, file in (("dev", e.dev), ("heldout", e.heldout)):
        if file:
            frozen = {item.id: item.digest for item in e.manifests[role].items}
            yield from _records(role, file.rows, frozen)


def _lock(e: Evidence, role: Role) -> Iterator[str]:
    assert e.register and e.protocol
    lock, manifest = e.register.splits[role], e.manifests[role]
    yield from check_manifest(manifest)
    if manifest.digest() != lock.digest or manifest.merkle_root != lock.merkle_root:
        yield f"{lock.path} is not the {role} split that was registered"
    if len(manifest.items) != lock.count:
        yield f"{lock.path} has {len(manifest.items)} problems, registered were {lock.count}"
    if manifest.role != role or manifest.task != e.protocol.task.name:
        yield f"{lock.path} is a {manifest.role} split of task {manifest.task!r}"
    if lock.path != getattr(e.protocol.task, role):
        yield f"the registration locks {lock.path}, the protocol names {getattr(e.protocol.task, role)}"


def _problems(e: Evidence, role: Role) -> Iterator[str]:
    made = e.problems.get(role)
    if made is None:
        yield Skip(e.absent.get(f"{role}_problems") or e.why("task"))
        return
    yield from check_problems(e.manifests[role], made.in_order)
    for item in e.manifests[role].items:
        problem = made.by_id.get(item.id)
        # The sketches and normalised texts are what V09 rests on.
        if problem is not None and item_of(problem) != item:
            yield f"{item.id}: the manifest's text digest, sketch or stratum is not the problem's"


def _records(role: str, rows: Iterable[Row], frozen: dict[str, str]) -> Iterator[str]:
    for r in rows:
        _, cell, arm, _, problem, _ = r.key
        if problem in frozen and r.problem_digest != frozen[problem]:
            yield f"{role} record {cell}/{arm}/{problem}: made from another problem text or answer"
