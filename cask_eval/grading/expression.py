"""Reading an expression into a tree: a small grammar that refuses whatever it does not know.

Nothing is dropped and nothing is guessed: a token that has no place in the grammar raises `Unreadable`, and the answer
goes on to the next stage. Trees are nested tuples: ``("num", Fraction, decimal)``, ``("var", name)``, ``("const",
"pi" | "e" | "i" | "inf")``, ``("neg", a)``, ``("add" | "mul" | "div" | "pow", a, b)``, ``("fn", name, a[, b])``.
"""

from __future__ import annotations

from fractions import Fraction

from cask_eval.grading.normalise import Token

__all__ = ["Tree", "Unreadable", "number", "parse", "variables"]

Tree = tuple

#: The longest number, in characters, that is read as a number.
DIGITS = 400
#: How deep brackets may nest.
DEPTH = 40

GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi",
    "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Delta", "Omega", "Sigma", "Phi", "Pi", "Theta",
    "Gamma", "Lambda", "Psi", "ell", "hbar",
}  # fmt: skip
FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth", "arcsin", "arccos", "arctan", "log", "ln",
    "lg", "exp",
}  # fmt: skip
_CALLED = {"gcd", "lcm", "max", "min"}
_INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_CLOSERS = {"(": ")", "[": "]", "{": "}"}
MINUS_ONE = ("num", Fraction(-1), False)


class Unreadable(Exception):
    """The grammar has no place for something."""


def number(text: str) -> Tree:
    if len(text) > DIGITS:
        raise Unreadable("a very long number")
    return ("num", Fraction(text), "." in text)


def parse(items: list[Token], sign: int = 1) -> Tree:
    """The tree of an expression. `sign` says how ``\\pm`` is read (and ``\\mp`` the other way). Raises Unreadable."""
    if not items:
        raise Unreadable("nothing")
    reader = _Reader(items, sign)
    try:
        tree = reader.sum()
    except RecursionError:
        raise Unreadable("nested too deeply") from None
    if reader.at < len(items):
        raise Unreadable(f"{items[reader.at].value!r}")
    return tree


def variables(tree: Tree) -> set[str]:
    if tree[0] == "var":
        return {tree[1]}
    return set().union(*(variables(part) for part in tree[1:] if isinstance(part, tuple)))


