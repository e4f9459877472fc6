"""cask-eval reference"""

from __future__ import annotations

import json
from pathlib import Path

import click

from cask_eval.cli.common import device_options, quiet, say, workspace
from cask_eval.cli.grade import RULES
from cask_eval.errors import CaskError


@click.command("reference")
@click.option("--model", "model_id", required=True, help="embedded:NAME, smollm2:135m, a local folder, or a hub id.")
@click.option("--revision", default=None, help="Commit of a hub id.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16", "float16"]))
@click.option("--split", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Manifest.")
@click.option("--prompt", "prompt_file", metavar="FILE", help="The protocol's prompt file, relative to the workspace.")
@click.option("--chat", is_flag=True, help="Ask through the model's chat template (prompt.form: chat).")
@click.option("--rule", type=click.Choice(RULES), default="boxed", show_default=True, help="Where answers may stand.")
@click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(1))
@click.option("-o", "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="A .jsonl file.")
@device_options
@click.pass_context
def command(ctx, model_id, revision, dtype, split, prompt_file, chat, rule, max_new_tokens, out, device, slots) -> None:
    """Write what a model answers with its full cache: problems of the task `jsonl` whose right answer is that answer.

    Frozen into splits of that task, they ask whether a compressed cache leaves answers as they were. OUT holds the
    problems' texts; do not publish it where the data set's licence does not let you.
    """
    quiet()
    from cask_eval.jsonl import replace
    from cask_eval.protocol.model import Model, Prompt
    from cask_eval.runner.reference import answers
    from cask_eval.splits.store import read

    if out.exists():
        raise CaskError(f"--out {out}: exists and is not overwritten; name another file, or remove it")
    rows, silent = answers(
        workspace(ctx),
        Model(id=model_id, name="model", revision=revision, dtype=dtype),
        read(split),
        rule,
        prompt=Prompt(file=prompt_file, form="chat" if chat else "raw") if prompt_file or chat else None,
        max_new_tokens=max_new_tokens,
        device=device,
        slots=slots,
    )
    if not rows:
        raise CaskError(f"rule {rule} finds a clear answer in none of {silent} outputs; try another or more tokens")
    replace(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    say(f"{len(rows)} problems; {silent} left out, because rule {rule} finds no clear answer in the model's output")
    click.echo(out)
