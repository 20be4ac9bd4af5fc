"""Texts to pretrain on that are free to ship: the standard library's documentation, and a cipher of it.

`paragraphs()` reads the docstrings, comments and language reference of the Python that runs it, in a fixed
order; sources are parsed, never imported. Files that carry a permission notice of their own are left out,
and every row of `builtin:pydocs`'s test split is cut from the texts.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import inspect
import io
import json
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from luthier.data.recipes.pydocs import OWN_NOTICE

SKIPPED = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "lib2to3", "config"}
SHORTEST, LONGEST = 25, 1200
"""Characters of a paragraph that is kept."""
HELD_OUT_SHARE = 20
"""One paragraph in so many is held out, by the hash of its text."""
HELD_OUT_FILE = "held_out.jsonl"

PERMUTED = "qwmtxkzbnraulcyhgdeofjpvis"
"""What the letters a to z become in the cipher language; a capital becomes a capital."""
_SAME = "abcdefghijklmnopqrstuvwxyz"
_TO = str.maketrans(_SAME + _SAME.upper(), PERMUTED + PERMUTED.upper())
_FROM = str.maketrans(PERMUTED + PERMUTED.upper(), _SAME + _SAME.upper())
_WORD = re.compile(r"\w+")
_END = re.compile(r"[.!?;\n]")


def cipher(text: str) -> str:
    """`text` in the cipher language: letters permuted, the words of every sentence in reverse order.

    Whatever stands between two words stays where it is, so that the translation is exact: `decipher` undoes
    it. A sentence ends where what stands between two words holds one of . ! ? ; or a line break.
    """
    return _reversed(text).translate(_TO)


def decipher(text: str) -> str:
    """The text that `cipher` turned into `text`."""
    return _reversed(text.translate(_FROM))


def _reversed(text: str) -> str:
    words = list(_WORD.finditer(text))
    made: list[str] = []
    at = begin = 0
    for i, word in enumerate(words):
        last = i + 1 == len(words)
        if last or _END.search(text, word.end(), words[i + 1].start()):
            sentence = words[begin : i + 1]
            for place, moved in zip(sentence, reversed(sentence)):
                made += [text[at : place.start()], moved.group()]
                at = place.end()
            begin = i + 1
    return "".join(made) + text[at:]


@lru_cache(maxsize=1)
def paragraphs() -> tuple[str, ...]:
    """Every paragraph of the standard library's documentation on one line, without repeats, in the order of
    the files' names; what `builtin:pydocs` tests on is cut out."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = dict.fromkeys(text for path in _sources(library) for text in _of_file(path))
    return tuple(_without_test_rows(list(found)))


def held_out(text: str) -> bool:
    """Whether the hash of a paragraph puts it aside."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % HELD_OUT_SHARE == 0


@lru_cache(maxsize=1)
def training() -> tuple[str, ...]:
    """The paragraphs to pretrain on: all that are neither held out here nor in the stored held-out file."""
    stored = set(held_out_texts())
    return tuple(text for text in paragraphs() if text not in stored and not held_out(text))


@lru_cache(maxsize=1)
def held_out_texts() -> tuple[str, ...]:
    """The stored held-out paragraphs: the same on every machine, whatever its Python."""
    stored = files("luthier.models.testbeds").joinpath(HELD_OUT_FILE)
    if not stored.is_file():
        return ()
    return tuple(json.loads(line)["text"] for line in stored.read_text("utf-8").splitlines())


def choose_held_out(most: int = 90_000) -> list[str]:
    """What the stored file was made of: held-out paragraphs in the order of their hash, up to `most` bytes."""
    pool = [text for text in paragraphs() if held_out(text)]
    pool.sort(key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    chosen: list[str] = []
    for text in pool:
        most -= len(json.dumps({"text": text})) + 1
        if most < 0:
            break
        chosen.append(text)
    return chosen


def _sources(library: Path) -> Iterator[Path]:
    for path in sorted(library.rglob("*.py"), key=lambda p: p.relative_to(library).as_posix()):
        parts = path.relative_to(library).parts
        if not any(part in SKIPPED or part.startswith("config-") for part in parts):
            yield path


def _of_file(path: Path) -> Iterator[str]:
    try:
        source = path.read_text("utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return
    if OWN_NOTICE.search(source):
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (doc := ast.get_docstring(node)):
            yield from _paragraphs(doc)
    if path.parent.name == "pydoc_data":
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 200:
                yield from _paragraphs(node.value)
    yield from _paragraphs(_comments(source))


def _comments(source: str) -> str:
    """Comments on lines of their own; a gap between two blocks is an empty line."""
    lines: list[str] = []
    before = -1
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
                if token.start[0] != before + 1:
                    lines.append("")
                lines.append(token.string.lstrip("#!: "))
                before = token.start[0]
    except (tokenize.TokenError, IndentationError):
        pass
    return "\n".join(lines)


def _paragraphs(text: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        one = " ".join(block.split())
        if not SHORTEST <= len(one) <= LONGEST or not one.isascii() or one.startswith((">>>", "-", "=", "*")):
            continue
        if sum(c.isalpha() or c == " " for c in one) >= 0.8 * len(one):  # prose, not tables or code
            yield one


def _without_test_rows(found: list[str]) -> list[str]:
    """Each paragraph without the sentences that `builtin:pydocs` tests on, wherever they stand in it."""
    packed = files("luthier.data").joinpath("pydocs.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]
    whole = "\0".join(found)
    for text in sorted((r["text"] for r in rows if r["split"] == "test"), key=len, reverse=True):
        if text in whole:
            whole = whole.replace(text, "")
    kept = (" ".join(text.split()) for text in whole.split("\0"))
    return list(dict.fromkeys(text for text in kept if len(text) >= SHORTEST))
