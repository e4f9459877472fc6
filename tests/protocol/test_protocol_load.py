"""Loading a protocol: digests, and messages that name file, line, field, value and remedy."""

from __future__ import annotations

import pytest

from cask_eval.canonical import digest, digest_bytes
from cask_eval.errors import ProtocolError
from cask_eval.protocol.load import fields_at, load
from cask_eval.protocol.model import Protocol
from cask_eval.protocol.schema import DIALECT, schema, schema_text
from cask_eval.protocol.template import template


@pytest.fixture
def write(tmp_path):
    def write(text: str, newline: str = "\n"):
        path = tmp_path / "p.yaml"
        path.write_bytes(text.replace("\n", newline).encode())
        return path

    return write


def test_template_is_the_study_of_the_readme(write):
    protocol = load(write(template())).protocol
    assert [c.name for c in protocol.cells] == ["chain-s/b64", "chain-s/b96", "chain-m/b64", "chain-m/b96"]
    assert list(protocol.arms) == ["baseline", "candidate", "full", "random"]
    assert [b.name for b in protocol.branches] == ["A", "B", "V", "C"]
    assert load(write(template("another-name"))).protocol.study == "another-name"


def test_digests(write):
    text = template()
    loaded = load(write(text))
    assert loaded.raw_digest == digest_bytes(text.encode())
    assert loaded.digest == digest(loaded.protocol.document())
    crlf, commented = load(write(text, "\r\n")), load(write("# hello\n" + text))
    assert crlf.digest == commented.digest == loaded.digest
    assert len({crlf.raw_digest, commented.raw_digest, loaded.raw_digest}) == 3
    assert load(write(text.replace('"0.03"', '"0.030"'))).digest != loaded.digest


def test_defaults_are_part_of_the_digest(write):
    explicit = template().replace('tolerance: "0.03"', 'tolerance: "0.03", peak_ratio: "1.5"')
    assert load(write(explicit)).digest == load(write(template())).digest


