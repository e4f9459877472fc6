"""cask-eval schema"""

from __future__ import annotations

import click


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of a protocol. Point your editor's YAML support at it."""
    from cask_eval.protocol.schema import schema_text

    click.echo(schema_text(), nl=False)
