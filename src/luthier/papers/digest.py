"""Digests of code: of what it does, not of how it is laid out or commented."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from luthier.errors import OptionError


def digest(modules: Iterable[str]) -> str:
    """sha256 over the syntax trees of modules, docstrings and comments left out, in the order of their names.

    Raises OptionError for a module that does not exist.
    """
    total = hashlib.sha256()
    for name in sorted(set(modules)):
        total.update(name.encode() + b"\0" + _tree(_source(name)).encode() + b"\0")
    return total.hexdigest()


def _source(module: str) -> str:
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise OptionError(
            f"There is no module {module!r} to take the digest of. Correct what the check covers."
        )
    return Path(spec.origin).read_text(encoding="utf-8")


def _tree(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _is_text(
            node.body[:1]
        ):
            node.body = node.body[1:]
    return _plain(tree)


def _plain(node: object) -> str:
    """A tree as text. Empty fields are left out, as newer versions of Python add some (ast.dump differs between them)."""
    if isinstance(node, ast.AST):
        fields = [(k, v) for k, v in ast.iter_fields(node) if v is not None and v != [] and k != "kind"]
        return f"{type(node).__name__}({','.join(f'{k}={_plain(v)}' for k, v in fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_plain, node))}]"
    return repr(node)


def _is_text(body: list[ast.stmt]) -> bool:
    first = body[0] if body else None
    return (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
