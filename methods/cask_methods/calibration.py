"""Calibration statistics of pre-RoPE queries: what TriAttention-like scorers know about the model.

Half pairing throughout: component f of a head vector x is the complex number x[f] + i·x[f + F], F = head_dim / 2.
Per layer, query head and frequency the statistics are the centre c = E[q] and the mean magnitude m = E|q|
(https://arxiv.org/abs/2604.04921). Files are safetensors; the official ``.pt`` files are read too.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cask_eval.engine.contract import Geometry
from cask_eval.errors import MethodError

FORMAT = "cask-calibration/1"
_HEAD = re.compile(r"layer(\d+)_head(\d+)")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of the pre-RoPE queries.

    c_re, c_im, m: [L, Hq, F] floating, the centre and the mean magnitude. Scores are computed in their dtype.
    inv_freq: [F] fp64 of the model they were measured on, or None where the file does not say.
    model: the model's name. provenance: how they were measured; JSON-able, carried along and never interpreted.
    """

    c_re: Tensor
    c_im: Tensor
    m: Tensor
    inv_freq: Tensor | None = None
    model: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    _copies: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        if not (self.c_re.ndim == 3 and self.c_re.shape == self.c_im.shape == self.m.shape):
            raise MethodError(
                f"calibration tensors must share one shape [layers, query heads, frequencies], not "
                f"{tuple(self.c_re.shape)}, {tuple(self.c_im.shape)} and {tuple(self.m.shape)}"
            )
        for name in ("c_re", "c_im", "m"):
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise MethodError(f"calibration tensor {name} holds NaN or infinity")

    @property
    def layers(self) -> int:
        return self.m.shape[0]

    @property
    def query_heads(self) -> int:
        return self.m.shape[1]

    @property
    def head_dim(self) -> int:
        return 2 * self.m.shape[2]

    @property
    def concentration(self) -> Tensor:
        """R = |c| / m, [L, Hq, F]: the mean resultant length, 1 where every query points the same way."""
        return torch.hypot(self.c_re, self.c_im) / self.m.clamp_min(torch.finfo(self.m.dtype).tiny)

    def to(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Statistics:
        """The same statistics elsewhere; copies are remembered, so that an event costs no transfer."""
        dtype = dtype or self.m.dtype
        if torch.device(device) == self.m.device and dtype == self.m.dtype:
            return self
        key = (str(device), dtype)
        if key not in self._copies:
            moved = {k: getattr(self, k).to(device=device, dtype=dtype) for k in ("c_re", "c_im", "m")}
            self._copies[key] = replace(self, **moved)
        return self._copies[key]

    def check(self, geometry: Geometry) -> None:
        """Raises MethodError, naming every disagreement, unless the statistics fit the model."""
        faults = [
            f"{what}: the file has {mine}, the model {theirs}"
            for what, mine, theirs in (
                ("layers", self.layers, geometry.layers),
                ("query heads", self.query_heads, geometry.query_heads),
                ("head_dim", self.head_dim, geometry.head_dim),
            )
            if mine != theirs
        ]
        if not faults and self.inv_freq is not None:
            mine, theirs = self.inv_freq.double().cpu(), geometry.inv_freq.double().cpu()
            worst = ((mine - theirs).abs() / theirs.abs().clamp_min(1e-300)).max().item()
            if worst > 1e-5:
                faults.append(f"rotary frequencies differ by up to {worst:.1e} relative (1e-5 is allowed)")
        if faults:
            raise MethodError(
                f"the calibration statistics ({self.model or 'model not named'}) do not fit the model "
                f"{geometry.name}: " + "; ".join(faults)
            )

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file. The same statistics give the same bytes."""
        tensors = {k: getattr(self, k).contiguous().cpu() for k in ("c_re", "c_im", "m")}
        if self.inv_freq is not None:
            tensors["inv_freq"] = self.inv_freq.double().contiguous().cpu()
        # One metadata key: the file format does not fix the order of several.
        about = {"format": FORMAT, "model": self.model, "head_dim": self.head_dim, "provenance": self.provenance}
        save_file(tensors, str(path), metadata={"cask": json.dumps(about, sort_keys=True)})


def load(path: str | Path) -> Statistics:
    """Statistics from a safetensors file of `Statistics.save`, or from an official ``.pt`` file. Raises MethodError."""
    path = Path(path)
    if not path.is_file():
        raise MethodError(f"calibration file {path} does not exist")
    if path.suffix == ".pt":
        return load_official(path)
    try:
        with safe_open(str(path), framework="pt") as f:
            about = json.loads((f.metadata() or {}).get("cask", "{}"))
            tensors = {k: f.get_tensor(k) for k in f.keys()}
    except (SafetensorError, ValueError) as e:
        raise MethodError(f"calibration file {path} cannot be read: {e}") from None
    missing = [k for k in ("c_re", "c_im", "m") if k not in tensors]
    if about.get("format") != FORMAT or missing:
        raise MethodError(
            f"calibration file {path} is not a {FORMAT} file" + (f"; it lacks {', '.join(missing)}" if missing else "")
        )
    return Statistics(
        tensors["c_re"],
        tensors["c_im"],
        tensors["m"],
        tensors.get("inv_freq"),
        about.get("model", ""),
        about.get("provenance", {}),
    )


def load_official(path: str | Path) -> Statistics:
    """Statistics from a file in the schema of github.com/WeianMao/triattention (``metadata`` and ``stats``).

    Such files do not record the rotary frequencies, so `Statistics.check` cannot compare those. Raises MethodError
    when the file is damaged, is not in half pairing, or lacks a head.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
        meta, stats = data["metadata"], data["stats"]
        style, head_dim = meta.get("rope_style", "half"), int(meta["head_dim"])
        named = sorted((int(a), int(b)) for a, b in (_HEAD.fullmatch(k).groups() for k in stats))
    except Exception as e:  # unpickling a damaged file can raise nearly anything
        raise MethodError(f"{path} is not a TriAttention statistics file: {type(e).__name__}: {e}") from None
    if style != "half":
        raise MethodError(f"{path}: rope_style is {style!r}; only 'half' pairing is supported")
    if not named:
        raise MethodError(f"{path} holds no heads")
    layers, heads = 1 + max(n[0] for n in named), 1 + max(n[1] for n in named)
    lacking = sorted({(a, b) for a in range(layers) for b in range(heads)} - set(named))
    if lacking:
        shown = ", ".join(f"layer {a} head {b}" for a, b in lacking[:8])
        raise MethodError(
            f"{path} lacks {len(lacking)} of {layers * heads} heads: {shown}" + (" …" if len(lacking) > 8 else "")
        )
    out = {k: torch.empty(layers, heads, head_dim // 2) for k in ("q_mean_real", "q_mean_imag", "q_abs_mean")}
    for key, entry in stats.items():
        layer, head = map(int, _HEAD.fullmatch(key).groups())
        for k, into in out.items():
            value = entry.get(k)
            if value is None or tuple(value.shape) != (head_dim // 2,):
                raise MethodError(f"{path}: {key}.{k} is missing or not of {head_dim // 2} frequencies")
            into[layer, head] = value.float()
    about = {k: v for k, v in meta.items() if isinstance(v, (str, int, float, bool)) and k != "model_name"}
    return Statistics(
        out["q_mean_real"],
        out["q_mean_imag"],
        out["q_abs_mean"],
        None,
        str(meta.get("model_name", "")),
        {"source": "triattention .pt", **about},
    )


class Accumulator:
    """Streaming moments of pre-RoPE queries, in fp64; adding in chunks equals adding at once."""

    def __init__(
        self, layers: int, query_heads: int, head_dim: int, *, inv_freq: Tensor | None = None, model: str = ""
    ) -> None:
        shape = (layers, query_heads, head_dim // 2)
        self.inv_freq, self.model = inv_freq, model
        self._re, self._im, self._abs = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
        self.tokens = [0] * layers

    def add(self, layer: int, queries: Tensor) -> None:
        """Adds queries [tokens, Hq, D] of one layer, as they are just before the rotary embedding (after any query
        normalisation). Raises MethodError on a wrong shape and FloatingPointError on NaN or infinity."""
        heads, pairs = self._re.shape[1:]
        if queries.ndim != 3 or tuple(queries.shape[1:]) != (heads, 2 * pairs):
            raise MethodError(f"queries of shape {tuple(queries.shape)}; [tokens, {heads}, {2 * pairs}] is needed")
        q = queries.detach().double()
        re, im = q[..., :pairs], q[..., pairs:]
        sums = torch.stack([re.sum(0), im.sum(0), torch.hypot(re, im).sum(0)]).cpu()
        if not bool(torch.isfinite(sums).all()):
            raise FloatingPointError(f"the queries of layer {layer} hold NaN or infinity")
        self._re[layer] += sums[0]
        self._im[layer] += sums[1]
        self._abs[layer] += sums[2]
        self.tokens[layer] += queries.shape[0]

    def finish(self, provenance: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> Statistics:
        """The statistics. Raises MethodError when a layer saw no token, or layers saw different numbers of them."""
        if len(set(self.tokens)) != 1 or not self.tokens[0]:
            raise MethodError(f"every layer must see the same tokens, at least one; they saw {self.tokens}")
        n = self.tokens[0]
        re, im, mean = ((x / n).to(dtype) for x in (self._re, self._im, self._abs))
        return Statistics(re, im, mean, self.inv_freq, self.model, {**(provenance or {}), "tokens": n})
