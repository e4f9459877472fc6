"""Teacher-forced replay: given tokens are fed through a compressed cache, and what the model would have said is
compared with them and with what it says under its full cache.

All tokens of a sequence up to its next compression event pass in one forward. Residency, events and what methods see
are those of generating the same tokens one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cask_eval.engine.flight import Flight, Probe, Request, Running, checked
from cask_eval.engine.method import Policy
from cask_eval.engine.reading import READ_TOKENS
from cask_eval.engine.regions import Regions
from cask_eval.errors import MethodError
from cask_eval.fidelity import Tokens
from cask_eval.occupancy import compressed_from
from cask_eval.residency import Residency
from cask_eval.schedule import Schedule

# Logits, and columns of attention masks, that one forward makes, in elements.
_LOGITS = 1 << 27
_MASK = 1 << 26

# Tokens of a row in one forward: of a longer chunk, more of the attention is computed only to be masked.
_CHUNK = 256

# Logits that are compared at once, in elements: several temporaries of this size in fp32.
_COMPARED = 1 << 24


@dataclass(frozen=True)
class Given(Request):
    """A trial whose continuation is given, at least one token."""

    continuation: tuple[int, ...] = ()


@dataclass(frozen=True)
class Replayed:
    """What a replay found. tokens: numbers per given token. stands_for: tokens that the entries left in the end stand
    for, on average over layers and heads: more than the entries where some were merged. The rest as in
    `decode.Outcome`; `tokens` too depends on the company in its last digits, and is no part of what makes two equal."""

    key: Any
    residency: Residency
    kept_min: int | None
    kept_max: int | None
    regions: Regions
    tokens: Tokens = field(compare=False)
    stands_for: float = field(compare=False)
    allocated_bytes: int = field(default=0, compare=False)
    measures: dict[str, float] = field(default_factory=dict, compare=False)


@torch.inference_mode()
def replay(
    model: PreTrainedModel,
    requests: Iterable[Given],
    policy: Policy,
    schedule: Schedule,
    *,
    slots: int | None = None,
    full: Mapping[Any, Tensor] | None = None,
    chunk: int | None = None,
    probe: Probe | None = None,
) -> Iterator[Replayed]:
    """Feed every request's continuation; results come in the order they finish.

    schedule: as in `decode.generate`. full: key → logits [T, V] of the full cache (`dense`), for KL. chunk: the most
    tokens of a sequence in one forward (default 256, or fewer where memory asks for it); 1 is token by token. The
    logits of given token t are those before it is fed, the first from the prompt; the last token is not fed.

    Raises as `generate`, and MethodError when a continuation is empty or `full` lacks a request or has another length.
    """
    pending = checked(model, requests, policy, schedule)
    for request in pending:
        length = len(request.continuation)
        if not length:
            raise MethodError(f"trial {request.key!r} has an empty continuation; there is nothing to replay")
        if full is not None and (request.key not in full or len(full[request.key]) != length):
            found = "none" if request.key not in full else f"those of {len(full[request.key])}"
            raise MethodError(f"trial {request.key!r} needs full-cache logits of its {length} tokens, and has {found}")
    if not pending:
        return
    run = _Run(model, policy, schedule, pending, slots, full, chunk, probe)
    while run.busy:
        run.admit()
        yield from run.collect()
        if run.active:
            run.step()
            yield from run.collect()


@torch.inference_mode()
def dense(model: PreTrainedModel, request: Given) -> Tensor:
    """Logits [T, V] of every given token under the full cache, from one forward over prompt and continuation."""
    ids, count = [*request.prompt_ids, *request.continuation[:-1]], len(request.continuation)
    tokens = torch.tensor([ids], device=model.device)
    return model(input_ids=tokens, use_cache=False, logits_to_keep=count).logits[0]


@torch.inference_mode()
def compare(logits: Tensor, targets: Tensor, full: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of `logits` [N, V] against given tokens [N] and logits `full` [N, V]: nll [N] fp32 in nats, rank [N] int64 as in
    `fidelity.Tokens`, KL(full ‖ logits) [N] fp32 (0 without `full`), and whether the logits are sound [N] bool.

    All from fp32 log-probabilities. KL is not negative; what rounding takes below 0 is 0.
    """
    nll = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
    kl, rank, sound = torch.zeros_like(nll), torch.empty_like(targets), torch.empty_like(targets, dtype=torch.bool)
    ids = torch.arange(logits.shape[1], device=logits.device)
    step = max(1, _COMPARED // logits.shape[1])
    for start in range(0, len(targets), step):
        part = slice(start, start + step)
        some, target = logits[part], targets[part, None]
        mine = some.gather(1, target)
        rank[part] = 1 + ((some > mine) | ((some == mine) & (ids < target))).sum(1)
        sound[part] = torch.isfinite(some.amax(1)) & torch.isfinite(mine.squeeze(1))
        log_q = some.float().log_softmax(-1)
        nll[part] = -log_q.gather(1, target).squeeze(1)
        if full is not None:
            log_p = full[part].float().log_softmax(-1)
            # Where p is 0 its term is 0, whatever q is.
            kl[part] = torch.where(log_p == -torch.inf, 0, log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)
    return nll.clamp_min(0), rank, kl, sound


@torch.inference_mode()
def entropy(logits: Tensor) -> Tensor:
    """[N] fp32, in nats, of next-token distributions given by logits [N, V]."""
    step = max(1, _COMPARED // logits.shape[1])
    parts = []
    for start in range(0, len(logits), step):
        log_p = logits[start : start + step].float().log_softmax(-1)
        parts.append(-torch.where(log_p == -torch.inf, 0, log_p.exp() * log_p).sum(-1))
    return torch.cat(parts).clamp_min(0)


class _Run(Flight):
    def __init__(self, model, policy: Policy, schedule: Schedule, pending: deque, slots, full, chunk, probe):
        super().__init__(model, policy, schedule, pending, lambda r: len(r.continuation), slots, probe)
        self.full, self.vocabulary = full, model.config.get_text_config().vocab_size
        self.chunk = chunk or _CHUNK
        longest = max(len(r.continuation) for r in pending)
        self.nll, self.kl = self.state(longest, dtype=torch.float32), self.state(longest, dtype=torch.float32)
        self.rank, self.sound = self.state(longest), self.state(longest, dtype=torch.bool)

    def enter(self, target: Tensor, wave: list[Given]) -> None:
        for slot, request in zip(target.tolist(), wave):
            prompt, ids = len(request.prompt_ids), torch.tensor(request.continuation, device=self.device)
            self.history[slot, prompt : prompt + len(ids)] = ids

    def plan(self, row: Running) -> None:
        """The next event to the token: where the text decides, the text is known."""
        super().plan(row)
        if self.schedule.trigger == "boundary":
            coming = row.request.continuation[row.step : -1]
            chances = range(row.chance, min(row.wait, len(coming) + 1))
            row.wait = next((w for w in chances if coming[w - 1] in self.schedule.boundaries), row.wait)

    def emit(self, rows: slice, logits: Tensor, requests: list[Given]) -> None:
        slots = list(range(rows.start, rows.stop))
        self._record(slots, [0] * len(slots), [1] * len(slots), logits, requests)

    def step(self) -> None:
        """One forward for every occupied slot, over its tokens up to the next event, then the events that are due."""
        n, left = self.active, [self._ahead(row) for row in self.running]
        most = min(max(left), self._most(max(row.widest + ahead for row, ahead in zip(self.running, left))))
        counts = [min(ahead, most) for ahead in left]
        most = max(counts)
        needed = max(row.widest + count for row, count in zip(self.running, counts))
        self.make_room(needed)
        width = self.width(needed)
        position = self.position[:n]
        first = self.cache.fill[0, :n, 0] if self.reindexed else position
        if most == 1:
            read, held = self.cache.begin_step(n, width, position)
        else:
            even = all(row.widest == row.book.resident for row in self.running)
            fills = [row.book.resident for row in self.running]
            read, held = self.cache.begin_block(fills, counts, width, position, even)
        self.metered[:n] += read
        self.metered_bytes[:n] += held
        offset = torch.arange(most, device=self.device)
        # Beyond a row's own tokens stands whatever its history holds there; nothing sees it.
        at = (position[:, None] + offset).clamp_max(self.history.shape[1] - 1)
        logits = self.model(
            input_ids=self.history[:n].gather(1, at),
            position_ids=first[:, None] + offset,
            past_key_values=self.cache.layers_view,
            use_cache=True,
            slots=self.cache,
        ).logits
        given = torch.tensor(counts, device=self.device)
        self.position[:n] += given
        begun, due = [row.step for row in self.running], []
        for slot, (row, count) in enumerate(zip(self.running, counts)):
            row.book.grow(count)
            row.widest += count
            if row.wait is not None:
                row.wait -= count
                if not row.wait:
                    due.append(slot)
        self.cache.end_step([row.book.resident for row in self.running])
        if due:
            self._compress(due)
        real = logits.flatten(0, 1) if min(counts) == most else logits[offset < given[:, None]]
        self._record(list(range(n)), [b + 1 for b in begun], counts, real, [row.request for row in self.running])

    def _ahead(self, row: Running) -> int:
        """Tokens that the row can take before its next event, or its end."""
        left = len(row.request.continuation) - 1 - row.step
        return left if row.wait is None else min(left, row.wait)

    def _most(self, width: int) -> int:
        """Tokens of a row that may pass in one forward over `width` columns."""
        rows = self.active
        masked = _MASK // (rows * self.geometry.query_heads * width)
        return max(1, min(self.chunk, READ_TOKENS // rows, _LOGITS // (rows * self.vocabulary), masked))

    def _record(self, slots: list[int], first: list[int], counts: list[int], logits: Tensor, requests: list) -> None:
        """Compare `logits` [N, V] with the given tokens `first` … `first + counts` of each slot, row after row."""
        if self.probe:
            self.probe.logits([r for r, count in zip(requests, counts) for _ in range(count)], logits)
        row = np.repeat(slots, counts)
        token = np.concatenate([np.arange(t, t + count) for t, count in zip(first, counts)])
        row, token = (torch.from_numpy(x).to(self.device) for x in (row, token))
        targets = self.history[row, self.prompt[row] + token]
        full = None
        if self.full is not None:
            pieces = [self.full[r.key][t : t + count] for r, t, count in zip(requests, first, counts)]
            full = torch.cat(pieces).to(self.device) if len(pieces) > 1 else pieces[0].to(self.device)
        found = compare(logits, targets, full)
        for buffer, values in zip((self.nll, self.rank, self.kl, self.sound), found, strict=True):
            buffer[row, token] = values

    def collect(self) -> Iterator[Replayed]:
        """Hand out the sequences whose tokens have all been fed and free their slots."""
        for slot in reversed(range(self.active)):
            row = self.running[slot]
            if row.step == len(row.request.continuation) - 1:
                yield self._replayed(slot)
                self.remove(slot)

    def _replayed(self, slot: int) -> Replayed:
        request, length = self.running[slot].request, len(self.running[slot].request.continuation)
        sound = self.sound[slot, :length].cpu().numpy()
        if not sound.all():
            raise FloatingPointError(
                f"trial {request.key!r}: the model produced infinite or NaN logits at token {int(sound.argmin())}"
            )
        first = compressed_from(self.schedule, self.footprint, len(request.prompt_ids), request.continuation)
        tokens = Tokens(
            nll=_row(self.nll, slot, length, np.float32),
            rank=_row(self.rank, slot, length, np.int32),
            kl=None if self.full is None else _row(self.kl, slot, length, np.float32),
            compressed=np.arange(length)[None] >= first,
        )
        held = self.cache.positions[:, slot] >= 0
        mass = self.cache.traits[self.needs.mass][:, slot].double() if self.needs.mass else 1.0
        stands_for = float((held * mass).sum()) / (held.shape[0] * held.shape[1])
        return Replayed(request.key, tokens=tokens, stands_for=stands_for, **self.result(slot, length - 1))


def _row(buffer: Tensor, slot: int, length: int, dtype: Callable) -> np.ndarray:
    return buffer[slot, :length].cpu().numpy().astype(dtype)[None]
