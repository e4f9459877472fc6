"""M5: several chains on a split budget, and a vote."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from cask_eval.engine.method import Encode, param
from cask_eval.errors import MethodError
from cask_eval.schedule import Schedule
from cask_methods.presets.triattention import TriAttention


@dataclass(frozen=True)
class TriVote(TriAttention):
    """`chains` independent sampled chains, each under TriAttention at b/k and Δ/k; the largest class of equal answers
    speaks for the trial (self-consistency, https://arxiv.org/abs/2203.11171).

    Ties go to the class whose first chain is earliest, and chains without an answer abstain. The cache of a trial is
    the sum over its live chains at each step; the prompt is held by every chain. It costs about k times the tokens.
    """

    summary: ClassVar[str] = "TriAttention in several chains on a split budget, and a majority vote"
    paper: ClassVar[str] = "https://arxiv.org/abs/2203.11171"
    reference: ClassVar[str | None] = "triattention"
    mechanism: ClassVar[str] = "M5"
    deviations: ClassVar[tuple[str, ...]] = (
        "budget and delta are both split over the chains, so that the sum of their caches is that of one chain; with "
        "trigger every_step only the budget is, and each chain reads one entry more than its share",
        "with greedy decoding all chains are alike, which makes the vote pointless: use a temperature above 0",
        *TriAttention.deviations,
    )

    chains: int = param(
        2, "Chains that share budget and delta.", source="ours: the smallest number that votes", low=1, null=1
    )

    def schedule(self, budget: int, encode: Encode | None = None) -> Schedule:
        """Raises MethodError when budget or delta has less than one entry or step for each chain."""
        whole = super().schedule(budget, encode)
        if whole.trigger == "every_step":  # nothing to share: every chain has its own events, one a step
            whole = replace(whole, delta=self.chains)
        counts = {"budget": whole.budget, "delta": whole.delta}
        if short := [f"{name} {count}" for name, count in counts.items() if count < self.chains]:
            raise MethodError(
                f"{' and '.join(short)} cannot be split over {self.chains} chains; raise it, or lower the parameter "
                "chains"
            )
        return replace(whole, chains=self.chains)
