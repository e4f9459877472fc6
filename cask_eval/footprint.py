"""Bytes that a method holds for one sequence, as a function of its resident entries (docs/DEFINITIONS.md §2).

No torch and no pydantic here: the engine, the solver and the verifier share this file.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Packing:
    """Keys and values at `bits` per number, the newest in full precision (KIVI, arXiv 2402.02750).

    Keys share scale and zero per channel over `group` consecutive entries, values per entry over `group` channels;
    scale and zero are stored like the model's own numbers. A key block is packed when `residual` entries have
    gathered, a value when `residual` newer ones exist; both after the attention has read them.
    """

    bits: int
    group: int
    residual: int

    def __post_init__(self):
        if self.bits not in (2, 4, 8):
            raise ValueError(f"bits is {self.bits}; use 2, 4 or 8 (or no packing at all)")
        if self.group < 1 or self.residual < 1 or self.residual % self.group:
            raise ValueError(f"residual is {self.residual}; it must be a multiple of group {self.group}, at least once")

    def fault(self, head_dim: int) -> str | None:
        """Why vectors of `head_dim` numbers cannot be packed so; None when they can."""
        vectors = f"vectors of {head_dim} numbers (the model's head_dim) cannot be packed"
        if head_dim % self.group:
            return f"{vectors} in groups of {self.group}: group {self.group} does not divide them; use a smaller one"
        if head_dim * self.bits % 8:
            return f"{vectors}: they do not fill whole bytes of {self.bits}-bit codes; use another group or more bits"
        return None

    def packed_keys(self, settled: int) -> int:
        """How many of `settled` entries (those that an earlier step has read) have packed keys."""
        return settled - settled % self.residual

    def packed_values(self, settled: int) -> int:
        return max(0, settled - self.residual)


@dataclass(frozen=True)
class Footprint:
    """heads: layers × KV heads. head_dim, itemsize: of the model. trait_bytes: per entry of each layer and head.
    shared_bytes: per entry once for all layers and heads. fixed_bytes: per sequence, whatever it holds."""

    heads: int
    head_dim: int
    itemsize: int
    packing: Packing | None = None
    trait_bytes: int = 0
    shared_bytes: int = 0
    fixed_bytes: int = 0

    def __post_init__(self):
        if self.packing and (fault := self.packing.fault(self.head_dim)):
            raise ValueError(fault)

    @property
    def entry_bytes(self) -> int:
        """Bytes of one full-precision entry, (d_k + d_v)·w."""
        return 2 * self.head_dim * self.itemsize

    def payload(self, resident: int) -> int:
        """Bytes of keys and values over all heads when a step's attention reads `resident` entries in each, the
        newest appended in this step."""
        if self.packing is None:
            return self.heads * resident * self.entry_bytes
        settled = max(0, resident - 1)
        return self._bytes(resident, self.packing.packed_keys(settled), self.packing.packed_values(settled))

    def payload_through(self, resident: int) -> int:
        """`payload` summed over reads of 1 … resident entries, in closed form."""
        if self.packing is None:
            return self.heads * self.entry_bytes * triangle(resident)
        residual = self.packing.residual
        blocks, rest = divmod(resident, residual)
        # Settled entries run over 0 … resident − 1; keys leave settled mod residual of them unpacked.
        keys = triangle(resident - 1) - blocks * triangle(residual - 1) - triangle(rest - 1)
        values = triangle(max(0, resident - 1 - residual))
        return self._bytes(triangle(resident), keys, values)

    def _bytes(self, resident: int, keys: int, values: int) -> int:
        p, w = self.packing, self.itemsize
        full = (2 * resident - keys - values) * self.head_dim * w
        codes = (keys + values) * (self.head_dim * p.bits // 8)
        # Keys are packed in whole blocks, so `keys` is a multiple of the group.
        scales = (keys // p.group * self.head_dim + values * (self.head_dim // p.group)) * 2 * w
        return self.heads * (full + codes + scales)

    def crest(self, resident: int) -> int:
        """The largest count ≤ `resident` just before keys are packed, where `total` has a local maximum; 0 without
        packing."""
        return resident - resident % self.packing.residual if self.packing else 0

    def auxiliary(self, resident: int) -> int:
        """Bytes of everything else that must outlive the step: traits and remembered queries."""
        return self.auxiliary_over(resident, 1)

    def auxiliary_over(self, resident: int, steps: int) -> int:
        """`auxiliary` summed over steps that read `resident` entries per head altogether."""
        return resident * (self.heads * self.trait_bytes + self.shared_bytes) + steps * self.fixed_bytes

    def total(self, resident: int) -> int:
        return self.payload(resident) + self.auxiliary(resident)


def triangle(n: int) -> int:
    """1 + 2 + … + n; 0 for n = −1 too."""
    return n * (n + 1) // 2
