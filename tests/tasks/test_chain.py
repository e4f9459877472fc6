"""The chain task: sampling is frozen, the scratchpad is right, the grader is strict."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.tasks import Problem, chain

GOLDEN: dict[tuple[int, int, str], str] = {
    (1, 0, "demo"): "186400f158f38b03",
    (1, 79, "demo"): "9ca4ab8273d4fa70",
    (2, 0, "demo"): "451a7fe8f4f00121",
    (2, 199, "demo"): "23ac81f21a85ccc5",
    (1, 0, "small"): "4636225e1ceb7bea",
    (1, 0, "large"): "374105b7b0276150",
    (123456789, 4321, "large"): "140d98abf3a65e81",
}

DIFFICULTIES = {
    "demo": chain.DEMO,
    "small": chain.Difficulty(variables=3, distractors=0, recap="never"),
    "large": chain.Difficulty(variables=10, distractors=5, noise=16, recap="always"),
}


def digest(item: Problem) -> str:
    text = "\n".join((item.id, item.prompt, item.answer, item.stratum, chain.scratchpad(item)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(("seed", "index", "name"), GOLDEN)
def test_golden_hashes(seed, index, name):
    assert digest(chain.problem(seed, index, DIFFICULTIES[name])) == GOLDEN[seed, index, name]


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_same_items_under_another_hash_seed(hash_seed):
    code = "from cask_eval.tasks import chain; print([chain.problem(2, i) for i in range(20)])"
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == str([chain.problem(2, i) for i in range(20)])


def test_importing_the_task_does_not_import_torch():
    code = "import sys; import cask_eval.tasks.chain, cask_eval.embedded; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_streams_do_not_overlap():
    prompts = [chain.problem(seed, i).prompt for seed in (1, 2, 3) for i in range(300)]
    assert len(set(prompts)) == len(prompts)


def test_no_look_up_is_ambiguous():
    for i in range(200):
        words = chain.problem(5, i, chain.Difficulty(variables=8, distractors=4, noise=3)).prompt.split()
        unique = [w for w in words if w[0].isdigit() or w.endswith((":", ","))]
        start = words[-1]
        assert start not in unique[:-1]
        assert len(set(unique)) == len(unique)


def follow(prompt: str) -> str:
    """The answer, worked out without the module's own walker."""
    words = [w for w in prompt.split() if w not in ("also", "note", "well", "hence")]
    here, held = words[-1].rstrip(","), {}
    while here != "stop":
        at = words.index(here.upper() + ":")
        held[words[at + 3].rstrip(";")] = words[at + 2]
        here = words[at + 1].rstrip(",")
    return " ".join(f"{r} {held[r]}" for r in "xyz")


@given(
    seed=st.integers(0, 10**9),
    index=st.integers(0, 10**6),
    variables=st.integers(3, 10),
    distractors=st.integers(0, 5),
    noise=st.integers(0, 16),
    recap=st.sampled_from(sorted(chain.RECAPS)),
)
@settings(max_examples=150, deadline=None)
def test_every_difficulty_is_solvable(seed, index, variables, distractors, noise, recap):
    difficulty = chain.Difficulty(variables, distractors, noise, recap)
    item = chain.problem(seed, index, difficulty)
    assert item == chain.problem(seed, index, difficulty)
    assert item.answer == follow(item.prompt)
    text = chain.scratchpad(item)
    assert chain.grade(item, text).correct
    assert set(f"{item.prompt} {text}".split()) <= set(chain.vocabulary())
    assert text.count("we are at") == variables
    assert len(item.prompt.split()) == 4 * (variables + distractors) + noise + 2


def test_recap_says_how_often_the_registers_are_summed_up():
    for i in range(50):
        items = {r: chain.problem(1, i, chain.Difficulty(recap=r)) for r in chain.RECAPS}
        counts = {r: chain.scratchpad(item).count("in sum") for r, item in items.items()}
        assert counts["never"] == 0
        assert counts["always"] == chain.DEMO.variables
    text = chain.scratchpad(chain.problem(1, 0, chain.Difficulty(recap="z")))
    assert text.count("in sum") == text.count("z;")


