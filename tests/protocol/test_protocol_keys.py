"""Trial keys and seeds."""

from __future__ import annotations

import itertools

import pytest

from cask_eval.errors import ProtocolError
from cask_eval.protocol import keys
from cask_eval.protocol.model import Arm, Candidate, Protocol
from cask_eval.protocol.template import template
from cask_eval.protocol.yaml import parse


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    return Protocol.model_validate(parse(template().encode()).value)


def test_configs_are_the_product_in_declared_order():
    candidate = Candidate(
        preset="alpha", params={"delta": 16}, tune={"lambda": ["1.0", "0.5"], "centre": [True, False], "k": [2]}
    )
    found = keys.configs(candidate)
    assert [name for name, _ in found] == [
        "lambda=1.0,centre=true,k=2", "lambda=1.0,centre=false,k=2",
        "lambda=0.5,centre=true,k=2", "lambda=0.5,centre=false,k=2",
    ]  # fmt: skip
    assert found[1][1] == {"delta": 16, "lambda": "1.0", "centre": False, "k": 2}


def test_nothing_tuned_is_one_configuration():
    """Its name is not empty, which is the baseline's."""
    assert keys.configs(Candidate(preset="alpha", params={"delta": 16})) == [("untuned", {"delta": 16})]


@pytest.mark.parametrize("tune", [{"x": [1, 1]}, {"x": [1, "1"]}, {"a": ["1", "1,b=2"], "b": ["2,b=2", "2"]}])
def test_configurations_with_one_name_are_refused(tune):
    with pytest.raises(ProtocolError, match="appears twice"):
        keys.configs(Candidate(preset="alpha", tune=tune))


@pytest.mark.parametrize("tune", [{"x": ["a@1"]}, {"x@1": ["a"]}, {"x": ["a"], "y": ["b", "@"]}])
def test_configurations_that_look_like_steps_of_a_search_are_refused(tune):
    with pytest.raises(ProtocolError, match="holds '@'"):
        keys.configs(Candidate(preset="alpha", tune=tune))


def test_an_arm_that_is_no_candidate_has_one_configuration_without_a_name():
    assert keys.configs(Arm(preset="alpha", params={"delta": 16})) == [("", {"delta": 16})]


@pytest.fixture
def several(protocol) -> Protocol:
    document = protocol.document() | {
        "candidates": [
            {"name": "one", "preset": "alpha", "tune": {"lambda": ["0.5", "1.0"]}},
            {"name": "two", "preset": "recency"},
            {"name": "three", "preset": "alpha"},
        ],
        "screening": {"survivors": 2},
    }
    return Protocol.model_validate(document)


def test_all_candidates_run_on_dev_and_only_survivors_on_heldout(several):
    dev = keys.dev_keys(several, ["p"])
    assert len(dev) == len(set(dev)) == 4 * (1 + 2 + 1 + 1)
    assert [k[2:4] for k in dev[:5]] == [
        ("baseline", ""), ("one", "lambda=0.5"), ("one", "lambda=1.0"), ("two", "untuned"), ("three", "untuned")
    ]  # fmt: skip
    assert keys.dev_runs(several) == {
        "baseline": [""], "one": ["lambda=0.5", "lambda=1.0"], "two": ["untuned"], "three": ["untuned"]
    }  # fmt: skip
    heldout = keys.expected_keys(several, ["p"], ["three", "one"])
    assert [k[2] for k in heldout[:5]] == ["baseline", "one", "three", "full", "random"]
    assert len(heldout) == len(set(heldout)) == 4 * 5
    assert {k[2] for k in keys.expected_keys(several, ["p"], [])} == {"baseline", "full", "random"}


def test_expected_keys(protocol):
    found = keys.expected_keys(protocol, ["p2", "p1"], ["candidate"])
    assert len(found) == len(set(found)) == 4 * 4 * 2
    assert found[:3] == [
        ("heldout", "chain-s/b64", "baseline", "", "p2", 0),
        ("heldout", "chain-s/b64", "baseline", "", "p1", 0),
        ("heldout", "chain-s/b64", "candidate", "", "p2", 0),
    ]


