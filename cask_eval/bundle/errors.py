"""What can be wrong with a bundle."""

from __future__ import annotations

from cask_eval.errors import FAILED, CaskError


class BundleError(CaskError):
    """A bundle is not what `cask-eval export` writes: damaged on the way, or made to deceive."""

    exit_code = FAILED
