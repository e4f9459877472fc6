"""The command line. Commands are imported when they are called, so that help answers at once."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from contextlib import suppress

import click

from cask_eval import __version__
from cask_eval.errors import USAGE, CaskError

# An error of ours, as opposed to every outcome that a command promises (sysexits.h EX_SOFTWARE).
INTERNAL = 70

# What a shell reports of a program that wrote into a closed pipe.
BROKEN_PIPE = 141

# What a shell reports of a program that a signal has ended.
INTERRUPTED, TERMINATED = 130, 143

COMMANDS = {
    "init": "Write an example protocol and its splits into a new workspace.",
    "demo": "Run the embedded study from registration to report.",
    "lint": "Check a protocol and say what it can and cannot detect.",
    "plan": "Say what a protocol will cost and can detect.",
    "schema": "Print the JSON Schema of protocols, for editors.",
    "split": "Freeze, show and check split manifests.",
    "methods": "List the installed methods and show one.",
    "calibrate": "Measure the statistics that calibrated methods need.",
    "reference": "Write what a model answers with its full cache, as problems.",
    "replay": "Feed given tokens through compressed caches, token by token.",
    "frontier": "Say how small a budget is usable, and what crosses what, from replays.",
    "register": "Lock a protocol: whatever changes afterwards is seen.",
    "amend": "Change a registered protocol in the open.",
    "anchor": "Have a time-stamp authority attest when a study's events existed.",
    "tune": "Run the dev split, match the caches, apply the registered rule.",
    "confirm": "Run the held-out split, once.",
    "analyze": "Derive the decision from the closed records.",
    "report": "Write the report of an analysed study.",
    "grade": "Grade answers against references.",
    "pack": "Compress the records of a closed study.",
    "export": "Write all that a reviewer needs into one zip file.",
    "status": "Say where each study stands and what comes next.",
    "bridge": "Say how outputs differ from a reference's: texts, answers, the task's metric.",
    "compare": "Compare arms in any table of paired outcomes.",
    "power": "Say what a number of problems can detect.",
    "stats": "Test one comparison, from its counts.",
    "verify": "Check that a study's decision follows from its locked protocol.",
}


class _Lazy(click.Group):
    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read our output wants no more of it; what is still buffered must not raise again at exit.
            # click would exit with 1 here, which from `verify` means something else.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(BROKEN_PIPE)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"cask_eval.cli.{name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx, args):
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            if near:
                error.message += f" Did you mean {near[0]!r}?"
            raise


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cask-eval")
@click.option(
    "-C",
    "--workspace",
    "folder",
    metavar="DIR",
    default=".",
    show_default=True,
    type=click.Path(exists=True),
    help="A folder inside the workspace (the folder that holds prereg/).",
)
@click.option(
    "--data",
    metavar="PATH",
    type=click.Path(exists=True),
    help="A folder with data sets, or one file: local copies of what tasks read. Default: $CASK_EVAL_DATA.",
)
@click.pass_context
def cli(ctx: click.Context, folder: str, data: str | None) -> None:
    """Pre-registered evaluation of KV-cache compression.

    A study goes register → tune → confirm → verify. Exit codes: 0 ok, 1 verification failed, 2 usage or invalid
    protocol, 3 partly verified, 4 held-out already consumed, 10 branch not met (only with --gate).
    """
    ctx.obj = folder
    if data is not None:
        from cask_eval.tasks.data import at

        ctx.with_resource(at(data))


def main() -> None:
    """Entry point: typed errors become one message and their exit code, anything else is our fault."""
    try:
        with suppress(ValueError):  # only the main thread may
            signal.signal(signal.SIGTERM, _terminate)
        sys.exit(cli.main(standalone_mode=False) or 0)
    except CaskError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; finished trials are kept, `cask-eval status` says how to go on", err=True)
        sys.exit(INTERRUPTED)
    except _Terminated:
        click.echo("terminated; finished trials are kept, `cask-eval status` says how to go on", err=True)
        sys.exit(TERMINATED)
    except OSError as error:
        click.echo(f"error: {_place(error)}; check that the path is right, writable and not full", err=True)
        sys.exit(USAGE)
    except Exception:
        traceback.print_exc()
        click.echo("this is a fault in cask-eval itself; nothing finished was lost", err=True)
        sys.exit(INTERNAL)


class _Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT: a batch system or a machine that shuts down wants us to end."""


def _terminate(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would only disturb the end
    raise _Terminated


def _place(error: OSError) -> str:
    """Which file, and what the system says about it."""
    what = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {what}" if error.filename else what
