"""A finished study made up by hand: two models × two budgets, one cell of each outcome, and texts that attack the
report."""

from __future__ import annotations

from fractions import Fraction

from cask_eval.canonical import ZERO, digest
from cask_eval.decide.model import AnalysisDocument, ArmResult, CellResult, Flip, Interval, MatchedResult, Screened
from cask_eval.ledger.events import (
    ArmChoice,
    Close,
    Consume,
    Environment,
    Event,
    FootprintLock,
    ModelLock,
    PackageLock,
    Records,
    RecordsCommit,
    Register,
    ScheduleLock,
    Select,
    SplitLock,
)
from cask_eval.protocol.model import Protocol
from cask_eval.report import Check, ReportData, gather

SMALL = "embedded-chain"
LONG = "deepseek-r1-distill-qwen-7b-with-a-rather-long-registered-name"
HOSTILE = '<script src="https://evil.example/x.js"></script> & "quotes" | `tick` \x1b[31m \u202e'
HOSTILE_PROBLEM = "p<img src=x onerror=alert(1)>|7"


def study() -> ReportData:
    checks = [
        Check("V01", "The protocol is the one registered", "ok"),
        Check("V04", "The ledger's tail is complete", "partial", ("no anchor and no reviewer's copy was given",)),
        Check("V16", "Caches match", "ok", (f"one cell is void: {LONG}/b128",)),
    ]
    return gather(analysis(), protocol(), events(), checks, "L1")


#: Three candidates, of which the first and the last survive. A candidate's name can hold no markup, so a long one.
ONE, TWO, THREE = "alpha", "ams", "a-third-method-with-a-name-that-needs-two-lines"


def several(*survivors: str) -> ReportData:
    """The same study with three candidates, of which `survivors` are confirmed."""
    registered = several_protocol()
    base = analysis()
    cells = [c.model_copy(update={"candidate": name}) for name in survivors for c in base.cells]
    arms = {
        c.cell: {
            "baseline": base.arms[c.cell]["baseline"],
            **{name: base.arms[c.cell]["candidate"] for name in survivors},
            "full": base.arms[c.cell]["full"],
        }
        for c in base.cells
    }
    gains = {ONE: "7/100", TWO: "-1/100", THREE: "1/1000"}
    counts = {f"{kind}_cells": sum(c.outcome == kind for c in cells) for kind in ("positive", "negative", "void")}
    document = analysis(
        family=8,
        cells=cells,
        arms=arms,
        screening=[
            Screened(candidate=name, gain=str(float(Fraction(gain))), survived=name in survivors)
            for name, gain in gains.items()
        ],
        **counts,
    )
    ledger = events()
    at = next(i for i, e in enumerate(ledger) if e.event == "select")
    old = Select.model_validate(ledger[at].payload)
    select = old.model_copy(
        update={
            "scores": {
                c: {
                    "baseline": row["baseline"],
                    ONE: row["candidate"],
                    TWO: {"untuned": "56/100"},
                    THREE: {"k=1": "571/1000", "k=2": "1/2"},
                }
                for c, row in old.scores.items()
            },
            "chosen": {c: {ONE: "lambda=0.25", TWO: "untuned", THREE: "k=1"} for c in old.scores},
            "gains": gains,
            "survivors": list(survivors),
            "arms": {
                c: {"baseline": row["baseline"], **{name: row["candidate"] for name in survivors}}
                for c, row in old.arms.items()
            },
        }
    )
    ledger[at] = ledger[at].model_copy(update={"payload": select.model_dump(mode="json")})
    return gather(document, registered, ledger)


def several_protocol() -> Protocol:
    document = protocol().document()
    tune = document["candidates"][0]["tune"]
    document["candidates"] = [
        {"name": ONE, "preset": "alpha", "tune": tune},
        {"name": TWO, "preset": "ams"},
        {"name": THREE, "preset": "third", "tune": {"k": [1, 2]}},
    ]
    return Protocol.model_validate({**document, "screening": {"survivors": 2}})


