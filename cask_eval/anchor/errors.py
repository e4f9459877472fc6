"""What can be wrong with a time stamp. Each message names the fault and the remedy."""

from __future__ import annotations

from cask_eval.errors import USAGE, AnchorError

__all__ = [
    "AnchorError",
    "MalformedError",
    "MismatchError",
    "RefusedError",
    "UnknownRootError",
    "UnreachableError",
    "UntrustedError",
]


class UnreachableError(AnchorError):
    """The authority did not answer as one does: no connection, another HTTP status, too slow, too much."""

    exit_code = USAGE


class RefusedError(AnchorError):
    """The authority answered and did not grant the request as it was."""

    exit_code = USAGE


class MalformedError(AnchorError):
    """The bytes are no time stamp, or more than one."""


class MismatchError(AnchorError):
    """A time stamp of something else: another event, another hash algorithm, another request."""


class UntrustedError(AnchorError):
    """The signature, or the certificate behind it, does not hold."""


class UnknownRootError(UntrustedError):
    """No pinned root stands behind the authority. Whether the time stamp is genuine is not known here."""
