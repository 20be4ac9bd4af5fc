"""Lexemes of a text, each with its kind, by one scan that suits code of many languages and plain text alike.

Kinds: keyword, call (a name before an opening bracket), name, number, string, bracket, operator. A keyword is a word that one of the
wide-spread languages reserves; white space and what no rule knows is left out.
"""

from __future__ import annotations

import re

KINDS = ("keyword", "call", "name", "number", "string", "bracket", "operator")
_KEYWORDS = """
    abstract and as assert async await begin boolean break case catch char class const continue def
    default defer del delete do double elif else elsif end enum except export extends extern false final
    finally float fn for foreach from func function global go goto if implements import in instanceof
    int interface is lambda let long match module mut namespace new nil none nonlocal not null or
    package pass private protected public raise range require rescue return self short static struct
    super switch then this throw throws trait true try type typeof union unless until use using var void
    when where while with yield
"""
KEYWORDS = frozenset(_KEYWORDS.split())
"""Of Python, JavaScript, Java, C, Go, Ruby, PHP and Rust, in lower case."""
_LEXEME = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<number>\d[\w.]*)|(?P<word>[^\W\d]\w*)"""
    r"""|(?P<bracket>[()\[\]{}])|(?P<operator>[^\w\s()\[\]{}]+)"""
)


def lexemes(text: str) -> list[tuple[int, int, str]]:
    """(begin, end, kind) of each lexeme, in characters."""
    found = []
    for match in _LEXEME.finditer(text):
        kind = match.lastgroup or ""
        if kind == "word":
            word = match.group()
            called = text[match.end() :].lstrip(" ")[:1] == "("
            kind = "keyword" if word.lower() in KEYWORDS else "call" if called else "name"
        found.append((match.start(), match.end(), kind))
    return found
