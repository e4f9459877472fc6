"""Compiles every kernel for a GPU that need not be there: what the interpreter runs may still be no valid Triton.

    python tests/compute_kernels/compiled.py [COMPUTE_CAPABILITY [HEAD_DIMxGROUPS …]]

Each kernel is launched as usual on CPU tensors, but a launch only compiles what was launched, to machine code where
`ptxas` is at hand.
"""

import sys

import torch
import triton
from cask_methods.kernels import diverse, top_k, trig_score
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cask_eval.engine.kernels import attention, compact

_TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


class Compiled:
    """Stands for a jitted function: a launch compiles it."""

    def __init__(self, function, target, seen):
        self.function, self.target, self.seen = function, target, seen

    def __getitem__(self, grid):
        return self._launch

    def _launch(self, *args, num_warps=4, num_stages=3, enable_fp_fusion=True, **given):
        given |= dict(zip(self.function.arg_names, args))
        # As the launcher does: a size of one is a constant.
        ones = {name for name, value in given.items() if type(value) is int and value == 1}
        fixed = {p.name: given[p.name] for p in self.function.params if p.is_constexpr or p.name in ones}
        signature = {name: "constexpr" if name in fixed else _type(value) for name, value in given.items()}
        # And pointers and sizes that are divisible by 16 make for wide loads.
        places = {name: i for i, name in enumerate(self.function.arg_names)}
        aligned = {
            (places[name],): [["tt.divisibility", 16]]
            for name, value in given.items()
            if name not in fixed and (torch.is_tensor(value) or (type(value) is int and value % 16 == 0))
        }
        source = ASTSource(self.function, signature, fixed, aligned)
        options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": enable_fp_fusion}
        made = triton.compile(source, target=self.target, options=options)
        assert made.asm["ptx"]
        self.seen.append((self.function.__name__, made.metadata.shared, sorted(made.asm)))


def _type(value):
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32" if abs(value) < 1 << 31 else "i64"


def launches(dim, groups, dtype, rows, heads, n):
    """Every kernel in every variant, at the shapes of a model with heads of `dim` and so many query heads a head."""
    layers = 2
    keys = torch.zeros(layers, rows, heads, n, dim, dtype=dtype)
    query, counts = keys.new_zeros(rows, heads * groups, 1, dim), torch.zeros(rows, heads, dtype=torch.int64)
    for width in sorted({n, min(n, 192)}):
        for bias in (None, keys.new_zeros(rows, 1, 1, width)):
            at = keys[0, :, :, :width]
            attention._attend(query, at, at, counts, 1, bias, 0.1)
    positions = torch.zeros(keys.shape[:4], dtype=torch.int64)
    mask, into = positions > 0, keys.clone()
    to = into, into, positions.clone(), counts[None]
    compact.place(torch.arange(rows), keys, keys, positions, mask, -(-n // 2), *to)
    scores, quota = torch.zeros(keys.shape[:4]), torch.zeros(keys.shape[:3], dtype=torch.int64)
    top_k.highest(scores, mask, quota)
    flat, unit = torch.zeros(6, n), torch.zeros(6, n, dim)
    for penalty in ("max", "mean", "sum"):
        for gram in (None, torch.zeros(6 * n, n)):
            size = torch.zeros(6, 1, dtype=torch.int64)
            diverse.pick(flat, flat, size, flat[:, :1], size[:, 0], 64, unit, gram, penalty)
    centre = torch.zeros(layers, heads * groups, dim // 2)
    for turns in ((), *(torch.zeros(a, rows, dim // 2, dtype=torch.complex128) for a in (1, 17))):
        for flag in (True, False):
            trig_score.score(keys, mask, centre, centre, centre, turns, normalise=flag, largest=flag)


def main(capability, shapes):
    seen, target = [], GPUTarget("cuda", int(capability), 32)
    for module in (attention, compact, top_k, diverse, trig_score):
        for name, value in list(vars(module).items()):
            if isinstance(value, triton.JITFunction) and name not in _CALLED:
                setattr(module, name, Compiled(value, target, seen))
    for shape in shapes:
        for dtype in (torch.bfloat16, torch.float32):
            launches(*map(int, shape.split("x")), dtype, 3, 4, 640)
            launches(*map(int, shape.split("x")), dtype, 1, 1, 1)
    shared = {name: max(s for n, s, _ in seen if n == name) for name, *_ in seen}
    print(f"Triton {triton.__version__}, sm_{capability}, {len(seen)} launches as {' '.join(seen[-1][2])}:")
    print(f"{', '.join(sorted(shared))} compile; bytes of shared memory: {shared}")


# Called by kernels, never launched.
_CALLED = ("_ordinal", "_turned")

if __name__ == "__main__":
    main(*sys.argv[1:2] or ["90"], sys.argv[2:] or ["128x7", "128x4", "64x3", "80x1", "256x8"])
