"""cask-eval replay"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cask_eval.cli.common import device_options, json_option, print_json, quiet, ray_option, resolve_device, say, watch
from cask_eval.errors import CaskError
from cask_eval.workspace import Workspace

if TYPE_CHECKING:
    from cask_eval.replay.records import Arm
    from cask_eval.replay.summary import Difference, Row


class Budgets(click.ParamType):
    """Whole numbers with commas between, ascending, each once."""

    name = "B,B,…"

    def convert(self, value, param, ctx) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            found = [int(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers; write 48,64,96", param, ctx)
        if min(found) < 1 or len(set(found)) < len(found):
            self.fail(f"{value!r} holds a number below 1, or one twice", param, ctx)
        return tuple(sorted(found))


class Between(click.ParamType):
    """A decimal between two ends, kept as it was written."""

    name = "DECIMAL"

    def __init__(self, low: str, high: str):
        self.low, self.high = low, high

    def convert(self, value, param, ctx) -> str:
        try:
            if Decimal(self.low) <= Decimal(value) <= Decimal(self.high):
                return value
        except InvalidOperation:
            pass
        self.fail(f"{value!r} is not a decimal between {self.low} and {self.high}", param, ctx)


@click.command("replay")
@click.option("--model", "model_id", required=True, help="embedded:NAME, smollm2:135m, a local folder, or a hub id.")
@click.option("--revision", default=None, help="Commit of a hub id.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16", "float16"]))
@click.option("--calibration", metavar="FILE", help="Statistics for methods that need them; default: beside the model.")
@click.option("--split", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A split manifest.")
@click.option("--prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A .txt or .jsonl file.")
@click.option("--prompt", "prompt_file", metavar="FILE", help="The protocol's prompt file, relative to the workspace.")
@click.option("--chat", is_flag=True, help="Ask through the model's chat template (prompt.form: chat).")
@click.option("--limit", type=click.IntRange(1), help="Only so many problems, from the first on.")
@click.option(
    "--arm",
    "arms",
    multiple=True,
    required=True,
    metavar="PRESET[:NAME=VALUE,…]",
    help="A method and its parameters; again for another.",
)
@click.option("--budgets", required=True, type=Budgets(), help="Budgets that every arm is replayed at.")
@click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(1), help="Of a reference.")
@click.option("--temperature", default="0", show_default=True, type=Between("0", "5"), help="Of the references.")
@click.option("--top-p", default="1", show_default=True, type=Between("0", "1"), help="Of the references.")
@click.option("--samples", default=1, show_default=True, type=click.IntRange(1), help="References of each problem.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**53 - 1))
@click.option(
    "--references",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="references.jsonl of an earlier folder, instead of generating them.",
)
@click.option(
    "--block-mib",
    default=1024,
    show_default=True,
    type=click.IntRange(1, 2**20),
    help="Memory for full-cache logits, which decides how many problems are replayed together.",
)
@click.option(
    "--keep-map",
    metavar="ARM@BUDGET[:PROBLEM]",
    help="Draw which positions of one trial are kept for how long (SVG in OUT); the first problem by default.",
)
@click.option("-o", "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="A folder.")
@json_option
@ray_option
@device_options
@click.pass_context
def command(
    ctx,
    model_id,
    revision,
    dtype,
    calibration,
    split,
    prompts,
    prompt_file,
    chat,
    limit,
    arms,
    budgets,
    max_new_tokens,
    temperature,
    top_p,
    samples,
    seed,
    references,
    block_mib,
    keep_map,
    out,
    as_json,
    ray,
    device,
    slots,
) -> None:
    """Feed what a model says with its full cache through compressed caches, and compare token by token.

    References are generated with the full cache and stored as token ids; every arm is given the same tokens, and so is
    the full cache itself (the ceiling). OUT can be resumed: the same command goes on where it was stopped.
    """
    quiet()
    from cask_eval.canonical import digest_file
    from cask_eval.invocation import argv, commit
    from cask_eval.protocol.model import Model, Prompt
    from cask_eval.replay.records import Folder, Settings
    from cask_eval.replay.references import Question
    from cask_eval.replay.run import cells, check_cells, run, sources
    from cask_eval.replay.summary import table
    from cask_eval.runner import fingerprint, models
    from cask_eval.runner.asking import Asking, digest_of

    wanted, device = device, resolve_device("cpu") if ray else device
    space = _workspace(ctx)
    chosen = _named([_arm(text) for text in arms])
    model = Model(id=model_id, name="model", revision=revision, dtype=dtype)
    statistics = _statistics(model, calibration, space)
    problems, source = _problems(split, prompts, space)
    decoder, tokenizer = models.loaded(model, space, device)
    about = Prompt(file=prompt_file, form="chat" if chat else "raw") if prompt_file or chat else None
    ask = Asking.read(space, about).asker(tokenizer, model.name)
    questions = [Question(p.id, ask(p)) for p in problems[:limit]]
    lock = models.lock(model, space, device, max(len(q.ids) for q in questions), max_new_tokens)
    settings = Settings(
        model=_public(model_id, space),
        revision=revision,
        dtype=dtype,
        model_digest=lock.digest,
        model_files=lock.files,
        calibration=digest_file(statistics) if statistics else None,
        source=source,
        prompts=digest_of(q.ids for q in questions),
        problems=len(questions),
        samples=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        stop_ids=lock.stop_ids,
        seed=seed,
        arms=chosen,
        budgets=list(budgets),
        slots=slots or 64,
        block_bytes=block_mib << 20,
        environment=fingerprint.environment(device),
        methods=sources(chosen),
    )
    grid = cells(settings, decoder, statistics, models.encoder(tokenizer))
    check_cells(grid, questions)
    drawn = _chosen(keep_map, grid, questions) if keep_map else None
    folder = Folder(
        record="cask-eval/replay/1", settings=settings, argv=argv(_typed(), space.root), commit=commit(_toolkit())
    )
    with watch("replay") as shown:
        where = None
        if ray:
            from cask_eval.cluster.replay import Cluster

            where = Cluster(ray, wanted, model, space, statistics, questions, grid)
        run(out, folder, decoder, questions, grid, references, shown.start, shown.advance, where, shown.say)
    if drawn:
        _draw(out, *drawn, settings, decoder)
    rows = table(out)
    if as_json:
        print_json([_json(row) for row in rows])
    else:
        _show(rows, settings)


def _chosen(name: str, grid: list[Any], questions: list[Any]) -> tuple[Any, Any]:
    """(cell, question) of --keep-map. Raises CaskError saying what there is."""
    which, _, problem = name.partition(":")
    cells = {f"{c.arm}@{c.budget}": c for c in grid if c.budget}
    asked = {q.problem: q for q in questions}
    if which not in cells:
        raise CaskError(f"--keep-map {name}: {which} is not replayed; use one of {', '.join(cells)}")
    if problem and problem not in asked:
        raise CaskError(f"--keep-map {name}: there is no problem {problem!r}; the first one is {next(iter(asked))!r}")
    return cells[which], asked[problem] if problem else questions[0]


def _draw(out: Path, cell: Any, question: Any, settings: Any, decoder: Any) -> None:
    from cask_eval import jsonl
    from cask_eval.replay.figures import keep_map
    from cask_eval.replay.records import Reference, read
    from cask_eval.replay.references import given_of, seed_of
    from cask_eval.replay.trace import kept
    from cask_eval.report.style import standalone

    reference = next(r for r in read(out / "references.jsonl", Reference) if r.problem == question.problem)
    given = given_of(reference, question, int(seed_of(settings, *reference.key), 16))
    shares, at = kept(decoder, given, cell.policy, cell.schedule)
    if not at:
        raise CaskError(f"--keep-map {cell.arm}@{cell.budget}: nothing was compressed in {question.problem}")
    path = out / f"keep-{cell.arm}@{cell.budget}.svg"
    jsonl.replace(path, standalone(keep_map(f"{cell.arm}@{cell.budget}", shares, len(question.ids), at)).encode())
    say(f"drawn: {path}")


def _workspace(ctx: click.Context) -> Workspace:
    """The workspace around, or the current folder: a prompt file needs none."""
    try:
        return Workspace.find(ctx.obj)
    except CaskError:
        return Workspace(ctx.obj)


def _typed() -> Sequence[str]:
    import sys

    return sys.argv[1:]


def _toolkit() -> Path:
    import cask_eval

    return Path(cask_eval.__file__).parent


def _public(model_id: str, space: Workspace) -> str:
    """A hub id, or the name of a package's model, as it is; of a path only what others can make sense of."""
    from cask_eval.invocation import argv

    return argv([model_id], space.root)[1]


