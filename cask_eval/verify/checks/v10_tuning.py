from __future__ import annotations

from collections.abc import Iterator

from cask_eval.verify.check import check
from cask_eval.verify.evidence import Evidence


@check("V10", "no held-out problem in tuning", "dev_manifest", "heldout_manifest", "dev")
def v10(e: Evidence) -> Iterator[str]:
    """Dev records are about dev problems, held-out records about held-out ones, and each file holds its phase."""
    dev_ids = {item.id for item in e.manifests["dev"].items}
    heldout_ids = {item.id for item in e.manifests["heldout"].items}
    tuned = [("dev", file, heldout_ids - dev_ids) for file in (e.dev, *(file for _, file in e.superseded))]
    for role, file, foreign in (*tuned, ("heldout", e.heldout, dev_ids - heldout_ids)):
        for r in file.rows if file else ():
            phase, cell, arm, config, problem, _ = r.key
            if problem in foreign:
                yield f"{role} record {cell}/{arm}/{config}: problem {problem} belongs to the other split"
            if phase != role:
                yield f"the {role} records hold a {phase} record: {cell}/{arm}/{problem}"
    runs = [(e.registration, e.dev), *((era.register[0].hash, file) for era, file in e.superseded)]
    for registration, file in runs:
        abouts = file.rows.abouts.items() if file else ()
        if others := sum(n for about, n in abouts if (about.study, about.registration) != (e.study, registration)):
            yield f"{others} records in {file.path} were made under another registration"
    if e.dev and e.heldout and e.dev.path == e.heldout.path:
        yield f"both phases are in one file, {e.dev.path}"
