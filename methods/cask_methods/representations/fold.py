"""Entries that a selection folds together become one: CASK's materialisation (cask.md §1.4 step 7)."""

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

    V* = Σ w_i V_i / Σ w_i in fp32, with w_i = n_i·max(σ_i, 1e-4) for operator ``keepkv`` (n: tokens that an entry
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
            return Needs(traits={"count": COUNT})
        return Needs(traits={"count": COUNT, "log_mass": Trait(shared=True)}, bias="log_mass")

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
        for_values, for_keys = ((x.float()[None, :, None]) for x in (shares * shrink, shares))
        at, home = _positions(entries, groups.members), _positions(entries, groups.reps)
        keys, values = [], []
        for part in _parts(entries, groups):
            values.append(groups.replaced(entries.values[part], for_values @ groups.of_members(entries.values[part])))
            if self.representative == "weighted_latest":
                plain = unrotate(groups.of_members(entries.keys[part]), at, entries.geometry)
                mean = rotate(for_keys @ plain, home, entries.geometry)
                keys.append(groups.replaced(entries.keys[part], mean))
        return replace(entries, keys=torch.cat(keys) if keys else entries.keys, values=torch.cat(values))

    def _measures(
        self, before: Entries, folded: Entries, groups: Groups, shares: Tensor, count: Tensor, after: Tensor
    ) -> Mapping[str, Tensor]:
        geometry = before.geometry
        kappa = horizon(geometry.inv_freq.to(shares.device))
        at, home = _positions(before, groups.members), _positions(before, groups.reps)
        group, shared = groups.group[None, :, None, None], shares[None, :, None]
        log_n = count.gather(-1, groups.members).clamp_min(1).log()[None, :, None, None]
        log_sum = after.gather(-1, groups.reps).clamp_min(1).log()[None, :, None, None]
        sums: dict[str, Tensor] = {}

        def add(name: str, x: Tensor) -> None:
            """x: [l, R, …, g], of which groups that exist count."""
            rows = x.double().masked_fill(~groups.exists.view(1, len(count), *(1,) * (x.ndim - 3), -1), 0)
            rows = rows.movedim(1, 0).flatten(1).sum(1) / (x[0, 0].numel() // x.shape[-1] * geometry.layers)
            sums[name] = sums.get(name, 0) + rows

        for part in _parts(before, groups):
            keys, reps = groups.of_members(before.keys[part]), groups.of_reps(folded.keys[part])
            plain = unrotate(reps, home, geometry)
            own = groups.group.clamp_min(0)[None, :, None, :, None].expand_as(keys)
            add("kappa_dispersion", dispersion(unrotate(keys, at, geometry), plain.gather(3, own), shared, kappa))
            if self.statistics is None:
                continue
            query = self._queries(before, part)
            z, z_rep = (query @ k.transpose(-1, -2) / geometry.head_dim**0.5 for k in (keys, reps))
            add("log_mass_error", log_mass_error(z, group, z_rep))
            add("log_mass_error_counted", log_mass_error(z + log_n, group, z_rep + log_sum))
        number = groups.exists.sum(-1)
        return {k: (v / number).masked_fill(number == 0, torch.nan) for k, v in sums.items()}

    def _queries(self, entries: Entries, part: slice) -> Tensor:
        """The calibrated mean queries at the next position, [l, R, H, G, D] fp32."""
        statistics, geometry = self.statistics.to(entries.keys.device), entries.geometry
        centre = torch.cat([statistics.c_re[part], statistics.c_im[part]], -1).float()[:, None]
        centre = centre.expand(-1, len(entries.length), -1, -1)
        return rotate(centre, entries.length[:, None], geometry).unflatten(2, (geometry.kv_heads, geometry.groups))


def _positions(entries: Entries, at: Tensor) -> Tensor:
    """[1, R, 1, k]: logical positions of the entries `at` [R, k], which are the same in all layers and heads."""
    return entries.positions[0, :, 0].gather(-1, at)[None, :, None]


def _parts(entries: Entries, groups: Groups) -> Iterator[slice]:
    """Slices of layers that need a bounded amount of memory."""
    layers, rows, heads, _, dim = entries.keys.shape
    per_layer = rows * groups.members.shape[1] * max(heads * dim, entries.geometry.query_heads)
    step = max(1, _CHUNK_ELEMENTS // max(1, per_layer))
    for start in range(0, layers, step):
        yield slice(start, min(start + step, layers))
