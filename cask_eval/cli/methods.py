"""cask-eval methods list|show"""

from __future__ import annotations

import click

from cask_eval.cli.common import json_option, print_json, quiet, resolve_device


@click.group("methods")
def command() -> None:
    """List the installed methods and show one."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Every installed method with its composition."""
    resolve_device("cpu")
    quiet()
    from cask_eval.engine.registry import available, describe

    rows = [describe(name) for name in available()]
    if as_json:
        print_json(rows)
        return
    for r in rows:
        c = r["composition"]
        parts = " + ".join(p for p in (c["scorer"], c["selector"], c["cadence"], c["representation"]) if p)
        click.echo(f"{r['name']:14} {r['summary']}\n{'':14} {parts}")


@command.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Composition, parameters, state and deviations of one method."""
    resolve_device("cpu")
    quiet()
    from cask_eval.engine.registry import describe

    about = describe(name)
    if as_json:
        print_json(about)
        return
    click.echo("\n".join(filter(None, [f"{about['name']}: {about['summary']}", about["paper"]])) + "\n")
    for part, value in about["composition"].items():
        click.echo(f"  {part:15} {value}")
    if about["calibrated"]:
        click.echo(f"  {'calibration':15} needed (cask-eval calibrate --method {name})")
    if about["reference"]:
        click.echo(f"  {'reference':15} {about['reference']}")
    click.echo("\nparameters")
    for key, p in about["parameters"].items():
        extra = [f"one of {', '.join(map(str, p['choices']))}"] if "choices" in p else []
        extra += [f"null setting {p['null']}"] if "null" in p else []
        extra += [f"source: {p['source']}"] if p["source"] else []
        click.echo(f"  {key} = {p['default']!r} ({p['type']}): {p['doc']}")
        if extra:
            click.echo(f"      {'; '.join(extra)}")
    if about["deviations"]:
        click.echo("\ndeviations from the published code")
        for line in about["deviations"]:
            click.echo(f"  - {line}")
