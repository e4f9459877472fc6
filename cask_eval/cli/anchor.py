"""cask-eval anchor"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from cask_eval.cli.common import command_line, json_option, print_json, roots_option, say, study_argument, workspace
from cask_eval.errors import CaskError, StateError
from cask_eval.workspace import Workspace

KINDS = ("register", "amend", "dev_run", "select", "consume", "records", "close", "analysis")


@click.command("anchor")
@study_argument
@click.option("--tsa", metavar="URL", help="Ask this authority now, e.g. http://timestamp.digicert.com.")
@click.option(
    "--request",
    "request_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the request (.tsq) to send by other means.",
)
@click.option(
    "--token",
    "token_file",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Enter an authority's reply (.tsr).",
)
@click.option(
    "--event",
    "kinds",
    metavar="KIND",
    multiple=True,
    type=click.Choice(KINDS),
    help="What to stamp: register, consume, close …; by default these three, where they are not stamped yet.",
)
@roots_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    study: str | None,
    tsa: str | None,
    request_file: Path | None,
    token_file: Path | None,
    kinds: tuple[str, ...],
    roots: Path | None,
    as_json: bool,
) -> None:
    """Have a time-stamp authority (RFC 3161) attest when events of STUDY existed.

    Stamp `register` before the study is confirmed, `consume` while it runs, `close` when it has ended: only then do the
    stamps show their order. What is sent is the hash of an event and nothing else.
    """
    from cask_eval.anchor import roots as trusted
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import STATES, pick

    if sum(option is not None for option in (tsa, request_file, token_file)) != 1:
        raise CaskError("how to get the time stamp? give one of --tsa URL, --request FILE or --token FILE")
    space = workspace(ctx)
    ledger = Ledger(space.ledger)
    events = ledger.events()
    if token_file:
        made = _import(ledger, events, study, kinds, token_file, _roots(roots, trusted))
    else:
        study = pick(events, study, set(STATES))
        made = (
            _write(space, events, study, kinds, request_file)
            if request_file
            else _ask(ledger, events, study, kinds, str(tsa), _roots(roots, trusted))
        )
    rows = []
    for row in made:  # each is done when it comes, whatever becomes of the next
        rows.append(row)
        if not as_json:
            click.echo(_line(row))
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo(f"{study}: everything is stamped that has to be; --event KIND stamps more")


def stamp(space: Workspace, study: str, tsa: str, kinds: tuple[str, ...], roots: Path | None) -> None:
    """Have events of these kinds stamped, those that no stamp names yet; says so on stderr. Raises CaskError."""
    from cask_eval.anchor import roots as trusted
    from cask_eval.anchor.check import milestones, stamped
    from cask_eval.ledger.log import Ledger

    ledger = Ledger(space.ledger)
    events = ledger.events()
    found, done = milestones(events, study), stamped(events, study)
    wanted = [found[kind].event for kind in kinds if kind in found and found[kind].hash not in done]
    for row in _ask(ledger, events, study, wanted, tsa, _roots(roots, trusted)) if wanted else ():
        say(_line(row))


def _roots(path: Path | None, trusted):
    return trusted.load(path) if path else trusted.pinned()


def _ask(ledger, events, study: str, kinds, tsa: str, roots) -> Iterator[dict]:
    from cask_eval.anchor import request, send, token
    from cask_eval.anchor.entry import enter, targets

    for event in targets(events, study, kinds):
        asked = request.build(event)
        reply = send.post(tsa, asked.der)
        yield _row(event, *enter(ledger, event, token.granted(reply), roots, nonce=asked.nonce))
        _say_late(events, event)


def _write(space, events, study: str, kinds, path: Path) -> Iterator[dict]:
    from cask_eval.anchor import request
    from cask_eval.anchor.entry import targets

    found = targets(events, study, kinds)
    if len(found) > 1:
        names = ", ".join(e.event for e in found)
        raise StateError(f"one file holds one request, and {names} are to be stamped; name one with --event")
    if not found:
        return
    (event,) = found
    try:
        with open(path, "xb") as f:
            f.write(request.build(event).der)
    except FileExistsError:
        raise CaskError(f"{path}: is there already; name a file that is not") from None
    say(
        "send it, for example with: curl -sS -H 'Content-Type: application/timestamp-query' "
        f"--data-binary @{path} -o reply.tsr http://timestamp.digicert.com"
    )
    say(f"then enter the reply with: {command_line(space, 'anchor --token reply.tsr')}")
    yield {"study": study, "event": event.event, "seq": event.seq, "hash": event.hash, "request": str(path)}


def _import(ledger, events, study: str | None, kinds, path: Path, roots) -> Iterator[dict]:
    from cask_eval.anchor import token
    from cask_eval.anchor.entry import covered, enter
    from cask_eval.anchor.errors import MismatchError

    with open(path, "rb") as f:
        read = f.read(token.MAX_BYTES + 1)
    try:
        found = token.from_file(read)
        event = covered(events, found)
        if (study and event.study != study) or (kinds and event.event not in kinds):
            raise MismatchError(f"the time stamp is over the {event.event} event of study {event.study!r}")
        row = _row(event, *enter(ledger, event, found, roots))
    except CaskError as error:
        error.args = (f"{path}: {error}",)
        raise
    yield row
    _say_late(events, event)


def _row(event, anchor, token) -> dict:
    return {
        "study": event.study,
        "event": event.event,
        "seq": event.seq,
        "hash": event.hash,
        "gen_time": anchor.payload["gen_time"],
        "tsa": token.tsa,
        "root": token.root,
        "policy": token.policy,
        "serial": str(token.serial),
        "anchor": anchor.hash,
    }


def _line(row: dict) -> str:
    if "request" in row:
        return f"{row['study']}: request for {row['event']} ({row['hash']}) written to {row['request']}"
    return f"{row['study']}: {row['event']} stamped at {row['gen_time']} by {row['tsa']}, under {row['root']}"


def _say_late(events, event) -> None:
    had = {e.event for e in events if e.study == event.study}
    if event.event in ("register", "amend") and "consume" in had:
        say("note: the held-out run had begun already, so this does not show that the registration was stamped first")
    if event.event == "consume" and "close" in had:
        say(
            "note: the held-out run was over already, so this does not show when it began; `confirm --tsa` stamps in "
            "time"
        )