def _arm(text: str) -> Arm:
    """Raises CaskError, MethodError."""
    from cask_eval.cli.methods import parse_params
    from cask_eval.engine.registry import load
    from cask_eval.replay.records import Arm

    preset, _, given = text.partition(":")
    cls = load(preset)
    params = parse_params(cls, tuple(part for part in given.split(",") if part))
    cls.make(preset, params)
    return Arm(name=preset, preset=preset, params=params)


def _named(arms: list[Arm]) -> list[Arm]:
    """Arms of one preset are told apart by their parameters. Raises CaskError when two are the same."""
    out = []
    for arm in arms:
        same = [a for a in arms if a.preset == arm.preset]
        if sum(a == arm for a in same) > 1:
            raise CaskError(f"--arm {arm.preset}: is given twice with the same parameters; keep one")
        if len(same) > 1 and arm.params:
            words = "-".join(f"{k}-{v}" for k, v in arm.params.items())
            name = re.sub(r"[^a-z0-9._-]", "-", f"{arm.preset}-{words}".lower())[:63]
            arm = arm.model_copy(update={"name": name})
        out.append(arm)
    if len({a.name for a in out}) < len(out):
        raise CaskError("--arm: two arms have the same name in their first 63 letters; replay them into two folders")
    return out


def _statistics(model: Any, given: str | None, space: Workspace) -> Path | None:
    """Raises ModelError when the file that was named is not there."""
    from cask_eval.runner import models

    if given is not None:
        path = Path(given)
        if not path.is_file():
            raise CaskError(f"--calibration {given}: does not exist; run `cask-eval calibrate`")
        return path
    beside = models.folder(model, space) / "calibration.safetensors"
    return beside if beside.is_file() else None


