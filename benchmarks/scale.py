"""How long a study of many records takes, and how much memory, step by step.

    python benchmarks/scale.py [--least 10000] [--most 1000000]

A made-up study (the simulator that the tests attack: eight cells, three arms, five samples) with 10^4, 10^5, 10^6
held-out records, of these from `--least` to `--most`; its dev split stays small. Steps, each in a process of its own:

    write      append all records, 100 at a time, each time waiting for the disk
    resume     take the records again and load which trials are done; nothing is parsed but the open segment
    commit     the Merkle root over what `resume` knows
    one arm    read the records of one arm in one cell, of 24
    derive     the analysis from the closed records, which parses all of them twice
    verify     all checks

Prints seconds and the peak of resident memory, and for the last two what grows with the records: bytes a record beyond
the smallest size.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = [str(ROOT / "tests" / name) for name in ("verify", "anchor")]
SIZES = (10_000, 100_000, 1_000_000)
CELLS, ARMS, SAMPLES = 8, 3, 5

HEAD = f"""
import json, sys, time
from pathlib import Path
sys.path[:0] = {TESTS!r}
from cask_eval.records.store import RecordStore
from cask_eval.workspace import Workspace
root, problems = Path(sys.argv[1]), int(sys.argv[2])
space = Workspace(root)
store = RecordStore(space.records("sim", "heldout"))
said = {{}}
clock = time.perf_counter
def tell(**found):
    # Not ru_maxrss, which a child takes over from its parent.
    peak = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
    print(json.dumps({{**found, "peak": int(peak.split()[1]) * 1024}}), flush=True)
"""

SETTING = f"""
import simulator
from cask_eval.tasks import chain
simulator.SOURCES["heldout"]["count"] = problems
simulator.PROBLEMS["heldout"] = {{p.id: p for p in chain.problems(simulator.SOURCES["heldout"])}}
text = simulator.PROTOCOL.replace("samples: 1", "samples: {SAMPLES}").replace("[24, 32]", "[24, 28, 32, 36]")
"""

# The simulator's own `confirm` holds all records at once; the outcome is the same.
WRITE = SETTING + """
import itertools
from cask_eval.ledger.events import Close, Consume, Records
from cask_eval.protocol.keys import expected_keys, keys_root, trial_seed
author = simulator.Author(root)
author.register(text)
author.tune()
chosen, state = author.state.select[1], author.state
keys = expected_keys(author.protocol, simulator.PROBLEMS["heldout"], chosen.survivors)
about = {"methods": simulator.METHODS, "environment": simulator.ENVIRONMENT}
author.write("consume", Consume(expected=len(keys), keys=keys_root(keys), environment=simulator.ENVIRONMENT))
root_of_seeds = state.seed_root()
def each():
    # A trial's samples differ in nothing but their seeds.
    for k in keys:
        if k[5] == 0:
            made = simulator.record(author.protocol, state.register[0].hash, root_of_seeds, k,
                                    chosen.arms[k[1]][k[2]], chosen.chosen.get(k[1], {}).get(k[2], ""))
        seed = trial_seed(root_of_seeds, k[1], k[4], k[5], phase="heldout")
        yield made.model_copy(update={"sample": k[5], "seed": seed})
made = each()
spent = 0.0
with store.open():
    while some := list(itertools.islice(made, 100)):
        start = clock()
        store.append(some)
        spent += clock() - start
    found = store.commit(root)
author.write("records", Records(session=1, complete=True, records=found, **about))
author.write("close", Close(records=found, task=simulator.TASK, **about))
size = sum(p.stat().st_size for p in store.files)
tell(seconds=spent, records=found.count, segments=len(store.files), size=size)
"""

RESUME = """
start = clock()
with store.open() as writer:
    done = len(writer.done)
    opened = clock()
    tell(step="resume", seconds=opened - start)
    found = writer.commit(root)
    committed = clock()
    tell(step="commit", seconds=committed - opened)
    own = sum(1 for _ in writer.read("one/b24", "candidate"))
    tell(step="one arm", seconds=clock() - committed)
assert done == found.count
"""

DERIVE = """
from cask_eval.decide.derive import derive
from cask_eval.ledger import log
from datetime import datetime, timedelta
start = clock()
# The simulator's events lie in the future of this clock.
log.datetime = type("Later", (datetime,), {"now": classmethod(lambda cls, tz=None: datetime(2028, 1, 1, tzinfo=tz))})
derive(space, "sim")
tell(seconds=clock() - start)
"""

VERIFY = """
from cask_eval.verify.run import verify
start = clock()
verdict = verify(space, "sim", require="L0")
assert verdict.exit_code == 0, verdict.lines
tell(seconds=clock() - start)
"""


def run(code: str, root: Path, problems: int) -> list[dict]:
    """What a process of its own says that runs `code`."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code, str(root), str(problems)], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"a step ended with {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--least", type=int, default=SIZES[0], help="the smallest number of records")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="the largest number of records")
    given = parser.parse_args()
    least: dict[str, tuple[int, int]] = {}
    print(f"{'records':>9} {'step':<8} {'seconds':>8} {'ms a record':>12} {'peak MB':>8} {'bytes a record':>15}")
    for count in (n for n in SIZES if given.least <= n <= given.most):
        problems = round(count / (CELLS * ARMS * SAMPLES))
        folder = Path(tempfile.mkdtemp())
        try:
            root = folder / "ws"
            (written,) = run(WRITE, root, problems)
            records = written["records"]
            steps = [{"step": "write", **written}, *run(RESUME, root, problems)]
            steps += [{"step": name, **run(code, root, problems)[-1]} for name, code in
                      (("derive", DERIVE), ("verify", VERIFY))]  # fmt: skip
            for step in steps:
                name, seconds, peak = step["step"], step["seconds"], step["peak"]
                first = least.setdefault(name, (records, peak))
                grown = f"{(peak - first[1]) / (records - first[0]):,.0f}" if records > first[0] else ""
                each = seconds / records * 1000
                took = f"{seconds:>8.2f} {each:>12.4f}"
                print(f"{records:>9,} {name:<8} {took} {peak / 2**20:>8.0f} {grown:>15}", flush=True)
            print(f"{'':>9} {written['segments']} files of {written['size'] / 2**20:,.0f} MB", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
