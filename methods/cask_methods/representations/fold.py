"""Entries that a selection folds together become one: CASK's materialisation (docs/DEFINITIONS.md §6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries, Host, Needs, Selection, Trait
from cask_eval.errors import MethodError
from cask_methods.calibration import Statistics, load
from cask_methods.diagnostics import dispersion, horizon, log_mass_error
from cask_methods.representations.groups import Groups
from cask_methods.rotary import rotate, unrotate
from cask_methods.selectors.two_stage import COUNT

_CHUNK_ELEMENTS = 1 << 25


@dataclass(frozen=True)
class Fold:
    """A group of entries, one and the same in all layers and KV heads, becomes its representative.

    V* = Σ w_i V_i / Σ w_i, with w_i = n_i·max(σ_i, 1e-4) for operator ``keepkv`` (n: tokens that an entry
    stands for, σ: the selection's ``support``) and w_i = n_i for ``mean``. A group of one stays as it is, bit for bit.

    representative: ``score_max_source`` leaves the representative's cached key as it is; ``weighted_latest`` un-rotates
        the members' keys, takes their mean by w and rotates it to the representative's position.
    normaliser: ``sum`` divides values by Σ w; ``published`` by max(Σ w, 1), which shrinks them when supports are small.
    log_mass: whether log n is added to an entry's attention logits, so that it weighs as much as n alike entries.
    statistics: calibrated queries for the log-mass errors, set by `bind`; without them these are not measured.
    """

    name: ClassVar[str] = "fold"

    operator: str = "keepkv"
    representative: str = "score_max_source"
    normaliser: str = "sum"
    log_mass: bool = False
    statistics: Statistics | None = None

    @property
    def needs(self) -> Needs:
        if not self.log_mass:
            return Needs(traits={"count": COUNT}, mass="count")
        return Needs(traits={"count": COUNT, "log_mass": Trait(shared=True)}, bias="log_mass", mass="count")

    def bind(self, host: Host) -> Fold:
        """With the model's calibrated queries, where it has any. Raises MethodError when they do not fit."""
        if host.calibration is None:
            return self
        statistics = load(host.calibration)
        statistics.check(host.geometry)
        return replace(self, statistics=statistics)

    def represent(self, entries: Entries, selection: Selection) -> tuple[Entries, Mapping[str, Tensor]]:
        """measures, means over an event's groups of at least two, layers and heads, NaN for a row without any:

        - kappa_dispersion: Σ_i a_i d_κ(k_i, k̃) between pre-RoPE keys, a_i = w_i / Σ w, k̃ the representative's new key;
        - log_mass_error: |log Σ_i e^{z_i} − z*| for every query head's calibrated mean query at the next position, z
          being attention logits as they are without log n;
        - log_mass_error_counted: |log Σ_i n_i e^{z_i} − (z* + log Σ_i n_i)|, the same with log n.

        Raises MethodError when the selection is not shared, or gives no supports and the operator needs them.
        """
        if selection.into is None:
            return entries, {}
        if selection.into.shape[0] != 1 or selection.into.shape[2] != 1:
            raise MethodError("folding needs one selection for all layers and heads")
        into = selection.into[0, :, 0]
        groups = Groups.of(into)
        if groups is None:
            return entries, {}
        count = entries.traits["count"][0, :, 0].long()
        mass = groups.belongs * self._weights(entries, count).gather(-1, groups.members)[:, None]
        total = mass.sum(-1, keepdim=True)
        shares = mass / torch.where(total > 0, total, 1)
        folded = self._fold(entries, groups, shares, total)
        stands_for = torch.zeros_like(count).scatter_add(-1, into.clamp_min(0), torch.where(into >= 0, count, 0))
        after = torch.where(groups.stands, stands_for, count)
        traits = {**entries.traits, "count": after.to(COUNT.dtype)[None, :, None]}
        if self.log_mass:
            held = entries.traits["log_mass"]
            traits["log_mass"] = torch.where(groups.stands, after.log(), held[0, :, 0])[None, :, None].to(held.dtype)
        measures = self._measures(entries, folded, groups, shares, count, after)
        return replace(folded, traits=traits), measures

    def _weights(self, entries: Entries, count: Tensor) -> Tensor:
        """w, [R, n] fp64."""
        if self.operator == "mean":
            return count.double()
        if "support" not in entries.traits:
            raise MethodError("operator 'keepkv' weighs by supports, and the selection gives none; use 'mean'")
        return count * entries.traits["support"][0, :, 0].double().clamp_min(1e-4)

    def _fold(self, entries: Entries, groups: Groups, shares: Tensor, total: Tensor) -> Entries:
        """shares: [R, g, m]. total: [R, g, 1], Σ w."""
        shrink = total / total.clamp_min(1) if self.normaliser == "published" else 1
        at, home = _positions(entries, groups.members), _positions(entries, groups.reps)
        keys, values = [], []
        for part in _parts(entries, groups):
            members = groups.of_members(entries.values[part])
            values.append(groups.replaced(entries.values[part], _mean(shares * shrink, members)))
            if self.representative == "weighted_latest":
                plain = unrotate(groups.of_members(entries.keys[part]), at, entries.geometry)
                mean = rotate(_mean(shares, plain), home, entries.geometry)
                keys.append(groups.replaced(entries.keys[part], mean))
        return replace(entries, keys=_joined(keys) if keys else entries.keys, values=_joined(values))

    def _measures(
        self, before: Entries, folded: Entries, groups: Groups, shares: Tensor, count: Tensor, after: Tensor
    ) -> Mapping[str, Tensor]:
        geometry = before.geometry
        kappa = horizon(geometry.inv_freq.to(shares.device))
        at, home = _positions(before, groups.members), _positions(before, groups.reps)
        log_n = count.gather(-1, groups.members).clamp_min(1).log().unsqueeze(-1)
        log_sum = after.gather(-1, groups.reps).clamp_min(1).log().unsqueeze(-1)
        sums: dict[str, Tensor] = {}

        def add(name: str, x: Tensor) -> None:
            """x: [R, g, …], of which groups that exist count."""
            x = x.double().masked_fill(~groups.exists.unsqueeze(-1), 0)
            sums[name] = sums.get(name, 0) + x.sum((1, 2))

        for part in _parts(before, groups):
            keys, reps = groups.of_members(before.keys[part]), groups.of_reps(folded.keys[part])
            plain = unrotate(reps, home, geometry)
            own = groups.group.clamp_min(0)[..., None, None].expand_as(keys)
            apart = dispersion(unrotate(keys, at, geometry), plain.gather(1, own), shares, kappa)
            add("kappa_dispersion", apart / (geometry.layers * geometry.kv_heads))
            if self.statistics is None:
                continue
            query = self._queries(before, part)
            z, z_rep = (_logits(query, k) for k in (keys, reps))
            heads = geometry.layers * geometry.query_heads
            add("log_mass_error", log_mass_error(z, groups.group, z_rep) / heads)
            add("log_mass_error_counted", log_mass_error(z + log_n, groups.group, z_rep + log_sum) / heads)
        number = groups.exists.sum(-1)
        return {k: (v / number).masked_fill(number == 0, torch.nan) for k, v in sums.items()}

    def _queries(self, entries: Entries, part: slice) -> Tensor:
        """The calibrated mean queries at the next position, [R, l·H, G, D] fp32."""
        statistics, geometry = self.statistics.to(entries.keys.device), entries.geometry
        centre = torch.cat([statistics.c_re[part], statistics.c_im[part]], -1).float().flatten(0, 1)
        centre = centre.expand(len(entries.length), -1, -1)
        return rotate(centre, entries.length[:, None], geometry).unflatten(1, (-1, geometry.groups))


def _positions(entries: Entries, at: Tensor) -> Tensor:
    """[R, k, 1]: logical positions of the entries `at` [R, k], which are the same in all layers and heads."""
    return entries.positions[0, :, 0].gather(-1, at).unsqueeze(-1)


def _mean(shares: Tensor, members: Tensor) -> Tensor:
    """Σ a v, [R, g, X, D] fp32, of members [R, m, X, D] by `shares` [R, g, m]. Summed in fp64, so that a sequence's
    values do not depend on how many members others have."""
    return (shares @ members.double().flatten(2)).unflatten(2, members.shape[2:]).float()


def _logits(query: Tensor, keys: Tensor) -> Tensor:
    """q·k/√D, [R, k, X·G] of query [R, X, G, D] and keys [R, k, X, D]."""
    z = query @ keys.movedim(1, -1) / keys.shape[-1] ** 0.5
    return z.movedim(-1, 1).flatten(2)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _parts(entries: Entries, groups: Groups) -> Iterator[slice]:
    """Slices of layers that need a bounded amount of memory."""
    layers, rows, heads, _, dim = entries.keys.shape
    per_layer = rows * groups.members.shape[1] * max(heads * dim, entries.geometry.query_heads)
    step = max(1, _CHUNK_ELEMENTS // max(1, per_layer))
    for start in range(0, layers, step):
        yield slice(start, min(start + step, layers))
