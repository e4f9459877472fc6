"""What the engine asks of a method's parts before it runs them."""

from dataclasses import dataclass

import pytest
from cask_methods.presets.recency import Recency
from cask_methods.scorers.h2o import H2OScorer
from engine_models import build

from cask_eval.engine.contract import Entries, Host, Needs, Trait, needs_of
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
