"""Numbers per token: what goes in comes out, against the safetensors library; damage is an error, never a number."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from cask_eval.errors import RecordError
from cask_eval.fidelity import Tokens
from cask_eval.records.tokens import FIELDS, TokenFile, digest_of, path_of


def made(seed=0, chains=1, length=5, kl=True):
    draw = np.random.default_rng(seed)
    nll, other = (draw.random((chains, length), np.float32) for _ in range(2))
    rank = draw.integers(1, 9, (chains, length), np.int32)
    return Tokens(nll, rank, other if kl else None, np.arange(length)[None].repeat(chains, 0) >= 2)


def equal(a, b):
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in (*FIELDS, "compressed"))


@given(st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4), st.integers(0, 3)), unique=True, max_size=5))
@settings(max_examples=40, deadline=None)
def test_what_goes_in_comes_out(tmp_path_factory, trials):
    path = tmp_path_factory.mktemp("tokens") / "a" / "b.safetensors"
    found = {t: made(i, 1 + i % 3, 2 + i) for i, t in enumerate(trials)}
    for t, tokens in found.items():
        TokenFile(path).add({t: tokens})
    file = TokenFile(path)
    assert file.trials == set(trials) and file.read(("no", "such", 9)) is None
    for t, tokens in found.items():
        assert equal(file.read(t, [2] * len(tokens.nll)), tokens)
        assert not file.read(t).compressed.any()


def test_the_library_reads_the_same(tmp_path):
    path, tokens = tmp_path / "x.safetensors", made(3, 2, 7)
    TokenFile(path).add({("lambda=1", "p/ä", 0): tokens})
    found = load_file(path)
    assert {json.loads(name)[3] for name in found} == set(FIELDS)
    for name, array in found.items():
        assert np.array_equal(array, getattr(tokens, json.loads(name)[3]))
    save_file(found, path)
    assert equal(TokenFile(path).read(("lambda=1", "p/ä", 0), [2, 2]), tokens)


def test_a_trial_is_replaced_and_a_failed_write_changes_nothing(tmp_path, monkeypatch):
    path, trial = tmp_path / "x.safetensors", ("", "p", 0)
    file = TokenFile(path)
    file.add({trial: made(1), ("", "q", 0): made(2)})
    file.add({trial: made(3, length=9)})
    assert equal(TokenFile(path).read(trial, [2]), made(3, length=9))
    assert equal(file.read(("", "q", 0), [2]), made(2))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.add({trial: made(4)})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_digest_covers_shape_numbers_and_fields_but_not_the_mask():
    tokens = made(5, 2, 6)
    assert digest_of(tokens) == digest_of(Tokens(tokens.nll, tokens.rank, tokens.kl, ~tokens.compressed))
    flat = [x.reshape(1, 12) for x in (tokens.nll, tokens.rank, tokens.kl, tokens.compressed)]
    swapped = Tokens(tokens.kl, tokens.rank, tokens.nll, tokens.compressed)
    assert len({digest_of(t) for t in (tokens, Tokens(*flat), swapped, made(6, 2, 6))}) == 4
    with pytest.raises(RecordError, match="kl"):
        digest_of(made(kl=False))


def header(entries: dict) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


ENTRY = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
NAME = '["","p",0,"nll"]'


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "no safetensors file"),
        (b"\xff" * 40, "no safetensors file"),
        ((5).to_bytes(8, "little") + b"{nope", "not JSON"),
        (header([]), "no named tensors"),
        (header({NAME: ENTRY}), "not in its place"),
        (header({NAME: ENTRY | {"data_offsets": [0, 9]}}) + b"x" * 9, "not in its place"),
        (header({NAME: ENTRY | {"shape": [1, -2]}}) + b"x" * 8, "not in its place"),
        (header({NAME: ENTRY | {"shape": [1, 2.0]}}) + b"x" * 8, "not in its place"),
        (header({NAME: {"dtype": "F32"}}), "not in its place"),
        (header({"nll": ENTRY}) + b"x" * 8, "belongs to no trial"),
        (header({'["", "p",0,"nll"]': ENTRY}) + b"x" * 8, "belongs to no trial"),
        (header({'["","p",0,["nll"]]': ENTRY}) + b"x" * 8, "belongs to no trial"),
        (header({NAME: ENTRY}) + bytes(8), "rank of"),
        (header({NAME: ENTRY | {"dtype": "I32"}}) + bytes(8), "nll of"),
    ],
)
def test_damage_is_named(tmp_path, data, said):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(RecordError, match=said):
        file = TokenFile(path)
        assert file.trials
        file.read(("", "p", 0))


def test_numbers_that_cannot_be_are_refused(tmp_path):
    path, tokens = tmp_path / "x.safetensors", made()
    TokenFile(path).add({("", "p", 0): tokens})
    found = load_file(path)
    for field, value in (("nll", np.nan), ("kl", -1), ("rank", 0)):
        spoiled = {name: array.copy() for name, array in found.items()}
        spoiled[json.dumps(["", "p", 0, field], separators=(",", ":"))][0, 1] = value
        save_file(spoiled, path)
        with pytest.raises(RecordError, match=field):
            TokenFile(path).read(("", "p", 0))
    with pytest.raises(RecordError, match="2 chains|1 chains"):
        save_file(found, path)
        TokenFile(path).read(("", "p", 0), [1, 2])


def test_where_they_lie():
    assert path_of("reports/s/dev-2.jsonl", "m/b64", "baseline") == "reports/s/dev-2.tokens/m/b64/baseline.safetensors"
