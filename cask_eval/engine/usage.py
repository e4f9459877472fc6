"""How much of what was computed was of use: rows without a running sequence, columns without an entry, padded prompts.

Counted where the host decides, so that the device is asked for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Usage:
    """Sums over decode steps and prompts, of everything that one or several runs computed. rows, columns: of all decode
    forwards, columns being rows times the entries read of each. trial_rows, trial_columns: those that were of trials
    still running. prompt_places, prompt_tokens: places of all prompt forwards, and those that held a token. most: the
    most sequences that were in flight at once."""

    steps: int = 0
    rows: int = 0
    columns: int = 0
    trial_rows: int = 0
    trial_columns: int = 0
    prompt_places: int = 0
    prompt_tokens: int = 0
    most: int = 0

    def step(self, rows: int, width: int, active: int) -> None:
        self.steps += 1
        self.rows += rows
        self.columns += rows * width
        self.most = max(self.most, active)

    def trial(self, steps: int, entries_per_head: float) -> None:
        """A finished trial: its decode forwards, and the entries that each read, summed."""
        self.trial_rows += steps
        self.trial_columns += round(entries_per_head)

    def prompts(self, places: int, lengths: list[int]) -> None:
        self.prompt_places += places
        self.prompt_tokens += sum(lengths)

    def text(self) -> str:
        """One line for the end of a run; "" where nothing was decoded."""
        if not self.rows:
            return ""
        return (
            f"up to {self.most} sequences at once in {self.steps:,} decode steps; of what was computed, "
            f"{self.trial_rows / self.rows:.0%} of the rows, {self.trial_columns / max(1, self.columns):.0%} of the "
            f"cache entries read and {self.prompt_tokens / max(1, self.prompt_places):.0%} of the prompt tokens were "
            "of use, the rest padding"
        )
