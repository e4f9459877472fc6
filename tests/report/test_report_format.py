"""How numbers are printed."""

from __future__ import annotations

from fractions import Fraction

import pytest

from cask_eval.report import format as fmt


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("0.0432852506", ".0433"),
        ("0.0001", ".0001"),
        ("0.00009", "< .0001"),
        ("1.87e-06", "< .0001"),
        ("0", "< .0001"),
        ("0.99996", "> .9999"),
        ("1", "1"),
        ("0.5", ".5000"),
        ("1/3", ".3333"),
    ],
)
def test_p_values_print_as_in_journals(text, printed):
    assert fmt.p_value(text) == printed


@pytest.mark.parametrize(
    ("text", "level", "printed"),
    [
        ("0.04996", "0.05", ".04996"),  # ".0500" would look as if it missed, or met, the level by luck
        ("0.0500004", "0.05", ".0500004"),
        ("0.05", "0.05", ".0500"),
        ("0.0124931", "1/80", ".01249"),
        ("0.0433", "0.05", ".0433"),
        ("0.00004", "0.05", "< .0001"),
        ("0.00004", "0.00003", ".00004"),
        ("0.000000001", "0.00003", ".000000001"),
    ],
)
def test_p_value_shows_its_side_of_the_level(text, level, printed):
    assert fmt.p_value(text, level) == printed


@pytest.mark.parametrize(
    ("text", "printed"),
    [("0.62", "62.0"), ("", None), ("0", "0.0"), ("0.0004", "0.04"), ("0.0005", "0.1"), ("1", "100.0")],
)
def test_a_share_that_is_not_nothing_does_not_print_as_nothing(text, printed):
    assert fmt.percent(text) == (fmt.DASH if printed is None else f"{printed}\u00a0%")


@pytest.mark.parametrize(
    ("x", "printed"), [(0.0, "0"), (-0.0, "0"), (0.123456, "0.1235"), (-1234.56, "−1235"), (3e-7, "3e−07")]
)
def test_numbers_of_unknown_size(x, printed):
    assert fmt.significant(x) == printed


def test_counts():
    assert (fmt.count(1234), fmt.count(0), fmt.count(None)) == ("1,234", "0", fmt.DASH)


def test_relation():
    assert fmt.relation(".0433") == "p = .0433"
    assert fmt.relation("< .0001", "p_adj") == "p_adj < .0001"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("0.08", "+8.0"),
        ("-0.014", "−1.4"),
        ("0", "0.0"),
        ("-0", "0.0"),
        ("1/1319", "+0.1"),
        ("0.0004", "+0.04"),  # not "+0.0": the bound lies above zero
        ("-0.0002", "−0.02"),
        ("-1.38777878e-17", "0.0"),
        ("1", "+100.0"),
        ("0.0625", "+6.3"),
    ],
)
def test_points(text, printed):
    assert fmt.points(text) == printed


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        (fmt.spread("0.0288"), "2.9"),
        (fmt.percent("310/500"), "62.0\u00a0%"),
        (fmt.level("0.95"), "95\u00a0%"),
        (fmt.level("0.9875"), "98.75\u00a0%"),
        (fmt.level("0.991666667"), "99.167\u00a0%"),
        (fmt.level("1"), "100\u00a0%"),
        (fmt.alpha("0.05"), ".05"),
        (fmt.alpha("1"), "1"),
        (fmt.ratio("1.00421"), "1.004"),
        (fmt.entries("1285/10"), "128.5"),
        (fmt.entries("12345.67"), "12,345.7"),
        (fmt.bracket("−1.0", "+2.0"), "[−1.0, +2.0]"),
        (fmt.span(55, 76), "55–76"),
        (fmt.span(64, 64), "64"),
        (fmt.span(None, None), "—"),
        (fmt.params({}), "—"),
        (fmt.params({"pin": True, "delta": 64, "a": "0.5"}), "a=0.5, delta=64, pin=true"),
        (fmt.rounded("0.958333333 [0.9, 15234.123456] of 200"), "0.9583 [0.9, 15,234.1235] of 200"),
        (fmt.rounded("only 0.94999999, fewer than 0.95"), "only 0.94999999, fewer than 0.95"),
        (fmt.rounded("1.050000312 [1.04999, 1.0500001]"), "1.050000312 [1.04999, 1.0500001]"),
        (fmt.short("sha256:" + "0123456789abcdef" * 4), "0123456789ab"),
        (fmt.words("mcnemar_midp"), "McNemar mid-p"),
        (fmt.words("sign_flip"), "sign flip"),
    ],
)
def test_others(given, printed):
    assert given == printed


def test_halves_round_away_from_zero():
    assert [fmt.fixed(Fraction(x), 1) for x in ("0.25", "-0.25", "0.35", "-0.04")] == ["0.3", "−0.3", "0.4", "0.0"]


def test_one_line_disarms_control_and_direction_characters():
    assert fmt.one_line(" a\n\tb ") == "a b"
    assert fmt.one_line("\x1b[31mred\x00") == "�[31mred�"
    assert fmt.one_line("abc\u202etxt.exe") == "abc�txt.exe"
    assert fmt.one_line("naïve 模型 👍") == "naïve 模型 👍"
