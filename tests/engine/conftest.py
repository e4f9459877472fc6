import pytest
import torch
from engine_models import FAMILIES, build

from cask_eval.engine.attention import NAME


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="session")
def model(family):
    built = build(family)
    built.set_attn_implementation(NAME)
    return built


@pytest.fixture(scope="session")
def plain(family):
    built = build(family)
    built.set_attn_implementation("eager")
    return built