def protocol(**changes) -> Protocol:
    return Protocol.model_validate(
        {
            "study": "alpha-vs-triattention",
            "hypothesis": "At equal mean cache, alpha solves more held-out problems than TriAttention. " + HOSTILE,
            "task": {"name": "chain", "dev": "splits/chain-dev.json", "heldout": "splits/chain-heldout.json"},
            "models": [
                {"id": "embedded:chain", "name": SMALL},
                {
                    "id": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
                    "name": LONG,
                    "revision": "a" * 40,
                    "dtype": "bfloat16",
                },
            ],
            "generation": {"max_new_tokens": 512},
            "budgets": [64, 128],
            "baseline": {"preset": "triattention"},
            "candidate": {"preset": "alpha", "tune": {"lambda": ["0.1", "0.25", "0.5"]}},
            "controls": [{"name": "full", "preset": "fullkv"}],
            "test": {
                "procedure": "paired_bootstrap",
                "alternative": "two-sided",
                "alpha": "0.05",
                "veto": {"alpha": "0.05"},
            },
            "branches": [
                {
                    "name": "A",
                    "when": {"positive_cells": ">=1", "negative_cells": "==0"},
                    "decision": "adopt the candidate",
                },
                {
                    "name": "B",
                    "when": {"positive_cells": ">=1", "negative_cells": ">=1"},
                    "decision": "report as regime-dependent " + HOSTILE,
                },
                {"name": "C", "otherwise": True, "decision": "reject the candidate"},
            ],
            **changes,
        }
    )


def analysis(**changes) -> AnalysisDocument:
    cells = [
        _cell(SMALL, 64, 46, 11, "0.14", "0.0288", "positive", p="0.00000187", adjusted="0.00000748", veto="0.999999"),
        _cell(SMALL, 128, 13, 11, "0.008", "0.0196", "null", p="0.7596", adjusted="1", veto="0.62"),
        _cell(LONG, 64, 9, 31, "-0.088", "0.0247", "negative", p="0.0124931", adjusted="0.04996", veto="0.0062"),
        _cell(LONG, 128, 30, 9, "0.084", "0.0244", "void", p="0.00031", adjusted="1", veto="0.9998"),
    ]
    return AnalysisDocument(
        **{
            "study": "alpha-vs-triattention",
            "hypothesis": protocol().hypothesis,
            "registration": digest("register"),
            "label": "confirmatory",
            "procedure": "paired_bootstrap",
            "alternative": "two-sided",
            "alpha": "0.05",
            "correction": "bonferroni",
            "family": 4,
            "screening": [Screened(candidate="candidate", gain="0.082", survived=True)],
            "cells": cells,
            "arms": {c.cell: _arms(c) for c in cells},
            "positive_cells": 1,
            "negative_cells": 1,
            "void_cells": 1,
            "branch": "B",
            "decision": protocol().branches[1].decision,
            "notes": ["Fewer than 25 problems flipped in one cell; the bootstrap is anti-conservative there."],
            **changes,
        }
    )


def _cell(model, budget, wins, losses, difference, error, outcome, p, adjusted, veto) -> CellResult:
    n, effect, se = 250, float(difference), float(error)
    void = outcome == "void"

    def interval(level: str, z: float) -> Interval:
        return Interval(level=level, low=f"{effect - z * se:.9g}", high=f"{effect + z * se:.9g}")

    return CellResult(
        candidate="candidate",
        cell=f"{model}/b{budget}",
        model=model,
        budget=budget,
        n=n,
        samples=1,
        wins=wins,
        losses=losses,
        ties=n - wins - losses,
        difference=difference,
        standard_error=error,
        interval=interval("0.95", 1.96),
        interval_adjusted=interval("0.9875", 2.498),
        p={"mcnemar_exact": "0.0432852506", "mcnemar_midp": "0.0289592743", "paired_bootstrap": p},
        p_registered=p,
        p_adjusted=adjusted,
        p_veto=veto,
        matched=MatchedResult(
            verdict="void" if void else "matched",
            ratio="1.0813" if void else "1.0042",
            interval=Interval(level="0.9", low="1.0702" if void else "0.9987", high="1.0922" if void else "1.0101"),
            reasons=[
                "candidate holds 8.1 % more than the baseline, beyond the tolerance of 3 %",
                "the error favours the candidate",
            ]
            if void
            else [],
        ),
        outcome=outcome,
        flips=[
            Flip(problem=HOSTILE_PROBLEM if i == 0 else f"chain-{budget}-{i:04d}", baseline=0, candidate=1)
            for i in range(wins)
        ]
        + [Flip(problem=f"chain-{budget}-{1000 + i}", baseline=1, candidate=0) for i in range(losses)],
    )


def _arms(c: CellResult) -> dict[str, ArmResult]:
    baseline, mean, more = 140, c.budget * 1.02 + 0.37, 1.0813 if c.outcome == "void" else 1.0042
    right = baseline + c.wins - c.losses
    return {
        "baseline": _arm("triattention", {}, c.budget, baseline, c.n, mean),
        c.candidate: _arm("alpha", {"lambda": "0.25"}, c.budget - 3, right, c.n, mean * more),
        "full": _arm("fullkv", {}, 512, 231, c.n, 301.5),
    }