def test_samples_are_keys_of_their_own(protocol):
    many = protocol.model_copy(update={"generation": protocol.generation.model_copy(update={"samples": 3})})
    assert [k[5] for k in keys.expected_keys(many, ["p"], ["candidate"])[:4]] == [0, 1, 2, 0]


def test_dev_keys_leave_controls_out(protocol):
    found = keys.dev_keys(protocol, iter(["p1", "p2"]))
    assert len(found) == len(set(found)) == 4 * (1 + 4) * 2
    assert {(k[0], k[2]) for k in found} == {("dev", "baseline"), ("dev", "candidate")}
    assert [k[3] for k in found[:10:2]] == ["", "lambda=0.1", "lambda=0.25", "lambda=0.5", "lambda=1.0"]


def test_search_keys(several):
    tried = {
        "chain-s/b64": {"two": {"untuned": [70, 68]}, "one": {"lambda=1.0": [9], "lambda=7": [9]}, "nobody": {"": [9]}},
        "chain-m/b96": {"three": {"untuned": []}},
        "no-cell": {"two": {"untuned": [70]}},
    }
    found = keys.search_keys(several, tried, iter(["p2", "p1"]))
    assert list(found) == [
        ("dev", "chain-s/b64", "one", "lambda=1.0@9", "p2", 0), ("dev", "chain-s/b64", "one", "lambda=1.0@9", "p1", 0),
        ("dev", "chain-s/b64", "two", "untuned@70", "p2", 0), ("dev", "chain-s/b64", "two", "untuned@70", "p1", 0),
        ("dev", "chain-s/b64", "two", "untuned@68", "p2", 0), ("dev", "chain-s/b64", "two", "untuned@68", "p1", 0),
    ]  # fmt: skip
    assert not set(found) & set(keys.dev_keys(several, ["p1", "p2"]))
    assert all(keys.is_step(k[3]) for k in found)
    assert not any(keys.is_step(k[3]) for k in keys.dev_keys(several, ["p1"]))


def test_keys_root_ignores_order_but_not_content(protocol):
    found = keys.expected_keys(protocol, ["a", "b"], ["candidate"])
    root = keys.keys_root(found)
    assert keys.keys_root(reversed(found)) == root
    assert keys.keys_root(found[1:]) != root
    assert keys.keys_root(keys.expected_keys(protocol, ["a", "c"], ["candidate"])) != root
    assert keys.keys_root(keys.expected_keys(protocol, ["a", "b"], [])) != root


@pytest.mark.parametrize(
    "key, salt, info, length, expected",
    [
        (
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            42,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        ("0b" * 22, "", "", 42,
         "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
    ],
)  # fmt: skip
def test_hkdf_vectors_of_rfc_5869(key, salt, info, length, expected):
    got = keys.hkdf_sha256(bytes.fromhex(key), bytes.fromhex(salt), bytes.fromhex(info), length)
    assert got.hex() == expected


def test_hkdf_refuses_too_much():
    with pytest.raises(ValueError, match="8160"):
        keys.hkdf_sha256(b"k", b"", b"", 8161)


def test_seeds_differ_in_everything_but_the_arm():
    seeds = [
        keys.trial_seed(reg, cell, problem, sample, phase=phase)
        for reg, cell, problem, sample, phase in itertools.product(
            ["sha256:aa", "sha256:ab"], ["m/b64", "m/b96"], ["p", "q"], [0, 1], ["dev", "heldout"]
        )
    ]
    assert len(set(seeds)) == len(seeds) == 32
    assert all(len(s) == 32 and int(s, 16) >= 0 for s in seeds)


def test_seed_is_pinned():
    """A change of the derivation would make every finished study fail verification."""
    assert keys.trial_seed("sha256:" + "0" * 64, "m/b64", "p", 0, phase="heldout") == "c1e9758bb0824d1132043e3264f48d04"
