"""The closed form of the trained count, as a method's docstring states it: `trained: EXPRESSION`, or `... per site`.

Names in it: options (a number of the same name in the layout first), lengths of lists in the layout, of words there 0 for `none` and 1 for
others; of a site `in`, `out`, `heads`, `head_dim`, `d` (= heads * head_dim), of a selective scan `inner` and `states`; of a convolution `window` and
`sides` (product and sum of its kernel's lengths); of the part `tensors` (how many it reads there), `length` and `row` (rows of the first,
as tokens, and numbers in one); of the model `width`, `blocks`, `sites`, `kinds` (sites that
differ in more than numbers), numbers of the layout, `min`, `divisor(n, k)` (the largest divisor of n up to k), `root(n)` (up to
its square root), `all`, `biases`, `norms`, `top(k)` (the last k blocks),
`narrow` (a side network's layers).
"""

from __future__ import annotations

import ast
import inspect
import math
import operator
import re
import sys
from typing import Any

from luthier.host import Adaptation
from luthier.host.part import Free, spec
from luthier.host.sites import Structure
from luthier.sources.rows import size
from tests.conformance.cells import Cell

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def closed_form(cell: Cell, made: Adaptation) -> int:
    """What the docstrings of a method's parts (or of their sources) say that trains."""
    return sum(of_part(p.part, p, cell.structure) for p in made.placed())


def of_part(part: Any, placed: Any, structure: Structure) -> int:
    source = type(part.source)
    text = statement(source if source is not Free else type(part))
    expression, _, each = text.partition(" per ")
    tower = {t.name: t for t in structure.towers}
    names = {k: v for k, v in vars(part).items() if isinstance(v, int)} | {
        k: v for k, v in vars(part.source).items() if isinstance(v, int)
    }
    names["sites"] = len(placed.sites)
    names["kinds"] = len({re.sub(r"\d+", "", s.name) for s in placed.sites})
    names |= of_model(structure, placed)
    total = 0
    for at in placed.ats() if each else placed.ats()[:1]:
        if not at.layout.get("trains", True):
            continue
        s = at.site
        own = {k: len(v) for k, v in at.layout.items() if isinstance(v, list)}
        own |= {k: int(v != "none") for k, v in at.layout.items() if type(v) is str}
        own |= {"inputs": s.in_features, "outputs": s.out_features, "heads": s.heads, "head_dim": s.head_dim}
        kernel = dict(s.parameters).get("weight", ())[2:]
        own |= {"window": math.prod(kernel), "sides": sum(kernel)}
        own |= dict(zip(("inner", "states"), dict(s.parameters).get("A_log", ()), strict=False))
        own |= {
            "d": s.heads * s.head_dim,
            "width": tower[s.tower].width,
            "blocks": len(tower[s.tower].blocks),
        }
        decided = {k: v for k, v in at.layout.items() if type(v) is int}
        wanted = [tuple(spec(w).shape) for w in part.tensors(s, at.layout).values()]
        if "tensors" in expression:  # what it says of one tensor, summed over them
            for shape in wanted:
                length, row = size(part, "", shape)
                total += value(
                    expression, {**own, **names, **decided, "tensors": 1, "length": length, "row": row}
                )
            continue
        if wanted and len(wanted[0]) in (2, 3):
            length, row = size(part, "", wanted[0])
            own |= {"length": length, "row": row}
        total += value(expression, {**own, **names, **decided})
    if getattr(placed, "network", None) is not None:  # one for every tower
        total *= len(structure.towers)
        total += sum(p.numel() for n in placed.network.values() for p in n.layers.parameters())
    return total


def of_model(structure: Structure, placed: Any) -> dict[str, Any]:
    """Numbers of the model's own parameters that the loss reaches, a tied one once."""
    owned = [(s, n, math.prod(shape)) for s in placed.sites for n, shape in s.parameters]
    last = {t.name: len(t.blocks) for t in structure.towers}
    return {
        "min": min,
        "divisor": lambda n, k: max(i for i in range(1, k + 1) if n % i == 0),
        "root": lambda n: max(i for i in range(1, n + 1) if n % i == 0 and i * i <= n),
        "all": sum(n for _, _, n in owned),
        "biases": sum(n for _, name, n in owned if name == "bias" or name.endswith("_bias")),
        "norms": sum(n for s, _, n in owned if s.role.startswith("norm")),
        "top": lambda k: sum(n for s, _, n in owned if s.layer is not None and s.layer >= last[s.tower] - k),
    }


def statement(kind: type) -> str:
    """The words after `trained:`, of the class or of the nearest one above it, in its docstring or its file's."""
    name = kind.name  # type: ignore[attr-defined]
    for c in kind.__mro__:
        if c is object or not c.__module__.startswith("luthier."):
            continue
        own = inspect.cleandoc(c.__doc__ or "")
        docs = [] if own.startswith(f"{c.__name__}(") else [own]
        for doc in [*docs, inspect.cleandoc(sys.modules[c.__module__].__doc__ or "")]:
            lines = [line for line in doc.splitlines() if re.search(r"\btrained: ", line)]
            mine = [line for line in lines if line.startswith(name)] or (lines if len(lines) == 1 else [])
            if mine:
                return re.split(r"(?<=[\w)]) \(|\s{2,}|[.;,](?:\s|$)", mine[0].partition("trained: ")[2])[
                    0
                ].strip()
    raise AssertionError(f"the docstring of {name} does not say 'trained: ...', its closed form")


def value(expression: str, names: dict[str, Any]) -> int:
    """Arithmetic over names; `in` and `out` are a site's."""
    text = re.sub(r"\bin\b", "inputs", re.sub(r"\bout\b", "outputs", expression))

    def of(node: ast.AST) -> Any:
        if isinstance(node, ast.Expression):
            return of(node.body)
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.Name):
            assert node.id in names, (
                f"{expression!r} speaks of {node.id!r}, which is not one of {sorted(names)}"
            )
            return names[node.id]
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](of(node.left), of(node.right))
        if isinstance(node, ast.Call):
            return of(node.func)(*(of(a) for a in node.args))
        raise AssertionError(f"{expression!r} is not arithmetic")

    return of(ast.parse(text, mode="eval"))