def _arm(preset, params, budget, correct, trials, mean) -> ArmResult:
    return ArmResult(
        preset=preset,
        params=params,
        budget=budget,
        trials=trials,
        correct=correct,
        missing=1,
        failed=2,
        truncated=17,
        accuracy=f"{correct}/{trials}",
        mean_cache=f"{mean:.9g}",
        pooled_cache=f"{mean * 1.04:.9g}",
        peak_cache=str(budget + 64),
        kept_min=None if preset == "fullkv" else budget - 9,
        kept_max=None if preset == "fullkv" else budget + 12,
        wiped_regions="" if preset == "fullkv" else "0.375",
        longest_wiped=None if preset == "fullkv" else 131,
        active="0" if preset == "fullkv" else "0.984",
        mean_output_tokens="243.516",
    )


def events() -> list[Event]:
    environment = Environment(
        python="3.11.9",
        platform="Linux x86_64",
        device="cpu",
        cuda=None,
        driver=None,
        packages={"numpy": "2.1.0", "torch": "2.6.0"},
        toolkit=digest("toolkit"),
    )
    later = environment.model_copy(update={"packages": {"numpy": "2.1.0", "torch": "2.7.0"}})
    lock = PackageLock(name="cask_methods", version="0.1.0", digest=digest("methods"))
    commit = RecordsCommit(path="reports/alpha/heldout.jsonl", count=3000, merkle_root=digest("records"))
    split = SplitLock(path="splits/chain-heldout.json", digest=digest("split"), merkle_root=ZERO, count=250)
    model = ModelLock(
        name=SMALL,
        id="embedded:chain",
        digest=digest("model"),
        files={},
        chat_template=None,
        calibration=None,
        layers=4,
        kv_heads=2,
        query_heads=4,
        head_dim=32,
        itemsize=2,
        max_prompt_tokens=96,
        stop_ids=[2],
    )
    configs = ["lambda=0.1", "lambda=0.25", "lambda=0.5"]
    cells = [c.name for c in protocol().cells]

    payloads = [
        (
            "register",
            Register(
                protocol_path="prereg/alpha.yaml",
                protocol_raw=ZERO,
                protocol_digest=digest("protocol"),
                protocol=protocol().document(),
                splits={"dev": split.model_copy(update={"path": "splits/chain-dev.json"}), "heldout": split},
                methods=[lock],
                models=[model],
                environment=environment,
                warnings=["smallest detectable effect at 80 % power is 9.6 points"],
            ),
        ),
        (
            "select",
            Select(
                rule="highest mean dev accuracy over all cells, ties to the smallest value",
                scores={
                    c: {
                        "baseline": {"": "57/100"},
                        "candidate": {k: f"{60 + 7 * i + (2, 5, 0)[j]}/100" for j, k in enumerate(configs)},
                    }
                    for i, c in enumerate(cells)
                },
                chosen={c: {"candidate": "lambda=0.25"} for c in cells},
                gains={"candidate": "37/200"},
                survivors=["candidate"],
                arms={
                    c.name: {
                        "baseline": _choice("triattention", {}, c.budget, c.budget, 1),
                        "candidate": _choice("alpha", {"lambda": "0.25"}, c.budget, c.budget - 3, 2),
                    }
                    for c in protocol().cells
                },
            ),
        ),
        ("consume", Consume(expected=3000, keys=ZERO, environment=later)),
        ("records", Records(session=1, complete=False, records=commit)),
        ("records", Records(session=2, complete=True, records=commit)),
        ("close", Close(records=commit, methods=[lock], environment=later)),
    ]
    return [
        Event(
            seq=i,
            prev=ZERO,
            study=protocol().study,
            event=kind,
            time=f"2026-01-02T03:04:{i:02d}Z",
            payload=payload.model_dump(mode="json"),
            hash=digest(i),
        )
        for i, (kind, payload) in enumerate(payloads)
    ]


def _choice(preset, params, nominal, budget, more) -> ArmChoice:
    return ArmChoice(
        preset=preset,
        params=params,
        schedule=ScheduleLock(trigger="slack", budget=budget, delta=16, prompt="pinned"),
        footprint=FootprintLock(heads=8, head_dim=32, itemsize=2),
        dev_mean=f"{nominal * 100 + more}/100",
        reference_mean=f"{nominal * 100 + 1}/100",
    )