# (what to replace, by what, line of the fault relative to the line of `what`, expected text)
BAD = {
    "float": ('alpha: "0.05"\n  corr', "alpha: 0.05\n  corr", 0, 'test.alpha: 0.05 is an unquoted decimal'),
    "quoted non-decimal": ('alpha: "0.05"\n  corr', 'alpha: "5e-2"\n  corr', 0, "test.alpha: must be a plain decimal"),
    "number for decimal": ('tolerance: "0.03"', "tolerance: 1", 0, "matched_cache.tolerance: must be text (value 1); "
                           "put it in quotes"),
    "out of range": ('alpha: "0.05"\n  corr', 'alpha: "0.9"\n  corr', 0, "test.alpha: must lie above 0 and at most "
                     "0.5 (value '0.9')"),
    "unknown field": ("hypothesis:", "hypotesis:", 0, "hypotesis: is no field of a protocol"),
    "suggestion": ("hypothesis:", "hypotesis:", 0, "did you mean `hypothesis`?"),
    "missing field": ("hypothesis:", "hypotesis:", None, "hypothesis: is missing; add it"),
    "unknown nested field": ("tune: {", "tunes: {", 0, "candidate.tunes: is no field of a protocol"),
    "nested suggestion": ("tune: {", "tunes: {", 0, "did you mean `tune`?"),
    "unknown in a list": ("dtype: float32, calibration: bundled}\n  - ", "dtyp: float32}\n  - ", 0,
                          "models[0].dtyp: is no field"),
    "no near name": ("name: random,", "xyzzy: 1, name: random,", 0, "use one of preset, params, name"),
    "wrong literal": ("two-sided", "two-sidd", 0, "test.alternative: must be 'two-sided' or 'greater' (value "
                      "'two-sidd'); did you mean 'two-sided'?"),
    "text for integer": ("[64, 96]", '["64", 96]', 0, "budgets[0]: must be a whole number without quotes (value '64')"),
    "boolean for integer": ("[64, 96]", "[true, 96]", 0, "budgets[0]: must be a whole number"),
    "zero budget": ("[64, 96]", "[64, 0]", 0, "budgets[1]: input should be greater than or equal to 1 (value 0)"),
    "empty list": ("[64, 96]", "[]", 0, "budgets: "),
    "twice in a list": ("[64, 96]", "[64, 64]", 0, "budgets: 64 appears more than once"),
    "list for section": ("task: {name: chain, dev: splits/chain-dev.json, heldout: splits/chain-heldout.json}",
                         "task: [chain]", 0, "task: must hold named fields (value ['chain'])"),
    "empty value": ("budgets: [64, 96]", "budgets:", 0, "budgets: is empty (value null); give a value"),
    "list as parameter": ("params: {delta: 16}}", "params: {delta: [1]}}", 0,
                          "controls[1].params.delta: must be text, a whole number or true/false (value [1])"),
    "bad name": ("study: alpha-vs", "study: Alpha vs", 0, "study: is not well formed (value 'Alpha vs-triattention'); "
                 "use lower-case letters"),
    "bad condition": ('negative_cells: "==0"', 'negative_cells: "=0"', 0, "branches[0].when.negative_cells: is not "
                      "well formed (value '=0'); write a comparison with a count"),
    "fixed and tuned": ("tune: {lambda:", "tune: {delta:", None, "candidate: ['delta'] is both fixed"),
    "two forms": ("tuning: {", "candidates: [{preset: alpha}]\ntuning: {", 0,
                  "candidates: are given beside `candidate`; keep one"),
    "no candidate": ("candidate:\n  preset: alpha\n", "xcandidate:\n  preset: alpha\n", None, "is no field"),
    "more survivors than candidates": ("tuning: {", "screening: {survivors: 2}\ntuning: {", 0,
                                       "screening.survivors: is 2, but there are 1 candidates"),
    "no survivor": ("tuning: {", "screening: {survivors: 0}\ntuning: {", 0, "screening.survivors: input should be"),
    "unknown screening rule": ("tuning: {", "screening: {survivors: 1, rule: best}\ntuning: {", 0,
                               "screening.rule: must be 'best_dev_gain'"),
    "number for a gain": ("tuning: {", "screening: {survivors: 1, min_gain: 0}\ntuning: {", 0,
                          "screening.min_gain: must be text"),
    "value listed twice": ('"0.1", "0.25"', '"0.1", "0.1"', 0, "candidate.tune: the configuration 'lambda=0.1' "
                           "appears twice"),
    "branch without condition": ("name: C, otherwise: true", "name: C", 0, "branches[3]: must give either"),
    "branch name twice": ("name: C,", "name: A,", None, "branches: A appears more than once"),
    "greedy samples": ("samples: 1", "samples: 4", 0, "generation.samples: is above 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_bad_protocols(write, case, newline):
    old, new, offset, expected = BAD[case]
    text = template()
    assert text.count(old) == 1
    path = write(text.replace(old, new), newline)
    with pytest.raises(ProtocolError) as caught:
        load(path)
    found = [p for p in caught.value.problems if expected in p]
    assert found, caught.value.problems
    if offset is not None:
        line = text[: text.index(old)].count("\n") + 1 + offset
        assert found[0].startswith(f"{path}:{line}: ")


SEVERAL = """\
candidates:
  - {name: one, preset: alpha, tune: {lambda: ["0.5", "1.0"]}}
  - {name: two, preset: recency, params: {delta: 16}}
  - {name: three, preset: alpha}
screening: {survivors: 2, min_gain: "-0.01"}
"""


def several() -> str:
    text = template()
    start, end = text.index("candidate:\n"), text.index("\n# Controls are run")
    return text[:start] + SEVERAL + text[end:]


def test_several_candidates(write):
    protocol = load(write(several())).protocol
    assert list(protocol.arms) == ["baseline", "one", "two", "three", "full", "random"]
    assert list(protocol.heldout_arms(["three", "one"])) == ["baseline", "one", "three", "full", "random"]
    assert (protocol.screening.survivors, protocol.screening.rule) == (2, "best_dev_gain")
    assert protocol.family == 2 * 4  # survivors, not candidates
    assert protocol.comparison("one", "m/b8") == "one m/b8"
    everyone = load(write(several().replace('screening: {survivors: 2, min_gain: "-0.01"}\n', ""))).protocol
    assert everyone.family == 3 * 4


def test_one_candidate_is_a_list_of_one(write):
    """Both spellings are one study, to the digest."""
    text = template()
    start, end = text.index("candidate:\n"), text.index("\n# Controls are run")
    body = (
        text[start:end]
        .removeprefix("candidate:\n")
        .replace("  preset: alpha", "  - preset: alpha\n    name: candidate")
    )
    listed = (
        text[:start] + "candidates:\n" + body.replace("\n  ", "\n    ").replace("      name", "    name") + text[end:]
    )
    one, other = load(write(text)), load(write(listed))
    assert one.protocol == other.protocol and one.digest == other.digest
    assert one.protocol.candidate is None and [c.name for c in one.protocol.candidates] == ["candidate"]
    document = one.protocol.document()
    assert "candidate" not in document and Protocol.model_validate(document) == one.protocol
    assert one.protocol.family == 4 and one.protocol.comparison("candidate", "m/b8") == "m/b8"


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ("name: two", "name: one", "candidates: one appears more than once"),
        ("name: two", "name: baseline", "candidates: baseline appears more than once"),
        ("name: two", "name: random", "controls: random appears more than once"),
        ("name: two", "name: Two", "candidates[1].name: is not well formed"),
        ('"0.5", "1.0"', '"0.5", "0.5"', "candidates[0].tune: the configuration 'lambda=0.5' appears twice"),
        ("preset: alpha, tune", "params: {lambda: 1}, preset: alpha, tune", "one: ['lambda'] is both fixed"),
        ("survivors: 2", "survivors: 4", "screening.survivors: is 4, but there are 3 candidates"),
    ],
)
def test_bad_lists_of_candidates(write, old, new, expected):
    assert several().count(old) == 1
    with pytest.raises(ProtocolError) as caught:
        load(write(several().replace(old, new)))
    assert any(expected in p for p in caught.value.problems), caught.value.problems


