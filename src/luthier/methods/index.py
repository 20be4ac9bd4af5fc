"""The index of methods: what the command line and the documentation say of them, generated from the classes.

python -m luthier.methods.index          # writes index.json, and the table in README.md
python -m luthier.methods.index --check  # only says whether they are up to date
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import pkgutil
import re
import sys
import textwrap
import tokenize
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PLACES = {
    "WeightEdit": "weight",
    "Subset": "entries",
    "ActivationEdit": "activation",
    "TokenPrompt": "tokens",
    "BlockTokens": "tokens of a block",
    "AttentionEdit": "attention",
    "StateEdit": "state",
    "Stack": "stack",
    "OutputHead": "output",
    "UnitCut": "units",
}
"""Base class in luthier.host.places -> the word for that place."""

USUAL = {"start": "what its tensors are before training"}
"""Meanings of options that several methods have, where the class says nothing of its own."""

FILE = Path(__file__).with_name("index.json")
CONFORMANCE = Path(__file__).with_name("conformance.json")
"""{method: {architecture: {property: reason}}}: what does not apply, as tests/conformance found and holds it fresh."""
BEGIN, END = "<!-- methods: begin (written by: make methods) -->", "<!-- methods: end -->"


def import_all() -> None:
    """Import every module below luthier.methods, so that each registers what it defines."""
    # Starts and sources are named in cards too, and a method's file need not import all of them.
    import_choices()
    # By file: pkgutil does not enter folders without an __init__.py, as the folders of methods are.
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if path.name not in ("__init__.py", Path(__file__).name):
            import_module(".".join(["luthier.methods", *parts]))


def import_choices() -> None:
    """Import every start and source, so that options can name them."""
    for room in ("luthier.starts", "luthier.sources"):
        if find_spec(room):
            package = import_module(room)
            for found in pkgutil.iter_modules(package.__path__, f"{room}."):
                import_module(found.name)


def registered() -> dict[str, type]:
    """{name: class} of every registered method, after importing all of luthier.methods."""
    import_all()
    from luthier.host.options import known
    from luthier.host.part import Part

    return known(Part)


def collect(within: str = "luthier.methods") -> dict[str, dict[str, Any]]:
    """{name: entry} of the methods that modules below `within` define."""
    return {n: describe(c) for n, c in registered().items() if f"{c.__module__}.".startswith(f"{within}.")}


def describe(cls: type) -> dict[str, Any]:
    """What the index says of one method class."""
    from luthier.host.merge import mergeable

    doc = inspect.cleandoc(cls.__doc__ or "")
    if not doc or doc.startswith(
        f"{cls.__name__}("
    ):  # dataclasses write a signature where there is no docstring
        doc = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    title = title_of(cls.name, doc)  # type: ignore[attr-defined]
    made = _made(cls)
    parts = list(made.parts()) if made is not None else []
    phases = list(made.phases()) if made is not None else []
    places = list(dict.fromkeys(place(type(p)) for p in parts)) or [place(cls)]
    return {
        "name": cls.name,  # type: ignore[attr-defined]
        "class": cls.__name__,
        "module": cls.__module__,
        "title": title,
        "summary": re.sub(r"\s*\([^()]*\d{4}.*$", "", title).rstrip(". "),
        "place": " + ".join(places),
        "carrier": " + ".join(dict.fromkeys(carrier(p) for p in parts)) or " + ".join(places),
        "targets": next((t for t in (getattr(p, "targets", "") for p in parts or [cls]) if t), ""),
        "source": " + ".join(dict.fromkeys(_said(getattr(p, "source", "")) for p in parts or [cls])),
        "start": " + ".join(dict.fromkeys(_start(p) for p in parts or [cls])),
        "rate": getattr(cls, "rate", None),
        "mergeable": bool(parts) and all(mergeable(p) for p in parts),
        "identity_start": bool(getattr(cls, "identity_start", False)),
        "options": options(cls),
        "parts": [type(p).name or type(p).__name__ for p in parts],
        "phases": [p.name for p in phases],
        "signal": signal(phases),
        "papers": sorted(set(re.findall(r"\bS\d{3}\b", doc))),
        **conformance(cls.name),  # type: ignore[attr-defined]
        "doc": doc,
    }


def conformance(name: str) -> dict[str, Any]:
    """Counts of a method's properties: `architectures` {name: {"holds": n, "not_applicable": {reason: n}}}, and these summed."""
    held = json.loads(CONFORMANCE.read_text(encoding="utf-8")) if CONFORMANCE.exists() else {}
    architectures = {}
    total: Counter[str] = Counter()
    for architecture, cell in held.get("methods", {}).get(name, {}).items():
        found = Counter(held["reasons"][r] for r in cell.values())
        total += found
        architectures[architecture] = {
            "holds": len(held["properties"]) - len(cell),
            "not_applicable": dict(sorted(found.items())),
        }
    return {"architectures": architectures, "not_applicable": dict(sorted(total.items()))}


def title_of(name: str, doc: str) -> str:
    """The docstring's first line; in a file of several methods, what the line with this one's name says."""
    line = re.search(rf"^{re.escape(name)}(?::\s+|\s{{2,}}|\s(?=.*\s{{3,}}\S))(.*)$", doc, re.MULTILINE)
    return re.split(r"\s{3,}", line[1])[0].strip() if line else doc.partition("\n")[0]


