"""When a policy fires and how many entries it leaves, in integers (docs/DEFINITIONS.md §3, §6).

Counts are entries per layer and KV head, averaged over both where a policy spreads its budget unevenly. A schedule is
data: the engine, the solver and the verifier replay it alike. No torch and no pydantic here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

TRIGGERS = ("never", "slack", "periodic", "every_step", "boundary")
PROMPTS = ("pinned", "outside", "compete", "two_stage")
OVERFLOWS = ("refuse", "first", "last")

EXHAUSTED = "prefix_budget_exhausted"
INACTIVE = "merge_inactive"


@dataclass(frozen=True)
class Event:
    """What an event does to the counts. resident, prefix: entries, and entries counted as prompt, afterwards.
    stage_one: prompt entries were evicted first. stage_two: generated entries were compressed. guard: the rule that
    stood in for stage two when there was no room for it, or ""."""

    resident: int
    prefix: int
    stage_one: bool = False
    stage_two: bool = False
    guard: str = ""


@dataclass(frozen=True)
class Schedule:
    """When a policy fires and how many entries per layer and head it leaves.

    trigger: ``never``; ``slack`` fires at target + delta; ``periodic`` fires above target when the logical length
        is a multiple of delta; ``every_step`` fires above target; ``boundary`` fires at target + delta at the latest,
        and from target + earliest on when the token just read is one of `boundaries`.
    budget: the nominal budget b. delta: steps between events.
    prompt: ``pinned`` keeps the prompt inside the budget (an event leaves b entries, prompt included);
        ``outside`` keeps it on top of the budget (an event leaves prompt + b); ``compete`` protects no prompt
        entry, and a prompt that is long enough is compressed before the first decode step; ``two_stage`` evicts
        prompt entries at an event as far as the generated ones need room, and then compresses those (CASK).
    count_prompt: whether the trigger counts the prompt; when it does not, it fires later by the prompt's entries, but
        an event still leaves b in total.
    overflow: what becomes of a pinned prompt that fills the budget: ``refuse``; ``first`` keeps the first b entries,
        as the published TriAttention does; ``last`` the last b, which then count as prompt, as CASK does.
    recent: with ``two_stage``, newest entries that stage one leaves room for.
    chains: independent chains that share budget and delta (`split`); everything else speaks of one chain.
    """

    trigger: str
    budget: int
    delta: int
    prompt: str
    count_prompt: bool = True
    overflow: str = "refuse"
    recent: int = 0
    earliest: int = 0
    boundaries: tuple[int, ...] = ()
    chains: int = 1

    def __post_init__(self):
        if self.trigger not in TRIGGERS:
            raise ValueError(f"trigger is {self.trigger!r}; use one of {', '.join(TRIGGERS)}")
        if self.prompt not in PROMPTS:
            raise ValueError(f"prompt is {self.prompt!r}; use one of {', '.join(PROMPTS)}")
        if self.overflow not in OVERFLOWS:
            raise ValueError(f"overflow is {self.overflow!r}; use one of {', '.join(OVERFLOWS)}")
        if self.budget < 1 or self.delta < 1:
            raise ValueError(f"budget {self.budget} and delta {self.delta} must both be at least 1")
        if self.recent < 0:
            raise ValueError(f"recent is {self.recent}; it must be at least 0")
        if self.trigger == "boundary" and not 1 <= self.earliest <= self.delta:
            raise ValueError(f"earliest is {self.earliest}; it must lie between 1 and delta {self.delta}")
        if self.chains < 1 or self.budget < self.chains or self.delta < self.chains:
            raise ValueError(f"budget {self.budget} and delta {self.delta} cannot be split over {self.chains} chains")

    @property
    def content_driven(self) -> bool:
        """Whether the counts depend on what is generated, and not on lengths alone."""
        return self.chains > 1 or (self.trigger == "boundary" and self.earliest < self.delta)

    def split(self) -> list[Schedule]:
        """One schedule a chain; the first ones take what does not divide. `recent` is each chain's own."""

        def share(total: int, chain: int) -> int:
            return total // self.chains + (chain < total % self.chains)

        return [
            replace(
                self,
                budget=share(self.budget, i),
                delta=share(self.delta, i),
                earliest=self.earliest and max(1, share(self.earliest, i)),
                chains=1,
            )
            for i in range(self.chains)
        ]

    def target(self, prompt_tokens: int) -> int:
        """Entries per layer and head after an event."""
        return self.budget + prompt_tokens if self.prompt == "outside" else self.budget

    def compresses_prompt(self, prompt_tokens: int) -> bool:
        """Whether an event follows the prompt at once. ``periodic`` does not wait for its period here: the prompt was
        read as one step (docs/DEFINITIONS.md §3)."""
        position = 0 if self.trigger == "periodic" else prompt_tokens
        return self.prompt == "compete" and self.fires(prompt_tokens, prompt_tokens, prompt_tokens, position)

    def fires(self, resident: int, prefix: int, prompt_tokens: int, position: int, at_boundary: bool = False) -> bool:
        """Whether an event follows the forward that left `resident` entries per head after `position` tokens."""
        surplus = self._surplus(resident, prefix, prompt_tokens)
        if self.trigger == "slack":
            due = surplus >= self.delta
        elif self.trigger == "periodic":
            due = surplus >= 0 and position % self.delta == 0
        elif self.trigger == "boundary":
            due = surplus >= self.delta or (surplus >= self.earliest and at_boundary)
        else:
            due = self.trigger == "every_step" and surplus >= 0
        return due and resident > self.target(prompt_tokens)

    def next_event(self, resident: int, prefix: int, prompt_tokens: int, position: int) -> int | None:
        """Number of further tokens (≥ 1) until the next event (with ``boundary``, until it is forced), None if there
        is none ever."""
        if self.trigger == "never":
            return None
        gap = -self._surplus(resident, prefix, prompt_tokens)
        over = self.target(prompt_tokens) - resident + 1  # below this nothing needs compressing
        if self.trigger in ("slack", "boundary"):
            return max(1, over, gap + self.delta)
        first = max(1, over, gap)
        return first + (-(position + first)) % self.delta if self.trigger == "periodic" else first

    def first_chance(self, resident: int, prefix: int, prompt_tokens: int) -> int:
        """Number of further tokens after which a boundary may fire an event; only for trigger ``boundary``."""
        return max(1, self.earliest - self._surplus(resident, prefix, prompt_tokens))

    def _surplus(self, resident: int, prefix: int, prompt_tokens: int) -> int:
        # Negative where fewer entries are left than the trigger takes for prompt: then it fires that much later.
        counted = resident if self.count_prompt else resident - prefix
        return counted - (self.target(prompt_tokens) if self.count_prompt else self.budget)

    def event(self, resident: int, prefix: int, prompt_tokens: int) -> Event:
        """The counts after an event on `resident` entries, the first `prefix` of which count as prompt."""
        target = self.target(prompt_tokens)
        if self.prompt == "two_stage":
            return self._two_stages(resident, prefix)
        if self.prompt == "pinned" and prefix >= target and self.overflow == "last":
            return Event(target, min(prefix, target), guard=EXHAUSTED)
        return Event(target, prefix, stage_two=True)

    def _two_stages(self, resident: int, prefix: int) -> Event:
        evicts = False
        if self.count_prompt and prefix:
            generated = resident - prefix
            kept = self.prefix_target(prefix, generated)
            evicts, prefix, resident = kept < prefix, kept, kept + generated
        if resident <= self.budget:
            return Event(resident, prefix, stage_one=evicts)
        if prefix >= self.budget:
            return Event(self.budget, self.budget, evicts, guard=EXHAUSTED)
        if self.scratch_slots(resident, prefix) < 2:
            return Event(self.budget, prefix, evicts, guard=INACTIVE)
        return Event(self.budget, prefix, evicts, stage_two=True)

    def prefix_target(self, prefix: int, generated: int) -> int:
        """P*, the prompt entries that stage one leaves beside `generated` entries (docs/DEFINITIONS.md §6)."""
        if not generated:
            return min(prefix, self.budget)
        window = min(self.recent, generated)
        room = 2 if generated > window else 0
        return min(prefix, max(0, self.budget - min(self.budget, window + room)))

    def newest(self, resident: int, prefix: int) -> int:
        """R, the newest entries that stage two leaves alone (docs/DEFINITIONS.md §6)."""
        room, generated = self.budget - prefix, resident - prefix
        window = min(self.recent, generated)
        return max(0, room - 2) if generated > room and window >= room else window

    def scratch_slots(self, resident: int, prefix: int) -> int:
        """a, the entries that stage two may fill besides prompt and newest (docs/DEFINITIONS.md §6)."""
        return max(0, self.budget - prefix - self.newest(resident, prefix))

    def capacity(self, prompt_tokens: int, max_new_tokens: int) -> int:
        """Most entries per layer and head that any decode step can need, where all heads hold equally many."""
        book, left, reach = Book(self, prompt_tokens), max(0, max_new_tokens - 1), 0
        if self.compresses_prompt(prompt_tokens):
            book.fire()
        # The first cycles may differ; the third has reached whatever a later one does. Boundaries only shorten them.
        for _ in range(3):
            wait = book.wait()
            if wait is None or wait > left:
                return max(reach, book.resident + left)
            book.grow(wait)
            left, reach = left - wait, max(reach, book.resident)
            book.fire()
        return reach


@dataclass
class Book:
    """The host's book of one sequence under a schedule: what is resident, and when the next event comes."""

    schedule: Schedule
    prompt_tokens: int
    position: int = 0
    resident: int = 0
    prefix: int = 0

    def __post_init__(self):
        self.position = self.resident = self.prefix = self.prompt_tokens

    def wait(self) -> int | None:
        """Further tokens until the next certain event."""
        return self.schedule.next_event(self.resident, self.prefix, self.prompt_tokens, self.position)

    def grow(self, tokens: int = 1) -> None:
        self.position += tokens
        self.resident += tokens

    def due(self, token: int | None = None) -> bool:
        """Whether an event is due now, `token` being the one just read."""
        at_boundary = token in self.schedule.boundaries
        return self.schedule.fires(self.resident, self.prefix, self.prompt_tokens, self.position, at_boundary)

    def fire(self) -> Event:
        done = self.schedule.event(self.resident, self.prefix, self.prompt_tokens)
        self.resident, self.prefix = done.resident, done.prefix
        return done