def test_a_study_needs_a_candidate(write):
    text = several()
    start, end = text.index("candidates:"), text.index("screening:")
    with pytest.raises(ProtocolError, match="candidate is missing; add it"):
        load(write(text[:start] + text[end:]))


def test_all_faults_are_reported_in_file_order(write):
    text = template().replace("[64, 96]", "[0, 96]").replace("two-sided", "both").replace("samples: 1", "samples: 0")
    with pytest.raises(ProtocolError) as caught:
        load(write(text))
    fields = [p.split(": ")[1] for p in caught.value.problems]
    assert fields == ["generation.samples", "budgets[0]", "test.alternative"]


def test_file_faults(tmp_path):
    with pytest.raises(ProtocolError, match=r"gone\.yaml: cannot be read"):
        load(tmp_path / "gone.yaml")
    with pytest.raises(ProtocolError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ProtocolError, match=r"list\.yaml:1: document: must hold named fields"):
        load(tmp_path / "list.yaml")
    with open(tmp_path / "big.yaml", "wb") as f:
        f.truncate(1_000_001)
    with pytest.raises(ProtocolError, match=r"big\.yaml: 1000001 bytes"):
        load(tmp_path / "big.yaml")


def test_at_names_the_place(write):
    path = write(template())
    line = template().splitlines().index("branches:") + 1
    assert load(path).at("branches[1]") == f"{path}:{line + 2}: branches[1]"
    assert load(path).at("branches[B]") == f"{path}:{line + 2}: branches[B]"
    assert load(path).at("branches[B].when.nothing") == f"{path}:{line + 2}: branches[B].when.nothing"
    assert load(path).at("models[nobody].tune[x]").endswith(": models[nobody].tune[x]")
    assert load(path).at("screening") == f"{path}:1: screening"


def test_fields_at():
    assert fields_at(()) == list(Protocol.model_fields)
    assert fields_at(("models", 0)) == ["id", "name", "revision", "dtype", "calibration"]
    assert fields_at(("branches", 2, "when")) == ["positive_cells", "negative_cells", "void_cells", "non_inferior_cells"]
    assert fields_at(("study",)) == []


def test_schema_is_strict_everywhere():
    found = schema()
    assert found["$schema"] == DIALECT
    assert set(found["properties"]) == set(Protocol.model_fields)
    assert {"study", "branches"} <= set(found["required"])
    assert found["oneOf"] == [{"required": ["candidate"]}, {"required": ["candidates"]}]
    for section in (found, *found["$defs"].values()):
        assert section["additionalProperties"] is False
    assert schema_text().endswith("}\n") and "\r" not in schema_text()
