"""Prompt files: the text around a problem. Data only; no file access."""

from __future__ import annotations

from cask_eval.errors import ProtocolError

#: Where the problem's text goes.
PLACE = "{problem}"
MAX_BYTES = 1 << 18


def parse(data: bytes, name: str) -> str:
    """The text of a prompt file: UTF-8, CRLF read as LF, without the one line end that editors put behind the last
    line. Every brace but those of ``{problem}`` is text. Raises ProtocolError."""
    if len(data) > MAX_BYTES:
        raise ProtocolError([f"{name}: {len(data)} bytes, but a prompt file has at most {MAX_BYTES}; shorten it"])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError([f"{name}: byte {error.start} is not UTF-8; write the file in UTF-8"]) from None
    text = text.replace("\r\n", "\n").removesuffix("\n")
    if (count := text.count(PLACE)) != 1:
        raise ProtocolError([f"{name}: holds {PLACE} {count} times; write it once, where the problem goes"])
    return text


def fill(text: str | None, problem: str) -> str:
    """What is asked: the problem in its place, or alone where there is no prompt file."""
    return problem if text is None else text.replace(PLACE, problem)
