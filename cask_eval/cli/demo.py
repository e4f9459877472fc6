"""cask-eval demo"""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import click

from cask_eval.cli.common import device_options, place, say
from cask_eval.errors import CaskError
from cask_eval.workspace import Workspace


@click.command("demo")
@click.argument("folder", default="demo")
@device_options
def command(folder: str, device: str, slots: int | None) -> int:
    """Run the embedded study in a new workspace FOLDER: init, register, tune, confirm, verify, report.

    Two tiny models, two budgets, alpha against TriAttention, offline, a few minutes on a laptop. The outcome is
    whatever it is.
    """
    from cask_eval.cli.confirm import consume
    from cask_eval.cli.init import write_example
    from cask_eval.cli.register import lock
    from cask_eval.cli.report import summary, write_report
    from cask_eval.cli.tune import choose
    from cask_eval.cli.verify import show
    from cask_eval.decide.derive import derive
    from cask_eval.verify.run import verify

    root = Path(folder)
    if (root / "prereg" / "ledger.jsonl").exists():
        raise CaskError(
            f"{root} holds a ledger already; a study is run once. `cask-eval -C {shlex.quote(str(root))} "
            f"status` says how to go on with it; for a new one name another folder, such as {root}-2"
        )
    began = time.monotonic()

    def step(command: str) -> None:
        say(f"\n[{time.monotonic() - began:5.0f} s] $ cask-eval {command}")

    step(f"init {root}")
    protocol = write_example(root, "alpha-vs-triattention")
    step(f"register {protocol}")
    event, power = lock(protocol, device)
    say(power)
    space, here = Workspace(root), place(device, slots, None)
    step(f"-C {root} tune")
    choose(space, event.study, here)
    digest = event.payload["protocol_digest"]
    step(f"-C {root} confirm --split heldout --yes {digest[7:15]}")
    name = consume(space, event.study, digest, here)
    derive(space, name)
    step(f"-C {root} verify --require L0")
    verdict = verify(space, name, require="L0")
    show(verdict)
    step(f"-C {root} report")
    paths = write_report(space, name)
    summary(space, name)
    say(f"\ndone in {time.monotonic() - began:.0f} s")
    click.echo(f"report: {paths['html']}")
    return verdict.exit_code