def _problems(split: Path | None, prompts: Path | None, space: Workspace) -> tuple[list, str]:
    """The problems and where they come from. Raises CaskError."""
    from cask_eval.canonical import digest_text
    from cask_eval.replay.questions import read_prompts

    if (split is None) == (prompts is None):
        raise CaskError("--split, --prompts: give one of them, a manifest or a file of prompts")
    if prompts is not None:
        return read_prompts(prompts), f"{prompts.name} {digest_text(prompts.read_bytes())}"
    from cask_eval.runner.study import problems_of
    from cask_eval.splits.store import read
    from cask_eval.tasks import registry

    manifest = read(split)
    found = problems_of(space, registry.load(manifest.task), manifest, manifest.name)
    return found, f"{manifest.name} {manifest.digest()}"


def _json(row: Row) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(row)


def _show(rows: list[Row], settings: Any) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    how = "greedy" if Decimal(settings.temperature) == 0 else f"sampled at temperature {settings.temperature}"
    console.print(
        f"{settings.problems} problems × {settings.samples}, {how}; means over references, differences to the ceiling "
        "with 95 % t intervals by problem"
    )
    lines = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("arm", "b", "top-1", "Δ top-1", "NLL", "Δ NLL", "KL", "after: top-1", "after: Δ NLL", "after: KL"):
        lines.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for name in ("mean cache", "events", "regimes"):
        lines.add_column(name, justify="left" if name == "regimes" else "right", no_wrap=True)
    for r in rows:
        m = {k: "—" if v is None else f"{v:.4f}" for k, v in r.means.items()}
        d = {k: _difference(r.differences.get(k)) for k in ("top1", "nll", "nll_after")}
        events = f"{r.prefix_events:.1f}+{r.decode_events:.1f}" if r.prefix_events else f"{r.decode_events:.1f}"
        regimes = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in r.regimes.items())
        lines.add_row(
            r.arm,
            str(r.budget) if r.budget else "full",
            *(m["top1"], d["top1"], m["nll"], d["nll"], m["kl"], m["top1_after"], d["nll_after"], m["kl_after"]),
            *(f"{r.mean_cache:.1f}", events, regimes),
        )
    needed = Console(width=10_000).measure(lines).maximum
    Console(highlight=False, width=max(console.width, needed)).print(lines)


def _difference(found: Difference | None) -> str:
    if found is None:
        return "—"
    ends = f" [{found.low:+.3f}, {found.high:+.3f}]" if found.low is not None else ""
    return f"{found.mean:+.4f}{ends}"
