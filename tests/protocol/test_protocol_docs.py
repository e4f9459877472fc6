"""docs/PROTOCOL.md names every field, every choice and every default of a decision, and nothing else."""

import re
from pathlib import Path

import pytest

from cask_eval.cli import COMMANDS
from cask_eval.decide.branches import FIELDS
from cask_eval.protocol.model import MatchedCache, Protocol
from cask_eval.protocol.schema import schema
from cask_eval.tasks import registry

TEXT = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text(encoding="utf-8")
DEFINITIONS = schema()["$defs"]


def fields(name: str) -> dict:
    return DEFINITIONS[name]["properties"]


@pytest.mark.parametrize("section", sorted(DEFINITIONS))
def test_every_field_of_a_section_is_named(section):
    missing = [field for field in fields(section) if not re.search(rf"[`.\[\]]{field}\b", TEXT)]
    assert missing == []


def test_every_field_of_the_protocol_is_named():
    assert [field for field in Protocol.model_fields if not re.search(rf"`{field}\b", TEXT)] == []


def test_every_choice_is_named():
    choices = {c for d in DEFINITIONS.values() for p in d["properties"].values() for c in p.get("enum", [])}
    endings = {c for c in choices if str(c).endswith("_after")}
    assert [c for c in choices - endings if f"`{c}`" not in TEXT] == []


@pytest.mark.parametrize("field", MatchedCache.model_fields)
def test_the_defaults_of_equal_caches(field):
    (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| `matched_cache.{field}`")]
    assert line.split("|")[2].strip().strip("`").strip('"') == MatchedCache.model_fields[field].default


@pytest.mark.parametrize("field", FIELDS)
def test_what_branches_count(field):
    assert f"| `{field}` |" in TEXT


def test_the_commands_are_there():
    assert set(re.findall(r"^cask-eval ([a-z]+)", TEXT, re.M)) <= COMMANDS.keys()


def test_the_parameters_of_the_chain_task():
    with pytest.raises(ValueError, match="use (.*)") as fault:
        registry.load("chain").problems({"nothing": 1})
    known = str(fault.value).split("; use ")[1].split(", ")
    assert len(known) > 5 and [name for name in known if f"`{name}`" not in TEXT] == []
