"""What the engine asks of a method's parts before it runs them."""

from dataclasses import dataclass, replace

import pytest
import torch
from cask_methods.presets.recency import Recency
from cask_methods.scorers.h2o import H2OScorer
from engine_models import build
from method_cases import entries

from cask_eval.engine.contract import Entries, Host, Needs, Selection, Trait, needs_of
from cask_eval.engine.model import geometry
from cask_eval.errors import MethodError


@dataclass(frozen=True)
class Holder:
    base: object

    def score(self, entries: Entries, candidates):
        return self.base.score(entries, candidates)


@dataclass(frozen=True)
class Passing(Holder):
    def observe(self, *seen):
        self.base.observe(*seen)


@pytest.fixture(scope="module")
def host():
    return Host(geometry(build("llama")))


@pytest.mark.parametrize("wrap", [Holder, lambda base: Holder(Holder(base))])
def test_an_observer_that_nobody_tells_is_refused(host, wrap):
    class Silent(Recency):
        def scorer(self):
            return wrap(H2OScorer())

    with pytest.raises(MethodError, match="H2OScorer follows every attention read, but Holder, which holds it"):
        Silent().bind(host)


def test_an_observer_that_is_told_is_bound(host):
    class Telling(Recency):
        def scorer(self):
            return Passing(H2OScorer())

    assert Telling().bind(host).scorer == Passing(H2OScorer())


SHARED = Trait(start=2.0)


@dataclass(frozen=True)
class Part:
    needs: Needs


def test_parts_share_a_trait_only_by_declaring_one_object():
    both = needs_of(Part(Needs(traits={"mass": SHARED})), Part(Needs(2, {"mass": SHARED})))
    assert both == Needs(2, {"mass": SHARED})
    with pytest.raises(MethodError, match="called mass; give each its own name"):
        needs_of(Part(Needs(traits={"mass": SHARED})), Part(Needs(traits={"mass": Trait(start=2.0)})))


def test_two_biases_are_refused():
    parts = [Part(Needs(traits={n: Trait()}, bias=n)) for n in ("one", "two")]
    with pytest.raises(MethodError, match="by one and by two"):
        needs_of(*parts)


@dataclass(frozen=True)
class Remembering:
    """The newest entries stay; what is to be remembered is given as traits or as notes."""

    needs: Needs
    given: str

    def select(self, scores, candidates, quota, entries):
        keep = candidates & (candidates.flip(-1).cumsum(-1).flip(-1) <= quota[..., None])
        return Selection(keep, **{self.given: {"mass": torch.zeros(1)}})


@pytest.mark.parametrize("declared, given", [(False, "traits"), (True, "notes")])
def test_what_is_remembered_is_declared_and_what_is_not_is_a_note(host, declared, given):
    selector = Remembering(Needs(traits={"mass": SHARED} if declared else {}), given)
    policy = replace(Recency(prompt="compete").bind(host), selector=selector)
    e = entries(host.geometry, (12,), (4,), needs=selector.needs)
    with pytest.raises(MethodError, match="Remembering gives mass"):
        policy.compress(e, torch.tensor([8]))
    selector = replace(selector, given="notes" if given == "traits" else "traits")
    kept = replace(policy, selector=selector).compress(e, torch.tensor([8]))
    assert kept.keep.sum(-1).eq(8).all() and "mass" in kept.entries.traits
