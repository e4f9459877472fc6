"""Text → tokens that mean something in any script, without a model's tokenizer.

White space alone makes one token of a Chinese paragraph, and a model's tokenizer makes tokens that depend on the model.
"""

from __future__ import annotations

import unicodedata

import regex

__all__ = ["characters", "tokens"]

# Scripts that are written without spaces between words: every character, with its marks, is a token.
_SPACELESS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
_LETTER = rf"(?:(?!{_SPACELESS})[\p{{L}}\p{{M}}\p{{N}}\u200c])"  # and the non-joiner that stands inside Persian words
# Numbers such as 3.14 and 1,000; words, with apostrophes inside; whatever else readers call one character.
_TOKEN = regex.compile(rf"\d+(?:[.,]\d+)*|{_LETTER}+(?:['\u2019]{_LETTER}+)*|\X", regex.VERSION1)
_CHARACTER = regex.compile(r"\X")


def tokens(text: str) -> list[str]:
    """Words, numbers, characters of scripts without spaces, and every other visible sign (an emoji with all that joins
    it is one), after Unicode normalisation NFC; white space separates and is no token."""
    return [token for token in _TOKEN.findall(unicodedata.normalize("NFC", text)) if not token.isspace()]


def characters(text: str) -> list[str]:
    """What readers call characters: extended grapheme clusters (UAX #29), after NFC."""
    return _CHARACTER.findall(unicodedata.normalize("NFC", text))
