"""What several commands share: the workspace, JSON output, the device option, the blinded progress bar."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cask_eval.errors import GATE, OK, CaskError, LedgerError
from cask_eval.workspace import Workspace

if TYPE_CHECKING:
    from cask_eval.decide.rehearsal import Rehearsal
    from cask_eval.ledger.events import Register
    from cask_eval.protocol.model import Protocol
    from cask_eval.runner.place import Place

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
study_argument = click.argument("study", required=False)
gate_option = click.option("--gate", metavar="BRANCH", help="Exit with 10 unless the study's outcome is this branch.")


roots_option = click.option(
    "--roots",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Trust these time-stamp roots (PEM) instead of those of DigiCert, IdenTrust and Sigstore.",
)


def workspace(ctx: click.Context) -> Workspace:
    """The workspace named by -C, or the one around the current folder. Raises CaskError."""
    return Workspace.find(ctx.obj)


def command_line(space: Workspace, command: str) -> str:
    """`command` as it must be typed in the current folder: with -C where that lies outside the workspace."""
    try:
        inside = Path.cwd().is_relative_to(space.root)
    except OSError:
        inside = False
    return f"cask-eval {command}" if inside else f"cask-eval -C {shlex.quote(str(space.root))} {command}"


def locked_protocol(register: Register) -> Protocol:
    """The protocol inside a registration. Raises LedgerError when somebody made it something else."""
    from pydantic import ValidationError

    from cask_eval.fields import first_fault
    from cask_eval.protocol.model import Protocol

    try:
        return Protocol.model_validate(register.protocol)
    except ValidationError as error:
        raise LedgerError(
            f"the registered protocol is not valid: {first_fault(error)}; restore the ledger from version control"
        ) from None


def nobody_survived(protocol: Protocol) -> str:
    """What to know before a held-out run that has no candidate in it."""
    from cask_eval.decide.branches import decide

    branch = decide(protocol.branches, (0, 0, 0, 0))
    return (
        f"no candidate survived the screening, so the outcome is certain: branch {branch.name}, {branch.decision}. "
        "`confirm` would spend the held-out split on the baseline and the controls alone"
    )


def rehearsed(space: Workspace, name: str) -> Rehearsal:
    """What the dev split foretells of the held-out run, its warnings said."""
    from cask_eval.decide.rehearsal import rehearse

    found = rehearse(space, name)
    for line in found.warnings:
        say(f"warning: {line}")
    return found


def amending(space: Workspace, register: Register) -> str:
    """The command that puts an edited protocol in the place of the registered one, as it must be typed here."""
    path = os.path.relpath(space.resolve(register.protocol_path))
    return f"cask-eval amend {shlex.quote(path)} --reason TEXT"


def counted(n: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def say(text: str) -> None:
    """Logs go to stderr, so that stdout holds results alone."""
    click.echo(text, err=True)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


device_option = click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="Where to run."
)


def _address(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """As it was typed. A slip is told before models are read."""
    from cask_eval.cluster.connect import host_and_port

    if value not in (None, "auto"):
        host_and_port(value)
    return value


ray_option = click.option(
    "--ray",
    callback=_address,
    metavar="auto|ADDRESS",
    help="Run trials on a Ray cluster: the one that runs here, or else a local one (auto); or the one at HOST:PORT.",
)


def device_options(command: Callable) -> Callable:
    """--device and --slots. With `ray_option` the device is the workers', and stays as it was typed."""

    @device_option
    @click.option(
        "--slots",
        type=click.IntRange(1),
        help="Sequences in flight at once; by default as many as memory has room for, at most 64 on a CPU and 512 on a "
        "GPU.",
    )
    @functools.wraps(command)
    def wrapped(*args, device: str, **kwargs):
        device = device if kwargs.get("ray") else resolve_device(device)
        return command(*args, device=device, **kwargs)

    return wrapped


def resolve_device(name: str) -> str:
    """'auto' as cuda where there is one. Raises CaskError when torch or the device is missing."""
    try:
        import torch
    except ImportError:
        raise CaskError(
            "this command runs models and needs torch and transformers; "
            "install them with: pip install 'cask-eval[bench]'"
        ) from None
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
        raise CaskError(f"--device {name}: is no device that studies run on; use auto, cpu, cuda or cuda:N")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise CaskError(f"--device {name}: {str(error).splitlines()[0]}; use cpu or auto") from None
    return name


def place(device: str, slots: int | None, ray: str | None) -> Place:
    """Where a study's trials run. Raises CaskError when that cannot be had."""
    quiet()
    if ray is None:
        from cask_eval.runner.place import Here

        return Here(device, slots)
    resolve_device("cpu")  # torch is there
    from cask_eval.cluster.study import Cluster

    return Cluster(ray, device, slots)


@contextmanager
def watch(title: str) -> Iterator[Any]:
    """A `Watch` that shows trials done, tokens and the time left, never an accuracy."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from cask_eval.runner.steps import Watch

    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("trials"),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None, tokens=0)
        count = 0

        def start(total: int, done: int) -> None:
            bar.update(task, total=total, completed=done)

        def advance(trials: int, tokens: int) -> None:
            nonlocal count
            count += tokens
            bar.update(task, advance=trials, tokens=count)

        yield Watch(start=start, advance=advance, say=lambda text: bar.console.print(text, highlight=False))


def quiet() -> None:
    """Libraries that log on import or load may not write into our output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def check_gate(gate: str | None, space: Workspace, name: str) -> None:
    """Raises CaskError when --gate names a branch that the study's protocol does not have."""
    if gate is None:
        return
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import StudyState

    names = [b["name"] for b in StudyState.of(Ledger(space.ledger).events(), name).register[1].protocol["branches"]]
    if gate not in names:
        raise CaskError(f"--gate {gate}: the protocol has no such branch; it has {', '.join(names)}")


def gated(gate: str | None, branch: str) -> int:
    """The exit code under --gate."""
    return OK if gate in (None, branch) else GATE
