"""How long verification takes and how much memory, by the number of records.

    python benchmarks/verify.py [--problems 500] [--samples 4]

A made-up study of eight cells and two arms (the simulator that the tests attack) with a quarter, a half and all of the
problems; each is verified in a process of its own. Prints records, seconds, peak memory and seconds per thousand
records, which stay the same where the growth is linear.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / name) for name in ("verify", "anchor")]

VERIFY = """
import sys, time
from pathlib import Path
from cask_eval.verify.run import verify
start = time.perf_counter()
verdict = verify(sys.argv[1], "sim", require="L0")
assert verdict.exit_code == 0, verdict.lines
# Not ru_maxrss, which a child takes over from its parent.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(time.perf_counter() - start, int(peak.split()[1]) / 1024)
"""


def build(root: Path, problems: int, samples: int) -> None:
    import simulator
    from cask_eval.tasks import chain

    simulator.SOURCES["heldout"]["count"] = problems
    simulator.PROBLEMS["heldout"] = {p.id: p for p in chain.problems(simulator.SOURCES["heldout"])}
    text = simulator.PROTOCOL.replace("samples: 1", f"samples: {samples}").replace("[24, 32]", "[24, 28, 32, 36]")
    text = text.replace("controls: [{name: random, preset: random_pp}]\n", "")
    simulator.build(root, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--samples", type=int, default=4)
    given = parser.parse_args()
    print(f"{'records':>8} {'seconds':>8} {'MB':>6} {'s per 1,000':>12}")
    for share in (4, 2, 1):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "ws"
            build(root, given.problems // share, given.samples)
            records = sum(len(p.read_bytes().splitlines()) for p in (root / "reports/sim").glob("*.jsonl"))
            done = subprocess.run([sys.executable, "-c", VERIFY, str(root)], check=True, capture_output=True, text=True)
            seconds, memory = map(float, done.stdout.split())
            print(f"{records:>8,} {seconds:>8.2f} {memory:>6.0f} {seconds / records * 1000:>12.3f}", flush=True)


if __name__ == "__main__":
    main()