class _Reader:
    def __init__(self, items: list[Token], sign: int):
        self.items, self.sign, self.at, self.depth = items, sign, 0, 0
        self.bars = 0

    def peek(self, ahead: int = 0) -> Token:
        k = self.at + ahead
        return self.items[k] if k < len(self.items) else Token("stop", "")

    def take(self) -> Token:
        token = self.peek()
        self.at += 1
        return token

    def op(self, value: str) -> bool:
        token = self.peek()
        return token.kind == "op" and token.value == value

    def need(self, value: str) -> None:
        if not self.op(value):
            raise Unreadable(f"{self.peek().value!r} where {value!r} should be")
        self.at += 1

    # sum := ['-'] product (('+' | '-' | \pm | \mp) product)*
    def sum(self) -> Tree:
        self.depth += 1
        if self.depth > DEPTH:
            raise Unreadable("nested too deeply")
        tree = self.signed()
        while (s := self.additive()) is not None:
            right = self.product()
            tree = ("add", tree, right if s > 0 else ("neg", right))
        self.depth -= 1
        return tree

    def additive(self) -> int | None:
        """Consumes + or −, \\pm or \\mp, and says which sign it is."""
        token = self.peek()
        s = {("op", "+"): 1, ("op", "-"): -1, ("cmd", "pm"): self.sign, ("cmd", "mp"): -self.sign}.get(token[:2])
        if s is not None:
            self.at += 1
        return s

    def signed(self) -> Tree:
        sign = 1
        found = False
        while (s := self.additive()) is not None:
            sign *= s
            found = True
            if found and self.at > len(self.items):
                break
        tree = self.product()
        return ("neg", tree) if sign < 0 else tree

    # product := power ((* | /) power | power)*
    def product(self) -> Tree:
        tree = self.power()
        slashed = False
        while True:
            if self.op("*"):
                self.at += 1
                if self.op("*"):
                    raise Unreadable("**")
                tree = ("mul", tree, self.factor())
                slashed = False
            elif self.op("/"):
                self.at += 1
                tree = ("div", tree, self.factor())
                slashed = True
            elif self.starts():
                if slashed and not self.op("("):
                    # 1/2x: some mean (1/2)x, others 1/(2x).
                    raise Unreadable("an ambiguous quotient")
                tree = ("mul", tree, self.power())
            else:
                return tree

    def factor(self) -> Tree:
        """A power that may have a sign of its own, as in 6*-2."""
        token = self.peek()
        if token.kind == "op" and token.value in "+-":
            self.at += 1
            tree = self.power()
            return ("neg", tree) if token.value == "-" else tree
        return self.power()

    def starts(self) -> bool:
        """Whether the next token can begin a factor without a sign of multiplication."""
        token = self.peek()
        if token.kind == "op":
            return token.value in ("(", "[", "{") or (token.value == "|" and not self.bars)
        if token.kind == "num":
            before = self.items[self.at - 1]
            return before.kind != "num"
        if token.kind == "text":
            return len(token.value) == 1
        if token.kind == "cmd":
            return token.value in GREEK or token.value in FUNCTIONS or token.value in _BASES
        return token.kind == "word"

    # power := base ['!'] ['^' exponent] ['!']
    def power(self) -> Tree:
        tree = self.base()
        while True:
            if self.op("!"):
                self.at += 1
                if self.op("!"):
                    raise Unreadable("a double factorial")
                tree = ("fn", "factorial", tree)
            elif self.op("^") and self.degrees():
                tree = ("div", ("mul", tree, ("const", "pi")), ("num", Fraction(180), False))
            elif self.op("^") or self.stars():
                self.at += 1
                if self.peek().value in ("circ", "prime", "T", "top", "c", "complement") and self.peek().kind == "cmd":
                    raise Unreadable("a mark that is no exponent")
                tree = ("pow", tree, self.exponent())
                if self.op("^"):
                    raise Unreadable("a second exponent")
            else:
                return tree

    def stars(self) -> bool:
        """Whether a power is written x**2; stands on the second star then."""
        if self.op("*") and self.peek(1)[:2] == ("op", "*") and not self.peek(1).gap:
            self.at += 1
            return True
        return False

    def degrees(self) -> bool:
        """Consumes ^\\circ and ^{\\circ}."""
        for shape in (["^", "circ"], ["^", "{", "circ", "}"]):
            if [t.value for t in self.items[self.at : self.at + len(shape)]] == shape:
                self.at += len(shape)
                return True
        return False

    def exponent(self) -> Tree:
        if self.op("{"):
            return self.grouped("{")
        sign = 1
        while self.op("-") or self.op("+"):
            sign = -sign if self.take().value == "-" else sign
        token = self.peek()
        if token.kind == "word" and len(token.value) > 1 and token.value not in ("pi",):
            # x^ab: TeX raises the a alone.
            raise Unreadable("an exponent of several letters without braces")
        tree = self.base()
        return ("neg", tree) if sign < 0 else tree

    def grouped(self, opener: str) -> Tree:
        self.need(opener)
        bars, self.bars = self.bars, 0
        tree = self.sum()
        if opener == "{" and self.peek()[:2] == ("cmd", "over"):
            self.at += 1
            tree = ("div", tree, self.sum())
        self.bars = bars
        self.need(_CLOSERS[opener])
        return tree

    def argument(self) -> Tree:
        """What \\frac and \\sqrt take: a group, or one token (of a number, one digit)."""
        if self.op("{"):
            return self.grouped("{")
        token = self.peek()
        if token.kind == "num":
            if token.value[0] == ".":
                raise Unreadable("a decimal without braces")
            self.items = [*self.items]
            if len(token.value) > 1:
                self.items[self.at] = Token("num", token.value[1:])
                if token.value[1] == "." or "." in token.value:
                    raise Unreadable("a decimal without braces")
            else:
                self.at += 1
            return number(token.value[0])
        if token.kind == "word":
            if len(token.value) > 1:
                self.items = [*self.items]
                self.items[self.at] = Token("word", token.value[1:])
            else:
                self.at += 1
            return _letter(token.value[0])
        if token.kind == "cmd" and (token.value in GREEK or token.value in ("pi", "sqrt")):
            return self.base()
        raise Unreadable("a missing argument")

    def base(self) -> Tree:
        token = self.peek()
        if token.kind == "num":
            return self.numeral()
        if token.kind == "word":
            return self.word()
        if token.kind == "text" and len(token.value) == 1:
            self.at += 1
            return self.subscripted(_letter(token.value))
        if token.kind == "op" and token.value in _CLOSERS:
            return self.grouped(token.value)
        if token.kind == "op" and token.value == "|":
            self.at += 1
            self.bars += 1
            tree = self.sum()
            self.bars -= 1
            self.need("|")
            return ("fn", "abs", tree)
        if token.kind == "cmd":
            return self.command()
        raise Unreadable(f"{token.value!r}" if token.kind != "stop" else "something that ends too early")

    def numeral(self) -> Tree:
        value = self.take().value
        token = self.peek()
        # 0.\overline{3} and 0.1\overline{6}
        if token.kind == "cmd" and token.value in ("overline", "bar", "dot"):
            return self.repeating(value, token.value)
        if token.kind == "op" and token.value == "." and self.peek(1)[:2] in (("cmd", "overline"), ("cmd", "bar")):
            self.at += 1
            return self.repeating(value + ".", self.peek().value)
        tree = number(value)
        if "." in value:
            return tree
        before = self.items[self.at - 2] if self.at >= 2 else Token("start", "")
        if before.kind == "op" and before.value in "^_/" or before.kind == "cmd" and before.value == "frac":
            return tree
        # A mixed number: 1 1/2, or 1\frac{1}{2}.
        if token.kind == "num" and self.peek(1)[:2] == ("op", "/") and self.peek(2).kind == "num":
            above, below = token.value, self.peek(2).value
            if "." not in above + below and int(below[:DIGITS]):
                self.at += 3
                return ("num", tree[1] + number(above)[1] / number(below)[1], False)
        if token[:2] == ("cmd", "frac"):
            start, held = self.at, self.items
            fraction = self.command()
            if fraction[0] == "div" and fraction[1][0] == fraction[2][0] == "num" and fraction[2][1]:
                proper = fraction[1][1].denominator == fraction[2][1].denominator == 1
                if proper and 0 <= fraction[1][1] and not (self.op("^") or self.op("!")):
                    return ("num", tree[1] + fraction[1][1] / fraction[2][1], False)
            self.at, self.items = start, held
        return tree

    def repeating(self, value: str, mark: str) -> Tree:
        if mark == "dot" or "." not in value:
            raise Unreadable("a repeating decimal")
        self.at += 1
        self.need("{")
        token = self.take()
        self.need("}")
        whole, _, fixed = value.partition(".")
        if token.kind != "num" or not token.value.isdigit() or len(value + token.value) > DIGITS:
            raise Unreadable("a repeating decimal")
        block = token.value
        base = Fraction(int(whole + fixed), 10 ** len(fixed))
        return ("num", base + Fraction(int(block), (10 ** len(block) - 1) * 10 ** len(fixed)), False)

    def word(self) -> Tree:
        value = self.take().value
        if value in FUNCTIONS:
            return self.function(value)
        if value in _CALLED:
            return self.called(value)
        if value == "sqrt":
            return ("fn", "root", self.argument_or_call(), ("num", Fraction(2), False))
        if value in ("pi", "Pi", "PI"):
            return ("const", "pi")
        if value.lower() in ("infinity", "inf", "oo"):
            return ("const", "inf")
        for name in ("sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "sqrt"):
            if value.startswith(name) and len(value) - len(name) in (1, 2):
                self.at -= 1
                self.items = [*self.items]
                self.items[self.at : self.at + 1] = [Token("cmd", name), Token("word", value[len(name) :])]
                return self.command()
        if value.startswith("pi") and len(value) == 3:
            return ("mul", ("const", "pi"), self.subscripted(_letter(value[2])))
        if len(value) > 3:
            raise Unreadable(f"the word {value!r}")
        tree = _letter(value[0])
        if len(value) == 1:
            return self.subscripted(self.applied(value, tree))
        for k, letter in enumerate(value[1:], 2):
            part = _letter(letter)
            if k == len(value):
                part = self.subscripted(part)
                if self.op("^"):
                    # ab^2 is a·b²: the exponent binds to the last letter.
                    self.at += 1
                    part = ("pow", part, self.exponent())
            tree = ("mul", tree, part)
        return tree

    def applied(self, name: str, tree: Tree) -> Tree:
        if name in "fghFGHP" and self.op("("):
            raise Unreadable(f"the function {name}")
        if self.op("'"):
            raise Unreadable("a prime")
        return tree

    def subscripted(self, tree: Tree) -> Tree:
        """x_1 and x_{max} are names of their own."""
        if not self.op("_"):
            return tree
        if tree[0] != "var":
            raise Unreadable("a subscript on no name")
        self.at += 1
        if self.op("{"):
            self.at += 1
            parts = []
            while not self.op("}"):
                token = self.take()
                if token.kind == "stop" or len(parts) > 8 or token.value in ("{", "^", "_"):
                    raise Unreadable("a subscript")
                parts.append(token.value)
            self.at += 1
            return ("var", f"{tree[1]}_{','.join(parts)}")
        token = self.take()
        if token.kind not in ("num", "word", "text") or (token.kind == "word" and len(token.value) > 1):
            raise Unreadable("a subscript")
        return ("var", f"{tree[1]}_{token.value}")

    def command(self) -> Tree:
        name = self.take().value
        two = ("num", Fraction(2), False)
        if name == "frac":
            above = self.argument()
            below = self.argument()
            if above == ("var", "d") and below[:2] == ("mul", above):
                raise Unreadable("a derivative")
            return ("div", above, below)
        if name == "sqrt":
            index = two
            if self.op("["):
                index = self.grouped("[")
            return ("fn", "root", self.argument_or_call(), index)
        if name == "pi":
            return ("const", "pi")
        if name == "infty":
            return ("const", "inf")
        if name in GREEK:
            return self.subscripted(("var", name))
        if name in FUNCTIONS:
            return self.function(name)
        if name in _CALLED:
            return self.called(name)
        if name == "binom":
            return ("fn", "binomial", self.argument(), self.argument())
        if name in ("lfloor", "lceil"):
            tree = self.sum()
            if self.take()[:2] != ("cmd", "r" + name[1:]):
                raise Unreadable(f"an open \\{name}")
            return ("fn", name[1:], tree)
        if name == "angle":
            raise Unreadable("an angle")
        raise Unreadable(f"\\{name}")

    def argument_or_call(self) -> Tree:
        """What a root is taken of: √ before a bracket or before a bare number takes all of it."""
        token = self.peek()
        if token.kind == "num":
            self.at += 1
            return number(token.value)
        if token.kind == "op" and token.value == "(":
            return self.grouped("(")
        return self.argument()

    def called(self, name: str) -> Tree:
        self.need("(")
        parts = [self.sum()]
        while self.op(","):
            self.at += 1
            parts.append(self.sum())
        self.need(")")
        if len(parts) < 2 or len(parts) > 16:
            raise Unreadable(f"\\{name}")
        tree = parts[0]
        for part in parts[1:]:
            tree = ("fn", name, tree, part)
        return tree

    def function(self, name: str) -> Tree:
        base, exponent = None, None
        while self.op("_") or self.op("^"):
            if self.take().value == "_":
                if not name.startswith("l") or base is not None:
                    raise Unreadable("a subscript on a function")
                base = self.grouped("{") if self.op("{") else self.base()
            else:
                if exponent is not None:
                    raise Unreadable("a second exponent")
                exponent = self.exponent()
        if self.op("(") or self.op("[") or self.op("{"):
            tree = self.grouped(self.peek().value)
            if self.op("!") or (self.op("^") and exponent is None and name != "exp"):
                # \sin(x)^2: of the sine or of x?
                if self.items[self.at - 1].value == ")" and self.op("^"):
                    self.at += 1
                    exponent = self.exponent()
                else:
                    raise Unreadable("a power without brackets")
        else:
            tree = self.open_argument()
        if exponent in (("neg", ("num", Fraction(1), False)), MINUS_ONE):
            if name not in _INVERSES:
                raise Unreadable(f"\\{name}^{{-1}}")
            name, exponent = _INVERSES[name], None
        call = ("fn", name, tree) if base is None else ("fn", "log", tree, base)
        return call if exponent is None else ("pow", call, exponent)

    def open_argument(self) -> Tree:
        """The argument of \\sin 2x + 1: a product up to the next sign, bracket or function."""
        sign = 1
        while self.op("-"):
            self.at += 1
            sign = -sign
        tree = self.power()
        while self.starts() and not (self.peek().kind == "op" or self.peek().value in FUNCTIONS):
            tree = ("mul", tree, self.power())
        if self.op("/"):
            raise Unreadable("a quotient behind a function without brackets")
        return ("neg", tree) if sign < 0 else tree


_BASES = {"frac", "sqrt", "pi", "infty", "binom", "lfloor", "lceil", *_CALLED}


def _letter(c: str) -> Tree:
    if c in "ei":
        return ("const", c)
    return ("var", c)
