"""What a report does not prove, in plain words. A reader should not have to infer it."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from cask_eval.decide.model import AnalysisDocument
from cask_eval.protocol.model import Protocol
from cask_eval.report.format import one_line


def limits(analysis: AnalysisDocument, protocol: Protocol, level: str, verified: bool) -> Iterator[str]:
    """The limits that apply to this study, the most important first."""
    if not verified:
        yield "This report was printed without verification. Run cask-eval verify on the study before relying on it."
    if level == "L0":
        yield (
            "Nobody but the author vouches for the dates: a whole ledger could have been written after the results "
            "were known."
        )
    elif level == "L1":
        yield "The dates are the author's, except that nothing up to the noted head is younger than the note."
    if level != "L3":
        yield (
            "Runs outside this toolkit leave no trace here: the held-out problems may have been tried in private "
            "before registration."
        )
        yield (
            "That the models wrote these outputs is shown only by running trials again (cask-eval verify --reexecute)."
        )
    if Decimal(protocol.generation.temperature) == 0:
        yield (
            "Decoding was greedy, so no output depends on a seed drawn from the registration: outputs made before "
            "registration would look the same."
        )
    if analysis.endpoint != "accuracy":
        yield (
            "Trials were given the full cache's own output: what a compressed cache would have gone on to write by "
            "itself, and whether the answers are right, was not tested."
        )
    yield (
        "Other studies on the same problems may exist and not be shown; those in the same ledger can be found, "
        "others cannot."
    )
    if analysis.label == "exploratory":
        yield "The study is exploratory: its p-values describe the data and do not confirm the hypothesis."
    if out := [s.candidate for s in analysis.screening if not s.survived]:
        yield (
            f"Nothing is shown about what was screened out on the development split ({', '.join(map(one_line, out))}): "
            "it was not compared on held-out problems."
        )
    yield ("A null cell is not evidence that the arms are equal: its interval shows which differences remain possible.")
    yield "The result holds for these models, problems, budgets and prompts; nothing here measures any other."
    yield "Memory is counted in resident cache entries. Speed and the allocator's overhead were not measured."
