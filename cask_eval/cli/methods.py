"""cask-eval methods list|show|plan"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from cask_eval.cli.common import json_option, print_json, quiet, resolve_device, say
from cask_eval.errors import CaskError, MethodError

if TYPE_CHECKING:
    from cask_eval.engine.method import Method

# Flags of the published scripts → (parameter, what a value means there). They are understood where a preset has the
# parameter and none of the flag's own name.
PUBLISHED = {
    "count_prompt_tokens": ("count_prompt", {}),
    "slack_trigger": ("trigger", {"true": "slack", "false": "periodic"}),
    "slack_budget_trigger": ("trigger", {"true": "slack", "false": "periodic"}),
    "divide_length": ("delta", {}),
    "recent_window": ("recent", {}),
    "recent_window_size": ("recent", {}),
}


@click.group("methods")
def command() -> None:
    """List the installed methods, show one, plan its events."""


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
    width = max((len(r["name"]) for r in rows), default=0)
    for r in rows:
        mechanism = f" [{r['mechanism']}]" if r["mechanism"] else ""
        parts = " + ".join(p for p in r["composition"].values() if p)
        click.echo(f"{r['name']:{width}}  {r['summary']}{mechanism}\n{'':{width}}  {parts}")


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
        click.echo(f"  {part:15} {value or 'none'}")
    if about["mechanism"]:
        click.echo(f"  {'mechanism':15} {about['mechanism']}")
    if about["calibrated"]:
        click.echo(f"  {'calibration':15} needed (cask-eval calibrate --method {name})")
    if about["reference"]:
        settings = ", ".join(f"{key}={value}" for key, value in about["null"].items())
        click.echo(f"  {'reference':15} {about['reference']}" + (f", reproduced with {settings}" if settings else ""))
    for line in _state(about["state"]):
        click.echo(line)
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


def _state(state: dict[str, Any]) -> list[str]:
    """Lines on what a method remembers; none when it remembers nothing."""
    lines = []
    if state["queries"]:
        lines.append(
            f"  newest {state['queries']} queries: {state['query_bytes']:,} bytes a sequence, as much as "
            f"{state['query_tokens']:g} cached tokens of each layer"
        )
    if state["traits"]:
        names = ", ".join(f"{name} ({t['bytes']} bytes per {t['per']})" for name, t in state["traits"].items())
        lines.append(
            f"  {names}: {state['trait_bytes']:,} bytes a cached token, {state['trait_tokens']:.2%} of its keys and "
            "values"
        )
    return [f"\nstate between events, for {state['geometry']}", *lines] if lines else []


@command.command()
@click.option("--preset", required=True, help="The method.")
@click.option("--prompt-tokens", required=True, type=click.IntRange(1), help="Length of the prompt.")
@click.option(
    "--output-tokens", required=True, type=click.IntRange(1), help="Length of the output; the last is not read again."
)
@click.option("--budget", required=True, type=click.IntRange(1), help="The nominal budget b.")
@click.option(
    "--param",
    "params",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the method, as in a protocol; the published scripts' count_prompt_tokens, slack_trigger, "
    "divide_length and recent_window are understood too.",
)
@json_option
def plan(
    preset: str, prompt_tokens: int, output_tokens: int, budget: int, params: tuple[str, ...], as_json: bool
) -> None:
    """Say when a method will compress a trial of these lengths, and what stays resident: no model is needed.

    Counts are entries per layer and KV head. A schedule that reads the text is planned as if no boundary came.
    """
    resolve_device("cpu")
    quiet()
    from dataclasses import asdict

    from cask_eval.engine.registry import load, reference_geometry
    from cask_eval.plan import plan as planned
    from cask_eval.plan import weigh

    cls = load(preset)
    given = parse_params(cls, params)
    method = cls.make(preset, given)
    try:
        schedule = method.schedule(budget)
    except ValueError as error:
        raise MethodError(f"{preset}: {error}") from None
    found = planned(schedule, prompt_tokens, output_tokens)
    refused = _refusal(method, prompt_tokens, budget)
    shape = reference_geometry()
    account = weigh(schedule, method.footprint(shape), prompt_tokens, output_tokens, shape.layers)
    about = {
        "preset": preset,
        "params": given,
        "budget": budget,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "schedule": {**asdict(schedule), "content_driven": schedule.content_driven},
        **found.to_json(),
        "refused": refused,
        "state_included": {
            "geometry": shape.name,
            "mean_cache": float(account.mean),
            "mean_cache_exact": f"{account.mean.numerator}/{account.mean.denominator}",
            "peak_cache": float(account.peak),
        },
    }
    if refused:
        say(f"note: a study would be refused: {refused}")
    if as_json:
        print_json(about)
        return
    rule = f"{schedule.trigger}({schedule.delta})"
    click.echo(f"{preset} at b = {budget}, {rule}, prompt {schedule.prompt}: {found.regime.replace('_', ' ')}")
    click.echo(f"  mean cache      {float(found.mean_cache):.3f} entries per layer and head")
    click.echo(f"  with state      {float(account.mean):.3f} (bytes of a {shape.name}, in full-precision entries)")
    click.echo(
        f"  peak, terminal  {found.peak_cache}, {found.terminal_cache} (of which prompt: {found.terminal_prefix})"
    )
    click.echo(f"  events          {found.prefix_events} on the prompt, {found.decode_events} on what was generated")
    for guard, times in found.guards.items():
        click.echo(f"  guard           {guard}: {times}")
    for e in found.events:
        kinds = [name for name, is_so in (("prompt", e.stage_one), ("generated", e.stage_two)) if is_so]
        chain = f"chain {e.chain + 1}, " if schedule.chains > 1 else ""
        click.echo(
            f"    {chain}step {e.step}: {e.before} → {e.after} ({', '.join([*kinds, *filter(None, [e.guard])])})"
        )


def _refusal(method: Method, prompt_tokens: int, budget: int) -> str | None:
    """Why a study would not run the method so; the counts can be planned all the same."""
    try:
        method.check(prompt_tokens, budget)
    except MethodError as error:
        return str(error)
    return None


def parse_params(cls: type[Method], pairs: tuple[str, ...]) -> dict[str, Any]:
    """Parameters of a preset from NAME=VALUE texts, typed as a protocol would: whole numbers, true and false, and
    otherwise the text, which a decimal parameter reads. Raises CaskError."""
    from cask_eval.engine.method import type_name

    known, out = cls.parameters(), {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise CaskError(f"--param {pair!r}: write NAME=VALUE")
        flag = name
        if name not in known and name in PUBLISHED and PUBLISHED[name][0] in known:
            name, words = PUBLISHED[name]
            if words and text not in words:
                raise CaskError(f"--param {pair}: {flag} is {text!r}; use one of {', '.join(words)}")
            text = words.get(text, text)
        if name in out:
            raise CaskError(f"--param {flag}: {name} is given twice, as {out[name]} and {text}; keep one")
        out[name] = _value(type_name(known[name]) if name in known else "", text)
    return out


def _value(kind: str, text: str) -> Any:
    if kind == "int" and re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    return text == "true" if kind == "bool" and text in ("true", "false") else text
