"""What a trial and a run cost: bytes a sequence, sequences that fit, seconds a step. No torch and no pydantic here.

The time is a lower bound by memory traffic with a floor for the host: every decode step reads all weights once and
every sequence's cache once. Prefill, compression events and the last sequences, which run alone, come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from cask_eval.footprint import Footprint
from cask_eval.plan import weigh
from cask_eval.schedule import Schedule
from cask_eval.shapes import Gpu, Shape

__all__ = ["Assumed", "Run", "fitting", "run", "slot_bytes"]


@dataclass(frozen=True)
class Assumed:
    """What nobody knows before a study runs. prompt_tokens, output_tokens: of a mean trial. longest_prompt: tokens of
    the longest prompt. slots: the most that run
    side by side. reserve: bytes of the card that are neither weights nor cache. efficiency: share of the memory's
    bandwidth that decoding reaches. step_seconds: the least time of a step, which the host takes.
    tokens_per_second: measured, in place of the model of time; None where it was not."""

    prompt_tokens: int
    longest_prompt: int
    output_tokens: int
    slots: int
    reserve: int
    efficiency: float
    step_seconds: float
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Run:
    """One arm in one cell. mean_cache: in full-precision entries per layer and head. slot_bytes: memory of a sequence
    that has to hold `max_new_tokens`. slots: that run side by side; 0 where not one fits. rate: tokens a second, None
    where nothing fits."""

    mean_cache: Fraction
    slot_bytes: int
    slots: int
    rate: float | None


def slot_bytes(schedule: Schedule, footprint: Footprint, prompt_tokens: int, max_new_tokens: int) -> int:
    """Bytes of keys, values and the method's own state that one sequence can come to hold, over all its chains."""
    return sum(footprint.total(part.capacity(prompt_tokens, max_new_tokens)) for part in schedule.split())


def fitting(shape: Shape, itemsize: int, gpu: Gpu, each: int, reserve: int) -> int:
    """Sequences of `each` bytes that fit beside the weights."""
    return max(0, gpu.memory - shape.parameters * itemsize - reserve) // each


def run(
    schedule: Schedule, footprint: Footprint, shape: Shape, itemsize: int, gpu: Gpu, max_new_tokens: int, a: Assumed
) -> Run:
    """The costs of one arm at one budget."""
    account = weigh(schedule, footprint, a.prompt_tokens, a.output_tokens, shape.layers)
    each = slot_bytes(schedule, footprint, a.prompt_tokens, max_new_tokens)
    slots = min(a.slots, fitting(shape, itemsize, gpu, each, a.reserve))
    rate = a.tokens_per_second
    if rate is None and slots:
        read = shape.parameters * itemsize + slots * account.mean * footprint.entry_bytes * footprint.heads
        rate = slots / max(a.step_seconds, float(read) / (gpu.bandwidth * a.efficiency))
    return Run(account.mean, each, slots, rate if slots else None)
