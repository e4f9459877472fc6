"""Numbers per token: what goes in comes out, against the safetensors library; damage is an error, never a number."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from cask_eval import jsonl
from cask_eval.errors import RecordError
from cask_eval.fidelity import Tokens
from cask_eval.records.tokens import FIELDS, TokenFile, digest_of, journal_of, path_of


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


def test_what_is_appended_is_there_and_goes_into_the_file(tmp_path):
    """Byte for byte what one write of all would have left, in whatever order it came."""
    path, found = tmp_path / "a" / "x.safetensors", {("", f"p{i}", 0): made(i, 1 + i % 2, 3 + i) for i in range(6)}
    file = TokenFile(path)
    for t in reversed(found):
        file.append({t: found[t]})
        for look in (file, TokenFile(path)):
            assert equal(look.read(t, [2] * len(found[t].nll)), found[t])
    assert not path.exists() and TokenFile(path).trials == set(found)
    file.append({("", "p3", 0): made(9)})
    assert equal(TokenFile(path).read(("", "p3", 0), [2]), made(9))
    file.append({("", "p3", 0): found["", "p3", 0]})
    TokenFile(path).settle()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    TokenFile(tmp_path / "one").add(found)
    assert path.read_bytes() == (tmp_path / "one").read_bytes()
    file = TokenFile(path)
    file.settle()
    file.append({("", "q", 0): made(7)})
    assert equal(file.read(("", "q", 0), [2]), made(7)) and equal(file.read(("", "p2", 0), [2]), found["", "p2", 0])


def test_two_that_append_in_turns_see_each_other(tmp_path):
    path = tmp_path / "x.safetensors"
    one, other = TokenFile(path), TokenFile(path)
    for i, file in enumerate((one, other, one, other)):
        file.append({("", str(i), 0): made(i)})
    other.settle()
    assert TokenFile(path).trials == {("", str(i), 0) for i in range(4)}


def test_appending_does_not_write_again_what_is_there(tmp_path, monkeypatch):
    file, written, inner = TokenFile(tmp_path / "x.safetensors"), [], jsonl.append
    monkeypatch.setattr(jsonl, "append", lambda path, data: written.append(len(data)) or inner(path, data))
    monkeypatch.setattr(jsonl, "replace", None)
    for i in range(30):
        file.append({("", f"{i:02}", 0): made(i)})
    assert len(written) == 30 and max(written) < min(written) + 16


@pytest.mark.parametrize("left", [1, 7, 39, 40, 41, 200, -1])
def test_a_torn_piece_is_passed_over_and_replaced(tmp_path, left):
    path = tmp_path / "x.safetensors"
    TokenFile(path).append({("", "a", 0): made(1)})
    whole = journal_of(path).read_bytes()
    TokenFile(path).append({("", "b", 0): made(2)})
    torn = journal_of(path).read_bytes()[len(whole) :][:left]
    journal_of(path).write_bytes(whole + torn)
    assert TokenFile(path).trials == {("", "a", 0)} and equal(TokenFile(path).read(("", "a", 0), [2]), made(1))
    TokenFile(path).append({("", "b", 0): made(2), ("", "c", 0): made(3)})
    TokenFile(path).settle()
    assert {t: TokenFile(path).read(t, [2]) is not None for t in TokenFile(path).trials} == {
        ("", name, 0): True for name in "abc"
    }


def test_a_crash_between_the_file_and_the_end_of_its_journal(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    TokenFile(path).append({("", "a", 0): made(1)})
    monkeypatch.setattr(jsonl, "remove", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        TokenFile(path).settle()
    monkeypatch.undo()
    assert path.exists() and journal_of(path).exists()
    before = path.read_bytes()
    TokenFile(path).settle()
    assert path.read_bytes() == before and not journal_of(path).exists()


def test_a_failed_append_changes_nothing(tmp_path, monkeypatch):
    file = TokenFile(tmp_path / "x.safetensors")
    file.append({("", "a", 0): made(1)})
    before = file.journal.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            file.append({("", "b", 0): made(2)})
    assert file.journal.read_bytes() == before and file.trials == {("", "a", 0)}
    file.append({("", "b", 0): made(2)})
    assert TokenFile(file.path).trials == file.trials == {("", "a", 0), ("", "b", 0)}


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
