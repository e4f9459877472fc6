"""Sentences that mean nothing in particular, to put a lot of text between a fact and the question about it.

Own words and patterns; a pure function of the random generator that is given. Names are an adjective and a noun of
lists that the sentences never use, so that filler cannot be mistaken for a fact.
"""

from __future__ import annotations

import hashlib
import random
import re

__all__ = ["ADJECTIVES", "NOUNS", "names", "sentence", "stream", "woven"]

#: Names are made of these and filler is not.
ADJECTIVES = tuple(
    "amber brisk cobalt crimson dappled eager frosted gentle hollow ivory jolly lively lunar mellow nimble olive "
    "patient quiet rugged scarlet silver solemn spotted sturdy tawny umber velvet violet wooden zealous".split()
)
NOUNS = tuple(
    "badger beacon camel condor dolphin falcon ferret gazelle heron ibis jackal kestrel lantern lynx marmot meadow "
    "otter panther pelican quail raven salmon sparrow tiger turtle viper walrus weasel willow zebra".split()
)

_WHO = (
    "baker carpenter clerk cousin doctor driver farmer fisherman gardener guard guest judge librarian mason mayor "
    "merchant miller musician neighbour nurse painter pilot plumber porter potter sailor scholar shepherd singer smith "
    "student surgeon tailor teacher traveller waiter watchman weaver widow writer"
).split()
_DID = (
    "carried cleaned counted covered described drew emptied examined fetched filled found gathered hid inspected lent "
    "lifted measured mended moved noticed opened ordered packed painted polished praised printed repaired sketched "
    "sold sorted stacked studied touched traded unpacked wanted washed weighed wrapped"
).split()
_WHAT = (
    "apples barrels baskets bells blankets books boots bottles bowls boxes bricks brushes candles carpets chairs coins "
    "cups curtains doors fences flags gloves hats jars keys kites ladders letters maps mirrors nets pans pipes plates "
    "ropes shelves shoes spoons tables tools"
).split()
_WHERE = (
    "attic bakery barn bridge brook cabin cellar chapel cottage courtyard ferry field forest fountain garden gate "
    "harbour hill hotel inn kitchen library market mill museum orchard park pier quarry river road school shore "
    "square stable station theatre tower valley village"
).split()
_HOW = (
    "big broken cheap clean cold damp dark dusty empty faded fine flat fresh grey heavy light little long narrow new "
    "odd old pale plain poor rare rough round rusty sharp short simple small soft square stiff strange tall thick wide"
).split()
_WHEN = (
    "after breakfast|after dark|all afternoon|all day|as usual|at dawn|at midday|at night|before dinner|before lunch|"
    "during the storm|early on|every spring|for an hour|in autumn|in the evening|in the rain|in winter|last year|"
    "once more|on Friday|on Monday|on Sunday|that morning|twice a week|without a word"
).split("|")


_SLOTS = {"who": _WHO, "did": _DID, "what": _WHAT, "where": _WHERE, "how": _HOW, "when": _WHEN}
_PATTERNS = (
    "The {how} {who} {did} the {how} {what} near the {where} {when}.",
    "Near the {where} a {who} {did} some {how} {what} {when}.",
    "{when} the {who} {did} {how} {what} for the {who}.",
    "Nobody at the {where} {did} the {what} that the {who} {did} {when}.",
    "A {who} from the {where} {did} the {what} and {did} the {how} {what}.",
    "When the {where} was {how}, the {who} {did} {what} {when}.",
)
_SLOT = re.compile(r"{(\w+)}")


def sentence(rng: random.Random) -> str:
    """One sentence of 8 to 16 words."""
    pattern = _PATTERNS[rng.randrange(len(_PATTERNS))]
    text = _SLOT.sub(lambda slot: _SLOTS[slot[1]][rng.randrange(len(_SLOTS[slot[1]]))], pattern)
    return text[0].upper() + text[1:]


def names(rng: random.Random, count: int) -> list[str]:
    """`count` different names, such as ``amber falcon``."""
    numbers = rng.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
    return [f"{ADJECTIVES[n // len(NOUNS)]} {NOUNS[n % len(NOUNS)]}" for n in numbers]


def woven(rng: random.Random, facts: list[str], words: int, depth: int | None = None) -> str:
    """`facts` in their order among so many sentences that the text has at most `words` words, and as many as fit.

    Facts are spread at random, or, with `depth` 0 to 100, stand together at that percentage of the filler. Raises
    ValueError when the facts alone are longer.
    """
    room = words - sum(len(fact.split()) for fact in facts)
    if room < 0:
        raise ValueError(f"the facts alone have {words - room} words and the text is to have {words}; allow more words")
    filler: list[str] = []
    while True:
        following = sentence(rng)
        room -= len(following.split())
        if room < 0:
            break
        filler.append(following)
    if depth is None:
        places = sorted(rng.randrange(len(filler) + 1) for _ in facts)
    else:
        places = [len(filler) * depth // 100] * len(facts)
    out, done = [], 0
    for place, fact in zip(places, facts, strict=True):
        out += [*filler[done:place], fact]
        done = place
    return " ".join([*out, *filler[done:]])


def stream(name: str) -> random.Random:
    """The generator of the problem called `name`: the same on every machine and Python version."""
    return random.Random(int.from_bytes(hashlib.sha256(name.encode()).digest(), "big"))

