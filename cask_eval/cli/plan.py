"""cask-eval plan"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cask_eval.cli.common import json_option, print_json, quiet, resolve_device, say
from cask_eval.errors import CaskError, MethodError
from cask_eval.shapes import GPUS, MODELS

if TYPE_CHECKING:
    from cask_eval.costs import Assumed
    from cask_eval.protocol.model import Arm, Cell, Model, Protocol
    from cask_eval.shapes import Gpu, Shape
    from cask_eval.workspace import Workspace

GIB = 1 << 30
PROMPT = 150
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


@click.command("plan")
@click.argument("protocol", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--gpu", type=click.Choice(sorted(GPUS)), default="h100-80gb", show_default=True, help="One card.")
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1),
    help=f"Of a prompt. Default: those of the study's own, where problems and tokenizers are here, else {PROMPT}.",
)
@click.option("--output-tokens", type=click.IntRange(1), help="Of a mean output. Default: half of max_new_tokens.")
@click.option("--slots", default=64, show_default=True, type=click.IntRange(1), help="As `tune` and `confirm` get it.")
@click.option("--reserve-gib", default=4.0, show_default=True, type=click.FloatRange(0), help="For the rest.")
@click.option(
    "--efficiency",
    default=0.5,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the memory's bandwidth that decoding reaches.",
)
@click.option(
    "--step-ms", default=40.0, show_default=True, type=click.FloatRange(0), help="The least time of a decode step."
)
@click.option(
    "--tokens-per-second",
    type=click.FloatRange(0, min_open=True),
    help="Measured on the card, over all slots; takes the place of --efficiency and --step-ms.",
)
@json_option
def command(
    protocol: Path,
    gpu: str,
    prompt_tokens: int | None,
    output_tokens: int | None,
    slots: int,
    reserve_gib: float,
    efficiency: float,
    step_ms: float,
    tokens_per_second: float | None,
    as_json: bool,
) -> None:
    """What PROTOCOL will cost and can detect: trials, tokens, memory, hours on one GPU, expected pairs that differ.

    Nothing is downloaded and no model runs: sizes of well-known models are built in, others are read from the model's
    folder. What nobody can know beforehand is assumed, printed, and yours to change.
    """
    resolve_device("cpu")
    quiet()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from cask_eval.costs import Assumed
    from cask_eval.protocol.load import load
    from cask_eval.splits.store import read
    from cask_eval.workspace import Workspace

    p = load(protocol).protocol
    space = Workspace.find(protocol.parent)
    counts = {role: len(read(space.resolve(getattr(p.task, role))).items) for role in ("dev", "heldout")}
    most = p.generation.max_new_tokens
    if output_tokens is not None and output_tokens > most:
        raise CaskError(f"--output-tokens {output_tokens}: generation.max_new_tokens is {most}; give that or less")
    lengths = [prompt_tokens] if prompt_tokens else _lengths(space, protocol)
    assumed = Assumed(
        prompt_tokens=round(sum(lengths) / len(lengths)),
        longest_prompt=max(lengths),
        output_tokens=output_tokens or max(1, most // 2),
        slots=slots,
        reserve=round(reserve_gib * GIB),
        efficiency=efficiency,
        step_seconds=step_ms / 1000,
        tokens_per_second=tokens_per_second,
    )
    about = forecast(p, space, counts, gpu, assumed)
    if as_json:
        print_json(about)
    else:
        _show(about)


def _lengths(space: Workspace, path: Path) -> list[int]:
    """Tokens of the study's own prompts, of all its models; what is assumed where they cannot be read here."""
    from cask_eval.runner.preview import prompt_lengths
    from cask_eval.runner.study import open_study

    try:
        study = open_study(space, path, offline=True)
        return [n for model in study.protocol.models for n in prompt_lengths(study, model)]
    except CaskError as error:
        say(f"note: {PROMPT} tokens a prompt are assumed (--prompt-tokens), as the study's own cannot be read: {error}")
        return [PROMPT]


