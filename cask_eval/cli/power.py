"""cask-eval power"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import click

from cask_eval.cli.common import json_option, print_json
from cask_eval.cli.share import Share
from cask_eval.errors import CaskError

# Above it the exact sums take minutes, and a normal approximation is as good.
MOST = 5_000


@click.command("power")
@click.option("--n", required=True, type=click.IntRange(1, MOST), help="Problems.")
@click.option("--discordance", required=True, type=Share("0.2", closed=True), help="Share on which one arm is right.")
@click.option("--difference", type=Share("0.05", closed=True, signed=True), help="Candidate minus baseline, a share.")
@click.option("--alpha", default="0.05", show_default=True, type=Share("0.0125"), help="Level of one comparison.")
@click.option("--power", "wanted", default="0.8", show_default=True, type=Share("0.8"), help="The power wanted.")
@click.option(
    "--alternative", type=click.Choice(["two-sided", "greater", "less"]), default="two-sided", show_default=True
)
@click.option("--samples", default=1, show_default=True, type=click.IntRange(1, 64), help="Samples per problem, K.")
@click.option(
    "--correlation", type=Share("0.5", zero=True, closed=True), help="Of a problem's samples; K > 1 needs it."
)
@click.option(
    "--replicates", default=2000, show_default=True, type=click.IntRange(1, 100_000), help="Simulated studies."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the simulation.")
@json_option
def command(
    n: int,
    discordance: Fraction,
    difference: Fraction | None,
    alpha: Fraction,
    wanted: Fraction,
    alternative: str,
    samples: int,
    correlation: Fraction | None,
    replicates: int,
    seed: int,
    as_json: bool,
) -> None:
    """What a study of n problems can detect.

    With one sample per problem everything is exact; with more, power is simulated, and --correlation says how alike
    the samples of one problem are: 0 by chance alone, 1 always the same.
    """
    if difference is not None and abs(difference) > discordance:
        raise CaskError(
            f"--difference {float(difference):g}: is more than --discordance {float(discordance):g} allows; "
            "every point of difference needs a problem that differs"
        )
    if wanted < Fraction(1, 2):
        raise CaskError(f"--power {float(wanted):g}: must be at least 0.5, such as 0.8")
    if samples > 1 and correlation is None:
        raise CaskError(
            f"--samples {samples}: also needs --correlation, how alike the samples of one problem are; try 0.3 and 0.7"
        )
    q, level = float(discordance), float(alpha)
    found = _exact(n, q, difference, level, float(wanted), alternative)
    if samples > 1:
        found |= _simulated(n, q, difference, level, alternative, samples, float(correlation), replicates, seed)
    if as_json:
        print_json(found)
    else:
        _show(found)


def _exact(
    n: int, q: float, difference: Fraction | None, alpha: float, wanted: float, alternative: str
) -> dict[str, Any]:
    """One sample per problem."""
    from cask_eval.stats.power import connor_mde, connor_sample_size, exact_power, expected_discordant, mde
    from cask_eval.stats.procedures import PROCEDURES, fewest_discordant

    found: dict[str, Any] = {
        "n": n,
        "discordance": q,
        "difference": None if difference is None else float(difference),
        "alpha": alpha,
        "power_wanted": wanted,
        "alternative": alternative,
        "samples": 1,
        "expected_discordant": expected_discordant(n, q),
        "fewest_discordant": {name: fewest_discordant(name, n, alpha, alternative) for name in PROCEDURES},
        "mde": mde(n, q, alpha, wanted, alternative),
        "connor_mde": connor_mde(n, q, alpha, wanted, alternative),
    }
    if difference is not None:
        delta = float(difference)
        found["exact_power"] = {name: exact_power(n, q, delta, alpha, alternative, name) for name in PROCEDURES}
        found["connor_sample_size"] = connor_sample_size(delta, q, alpha, wanted, alternative) if delta else None
    return found


def _simulated(n, q, difference, alpha, alternative, samples, correlation, replicates, seed) -> dict[str, Any]:
    """What several samples add."""
    from cask_eval.stats.lattice_power import simulated_power, variance_factor
    from cask_eval.stats.procedures import BINARY_ONLY, PROCEDURES

    factor = variance_factor(samples, correlation)
    found: dict[str, Any] = {
        "samples": samples,
        "correlation": correlation,
        "worth_problems": n / factor,
        "replicates": replicates,
        "seed": seed,
    }
    if difference is not None:
        design = (n, q, float(difference), alpha, samples, correlation)
        found["simulated_power"] = {
            name: dict(
                zip(
                    ("power", "standard_error"),
                    simulated_power(*design, name, alternative, seed=seed, replicates=replicates),
                )
            )
            for name in PROCEDURES
            if name not in BINARY_ONLY
        }
    return found


def _show(found: dict[str, Any]) -> None:
    def points(share: float | None) -> str:
        return "nothing" if share is None else f"{100 * share:.1f} points"

    say = click.echo
    say(
        f"{found['n']} problems at discordance {found['discordance']:g}: {found['expected_discordant']:.3g} should "
        f"differ; {found['alternative']} tests at {found['alpha']:g}"
    )
    fewest = {name: "never" if d is None else str(d) for name, d in found["fewest_discordant"].items()}
    say("fewest that can reach it:   " + ", ".join(f"{name} {d}" for name, d in fewest.items()))
    say(
        f"detects with {found['power_wanted']:.0%} power:     {points(found['mde'])} (exact McNemar), "
        f"{points(found['connor_mde'])} (Connor)"
    )
    if "exact_power" in found:
        say(f"power for {100 * found['difference']:+g} points, one sample per problem:")
        for name, power in found["exact_power"].items():
            say(f"  {name:17} {power:.1%}")
        if found["connor_sample_size"]:
            say(f"problems needed (Connor):   {found['connor_sample_size']}")
    if found["samples"] > 1:
        say(
            f"{found['samples']} samples per problem, correlation {found['correlation']:g}: worth about "
            f"{found['worth_problems']:.0f} problems with one"
        )
        for name, power in found.get("simulated_power", {}).items():
            say(f"  {name:17} {power['power']:.1%} ± {power['standard_error']:.1%} (simulated)")