def place(cls: type) -> str:
    """The words for the places that `cls` derives from; 'several' where its parts say."""
    return " + ".join(PLACES[c.__name__] for c in cls.__mro__ if c.__name__ in PLACES) or "several"


def carrier(part: Any) -> str:
    """The place of a part, in finer words where a place has several."""
    if (deep := getattr(part, "deep", None)) is not None:
        return "deep tokens" if deep else "input tokens"
    if getattr(part, "attend", None) is not None:
        return "attention's output"
    if getattr(part, "keys_values", None) is not None:
        return "keys and values"
    return place(type(part))


def signal(phases: list[Any]) -> str:
    """What trains a plan's phases, in a few words."""
    said = []
    for p in phases:
        objective = _name(p.objective) or "the task's loss"
        optimiser = _name(p.optimiser) or "AdamW"
        said.append(f"{p.name} (a step of its own)" if p.step else f"{objective}, {optimiser}")
    return "; ".join(dict.fromkeys(said))


def options(cls: type) -> list[dict[str, Any]]:
    """Name, type, default and meaning of every option, those of the class itself first."""
    own = list(inspect.get_annotations(cls))
    fields = sorted(
        dataclasses.fields(cls), key=lambda f: (f.name not in own, own.index(f.name) if f.name in own else 0)
    )
    meanings = {k: v for c in reversed(cls.__mro__) for k, v in comments(c).items()}
    return [
        {
            "name": f.name,
            "type": _type(f.type),
            "default": None if f.default is dataclasses.MISSING else plain(f.default),
            "required": f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
            "meaning": meanings.get(f.name, "") or USUAL.get(f.name, ""),
        }
        for f in fields
    ]


def comments(cls: type) -> dict[str, str]:
    """{field: the comment at the end of its line} in the body of `cls`; empty where there is no source."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return {}
    source = textwrap.dedent(source)
    found: dict[str, str] = {}
    depth = 0
    line: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        depth += {tokenize.INDENT: 1, tokenize.DEDENT: -1}.get(token.type, 0)
        if token.type == tokenize.COMMENT and depth == 1 and line[1:2] == [":"]:
            found[line[0]] = token.string.lstrip("# ").rstrip()
        elif token.type == tokenize.NEWLINE:
            line = []
        elif token.type in (tokenize.NAME, tokenize.OP, tokenize.STRING, tokenize.NUMBER):
            line.append(token.string)
    return found


def plain(value: Any) -> Any:
    """`value` as JSON: numbers and text as they are, choices as they print."""
    if isinstance(value, str | int | float | bool | type(None)):
        return value
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return _said(value)


def table() -> str:
    """The methods as a Markdown table, from the index."""
    from luthier.methods import entries

    lines = ["| method | what it is | enters at | trained by | papers |", "|---|---|---|---|---|"]
    for e in sorted(entries().values(), key=lambda e: (e["place"], e["name"])):
        if e["place"] != "output":
            papers = ", ".join(e["papers"]) or " "
            cells = [f"`{e['name']}`", e["summary"], e["place"], e["signal"], papers]
            lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """`text` with the table between the markers; unchanged where there are none."""
    before, found, rest = text.partition(BEGIN)
    if not found or END not in rest:
        return text
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def written() -> str:
    """The text of index.json."""
    return json.dumps({"methods": collect()}, indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    from luthier.methods import entries

    readme = Path(__file__).parents[3] / "README.md"
    text, fresh = written(), True
    if not FILE.exists() or FILE.read_text(encoding="utf-8") != text:
        fresh = False
        if "--check" not in arguments:
            FILE.write_text(text, encoding="utf-8")
            entries.cache_clear()
    if readme.exists() and with_table(old := readme.read_text(encoding="utf-8")) != old:
        fresh = False
        if "--check" not in arguments:
            readme.write_text(with_table(old), encoding="utf-8")
    if "--check" in arguments and not fresh:
        print(
            "error: the index of methods or the table in README.md is stale. Run: make methods",
            file=sys.stderr,
        )
        return 1
    print(f"{len(entries())} methods")
    return 0


def _made(cls: type) -> Any:
    """The method with its default options, or None if it cannot be made so."""
    try:
        made = cls()
        made.parts()
        return made
    except (TypeError, ValueError, NotImplementedError):
        return None


def _start(p: Any) -> str:
    """How a part starts, if that is a choice; otherwise its tensors say so themselves."""
    own = any(f.name == "start" for f in dataclasses.fields(p)) if dataclasses.is_dataclass(p) else False
    return _said(p.start) if own else "its own"


def _said(choice: Any) -> str:
    if inspect.isclass(choice):
        return getattr(choice, "name", "") or choice.__name__
    if dataclasses.is_dataclass(choice) and hasattr(choice, "name"):
        inside = ", ".join(f"{f.name}={plain(getattr(choice, f.name))!r}" for f in dataclasses.fields(choice))
        return f"{choice.name}({inside})" if inside else str(choice.name)
    return str(getattr(choice, "name", "") or type(choice).__name__) if choice else ""


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__) if function is not None else ""


def _type(annotation: Any) -> str:
    return (
        annotation
        if isinstance(annotation, str)
        else inspect.formatannotation(annotation).replace("luthier.", "")
    )


if __name__ == "__main__":
    # Under this name the module would be loaded twice; the package's own copy is the one that others use.
    sys.exit(import_module("luthier.methods.index").main(sys.argv[1:]))