def forecast(p: Protocol, space: Workspace, counts: dict[str, int], gpu: str, assumed: Assumed) -> dict[str, Any]:
    """What `plan` prints, as JSON. Raises CaskError where a model's sizes are unknown or a method cannot be made."""
    from cask_eval.decide.lint import POWER, discordance_of, level_per_comparison
    from cask_eval.protocol.keys import dev_runs
    from cask_eval.stats.power import expected_discordant, mde

    shapes = {m.name: _shape(m, space) for m in p.models}
    configs = {arm: len(names) for arm, names in dev_runs(p).items()}
    survivors = p.screening.survivors if p.screening else len(p.candidates)
    n, samples = counts["heldout"], p.generation.samples
    cells = [_cell(p, cell, shapes[cell.model], GPUS[gpu], assumed) for cell in p.cells]
    out, seconds, tokens, trials = assumed.output_tokens, {}, {}, {}
    for phase in ("dev", "heldout"):
        each = counts[phase] * samples
        trials[phase] = tokens[phase] = 0
        seconds[phase] = 0.0
        for cell in cells:
            for arm in cell["arms"]:
                times = configs.get(arm["arm"], 0) if phase == "dev" else _confirmed(p, arm["arm"], survivors)
                if not times:
                    continue
                trials[phase] += round(times * each)
                tokens[phase] += round(times * each) * out
                rate = arm["tokens_per_second"]
                seconds[phase] = seconds[phase] + times * each * out / rate if rate else float("inf")
    discordance = float(discordance_of(p))
    level = level_per_comparison(p)
    return {
        "study": p.study,
        "gpu": gpu,
        "problems": counts,
        "samples": samples,
        "assumed": {
            "prompt_tokens": assumed.prompt_tokens,
            "longest_prompt": assumed.longest_prompt,
            "output_tokens": assumed.output_tokens,
            "max_new_tokens": p.generation.max_new_tokens,
            "slots": assumed.slots,
            "reserve_bytes": assumed.reserve,
            **(
                {"tokens_per_second": assumed.tokens_per_second}
                if assumed.tokens_per_second
                else {"efficiency": assumed.efficiency, "step_seconds": assumed.step_seconds}
            ),
        },
        "models": [
            {
                "name": m.name,
                "id": m.id,
                "layers": s.layers,
                "kv_heads": s.kv_heads,
                "head_dim": s.head_dim,
                "parameters": s.parameters,
                "weight_bytes": s.parameters * ITEMSIZE[m.dtype],
            }
            for m, s in ((m, shapes[m.name]) for m in p.models)
        ],
        "cells": cells,
        "trials": trials,
        "tokens": tokens,
        "most_tokens": sum(trials.values()) * p.generation.max_new_tokens,
        "hours": {k: v / 3600 if v != float("inf") else None for k, v in seconds.items()},
        "power": {
            "n": n,
            "comparisons": p.family,
            "level": level,
            "discordance": discordance,
            "discordance_assumed": discordance_of(p) != p.expected_discordance,
            "expected_discordant": expected_discordant(n, discordance),
            "wanted": POWER,
            "mde": mde(n, discordance, level, POWER, p.test.alternative),
        },
    }


def _confirmed(p: Protocol, arm: str, survivors: int) -> Fraction:
    """How often an arm runs on the held-out split: of the candidates, on average, as many as survive."""
    candidates = [c.name for c in p.candidates]
    return Fraction(survivors, len(candidates)) if arm in candidates else Fraction(1)


def _shape(model: Model, space: Workspace) -> Shape:
    from cask_eval import embedded
    from cask_eval.shapes import of_config

    if model.id in MODELS:
        return MODELS[model.id]
    if model.id.startswith("embedded:"):
        folder = embedded.path(model.id.removeprefix("embedded:"))
    else:
        folder = space.root / Path(model.id).expanduser()
    try:
        return of_config(folder / "config.json")
    except (OSError, ValueError) as error:
        raise CaskError(
            f"models[{model.name}].id is {model.id!r}, whose sizes are not built in, and {folder / 'config.json'} does "
            f"not tell them ({error}); plan with a local copy of the model, or with one of {', '.join(MODELS)}"
        ) from None


def _cell(p: Protocol, cell: Cell, shape: Shape, gpu: Gpu, assumed: Assumed) -> dict[str, Any]:
    model = next(m for m in p.models if m.name == cell.model)
    reference, arms = None, []
    for name, arm in p.arms.items():
        found = _arm(name, arm, cell.budget, shape, model, gpu, p.generation.max_new_tokens, assumed, reference)
        reference = reference or found["run"].mean_cache
        run = found.pop("run")
        arms.append(
            {
                **found,
                "mean_cache": float(run.mean_cache),
                "slot_bytes": run.slot_bytes,
                "slots": run.slots,
                "fit": found["fit"],
                "tokens_per_second": run.rate,
            }
        )
    return {"cell": cell.name, "arms": arms}