def test_problems_follow_their_parameters():
    part = chain.problems({"seed": 7, "start": 3, "count": 4, "variables": 5, "recap": "always"})
    assert part == [chain.problem(7, i, chain.Difficulty(variables=5, recap="always")) for i in range(3, 7)]
    assert chain.problems({"seed": 1, "count": 2}) == [chain.problem(1, 0), chain.problem(1, 1)]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"count": 1}, ("seed", "missing")),
        ({"seed": 1}, ("count", "missing")),
        ({"seed": 1, "count": 0}, ("count", "0", "1 or more")),
        ({"seed": -1, "count": 1}, ("seed", "-1")),
        ({"seed": "1", "count": 1}, ("seed", "'1'", "whole number")),
        ({"seed": True, "count": 1}, ("seed", "True")),
        ({"seed": 1, "count": 1, "start": -5}, ("start", "-5")),
        ({"seed": 1, "count": 1, "variables": 2}, ("variables", "2", "between 3 and 10")),
        ({"seed": 1, "count": 1, "distractors": 6}, ("distractors", "6")),
        ({"seed": 1, "count": 1, "noise": 1.5}, ("noise", "1.5")),
        ({"seed": 1, "count": 1, "recap": "often"}, ("recap", "often", "never, z, always")),
        ({"seed": 1, "count": 1, "hops": 3}, ("hops", "variables")),
    ],
)
def test_bad_parameters_are_named(params, words):
    with pytest.raises(ValueError) as error:
        chain.problems(params)
    assert all(w in str(error.value) for w in words)


ITEM = Problem("chain/1/test", "", "x 31 y 40 z 22")


@pytest.mark.parametrize(
    ("output", "correct", "extracted", "how"),
    [
        ("then we go to stop, . answer x 31 y 40 z 22", True, "x 31 y 40 z 22", "marker"),
        ("answer x 31 y 40 z 22", True, "x 31 y 40 z 22", "marker"),
        ("answer\nx 31\ty 40  z 22\n", True, "x 31 y 40 z 22", "marker"),
        ("answer x 31 y 40 z 21", False, "x 31 y 40 z 21", "marker"),
        ("answer x 31 y 40 z 0", False, "x 31 y 40 z 0", "marker"),
        # no answer, or one that was cut off
        ("", False, None, "none"),
        ("in sum x 31 y 40 z 22 .", False, None, "none"),
        ("x 31 y 40 z 22", False, None, "none"),
        ("answer", False, None, "none"),
        ("answer x 31 y 40 z", False, None, "none"),
        ("answer x 31 y 40", False, None, "none"),
        # several tries, or the answer among other text
        ("answer x 31 y 40 z 22 answer x 31 y 40 z 22", False, None, "ambiguous"),
        ("answer x 10 y 11 z 12 answer x 31 y 40 z 22", False, None, "ambiguous"),
        ("answer answer x 31 y 40 z 22", False, None, "ambiguous"),
        ("answer x 31 y 40 z 22 x 10", False, None, "malformed"),
        ("answer x 31 y 40 z 22 .", False, None, "malformed"),
        ("answer x 31 y 40 z 222", False, None, "malformed"),
        ("answer x 31 y 40 z 22.0", False, None, "malformed"),
        ("answer x 31 y 40 z ２２", False, None, "malformed"),
        ("answer x 031 y 40 z 22", False, None, "malformed"),
        ("answer y 40 x 31 z 22", False, None, "malformed"),
        ("answer is x 31 y 40 z 22", False, None, "malformed"),
        ("answer x31 y40 z22", False, None, "malformed"),
        ("Answer x 31 y 40 z 22", False, None, "none"),
        ("answers x 31 y 40 z 22", False, None, "none"),
        ("answer: x 31 y 40 z 22", False, None, "none"),
        ("answer x 31 y 40 z 22 </s>", False, None, "malformed"),
    ],
)
def test_grading(output, correct, extracted, how):
    grade = chain.grade(ITEM, output)
    assert (grade.correct, grade.extracted, grade.how, grade.grader) == (correct, extracted, how, "chain-exact/1")


@given(st.text())
def test_grading_never_fails(output):
    assert not chain.grade(ITEM, output).correct


def test_size_at_the_demo_difficulty():
    """The prompt leaves room in the smallest budget of the demo (64), and a whole text is over four times it."""
    pytest.importorskip("transformers")
    from transformers import AutoTokenizer

    from cask_eval.embedded import NAMES, path

    tokenizer = AutoTokenizer.from_pretrained(path(NAMES[0]))
    for i in range(200):
        item = chain.problem(3, i)
        prompt = tokenizer(item.prompt)["input_ids"]
        text = tokenizer(chain.scratchpad(item))["input_ids"]
        assert prompt[0] == text[0] == tokenizer.bos_token_id
        assert tokenizer.unk_token_id not in prompt + text
        assert tokenizer.decode(prompt, skip_special_tokens=True) == item.prompt
        assert tokenizer.decode(text, skip_special_tokens=True) == chain.scratchpad(item)
        assert len(prompt) <= 44
        assert 4 * 64 <= len(prompt) + len(text) <= 340
