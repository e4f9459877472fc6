"""cask-eval verify"""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path

import click

from cask_eval.cli.common import (
    device_option,
    json_option,
    print_json,
    quiet,
    resolve_device,
    roots_option,
    say,
    study_argument,
)
from cask_eval.errors import CaskError
from cask_eval.workspace import Workspace


@click.command("verify")
@study_argument
@click.option("--head", metavar="DIGEST", help="The ledger's last hash as you know it from elsewhere.")
@click.option(
    "--require",
    type=click.Choice(["L0", "L1", "L2", "L3"]),
    default="L2",
    show_default=True,
    help="Evidence level below which the verdict is only partial (exit 3).",
)
@roots_option
@click.option(
    "--reexecute",
    metavar="K",
    type=click.IntRange(min=1),
    help="Execute K held-out trials again, drawn by chance; needs torch and the models.",
)
@click.option("--draw", metavar="TEXT", help="Draw those trials by this text instead of by chance.")
@click.option("--junit", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Write JUnit XML, too.")
@click.option("--md", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Write Markdown, too.")
@click.option(
    "--statement",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the result as an in-toto statement (eval-result), unsigned, unless a check fails.",
)
@click.option("--study", "inside", metavar="NAME", help="Which study of a bundle, if not the one exported.")
@device_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    study: str | None,
    head: str | None,
    require: str,
    roots: Path | None,
    reexecute: int | None,
    draw: str | None,
    junit: Path | None,
    md: Path | None,
    statement: Path | None,
    inside: str | None,
    device: str,
    as_json: bool,
) -> int:
    """Check that the decision of STUDY follows from its locked protocol. STUDY is a name, a folder inside its
    workspace, or a bundle that `cask-eval export` wrote (the zip file or what it unpacks to); the default is the one
    closed study. Needs no torch, no GPU and no network."""
    from cask_eval.bundle.read import examine, is_bundle
    from cask_eval.fields import NAME
    from cask_eval.ledger.log import Ledger, audit
    from cask_eval.ledger.state import known, pick
    from cask_eval.verify import formats
    from cask_eval.verify.evidence import Evidence
    from cask_eval.verify.run import Verdict, judge

    if head is not None and not re.fullmatch("sha256:[0-9a-f]{64}", head):
        raise CaskError(
            f"--head {head!r}: a head is `sha256:` and 64 hexadecimal digits, the `hash` of the ledger's "
            "last line as you noted it"
        )
    trusted = _roots(roots)
    stated = ""

    def look(space: Workspace, name: str) -> Verdict:
        nonlocal stated
        evidence = Evidence.load(space, name, head, trusted)
        verdict = judge(evidence, require, _again(reexecute, device, draw)(evidence) if reexecute else None)
        if statement:
            stated = json.dumps(formats.statement(evidence, verdict), indent=1, ensure_ascii=False) + "\n"
        return verdict

    def tell(verdict: Verdict) -> int:
        # Only now: a bundle may be refused after its study was looked at.
        if statement:
            _write(statement, stated)
        for path, render in ((junit, formats.junit), (md, formats.markdown)):
            if path:
                _write(path, render(verdict))
        if as_json:
            print_json(verdict.to_json())
        else:
            show(verdict)
        return verdict.exit_code

    if study and is_bundle(Path(study)):
        return tell(examine(Path(study), look, inside))
    if inside is not None:
        raise CaskError(f"--study {inside}: only a bundle needs it, and {study or 'none'} is none; leave it out")
    if study and study.lower().endswith(".zip") and not Path(study).exists():
        raise CaskError(f"{study}: there is no such file; check the path")
    start = ctx.obj
    if study and Path(study).is_dir() and Path(study).resolve().parent.name == "reports":
        start, study = study, Path(study).resolve().name
    space = Workspace.find(start)
    events = _events(space, Ledger, audit)
    if study is None:
        study = pick(events, None, {"closed"})
    elif not (re.fullmatch(NAME, study) and space.study(study).exists()):
        # A study that left something behind is judged, whatever its ledger says; any other name is a slip.
        known(events, study)
    return tell(look(space, study))


def _roots(path: Path | None):
    if path is None:
        return None
    from cask_eval.anchor.roots import load

    return load(path)


def _again(count: int, device: str, draw: str | None):
    """What `verify` calls to execute trials again. Raises CaskError when models cannot run here."""
    quiet()
    place = resolve_device(device)
    # The author must not have known it: a ledger can be ended in so many ways that some draw misses what was forged.
    chosen = draw or secrets.token_hex(8)
    from cask_eval.runner.reexecute import reexecute
    from cask_eval.verify.check import Rerun
    from cask_eval.verify.rerun import judged

    def again(e) -> Rerun:
        try:
            head = e.events[-1].hash if e.events else ""
            records = e.heldout.records if e.heldout else ()
            say(f"drawing trials by {chosen}; --draw {chosen} repeats it")
            done = reexecute(Workspace(e.workspace), e.state, records, f"{chosen} {head}", count, place)
        except CaskError as error:
            return Rerun.of("not_checked", [f"nothing could be executed again: {error}"])
        return judged(done.done, done.total, done.differ, done.machine, done.subject)

    return again


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise CaskError(f"{path}: cannot be written: {error.strerror}; name another file") from None


def show(verdict) -> None:
    """One line per check, the summary, and what it is worth, on stdout."""
    from cask_eval.ledger.levels import LEVELS
    from cask_eval.verify.check import Rerun
    from cask_eval.verify.run import NOT_PROVEN

    for result in verdict.results:
        click.echo(result.line)
        if isinstance(result, Rerun):
            for detail in result.details[1:]:
                click.echo(f"{'':18}{detail}")
    click.echo(f"\n{verdict.summary}\nevidence {verdict.level}: {LEVELS[verdict.level]}\n\n{NOT_PROVEN}")


def _events(space: Workspace, ledger, audit) -> list:
    from cask_eval import jsonl

    # A damaged ledger must reach the verifier, which names the damage; here only a study's name is wanted.
    path = ledger(space.ledger).path
    return audit(jsonl.read(path).lines)[0]
