"""AMS: attention mass decides how much of every stretch of the row is kept, any scorer which entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import param
from cask_eval.errors import MethodError
from cask_methods.presets.triattention import TriAttention
from cask_methods.presets.wrapping import Wrapping
from cask_methods.selectors.mass_segments import PADS, SEGMENTATIONS, MassSegments

_SCALED = "the published README's {} for targets of 512, divided by four for targets of 128"


@dataclass(frozen=True)
class AMS(Wrapping):
    """Cuts every head's row where attention mass gathers, gives each segment a floor and a share by mass, and keeps
    the best-scored entries of each (https://arxiv.org/abs/2605.23200). Quotas are exact, and floors hold where
    they fit.

    The remembered queries and 4 bytes of credit per entry are charged to its cache.
    """

    summary: ClassVar[str] = "Quotas for segments of equal attention mass, around any scorer"
    paper: ClassVar[str] = "https://arxiv.org/abs/2605.23200"
    reference: ClassVar[str | None] = None
    deviations: ClassVar[tuple[str, ...]] = (
        "the paper's text was not public when this was written: the algorithm is its code's, mended; see ams_faithful "
        "for the code's own",
        "the prompt is pinned by default; in published code it competes (set prompt to compete)",
        "window, l_min, l_max, q_min and recent are the published ones divided by four, as delta is (512 to 128), for "
        "budgets of 64 to 128: 32 remembered queries alone cost as much as 112 entries on the 7B model",
        "what is protected (prompt, sink, newest entries) is set aside first, has no mass and counts for its "
        "segment's floor; published code forces the sink and the newest in afterwards, at the expense of quotas",
        "mass and padding are each sequence's and head's own; published code averages mass over the batch and pads "
        "with the batch's maximum",
        "quotas are largest remainders with caps, and floors that do not fit are lowered alike; published code rounds, "
        "repairs in circles, and does not end when there are more segments than entries to keep",
        "all segments have between l_min and l_max entries: a short last one joins the one before it, and long ones "
        "are divided after short ones are merged",
        "queries are remembered rotated at their own positions; the published decoding code rotates all of them to "
        "the newest",
        "a score shared over heads (tova) keeps one set for them, by their mean mass; in published code each head has "
        "its own segments even then",
        "fires by the slack trigger, as the other presets do; the original fires when the length is a multiple of 512 "
        "(set trigger to periodic and delta to 512)",
        "TriAttention, if wrapped: " + TriAttention.deviations[0],
    )

    sink: int = param(4, "First positions that every event keeps.", source="published README", low=0)
    recent: int = param(8, "Newest positions that every event keeps.", source=_SCALED.format("32"), low=0)
    window: int = param(
        8,
        "Newest queries whose attention is the evidence. On a 7B model with 7 query heads per KV head, each costs as "
        "much cache as 3.5 entries.",
        source=_SCALED.format("32"),
        low=1,
    )
    mass_step: float = param(
        0.02, "A segment begins at every multiple of this share of the mass.", source="published README", low=1e-4
    )
    l_min: int = param(8, "Fewest entries of a segment.", source=_SCALED.format("32"), low=1)
    l_max: int = param(256, "Most entries of a segment, at least 2·l_min − 1.", source=_SCALED.format("1024"), low=1)
    q_min: int = param(
        2,
        "Entries that every segment keeps if the budget suffices, protected ones included.",
        source=_SCALED.format("8"),
        low=0,
    )
    pad: str = param(
        "head_max",
        "Evidence of the newest `window` entries: the head's maximum, its mean, or none.",
        source="published code: the maximum over the batch",
        choices=PADS,
    )
    decay: float = param(0.8, "How much of the old credit stays at an event, 0 to 1.", source="published code", low=0)
    mix: float = param(
        0.7, "Share of the new mass, the rest being credit, 0 to 1; 1 is no credit.", source="published code", low=0
    )
    segmentation: str = param(
        "mass",
        "mass; or uniform, the control: segments of equal length and weight, no queries and no credit.",
        source="published code: mass",
        choices=SEGMENTATIONS,
    )

    def validate(self, preset: str) -> None:
        super().validate(preset)
        for name in ("decay", "mix"):
            if getattr(self, name) > 1:
                raise MethodError(f"{preset}: parameter {name} is {getattr(self, name)}; it must be at most 1")
        if self.l_max < 2 * self.l_min - 1:
            raise MethodError(
                f"{preset}: parameter l_max is {self.l_max}; with l_min {self.l_min} it must be at least "
                f"{2 * self.l_min - 1}, or some rows could not be divided"
            )

    def selector(self) -> MassSegments:
        return MassSegments(
            self.window,
            self.mass_step,
            self.l_min,
            self.l_max,
            self.q_min,
            self.pad,
            self.decay,
            self.mix,
            self.segmentation,
        )
