"""Stored figures of the benches, as the site shows them."""

import ast
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.html import text


@dataclass(frozen=True)
class Bench:
    """One file of bench/results: what is measured, in the words of its script, and its figures."""

    name: str
    about: str
    figures: tuple[dict[str, Any], ...]

    def names(self, method: str) -> bool:
        """Whether the bench says in its name, its words or its figures' names that it is about this method."""
        words = " ".join([self.name, self.about, *(str(f.get("name", "")) for f in self.figures)])
        spaced = re.escape(method).replace("_", "[ _-]")
        return re.search(rf"(?<![A-Za-z0-9]){spaced}(?![A-Za-z0-9])", words, re.IGNORECASE) is not None


def benches(root: Path) -> list[Bench]:
    """What is in bench/results, by name. Raises ValueError, naming the file, for one that is no JSON object."""
    found = []
    for path in sorted((root / "bench" / "results").glob("*.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError(
                f"{path.name} holds no JSON object. Run the bench again: luthier bench {path.stem}"
            )
        inside = [f for f in stored.get("figures") or [] if isinstance(f, dict)]
        shared = {k: stored[k] for k in ("peer_version", "unit", "limit") if k in stored}
        figures = tuple({**shared, **f} for f in inside) or (stored,)
        found.append(Bench(path.stem, _about(root / "bench" / f"{path.stem}.py"), figures))
    return found


def _about(script: Path) -> str:
    """The first paragraph of a script's docstring, or ""."""
    if not script.is_file():
        return ""
    doc = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return " ".join(doc.split("\n\n")[0].split())


def number(value: Any) -> str:
    """A figure in words: four digits; of several, each with its name."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {number(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(number(v) for v in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def table(found: Iterable[Bench]) -> str:
    """An HTML table of every figure, its peer's, their ratio, and what is asked."""
    rows = []
    for bench in found:
        for f in bench.figures:
            held = f.get("holds")
            if (
                held is None
                and isinstance(f.get("ratio"), int | float)
                and isinstance(f.get("limit"), int | float)
            ):
                held = f["ratio"] <= f["limit"]
            verdict = "" if held is None else "holds" if held else "fails"
            cells = [number(f.get(k)) for k in ("ours", "peer", "ratio", "limit")]
            peer = f.get("peer_version") or ""
            rows.append(
                f'<tr><th scope="row">{text(f.get("name", bench.name))}<small>{text(f.get("unit", ""))}</small></th>'
                + "".join(f"<td>{text(c)}</td>" for c in cells)
                + f'<td class="{verdict}">{ {"holds": "yes", "fails": "no", "": ""}[verdict] }</td>'
                + f"<td>{text(peer)}</td></tr>"
            )
    head = ("figure", "here", "peer", "ratio", "at most", "reached", "peer's version")
    return grid(head, rows)


def grid(head: Iterable[str], rows: list[str]) -> str:
    """A table that scrolls by itself where it is too wide; the rows are HTML."""
    heads = "".join(f'<th scope="col">{h}</th>' for h in head)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>\n'
