"""cask-eval calibrate"""

from __future__ import annotations

from pathlib import Path

import click

from cask_eval.cli.common import device_options, quiet, say, workspace
from cask_eval.errors import CaskError


@click.command("calibrate")
@click.option("--model", "model_id", help="embedded:NAME, a local folder, or a hub id.")
@click.option("--revision", default=None, help="Commit of a hub id.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16", "float16"]))
@click.option(
    "--split",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A dev manifest; its problems are solved with the full cache.",
)
@click.option("--method", default="triattention", show_default=True, help="Whose statistics.")
@click.option("--prompt", "prompt_file", metavar="FILE", help="The protocol's prompt file, relative to the workspace.")
@click.option("--chat", is_flag=True, help="Ask through the model's chat template (prompt.form: chat).")
@click.option("--limit", default=64, show_default=True, type=click.IntRange(1), help="Problems used at most.")
@click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(1))
@click.option(
    "--import",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Convert an official statistics file (.pt) instead of measuring.",
)
@click.option(
    "-o", "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="A .safetensors file."
)
@device_options
@click.pass_context
def command(
    ctx, model_id, revision, dtype, split, method, prompt_file, chat, limit, max_new_tokens, source, out, device, slots
) -> None:
    """Measure the statistics that METHOD needs on a model's own traces, or import another project's file.

    Only a dev split may be used: statistics measured on held-out problems would leak them.
    """
    quiet()
    from cask_eval.protocol.model import Model, Prompt
    from cask_eval.runner.calibrate import convert, measure
    from cask_eval.splits.store import read

    if out.suffix != ".safetensors":
        raise CaskError(f"--out {out}: the file must end in .safetensors")
    if source:
        statistics = convert(source, method)
        say(f"imported {source}")
    elif model_id and split:
        model = Model(id=model_id, name="model", revision=revision, dtype=dtype)
        statistics, tokens = measure(
            workspace(ctx),
            model,
            read(split),
            method,
            prompt=Prompt(file=prompt_file, form="chat" if chat else "raw") if prompt_file or chat else None,
            limit=limit,
            max_new_tokens=max_new_tokens,
            device=device,
            slots=slots,
        )
        say(f"{tokens:,} tokens of {model_id}")
    else:
        raise CaskError("give --model and --split to measure, or --import FILE to convert")
    out.parent.mkdir(parents=True, exist_ok=True)
    statistics.save(out)
    click.echo(out)
