"""Freezing, checking, comparing and storing split manifests."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.errors import SplitError
from cask_eval.splits import store
from cask_eval.splits.check import check_manifest, check_problems
from cask_eval.splits.disjoint import agreement, overlaps
from cask_eval.splits.freeze import freeze, item_of, minhash, normalise, problem_digest


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str
    answer: str = "1"
    stratum: str = ""


def make(name="a", role="dev", problems=None):
    problems = problems or [Problem("p1", "How many apples are in the old green box?"), Problem("p2", "And pears?")]
    return freeze(name, "chain", role, {"seed": 1, "count": len(problems)}, "the first ones", problems)


WORDS = [f"word{i}" for i in range(200)]
LONG = " ".join(WORDS)


def test_freeze_keeps_order_and_is_whole():
    manifest = make(problems=[Problem("z", "one"), Problem("a", "two", stratum="hard")])
    assert [(i.id, i.stratum) for i in manifest.items] == [("z", ""), ("a", "hard")]
    assert check_manifest(manifest) == []
    assert manifest.items[0].digest == problem_digest(Problem("z", "one"))


def test_digest_covers_id_prompt_and_answer_but_not_stratum():
    base = Problem("p", "q", "r")
    variants = [base, replace(base, id="x"), replace(base, prompt="x"), replace(base, answer="x")]
    assert len({problem_digest(p) for p in variants}) == 4
    assert problem_digest(base) == problem_digest(replace(base, stratum="x"))
    # Text cannot move from one field into the next.
    assert problem_digest(Problem("ab", "c")) != problem_digest(Problem("a", "bc"))


@pytest.mark.parametrize(
    "problems, message",
    [
        ([Problem("p", "one"), Problem("p", "two")], "two problems have the id 'p'"),
        ([Problem("p", "Same  Text"), Problem("q", "same text\n")], "'p' and 'q' ask the same question"),
        ([Problem("", "one")], "problem '' cannot be frozen"),
        ([Problem("p", "half \ud800")], "problem 'p' cannot be frozen"),
        ([], "items"),
    ],
)
def test_freeze_refuses(problems, message):
    with pytest.raises(SplitError, match=message):
        freeze("a", "chain", "dev", {}, "rule", problems)


@pytest.mark.parametrize(
    "change, message",
    [({"name": "Not Good"}, "name"), ({"role": "test"}, "role"), ({"source": {"share": 0.5}}, "source.*float")],
)
def test_freeze_refuses_fields(change, message):
    fields = {"name": "a", "task": "chain", "role": "dev", "source": {}, "rule": "r", "problems": [Problem("p", "q")]}
    with pytest.raises(SplitError, match=message):
        freeze(**{**fields, **change})


def test_normalise():
    assert normalise("  Ｈow\tMANY\n\n½ Straße ") == "how many 1⁄2 strasse"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_normalise_is_idempotent_and_ignores_case(text):
    once = normalise(text)
    assert normalise(once) == once
    assert normalise(f" {text}\r\n") == once


def test_minhash_is_pinned():
    """A change of the sketch would make old manifests incomparable."""
    assert minhash("a b c d e f") == (
        "e38766b089756808a900c6a776f395138b7c2da53976104557beb8b80bcf3e66"
        "0f2d8fce238032d40258e9601432a7f53acd21696e890bde0f3cef0ce3aaa4a1"
        "a7d65c1219dfa55a5e1a4c4924075df992513a48146dd7e3655cdd0a884da1a5"
        "7243c2a100f97a337e65b62a91e662570ead0f5e23f8aa2d11352b961bbaefd5"
    )


def test_minhash_form():
    assert len(minhash("")) == len(minhash(LONG)) == 256
    assert minhash("three short words") != minhash("three short word")
    assert minhash("One two three FOUR five six") == minhash("one  two three four five six")


def test_agreement_estimates_similarity():
    other = " ".join(WORDS[:100] + [f"new{i}" for i in range(100)])
    half = agreement(item_of(Problem("a", LONG)), item_of(Problem("b", other)))
    # True Jaccard similarity is 96/296 = .32; 32 draws, so 10.4 expected with deviation 2.6.
    assert 2 <= half <= 19
    assert agreement(item_of(Problem("a", LONG)), item_of(Problem("b", LONG))) == 32


def test_disjoint_splits_have_no_overlaps():
    dev = make("d", "dev", [Problem("a", "alpha beta gamma delta epsilon zeta"), Problem("b", "one two three")])
    held = make("h", "heldout", [Problem("c", "eta theta iota kappa lambda mu"), Problem("e", "four five six")])
    assert overlaps(dev, held) == []


@pytest.mark.parametrize(
    "dev, held, expected",
    [
        (Problem("p", "one"), Problem("p", "two"), ["'p' has the same id in d and h"]),
        (Problem("p", "One two"), Problem("q", "one  TWO"), ["'q' of h has the text of 'p' of d"]),
        (Problem("p", LONG), Problem("q", LONG.replace("word199", "changed")), ["'q' of h is a near-duplicate of 'p'"]),
        (Problem("p", LONG), Problem("p", LONG), ["'p' has the same id"]),
    ],
)
def test_overlaps(dev, held, expected):
    others = [Problem(f"o{i}", f"something else entirely about number {i} and more") for i in range(5)]
    found = overlaps(make("d", "dev", [*others[:2], dev]), make("h", "heldout", [held, *others[2:3]]), "0.9")
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


def found_near(changed: list[int], need: int) -> bool:
    """Whether two problems count as near-duplicates whose sketches differ at the positions `changed`."""
    one = item_of(Problem("a", "x"))
    cells = [one.minhash[i : i + 8] for i in range(0, 256, 8)]
    for i in changed:
        cells[i] = f"{int(cells[i], 16) ^ 1:08x}"
    other = one.model_copy(update={"id": "b", "text": item_of(Problem("b", "y")).text, "minhash": "".join(cells)})
    assert agreement(one, other) == 32 - len(changed)
    dev = make("d", "dev").model_copy(update={"items": [one]})
    held = make("h", "heldout").model_copy(update={"items": [other]})
    return bool(overlaps(dev, held, str(need / 32)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 31), unique=True), st.integers(1, 32))
def test_band_lookup_finds_what_comparing_all_finds(changed, need):
    assert found_near(changed, need) == (32 - len(changed) >= need)


@pytest.mark.parametrize("need", range(1, 32))
def test_band_lookup_finds_differences_that_are_spread_out(need):
    changes = 32 - need
    assert found_near([32 * k // changes for k in range(changes)], need)


@pytest.mark.parametrize("threshold", ["0", "1.1", "-1", "x", "NaN"])
def test_threshold_must_make_sense(threshold):
    with pytest.raises(ValueError, match="threshold is"):
        overlaps(make(), make(role="heldout"), threshold)


def test_check_manifest_sees_every_edit():
    manifest = make()
    for update in ({"id": "px"}, {"stratum": "x"}, {"minhash": "0" * 256}, {"text": manifest.items[1].digest}):
        items = [manifest.items[0].model_copy(update=update), manifest.items[1]]
        found = check_manifest(manifest.model_copy(update={"items": items}))
        assert found and manifest.merkle_root in found[0]
    swapped = manifest.model_copy(update={"items": manifest.items[::-1]})
    assert "merkle_root" in check_manifest(swapped)[0]


def test_check_manifest_sees_duplicates():
    manifest = make()
    doubled = manifest.model_copy(update={"items": [*manifest.items, manifest.items[0]]})
    doubled = doubled.model_copy(update={"merkle_root": doubled.root()})
    found = check_manifest(doubled)
    assert len(found) == 2 and "id 'p1' appears 2 times" in found[0] and "text" in found[1]


def test_check_problems():
    problems = [Problem("p1", "one"), Problem("p2", "two"), Problem("p3", "three")]
    manifest = make(problems=problems)
    assert check_problems(manifest, reversed(problems)) == []
    changed = replace(problems[0], answer="2")
    found = check_problems(manifest, [changed, problems[1], problems[1], Problem("p4", "four")])
    assert found == [
        f"a: problem 'p1' now has digest {problem_digest(changed)}, frozen was {problem_digest(problems[0])}",
        "a: problem 'p2' was produced twice",
        "a: problem 'p4' is not in the manifest",
        "a: problem 'p3' is missing",
    ]


def test_store_round_trip(tmp_path):
    path = tmp_path / "new" / "m.json"
    manifest = make(problems=[Problem("ä", "é\u2028x"), Problem("b", "c")])
    store.write(path, manifest)
    first = path.read_bytes()
    assert b"\r" not in first and first.endswith(b"}\n")
    assert store.read(path) == manifest
    path.write_bytes(first.replace(b"\n", b"\r\n"))
    assert store.read(path).digest() == manifest.digest()
    assert [p.name for p in path.parent.iterdir()] == ["m.json"]


def test_store_refuses_to_change_a_frozen_split(tmp_path):
    path = tmp_path / "m.json"
    store.write(path, make())
    before = path.read_bytes()
    store.write(path, make())
    other = make(problems=[Problem("other", "text")])
    with pytest.raises(SplitError, match="does not change"):
        store.write(path, other)
    assert path.read_bytes() == before
    store.write(path, other, overwrite=True)
    assert store.read(path) == other
    path.write_text("notes")
    with pytest.raises(SplitError, match="holds something else"):
        store.write(path, other)
    assert path.read_text() == "notes"


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda d: d.pop("rule"), "rule: Field required"),
        (lambda d: d.update(extra=1), "extra: "),
        (lambda d: d["items"][1].update(digest="sha256:00"), "items.1.digest"),
        (lambda d: d["items"][0].update(minhash="z" * 256), "items.0.minhash"),
        (lambda d: d.update(items=[]), "items: "),
        (lambda d: d["source"].update(x=0.5), "strict JSON: 0.5"),
    ],
)
def test_read_names_the_field(tmp_path, damage, message):
    document = json.loads(store.text(make()))
    damage(document)
    path = tmp_path / "m.json"
    path.write_text(json.dumps(document))
    with pytest.raises(SplitError) as caught:
        store.read(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("data", [b'{"a": 1, "a": 2}', b"[", b"\xff", b"NaN", b""])
def test_read_refuses_loose_json(tmp_path, data):
    path = tmp_path / "m.json"
    path.write_bytes(data)
    with pytest.raises(SplitError, match=r"m\.json"):
        store.read(path)


def test_read_of_a_missing_file(tmp_path):
    with pytest.raises(SplitError, match="cannot be read"):
        store.read(tmp_path / "gone.json")
