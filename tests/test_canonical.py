"""Canonical bytes, digests and the strict JSON reader."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cask_eval.canonical import canonical, digest, digest_tree, loads, merkle_root

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


def test_the_published_vector():
    value = {"m": 4, "cells": ["a", "b"], "alpha": "0.05"}
    assert digest(value) == "sha256:0734ff2330a309e235b23396b6b85d48f742cb023bff74a6d6ae55f1fa3e8640"


@given(VALUES)
def test_canonical_bytes_read_back_as_the_same_value(value):
    assert loads(canonical(value)) == value


@pytest.mark.parametrize("value", [0.5, {"a": [1, {"b": 1.0}]}, float("nan"), 2**53, "\ud800"])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(ValueError):
        canonical(value)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ("NaN", "NaN"),
        ("[Infinity]", "Infinity"),
        ("0.5", "decimal strings"),
        ("1e3", "decimal strings"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_loopholes_of_json_are_shut(text, message):
    with pytest.raises(ValueError, match=message):
        loads(text)


def rfc6962(leaves: list[bytes]) -> bytes:
    """Merkle tree hash by the recursive definition of RFC 6962 §2.1."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + rfc6962(leaves[:k]) + rfc6962(leaves[k:])).digest()


@given(st.lists(st.binary(max_size=8), max_size=40))
def test_the_merkle_root_is_that_of_the_rfc(leaves):
    assert merkle_root(leaves) == "sha256:" + rfc6962(leaves).hex()


def test_a_tree_has_one_digest_on_every_platform(tmp_path):
    for name, end in (("unix", b"\n"), ("windows", b"\r\n")):
        folder = tmp_path / name / "package"
        (folder / "__pycache__").mkdir(parents=True)
        (folder / "a.py").write_bytes(b"x = 1" + end + b"y = 2" + end)
        (folder / "__pycache__" / "a.py").write_bytes(name.encode())
        (folder / "note.txt").write_bytes(name.encode())
    one, two = (digest_tree(tmp_path / n / "package") for n in ("unix", "windows"))
    assert one == two
    (tmp_path / "unix" / "package" / "a.py").write_bytes(b"x = 2\n")
    assert digest_tree(tmp_path / "unix" / "package") != two
