"""One spelling for one answer: a lexer for the LaTeX and plain text that answers are written in.

`tokens` reads an answer into a list of `Token`; `normalise` writes that list down again. Reading what was written
gives the same list (`normalise` is idempotent), and both take time linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from typing import NamedTuple

__all__ = ["Token", "normalise", "tokens", "write"]


class Token(NamedTuple):
    """`kind` is num, word, text, cmd, env, end or op; `gap` says that white space stood before it."""

    kind: str
    value: str
    gap: bool = False


# --- characters --------------------------------------------------------------------------------------------------

_CHARS = {
    **dict.fromkeys("−–—‐‑‒﹣－⁃", "-"),
    **dict.fromkeys("·⋅∙•∗＊", "*"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f\u2061\u2062", ""),
    **dict.fromkeys("“”„«»", '"'),
    **dict.fromkeys("‘’′", "'"),
    **dict.fromkeys("⁄∕／", "/"),
    **dict.fromkeys("≤⩽≦", "\\leq "),
    **dict.fromkeys("≥⩾≧", "\\geq "),
    "×": "*", "÷": "/", "√": "\\sqrt ", "∛": "\\sqrt[3]", "∞": "\\infty ", "°": "^\\circ ", "º": "^\\circ ",
    "≠": "\\neq ", "≈": "\\approx ", "±": "\\pm ", "∓": "\\mp ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
    "∅": "\\emptyset ", "∶": ":", "⟨": "\\langle ", "⟩": "\\rangle ", "〈": "\\langle ", "〉": "\\rangle ",
    "…": "\\dots ", "。": ".", "、": ",", "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ",
    "€": " euros ", "£": " pounds ", "¢": " cents ", "∠": "\\angle ", "∨": " or ", "∧": " and ", "ℝ": "\\mathbb{R}",
    "ℓ": "l", "∖": "\\setminus ", "⁰": "^0", "ı": "i",
}  # fmt: skip
_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma sigma tau "
_GREEK += "upsilon phi chi psi omega"
_CHARS |= {chr(0x3B1 + i): f"\\{name} " for i, name in enumerate(_GREEK.split())}
_CHARS |= {"Δ": "\\Delta ", "Ω": "\\Omega ", "Σ": "\\Sigma ", "Φ": "\\Phi ", "Π": "\\Pi ", "Θ": "\\Theta "}
_CHARS["µ"] = "\\mu "
_SUPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni", strict=True))
_SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-", strict=True))
_RAISED = re.compile(f"[{''.join(_SUPER)}]+")
_LOWERED = re.compile(f"[{''.join(_SUB)}]+")


_DOUBLED = re.compile(r"\\\\(?=[A-Za-z])")


def _unescaped(text: str) -> str:
    """Without the second backslash of text that was escaped twice: outside a matrix there are no line breaks."""
    if "\\\\" not in text:
        return text
    if "\\\\begin" in text:
        return text.replace("\\\\", "\\")
    return text if "\\begin" in text else _DOUBLED.sub(r"\\", text)


def _character(c: str) -> str:
    known = _CHARS.get(c)
    if known is not None:
        return known
    if c.isspace():
        return " "
    kind = unicodedata.category(c)
    if kind == "Nd":
        return str(unicodedata.digit(c))
    if kind == "No" and "⁄" in (name := unicodedata.normalize("NFKC", c)):
        above, below = name.split("⁄")
        return f"\\frac{{{above}}}{{{below}}}"
    code = ord(c)
    if 0xFF01 <= code <= 0xFF5E:
        return chr(code - 0xFEE0)
    if 0x1D400 <= code <= 0x1D7FF:
        plain = unicodedata.normalize("NFKC", c)
        return _CHARS.get(plain, plain)
    return c


def _ascii(text: str) -> str:
    """`text` with the mathematics of Unicode written in LaTeX."""
    if text.isascii():
        return text
    text = _RAISED.sub(lambda m: "^{" + "".join(_SUPER[c] for c in m.group()) + "}", text)
    text = _LOWERED.sub(lambda m: "_{" + "".join(_SUB[c] for c in m.group()) + "}", text)
    return unicodedata.normalize("NFC", "".join(c if c < "\x80" else _character(c) for c in text))


# --- commands ----------------------------------------------------------------------------------------------------

_SPACES = {",", ";", ":", " ", "quad", "qquad", "enspace", "enskip", "thinspace", "medspace", "thickspace", "space"}
_DROPPED = {
    "!", "left", "right", "middle", "displaystyle", "textstyle", "scriptstyle", "limits", "nolimits", "boxed", "fbox",
    "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "Biggl", "Biggr", "bigm",
    "ensuremath", "mathbf", "mathit", "mathsf", "boldsymbol", "bm", "rm", "bf", "it", "mathstrut", "negthinspace",
    "(", ")", "[", "]", "mathopen", "mathclose", "mathord", "mathbin", "mathrel", "strut", "hfill", "nonumber",
    "mathcal", "phantom", "vphantom", "hline", "smash", "protect", "relax", "mleft", "mright", "bold", "pmb",
}  # fmt: skip
_TEXTUAL = {
    "text", "textrm", "textbf", "textit", "textsf", "texttt", "textnormal", "mbox", "hbox", "mathrm", "operatorname",
    "emph", "textup", "mathop", "mathtt",
}  # fmt: skip
_SAME = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "nicefrac": "frac", "sfrac": "frac", "dbinom": "binom",
    "tbinom": "binom", "le": "leq", "ge": "geq", "leqslant": "leq", "geqslant": "geq", "leqq": "leq", "geqq": "geq",
    "ne": "neq", "infin": "infty", "varnothing": "emptyset", "cdots": "dots", "ldots": "dots", "arcsec": "asec",
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "tg": "tan", "ctg": "cot", "varphi": "phi",
    "varepsilon": "epsilon", "vartheta": "theta", "simeq": "approx", "approxeq": "approx", "lbrace": "{", "rbrace": "}",
    "longrightarrow": "to", "rightarrow": "to", "Real": "mathbb_R", "reals": "mathbb_R", "ell": "ell",
}  # fmt: skip
_AS_OP = {
    "lt": "<", "gt": ">", "cdot": "*", "times": "*", "ast": "*", "cdotp": "*", "bullet": "*", "div": "/", "vert": "|",
    "lvert": "|", "rvert": "|", "mid": "|", "colon": ":", "%": "%", "lbrack": "[", "rbrack": "]", "lparen": "(",
    "rparen": ")", "#": "#", "&": "&", "_": "_", "-": "-", "/": "/", ".": ".", "slash": "/", "percent": "%",
    "prime": "'", "'": "'", "*": "*", "|": "|",
}  # fmt: skip
_AS_WORD = {"lor": "or", "vee": "or", "land": "and", "wedge": "and", "textdollar": "dollars", "pounds": "pounds",
            "euro": "euros", "i": "i", "imath": "i", "e": "e"}  # fmt: skip
_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth", "arcsin", "arccos", "arctan", "log", "ln",
    "lg", "exp", "sqrt", "gcd", "lcm", "max", "min", "det", "deg", "mod", "asin", "acos", "atan",
}  # fmt: skip

_NAME = re.compile(r"[A-Za-z]+")
_NUM = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_GROUPED = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])")
_SPACED = re.compile(r"[1-9][0-9]{0,2}(?:(?: |\\,|\\ |\\;|~)[0-9]{3})+(?![0-9])(?!\s*(?:/|\\[dt]?frac))")
_SCIENTIFIC = re.compile(r"[eE]([+-]?[0-9]{1,2})(?![0-9A-Za-z.])")
_EXPLICIT = re.compile(
    r"(?<=[0-9])(?:(?:\\[!,] ?)?(?:\{,\}|,\s?\\!|\{,\\!\})(?:\\!)?\s?(?=[0-9]{3}(?![0-9]))"
    r"|,\\!\s?(?=[0-9]{2}(?![0-9])))"  # 12,34,567: only \! says that such a comma parts no items
)
_SKIPPED_ARGUMENT = {"hspace", "vspace", "kern", "label", "tag", "color", "textcolor"}


def _group(text: str, i: int) -> tuple[str, int] | None:
    """Content of the ``{…}`` at `i` and where it ends; None when it does not close within 2,000 characters."""
    depth = 0
    for k in range(i, min(len(text), i + 2_000)):
        c = text[k]
        if text[k - 1] == "\\" and k > i:
            continue
        if c == "{":
            depth += 1
        elif c == "}":
            depth -= 1
            if not depth:
                return text[i + 1 : k], k + 1
    return None


_TEXT_JUNK = re.compile(r"\\[a-zA-Z]+|[\\{}$~^_]")


def _plain(content: str) -> str:
    return " ".join(_TEXT_JUNK.sub(" ", content).split())


def tokens(text: str, lists: bool = False) -> list[Token]:
    """The tokens of an answer. ``1,234`` is one number, unless `lists` says to read it as two."""
    text = _EXPLICIT.sub("", _unescaped(_ascii(text)))
    out: list[Token] = []
    brackets: list[str] = []  # open ( [ \{ \langle, where a comma separates, and { where it does not
    i, n, gap = 0, len(text), False

    def put(kind: str, value: str) -> None:
        nonlocal gap
        out.append(Token(kind, value, gap))
        gap = False

    while i < n:
        c = text[i]
        if c.isspace() or c == "~":
            gap = True
            i += 1
        elif c == "$":
            i += 1
        elif c.isdigit() and c.isascii() or (c == "." and i + 1 < n and text[i + 1] in "0123456789"):
            m = None
            if not (brackets and brackets[-1] != "{") and not lists:
                m = _GROUPED.match(text, i)
            m = m or (not lists and _SPACED.match(text, i)) or None
            if m:
                value, i = re.sub(r"[^0-9]", "", m.group()), m.end()
                if fraction := re.compile(r"\.[0-9]+").match(text, i):
                    value, i = value + fraction.group(), fraction.end()
            else:
                m = _NUM.match(text, i)
                value, i = m.group(), m.end()
            if power := _SCIENTIFIC.match(text, i):
                i = power.end()
                value = format(Decimal(value).scaleb(int(power.group(1))), "f")
            put("num", value)
        elif c == "\\":
            i = _command(text, i, put, brackets)
            gap = gap or text[i - 1] in ",;: " and text[i - 2] == "\\"
        elif c.isalpha():
            k = i + 1
            while k < n and text[k].isalpha():
                k += 1
            put("word", text[i:k])
            i = k
        else:
            if c in "([":
                brackets.append(c)
            elif c == "{":
                brackets.append("{")
            elif c in ")]}" and brackets:
                brackets.pop()
            put("op", c)
            i += 1
    return _scripts(out)


def _scripts(items: list[Token]) -> list[Token]:
    """With every subscript before the exponent at the same base: x^2_1 is x_1^2."""
    if not any(t[:2] == ("op", "_") for t in items):
        return items
    out, i, last = [], 0, 0  # last: where the newest script ends; a second one has no base of its own
    while i < len(items):
        if items[i].kind == "op" and items[i].value in "^_":
            middle = _script_end(items, i)
            raised = items[i].value == "^" and i > last and middle and items[middle : middle + 1]
            end = _script_end(items, middle) if raised and items[middle][:2] == ("op", "_") else None
            if end:
                out += [*items[middle:end], *items[i:middle]]
                i = last = end
                continue
            last = middle or last
        out.append(items[i])
        i += 1
    return out


def _script_end(items: list[Token], i: int) -> int | None:
    """Where the script that begins at `i` ends: one letter, digit or command, or a group of at most 40 tokens."""
    if i + 1 >= len(items):
        return None
    first = items[i + 1]
    if first[:2] != ("op", "{"):
        return i + 2 if len(first.value) == 1 and first.kind in ("num", "word") or first.kind == "cmd" else None
    depth = 0
    for k in range(i + 1, min(len(items), i + 42)):
        depth += {"{": 1, "}": -1}.get(items[k].value, 0) if items[k].kind == "op" else 0
        if not depth:
            return k + 1
    return None


def _command(text: str, i: int, put, brackets: list[str]) -> int:
    """Read the command at `i`; returns where it ends."""
    m = _NAME.match(text, i + 1)
    name = m.group() if m else text[i + 1 : i + 2]
    end = m.end() if m else i + 1 + len(name)
    if not name:
        return end
    if name == "\\":
        put("op", "\\\\")
        return end
    if name in ("{", "}", "langle", "rangle", "lbrace", "rbrace"):
        name = _SAME.get(name, name)
        if name in ("{", "langle"):
            brackets.append(name)
        elif brackets:
            brackets.pop()
        put("cmd", name)
        return end
    if name == "$":
        put("cmd", "$")
        return end
    if name in _SPACES:
        return end
    if name in _DROPPED:
        if name in ("left", "right", "mleft", "mright") and text[end : end + 1] == ".":
            end += 1
        return end
    if name in _SKIPPED_ARGUMENT:
        while end < len(text) and text[end] == " ":
            end += 1
        group = _group(text, end) if text[end : end + 1] == "{" else None
        return group[1] if group else end
    if name in ("begin", "end", "mathbb") or name in _TEXTUAL:
        at = end
        while at < len(text) and text[at] == " ":
            at += 1
        if name in _TEXTUAL and text[at : at + 1] == "*":
            at += 1
        group = _group(text, at) if text[at : at + 1] == "{" else None
        if group is None:
            if name == "mathbb" and (m := re.compile(r"\s*([A-Z])").match(text, end)):
                put("cmd", f"mathbb_{m.group(1)}")
                return m.end()
            if name in _TEXTUAL:
                return end
            put("cmd", name)
            return end
        content, end = group
        if name == "mathbb":
            put("cmd", "mathbb_" + re.sub(r"[^A-Za-z]", "", content))
        elif name == "begin":
            put("env", re.sub(r"[^A-Za-z]", "", content))
            if content.startswith(("array", "tabular")) and text[end : end + 1] == "{" and (spec := _group(text, end)):
                end = spec[1]
        elif name == "end":
            put("end", re.sub(r"[^A-Za-z]", "", content))
        else:
            _textual(content, put)
        return end
    if name == "degree":
        put("op", "^")
        put("cmd", "circ")
    elif name in _AS_OP:
        put("op", _AS_OP[name])
    elif name in _AS_WORD:
        put("word", _AS_WORD[name])
    else:
        put("cmd", _SAME.get(name, name))
    return end


def _textual(content: str, put) -> None:
    words = _plain(content)
    if not words:
        return
    if len(words) == 1 and words.isalpha():
        # One letter: \mathrm{e}, \text{m}. It stays text; an expression reads it as the letter.
        put("text", words)
    elif words in _FUNCTIONS:
        put("cmd", _SAME.get(words, words))
    elif words.lower() in ("and", "or"):
        put("word", words.lower())
    elif re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?", words):
        if words[0] == "-":
            put("op", "-")
        put("num", words.lstrip("-"))
    elif re.fullmatch(r"[0-9]{1,3}(?:,[0-9]{3})+", words):
        put("num", words.replace(",", ""))
    elif words in ("%", ",", ".", ";"):
        put("op", words)
    elif re.match(r"[-+]?[0-9.]", words):
        for t in tokens(words):
            put(t.kind, t.value)
    else:
        put("text", words)


def write(items: list[Token]) -> str:
    """Tokens as LaTeX, one space between any two."""
    out = []
    for t in items:
        if t.kind == "text":
            out.append(f"\\text{{{t.value}}}")
        elif t.kind == "cmd" and t.value.startswith("mathbb_"):
            out.append(f"\\mathbb{{{t.value[7:]}}}")
        elif t.kind == "cmd":
            out.append("\\" + t.value)
        elif t.kind in ("env", "end"):
            out.append(f"\\{'begin' if t.kind == 'env' else 'end'}{{{t.value}}}")
        else:
            out.append(t.value)
    return " ".join(out)


def normalise(text: str) -> str:
    """The one spelling of `text`."""
    return write(tokens(text))
