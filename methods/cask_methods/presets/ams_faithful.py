"""AMS as its authors ship it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cask_eval.engine.contract import Entries
from cask_eval.engine.method import Method, param
from cask_eval.errors import MethodError
from cask_methods.presets.triattention import TriAttention
from cask_methods.presets.wrapping import Wrapping
from cask_methods.selectors.mass_segments_faithful import MassSegmentsFaithful

_README = "published README"


@dataclass(frozen=True)
class AMSFaithful(Wrapping):
    """The published algorithm and its defaults (https://arxiv.org/abs/2605.23200) at batch size 1: nothing is pinned,
    quotas are mended in circles, and the sink and the newest entries are forced in at the end. Refuses where the
    published code does not terminate, and targets that the forced entries fill. `AMS` is the mended one.

    The remembered queries and 4 bytes of credit per entry are charged to its cache.
    """

    summary: ClassVar[str] = "AMS as published, with its repairs and truncation of quotas"
    paper: ClassVar[str] = "https://arxiv.org/abs/2605.23200"
    reference: ClassVar[str | None] = None
    deviations: ClassVar[tuple[str, ...]] = (
        "every sequence has its own mass and maximum; published code mixes those of a batch, so that this is what it "
        "does at batch size 1",
        "where published code loops forever (more segments than entries to keep) an error is raised; with q_min 0 its "
        "lower bound in the second circle of repairs is not known, and taken to be 1",
        "queries are remembered rotated at their own positions; the published decoding code rotates all of them to "
        "the newest",
        "32 remembered queries cost as much as 112 entries on a 7B model; published code remembers 256 hidden states, "
        "which would cost 896, and leaves them out of its account",
        "ties keep the lower position",
        "no TriAttention plug-in ships with the published code, whose paper claims one",
        "TriAttention, if wrapped: " + TriAttention.deviations[0],
    )

    delta: int = param(512, "Steps between events; trigger every_step takes no notice of it.", source=_README, low=1)
    trigger: str = param(
        "periodic",
        "periodic: fire above target when the logical length is a multiple of delta, and right after a prompt above "
        "target, whatever its length; slack: at target + delta; every_step: above target.",
        source=_README,
        choices=("periodic", "slack", "every_step"),
    )
    prompt: str = param(
        "compete",
        "compete: prompt entries compete like any other, except the sink; published code knows nothing else.",
        source=_README,
        choices=("compete",),
    )
    sink: int = param(4, "First entries that are forced in.", source=_README, low=0)
    recent: int = param(32, "Newest entries that are forced in (published keep_lastn).", source=_README, low=0)
    window: int = param(32, "Newest queries whose attention is the evidence.", source=_README, low=1)
    mass_step: float = param(
        0.02, "A segment begins at every multiple of this share of the mass.", source=_README, low=1e-4
    )
    l_min: int = param(32, "Segments that are shorter take in the next one.", source=_README, low=1)
    l_max: int = param(1024, "Pieces of this length are cut from longer segments.", source=_README, low=1)
    q_min: int = param(8, "Quota that every segment starts with.", source=_README, low=0)
    decay: float = param(0.8, "How much of the old credit stays at an event, 0 to 1.", source=_README, low=0)
    mix: float = param(0.7, "Share of the new mass, the rest being credit, 0 to 1.", source=_README, low=0)

    def validate(self, preset: str) -> None:
        super().validate(preset)
        for name in ("decay", "mix"):
            if getattr(self, name) > 1:
                raise MethodError(f"{preset}: parameter {name} is {getattr(self, name)}; it must be at most 1")

    def selector(self) -> MassSegmentsFaithful:
        return MassSegmentsFaithful(
            self.window,
            self.mass_step,
            self.l_min,
            self.l_max,
            self.q_min,
            self.sink,
            self.recent,
            self.decay,
            self.mix,
        )

    def protected(self, entries: Entries, target: Tensor) -> Tensor:
        """[L, R, H, n] bool: nothing. The selector forces the sink and the newest in itself."""
        return Method.protected(self, entries, target)

    def protected_count(self, prompt_tokens: int) -> int:
        """What is forced in, which must fit the budget all the same."""
        return self.sink + self.recent