def _arm(
    name: str,
    arm: Arm,
    budget: int,
    shape: Shape,
    model: Model,
    gpu: Gpu,
    most: int,
    assumed: Assumed,
    reference: Fraction | None,
) -> dict[str, Any]:
    """One arm at the budget that matches the baseline's planned cache (`reference`; None for the baseline itself)."""
    import torch

    from cask_eval.costs import fitting, run
    from cask_eval.decide.budgets import solve
    from cask_eval.engine.contract import Geometry
    from cask_eval.engine.registry import load
    from cask_eval.protocol.keys import configs

    params = configs(arm)[0][1]  # the first of the tuned values: settings hardly change what is held
    method = load(arm.preset).make(arm.preset, params)
    dtype = getattr(torch, model.dtype)
    geometry = Geometry(
        shape.layers, shape.query_heads, shape.kv_heads, shape.head_dim, torch.empty(0), 1.0, dtype, model.name
    )
    footprint = method.footprint(geometry)
    try:
        schedule = method.schedule(budget)
        if reference is not None and schedule.trigger != "never":
            lengths = [(assumed.prompt_tokens, assumed.output_tokens - 1)]
            schedule = method.schedule(solve(schedule, footprint, lengths, reference)[0])
    except (ValueError, MethodError) as error:
        raise MethodError(f"{name} ({arm.preset}) at b = {budget}, model {model.name}: {error}") from None
    try:
        method.check(assumed.longest_prompt, schedule.budget)
        refused = None
    except MethodError as error:
        refused = str(error)
    size = ITEMSIZE[model.dtype]
    found = run(schedule, footprint, shape, size, gpu, most, assumed)
    return {
        "arm": name,
        "preset": arm.preset,
        "configurations": len(configs(arm)),
        "budget": schedule.budget,
        "content_driven": schedule.content_driven,
        "refused": refused,
        "fit": fitting(shape, size, gpu, found.slot_bytes, assumed.reserve),
        "run": found,
    }


def _parameters(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"


def _figure(x: float) -> str:
    return f"{x:,.1f}" if x >= 1 else f"{x:.2g}"


def _show(about: dict[str, Any]) -> None:
    from cask_eval.decide.lint import points

    n, a, power = about["problems"], about["assumed"], about["power"]
    echo = click.echo
    echo(f"{about['study']}: {n['dev']} dev and {n['heldout']} held-out problems, {about['samples']} sample(s) each")
    for m in about["models"]:
        echo(
            f"  {m['name']}: {_parameters(m['parameters'])} parameters, {_figure(m['weight_bytes'] / GIB)} GiB; "
            f"{m['layers']} layers × {m['kv_heads']} KV heads × {m['head_dim']}"
        )
    head = ("b′", 6), ("mean cache", 10), ("MiB a slot", 10), ("fit", 7), ("run", 4), ("tokens/s", 9)
    echo(f"\n{'cell':20} {'arm':14} " + " ".join(f"{name:>{width}}" for name, width in head))
    for cell in about["cells"]:
        for arm in cell["arms"]:
            rate = f"{arm['tokens_per_second']:,.0f}" if arm["tokens_per_second"] else "none fits"
            echo(
                f"{cell['cell']:20} {arm['arm']:14} {arm['budget']:>6,} {arm['mean_cache']:>10.1f} "
                f"{arm['slot_bytes'] / (1 << 20):>10.1f} {arm['fit']:>7,} {arm['slots']:>4} {rate:>9}"
            )
    refused = {x["arm"]: x["refused"] for c in reversed(about["cells"]) for x in c["arms"] if x["refused"]}
    for text in dict.fromkeys(refused.values()):
        names = ", ".join(name for name, why in refused.items() if why == text)
        say(f"note: with prompts this long the study would be refused ({names}): {text}")
    if any(x["content_driven"] for c in about["cells"] for x in c["arms"]):
        say("note: some cache depends on what is generated; its search may run the dev split up to 3 times more")
    total = {k: sum(about[k].values()) for k in ("trials", "tokens")}
    echo(f"\ntrials    {about['trials']['dev']:,} dev + {about['trials']['heldout']:,} held-out = {total['trials']:,}")
    echo(f"tokens    {total['tokens']:,} of output; {about['most_tokens']:,} at most")
    hours = about["hours"]
    if None in hours.values():
        echo(f"hours     an arm does not fit on one {about['gpu']}")
    else:
        echo(
            f"hours     {_figure(hours['dev'])} dev + {_figure(hours['heldout'])} held-out = "
            f"{_figure(sum(hours.values()))} on one {about['gpu']}, at least"
        )
    how = (
        f"{a['tokens_per_second']:,.0f} tokens a second as measured"
        if "tokens_per_second" in a
        else f"a step takes {a['step_seconds'] * 1000:g} ms or the reading of weights and caches at "
        f"{a['efficiency']:.0%} of the bandwidth, whichever is longer"
    )
    echo(
        f"assumed   prompts of {a['prompt_tokens']:,} (at most {a['longest_prompt']:,}) and outputs of "
        f"{a['output_tokens']:,} tokens; at most {a['slots']} sequences at once; "
        f"{a['reserve_bytes'] / GIB:g} GiB for everything else; {how}. Prefill, "
        "compression and the last trials, which run alone, come on top"
    )
    smallest = "no difference" if power["mde"] is None else points(power["mde"])
    guess = " (assumed)" if power["discordance_assumed"] else ""
    echo(
        f"detects   {smallest} with {power['wanted']:.0%} power by exact McNemar: n = {power['n']}, "
        f"{power['comparisons']} comparison(s) at {power['level']:.4g}; {power['expected_discordant']:.3g} pairs "
        f"should differ, at discordance {power['discordance']:g}{guess}"
        + (f"; of one sample a problem, {about['samples']} tell more" if about["samples"] > 1 else "")
    )
