"""Comments with their functions, in three languages: the standard library's own, and two that rules rewrite its functions into.

A pair is the first sentence of a function's docstring and the function without it. `python` is the source as it stands; `braces` and
`ends` are no real languages: other keywords, other names of nothing and truth, blocks in braces or closed by `end`, names in camel case.
No function is in two languages.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from luthier.data.lexemes import lexemes
from luthier.data.recipes.pydocs import OWN_NOTICE, summary
from luthier.models.testbeds.corpus import _sources

SHORTEST, LONGEST = 40, 600
"""Characters of a function that is kept."""
GOES_ON = ("elif", "else", "except", "finally")
"""Lines that go on with the block before them."""


@dataclass(frozen=True)
class Dialect:
    """How Python's source is rewritten: words by words, and what opens and closes a block and ends a line."""

    name: str
    words: dict[str, str] = field(default_factory=dict)
    opens: str = ""
    closes: str = ""
    ends: str = ""
    camel: bool = False
    """Whether names are written inCamelCase."""
    chained: bool = False
    """Whether an else goes on with its block, which is closed behind the last one."""

    def says(self, source: str) -> str:
        """A function in this language; Python itself has no words to rewrite."""
        if not self.words:
            return source
        made: list[str] = []
        depth = 0
        for line in source.splitlines():
            text = line.strip()
            if not text:
                continue
            indent = (len(line) - len(line.lstrip())) // 4
            goes_on = text.split(":")[0].split(" ")[0] in GOES_ON
            while depth > indent:
                depth -= 1
                if depth > indent or not goes_on or not self.chained:
                    made.append(self.closes)
            if text.endswith(":"):
                depth += 1
                made.append(f"{self._words(text[:-1])} {self.opens}".rstrip())
            else:
                made.append(self._words(text) + self.ends)
        return " ".join([*made, *[self.closes] * depth])

    def _words(self, line: str) -> str:
        made, at = [], 0
        for begin, end, kind in lexemes(line):
            word = line[begin:end]
            if kind in ("keyword", "call", "name"):
                word = self.words.get(word) or (_camel(word) if self.camel else word)
            made += [line[at:begin], word]
            at = end
        return "".join(made) + line[at:]


def _camel(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])_([a-z])", lambda match: match[1].upper(), name)


PYTHON = Dialect("python")
BRACES = Dialect(
    "braces",
    {
        "def": "function", "None": "null", "True": "true", "False": "false", "self": "this", "and": "&&", "or": "||", "not": "!",
        "is": "===", "elif": "else if", "except": "catch", "raise": "throw new", "lambda": "fn", "import": "require", "pass": "nothing",
        "isinstance": "instanceOf", "len": "lengthOf", "str": "String", "print": "console", "__init__": "constructor",
    },
    "{", "}", ";", True,
)  # fmt: skip
ENDS = Dialect(
    "ends",
    {
        "def": "method", "None": "nil", "True": "yes", "False": "no", "self": "me", "and": "both", "or": "either", "not": "unless",
        "is": "same", "elif": "elsif", "except": "rescue", "raise": "fail", "return": "give", "lambda": "proc", "import": "use",
        "pass": "skip", "isinstance": "kind", "len": "size", "for": "each", "in": "of", "if": "when", "while": "until", "__init__": "begin",
    },
    "do", "end", chained=True,
)  # fmt: skip
DIALECTS = (PYTHON, BRACES, ENDS)


@lru_cache(maxsize=2)
def functions(only: tuple[str, ...] = ()) -> tuple[tuple[str, str], ...]:
    """(comment, source) of the standard library's documented functions, in the order of a hash; a comment or a body occurs once.

    only: names of files; none: all."""
    found: dict[str, str] = {}
    for path in _sources(Path(sysconfig.get_paths()["stdlib"])):
        if only and path.name not in only:
            continue
        try:
            source = path.read_text("utf-8")
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        if OWN_NOTICE.search(source):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(node.body) > 1:
                comment = summary(ast.get_docstring(node))
                if comment is None:
                    continue
                node.body, node.decorator_list = node.body[1:], []
                body = ast.unparse(node)
                if SHORTEST <= len(body) <= LONGEST and body.isascii():
                    found.setdefault(comment, body)
    once = {body: comment for comment, body in found.items()}
    pairs = [(comment, body) for body, comment in once.items()]
    return tuple(sorted(pairs, key=lambda pair: hashlib.sha256("\n".join(pair).encode()).hexdigest()))
