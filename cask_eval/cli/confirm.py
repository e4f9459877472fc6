"""cask-eval confirm"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cask_eval.cli.common import (
    check_gate,
    counted,
    device_options,
    gate_option,
    gated,
    json_option,
    locked_protocol,
    nobody_survived,
    place,
    print_json,
    quiet,
    ray_option,
    rehearsed,
    roots_option,
    say,
    study_argument,
    watch,
    workspace,
)
from cask_eval.cli.report import summary, write_report
from cask_eval.errors import CaskError, ConsumedError
from cask_eval.workspace import Workspace

if TYPE_CHECKING:
    from cask_eval.runner.place import Place

# Digits of the protocol digest that stand for "I know what I am about to use up".
DIGITS = 8


@click.command("confirm")
@study_argument
@click.option("--split", required=True, type=click.Choice(["heldout"]), help="The split to consume.")
@click.option(
    "--yes",
    "digest",
    metavar="DIGEST",
    help=f"First {DIGITS} or more digits of the protocol digest; asked for when missing.",
)
@click.option(
    "--exploratory",
    is_flag=True,
    help="Allow problems that another study ran before. Nothing that comes of this run is ever confirmatory.",
)
@click.option(
    "--tsa",
    metavar="URL",
    help="Have this authority stamp the registration, the begin and the end of the run, each in time.",
)
@roots_option
@gate_option
@ray_option
@device_options
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    study: str | None,
    split: str,
    digest: str | None,
    exploratory: bool,
    tsa: str | None,
    roots: Path | None,
    gate: str | None,
    ray: str | None,
    device: str,
    slots: int | None,
    as_json: bool,
) -> int:
    """Run every cell and arm of STUDY (default: the one that is tuned) on the held-out split, once, then analyse.

    A run that was cut off goes on inside the same attempt. Progress shows no accuracy.
    """
    from cask_eval.decide.derive import derive

    space = workspace(ctx)
    if roots and not tsa:
        raise CaskError(f"--roots {roots}: says whom to trust for --tsa, which is not given; leave it out")
    where = place(device, slots, ray)
    name = consume(space, study, digest, where, gate, exploratory, (tsa, roots) if tsa else None)
    if tsa:
        _stamp_or_warn(space, name, (tsa, roots), "close")
    document = derive(space, name)
    paths = write_report(space, name)
    if as_json:
        print_json(document.model_dump(mode="json"))
    else:
        summary(space, name)
        click.echo(f"report: {paths['html']}")
    return gated(gate, document.branch)


def consume(
    space: Workspace,
    study: str | None,
    digest: str | None,
    where: Place,
    gate: str | None = None,
    exploratory: bool = False,
    stamps: tuple[str, Path | None] | None = None,
) -> str:
    """Run or resume; returns the study's name. Raises CaskError, before anything is spent, when the digest or the
    branch name does not fit, ConsumedError when the problems are not fresh."""
    quiet()
    from cask_eval.cli.anchor import stamp
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import pick, studies
    from cask_eval.runner.steps import confirm, consumption, refuse_changed

    events = Ledger(space.ledger).events()
    if study and (state := studies(events).get(study)) and state.close and state.analysis is None:
        check_gate(gate, space, study)
        return study  # it crashed between the last trial and the analysis, which is all that is left to do
    name = pick(events, study, {"tuned", "consumed"})
    check_gate(gate, space, name)
    state, wanted = consumption(space, name)
    if state.consume is None:
        if not exploratory:
            _refuse_spent(space, events, state)
        refuse_changed(space, name, where)
        lock = state.register[1].splits["heldout"]
        protocol, survivors = locked_protocol(state.register[1]), state.select[1].survivors
        cells, arms = len(protocol.cells), len(protocol.heldout_arms(survivors))
        if not survivors:
            say(nobody_survived(protocol))
        rehearsed(space, name)
        say(
            f"This consumes the held-out split {lock.path} ({counted(lock.count, 'problem')}, "
            f"{counted(cells, 'cell')}, {counted(arms, 'arm')}) of study {name}.\n"
            "It cannot be done again: a second run of these problems is refused.\n"
            f"protocol digest: {wanted}"
        )
        if exploratory:
            say("The run is exploratory: nothing that comes of it is ever confirmatory.")
        if not digest and not sys.stdin.isatty():
            raise CaskError(
                f"nothing was consumed: there is no terminal to ask on, so give --yes with the first "
                f"{DIGITS} digits of the protocol digest"
            )
        _agree(digest or click.prompt(f"Type the first {DIGITS} digits of the digest to go on", err=True), wanted)
    else:
        if digest:
            _agree(digest, wanted)
        if exploratory and not state.consume[1].exploratory:
            raise CaskError(
                f"--exploratory: the held-out run of {name!r} began as confirmatory and goes on as that; leave it out"
            )
    if stamps and state.consume is None:
        stamp(space, name, stamps[0], ("register",), stamps[1])  # before anything is spent
    with watch(f"confirm {name}") as progress:

        def begun() -> None:
            if stamps:
                _stamp_or_warn(space, name, stamps, "consume")

        confirm(space, name, where, progress, exploratory=exploratory, begun=begun)
    return name


def _stamp_or_warn(space: Workspace, name: str, stamps: tuple[str, Path | None], kind: str) -> None:
    """A run that has begun is worth more than its stamp."""
    from cask_eval.cli.anchor import stamp

    try:
        stamp(space, name, stamps[0], (kind,), stamps[1])
    except CaskError as error:
        say(f"warning: {kind} is not stamped: {error}\nmeanwhile, elsewhere: cask-eval anchor {name} --tsa URL")


def _refuse_spent(space: Workspace, events: list, state) -> None:
    """Raises ConsumedError when these problems had been looked at before the study was registered."""
    from cask_eval.ledger.lineage import manifests, shared
    from cask_eval.splits.store import read

    heldout = read(space.resolve(state.register[1].splits["heldout"].path))
    for found in shared(events, state.study, heldout, manifests(space, events)):
        if found.early and found.count:
            raise ConsumedError(
                f"{found.text(len(heldout.items))}, and {state.study!r} was registered when that was known, so the "
                "problems can confirm nothing; freeze fresh ones and register a study on them, or run this one with "
                "--exploratory"
            )
        if found.early:
            say(f"warning: {found.text(len(heldout.items))}; `verify` will not call the study fresh without it")


def _agree(given: str, wanted: str) -> None:
    digits = given.strip().lower().removeprefix("sha256:")
    if len(digits) < DIGITS or not wanted.removeprefix("sha256:").startswith(digits):
        raise CaskError(
            f"{given!r} does not begin the protocol digest {wanted}; nothing was consumed. "
            f"Give its first {DIGITS} digits or more"
        )
