"""Prompt files, and the protocol's section about them."""

import pytest

from cask_eval.canonical import digest, digest_text
from cask_eval.errors import ProtocolError
from cask_eval.protocol import prompt
from cask_eval.protocol.load import check
from cask_eval.protocol.template import template
from cask_eval.protocol.yaml import parse

PLAIN = template("asked")


def protocol(section: str = ""):
    return check(parse((PLAIN + section).encode(), "asked.yaml"), "asked.yaml")


def test_a_prompt_file_holds_the_problem_once():
    text = prompt.parse(b"Solve.\r\n{problem}\r\nBox it: \\boxed{}\n\n", "p.txt")
    assert text == "Solve.\n{problem}\nBox it: \\boxed{}\n"
    assert prompt.fill(text, "1 + {1}?") == "Solve.\n1 + {1}?\nBox it: \\boxed{}\n"
    assert prompt.fill(None, "as it is") == "as it is"
    assert digest_text(b"a\r\nb") == digest_text(b"a\nb")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"Solve.", r"p.txt: holds {problem} 0 times"),
        (b"{problem} {problem}", "holds {problem} 2 times"),
        (b"\xff{problem}", "byte 0 is not UTF-8"),
        (b"x" * (prompt.MAX_BYTES + 1), "a prompt file has at most"),
    ],
)
def test_what_is_no_prompt_file(data, message):
    with pytest.raises(ProtocolError, match=message):
        prompt.parse(data, "p.txt")


def test_protocols_without_a_prompt_keep_their_documents():
    assert "prompt" not in protocol().document()


def test_what_is_asked_is_part_of_the_digest():
    sections = ["", "prompt: {file: a.txt}\n", "prompt: {file: b.txt}\n", "prompt: {file: a.txt, form: chat}\n",
                "prompt: {form: chat}\n", "prompt: {form: chat, system: Be brief.}\n",
                "prompt: {form: chat, options: {enable_thinking: false}}\n"]  # fmt: skip
    assert len({digest(protocol(s).document()) for s in sections}) == len(sections)


@pytest.mark.parametrize("section", ["prompt: {system: Be brief.}\n", "prompt: {file: a.txt, options: {a: 1}}\n"])
def test_only_chats_have_a_system_message_and_options(section):
    with pytest.raises(ProtocolError, match="form is raw, which has no system message and no options"):
        protocol(section)
