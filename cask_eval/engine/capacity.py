"""How many sequences fit into the memory that is free."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from cask_eval.engine.method import Policy
from cask_eval.engine.model import geometry
from cask_eval.engine.slots import SlotCache
from cask_eval.schedule import Schedule

# Beyond these a step takes as much longer as it has more rows: nothing is gained.
MOST = {"cpu": 64, "cuda": 512}

# Of the free memory, what slots may take; the rest is for prompts and activations.
SHARE = 0.8

# An event gathers what its rows hold, keeps a sorted copy and puts it back; all rows may have theirs at once.
COPIES = 3

MEMINFO = Path("/proc/meminfo")

# Of the machine's memory, what this process may count on: less where others like it run beside it.
_mine = 1.0

# Logits as they come, and as sampling sorts and sums them (fp32 and fp64).
LOGIT_BYTES = 32


def only(share: float) -> None:
    """From now on this process counts on `share` of the machine's free memory (a GPU's is its own)."""
    global _mine
    _mine = min(1.0, share)


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses now, in bytes. Where the system does not say what it could free (other than Linux), a
    quarter of what there is."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if MEMINFO.exists():
        # Not what is free, which is little on a machine that has been on for a while: caches give way.
        found = re.search(r"^MemAvailable: +(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)
        if found:
            return int((int(found[1]) << 10) * _mine)
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 * _mine)


def slot_bytes(model: PreTrainedModel, policy: Policy, capacity: int) -> int:
    """Bytes of one slot that holds up to `capacity` entries a head."""
    # Built without memory.
    return SlotCache(geometry(model), 1, max(1, capacity), "meta", policy.needs, policy.footprint.packing).slot_bytes


def fitting(
    model: PreTrainedModel,
    requests: Sequence[Any],
    policy: Policy,
    schedule: Schedule,
    room: Callable[[Any], int],
    free: int | None = None,
) -> int:
    """Sequences that can be in flight at once, at least one, and no more than there are or than pay. room: as in
    `Flight`. free: bytes, of the model's device by default."""
    if not requests:
        return 1
    free = free_bytes(model.device) if free is None else free
    longest = max(len(r.prompt_ids) + room(r) for r in requests)
    capacity = max(schedule.capacity(len(r.prompt_ids), room(r)) for r in requests)
    each = slot_bytes(model, policy, capacity) * (1 + COPIES)
    each += model.config.get_text_config().vocab_size * LOGIT_BYTES + longest * 16
    most = MOST.get(model.device.type, MOST["cuda"])
    return max(1, min(int(free * SHARE) // each, most, len(requests)))
