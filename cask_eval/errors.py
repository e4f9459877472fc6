"""Typed errors. Each knows the exit code of the command it ends (docs/VERIFICATION.md, "Exit codes")."""

OK, FAILED, USAGE, PARTIAL, CONSUMED, GATE = 0, 1, 2, 3, 4, 10


class CaskError(Exception):
    """Anything a user can cause or cure. The message names the place, the value and the remedy."""

    exit_code = USAGE


class ProtocolError(CaskError):
    """The protocol file is not valid; `problems` holds one line per fault."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(problems))


class SplitError(CaskError):
    """A split manifest is damaged, overlaps another, or does not fit the data."""


class LedgerError(CaskError):
    """The ledger is damaged, or an event is not allowed in the study's present state."""

    exit_code = FAILED


class RecordError(CaskError):
    """A records file holds something that is not a record."""

    exit_code = FAILED


class StateError(CaskError):
    """The command does not fit the study's state (not registered, not tuned, closed …)."""


class ConsumedError(StateError):
    """The held-out split was consumed before."""

    exit_code = CONSUMED


class DriftError(CaskError):
    """Something differs from what the registration locked."""

    exit_code = FAILED


class MethodError(CaskError):
    """A method, a parameter or a budget cannot be used as asked."""


class ModelError(CaskError):
    """A model cannot be loaded or is of an unsupported architecture."""


class KernelError(CaskError):
    """A kernel was asked for that does not exist or cannot run."""


class AnchorError(CaskError):
    """A time stamp cannot be had, or does not hold (the kinds of it: `cask_eval.anchor.errors`)."""

    exit_code = FAILED
