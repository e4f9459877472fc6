"""A function of fixed tensors, run once in Python and from then on without it.

A decode step reads and writes the same buffers every time, so that what it does is a fixed list of operators. On a GPU
that list is captured as a CUDA graph; elsewhere a tape keeps it and calls the operators one after the other, which
leaves out the Python of every module above them. Both do what the function did, operator by operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class NotRecordable(RuntimeError):
    """The function looks at values, or makes tensors of sizes that depend on them: another call would do something
    else."""


Result = Tensor | None
Function = Callable[[], Result]


def record(function: Function, device: torch.device, pool: Any = None) -> tuple[Result, Function]:
    """What one call of `function` returns, and the same function without its Python: calling that does to the same
    tensors what `function` did, and returns what `function` returned. `pool`: as for `graph`. Raises NotRecordable;
    what `function` had done by then is done."""
    return graph(function, pool) if device.type == "cuda" else tape(function)


def tape(function: Function) -> tuple[Result, Function]:
    """`record` by the list of operators that the call ran. Tensors that `function` did not make are kept by reference,
    and so are views of them: those have the same storage in every call, and are not taken again.

    What looks at values without an operator (``tolist``, ``numpy``) goes unnoticed."""
    with _Recorder() as recorder:
        out = function()
    return out, _written(recorder.calls, out)


def graph(function: Function, pool: Any = None) -> tuple[Result, Function]:
    """`record` as a CUDA graph. Capturing runs `function` on paper only; the call that counts is the first replay. What
    is returned lies in memory that the next replay overwrites. `pool` (`torch.cuda.graph_pool_handle`) is memory that
    several graphs share, of which no two run at once; it is over when the last of them is."""
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(captured, pool=pool):
            out = function()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # says something about the step, and nothing about the trials in it
        raise NotRecordable(str(error)) from error

    def replay() -> Result:
        captured.replay()
        return out

    return replay(), replay


_LOOKS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_ALSO = (torch.ops.aten.is_nonzero, torch.ops.aten.item)  # as they arrive in inference mode, without a tag


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(tag in func.tags for tag in _LOOKS) or func.overloadpacket in _ALSO:
            raise NotRecordable(f"{func} depends on the values of tensors")
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        # Held until the tape is written, so that no two tensors have one id.
        self.calls.append((func, args, kwargs, out))
        return out


def _written(calls: list[tuple[Any, tuple, dict, Any]], result: Result) -> Function:
    """A Python function of nothing but these calls. Intermediate tensors share a few variables, so that each is freed
    after its last use."""
    made: dict[int, int] = {}  # id of a tensor → the call that makes it anew every time
    last: dict[int, int] = {}  # … → the last call that reads it
    kept = []
    for number, (func, args, kwargs, out) in enumerate(calls):
        inputs = [x for x in _leaves([args, *kwargs.values()]) if isinstance(x, Tensor)]
        outs = list(out) if isinstance(out, (tuple, list)) else [out]
        fresh = [x for x in outs if isinstance(x, Tensor) and not any(x is y for y in inputs)]
        if not any(id(x) in made for x in inputs) and not _writes(func) and _all_views(fresh, inputs):
            continue
        last.update((id(x), number) for x in inputs if id(x) in made)
        made.update((id(x), number) for x in fresh)
        kept.append((number, func, args, kwargs, outs, out))
    last[id(result)] = len(calls)

    fixed: dict[str, Any] = {}  # what the text names and does not make
    names: dict[int, str] = {}
    free: list[str] = []
    lines, variables = [], 0

    def text(x: Any) -> str:
        if isinstance(x, (tuple, list)):
            return f"[{', '.join(map(text, x))}]"
        if isinstance(x, Tensor) and id(x) in names:
            return names[id(x)]
        if x is None or isinstance(x, (bool, int)):
            return repr(x)
        fixed[name := f"c{len(fixed)}"] = x
        return name

    for number, func, args, kwargs, outs, out in kept:
        given = ", ".join([*map(text, args), *(f"{k}={text(v)}" for k, v in kwargs.items())])
        targets = []
        for x in outs:
            if made.get(id(x)) != number:
                targets.append("_")
                continue
            if not free:
                free.append(f"v{variables}")
                variables += 1
            names[id(x)] = free.pop()
            targets.append(names[id(x)])
        fixed[name := f"f{number}"] = func._op
        several = "," if isinstance(out, (tuple, list)) else ""
        lines.append(f"{', '.join(targets)}{several} = {name}({given})")
        over = {id(x) for x in _leaves([args, *kwargs.values(), outs]) if isinstance(x, Tensor)}
        free += [names.pop(i) for i in over if i in names and last.get(i, -1) <= number]
    lines.append(f"return {text(result)}")
    body = "\n    ".join(lines)
    scope: dict[str, Any] = {}
    given = ", ".join(f"{name}={name}" for name in fixed)  # read faster as arguments than as globals
    exec(compile(f"def run({given}):\n    {body}\n", "<tape>", "exec"), fixed, scope)
    return scope["run"]


def _leaves(x: Any) -> Iterator[Any]:
    for y in x:
        if isinstance(y, (tuple, list)):
            yield from _leaves(y)
        else:
            yield y


def _all_views(fresh: list[Tensor], inputs: list[Tensor]) -> bool:
    """Whether these are views of the inputs and not copies; nothing at all is none."""
    storages = {x.untyped_storage()._cdata for x in inputs}
    return bool(fresh) and all(x.untyped_storage()._cdata in storages for x in fresh)


def _writes(func: Any) -> bool:
    return any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
