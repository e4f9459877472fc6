"""KIVI: nothing is evicted; keys and values are stored in a few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import Method, param
from cask_eval.errors import MethodError
from cask_eval.footprint import Packing
from cask_methods.presets.fullkv import FullKV


@dataclass(frozen=True)
class Quantised(Method):
    """The parameters of KIVI's storage, for presets to mix in."""

    deviations: ClassVar[tuple[str, ...]] = (
        "the scale is rounded up to the model's dtype, so that no number lies beyond the last code; the published code "
        "rounds it to nearest",
        "group_size and residual are 32, as in the published example; the published command line defaults to 128, at "
        "which a small budget packs little",
    )

    bits: int = param(
        2, "Bits per stored number; 16 stores the model's own.", source="published", choices=(2, 4, 8, 16), null=16
    )
    group_size: int = param(
        32,
        "Numbers that share a scale and a zero: consecutive entries of a key's channel, channels of a value.",
        source="published example",
        low=1,
    )
    residual: int = param(
        32, "Newest entries in full precision, a multiple of group_size.", source="published example", low=1
    )

    def validate(self, preset: str) -> None:
        super().validate(preset)
        if self.residual % self.group_size:
            raise MethodError(
                f"{preset}: parameter residual is {self.residual}; it must be a multiple of group_size, "
                f"{self.group_size}"
            )

    def packing(self) -> Packing | None:
        return Packing(self.bits, self.group_size, self.residual) if self.bits < 16 else None


@dataclass(frozen=True)
class Kivi(Quantised, FullKV):
    """Keys quantised per channel, values per entry, the newest of both in full precision
    (https://arxiv.org/abs/2402.02750). The prompt's own forward reads full precision."""

    summary: ClassVar[str] = "Full cache in 2 bits, never evicted"
    paper: ClassVar[str] = "https://arxiv.org/abs/2402.02750"
    reference: ClassVar[str | None] = "fullkv"
