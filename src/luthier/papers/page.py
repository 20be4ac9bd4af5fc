"""`luthier papers --html`: the catalogue as one HTML file that works offline, every row with its claim, check and figure.

The rows stand in the page as they are read, so that it is whole without scripts; the script filters them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from luthier.data.html import for_script, palette, policy, text
from luthier.papers import catalogue
from luthier.papers.catalogue import Row
from luthier.papers.measured import Measured, measured
from luthier.papers.rooms import ABOUT

STATES = {
    "works": "A user runs it, and a stored check holds.",
    "partial": "It runs, but something of the row or its check is missing.",
    "guide": "A page or command says how to do it.",
    "absent": "Not here yet.",
}
"""What a status means, in the order in which they are shown."""
KINDS = {"none": "no check yet", "holds": "holds", "fails": "does not hold"}
ROOM_WIDTH = 200


def page(rows: Sequence[Row]) -> str:
    """The whole file, of these rows. Raises FileFormatError for a damaged file of results."""
    room = files("luthier.papers") / "html"
    template, style, script = (
        (room / name).read_text(encoding="utf-8") for name in ("papers.html", "papers.css", "papers.js")
    )
    style, script = palette() + style, '"use strict";\n' + script
    rows = sorted(rows, key=lambda r: (list(STATES).index(r.status), r.id))
    found = {r.id: measured(r.id) for r in rows}
    return Template(template).substitute(
        policy=policy(script, style),
        style=style,
        script=script,
        data=for_script([_facets(r, found[r.id]) for r in rows]),
        count=len(rows),
        of="" if len(rows) == len(catalogue.rows()) else f" of {len(catalogue.rows())}",
        lead=_lead(rows, found),
        legend="".join(
            f'<li><span class="pill {s}">{s}</span> {text(meaning)}</li>' for s, meaning in STATES.items()
        ),
        rooms=_rooms(rows),
        rows="".join(_row(r, found[r.id]) for r in rows),
    )


def standing(found: Measured | None) -> str:
    """`none`, `holds` or `fails`: what stored figures say of a row."""
    return "none" if found is None else "holds" if found.holds else "fails"


def _facets(r: Row, found: Measured | None) -> dict[str, Any]:
    """What the script filters by; the words it reads from the page."""
    return {
        "id": r.id,
        "room": r.room,
        "family": [r.family, *r.also],
        "kind": r.kind,
        "status": r.status,
        "modality": list(r.modality),
        "figure": standing(found),
    }


def _lead(rows: Sequence[Row], found: Mapping[str, Measured | None]) -> str:
    stored = [m for m in found.values() if m is not None]
    runs = sum(r.status in ("works", "partial") for r in rows)
    words = f"{runs} of {len(rows)} can be run here. "
    if not stored:
        return words + "No check has stored figures yet."
    holding = sum(m.holds for m in stored)
    checks = f"{len(stored)} check{' has' if len(stored) == 1 else 's have'} stored figures"
    return words + f"{checks}; {holding} of them hold{'s' if holding == 1 else ''}."


def _rooms(rows: Sequence[Row]) -> str:
    """A button per room, with a bar of its rows by status, as long as the room is large."""
    largest = max((sum(r.room == room for r in rows) for room in ABOUT), default=1) or 1
    out = []
    for room, about in ABOUT.items():
        inside = [r for r in rows if r.room == room]
        if not inside:
            continue
        counts = {s: sum(r.status == s for r in inside) for s in STATES}
        x, bars = 0.0, []
        for state, n in counts.items():
            width = ROOM_WIDTH * n / largest
            if n:
                bars.append(f'<rect class="{state}" x="{x:.1f}" width="{max(width - 1, 1):.1f}" height="8"/>')
            x += width
        words = ", ".join(f"{n} {s}" for s, n in counts.items() if n)
        out.append(
            f'<li><button type="button" data-room="{text(room)}" aria-pressed="false">'
            f'<span class="name"><b>{text(room)}</b> <span class="n">{len(inside)}</span></span>'
            f'<svg viewBox="0 0 {ROOM_WIDTH} 8" preserveAspectRatio="none" role="img" aria-label="{words}">'
            f'{"".join(bars)}</svg><span class="about">{text(about)}</span></button></li>'
        )
    return "".join(out)


def _row(r: Row, found: Measured | None) -> str:
    entry = f'<span class="entry">{text(r.entry)}</span>' if r.entry else ""
    tags = [r.room, r.family, *r.also, r.kind, *r.modality]
    return (
        f'<article class="row" id="{text(r.id)}" tabindex="-1" aria-labelledby="{text(r.id)}-t">'
        f'<div class="top"><a class="id" href="#{text(r.id)}">{text(r.id)}</a>'
        f'<h3 id="{text(r.id)}-t">{_name(r)}</h3>'
        f'<p class="state"><span class="pill {r.status}">{r.status}</span>{entry}</p></div>'
        f'<p class="tags">{"".join(f"<span>{text(t)}</span>" for t in tags)}</p>'
        f'<div class="three"><div><h4>Paper reports</h4><p>{text(r.claim) or _none("Nothing that can be measured.")}</p></div>'
        f"<div><h4>{'Check' if found else 'Proposed check'}</h4><p>{text(found.statement if found else r.check)}</p></div>"
        f"<div><h4>Measured here</h4>{_figure(r, found)}</div></div>"
        f"<details><summary>How it works, what it needs</summary>{_more(r, found)}</details></article>"
    )


def _name(r: Row) -> str:
    if r.system and not r.title.startswith(r.system):
        return f'<span class="system">{text(r.system)}</span> {text(r.title)}'
    return text(r.title)


def _none(words: str) -> str:
    return f'<span class="none">{text(words)}</span>'


def _figure(r: Row, found: Measured | None) -> str:
    if found is None:
        return f'<p class="verdict none">{KINDS["none"]}</p>'
    if len(found.claims) == 1:
        parts = ""
    else:
        parts = f" &middot; {sum(c.holds for c in found.claims)} of {len(found.claims)} claims hold"
    stale = "" if found.fresh else '<p class="stale">The code has changed since it was measured.</p>'
    mark, word = ("✓", "holds") if found.holds else ("✗", "does not hold")
    return (
        f'<p class="verdict {standing(found)}"><span aria-hidden="true">{mark}</span> {word}{parts}</p>'
        f'<p class="fig"><b>{text(found.figure)}</b> {text(found.spread)}</p>'
        f'<p class="asked">{text(found.claim)}: asked {text(found.threshold)}</p>{stale}'
    )


def _more(r: Row, found: Measured | None) -> str:
    facts = {
        "mechanism": r.mechanism,
        "user gets": r.product,
        "needs": r.needs,
        "proposed check": r.check if found else "",
        "measured on": found.data if found else "",
        "against": found.against if found else "",
        "note": found.notes if found else "",
        "why partial": r.delivery.cause,
        "when": f"{found.date}, {found.seconds:.4g} s" if found else "",
        "repeat it": f"luthier check {r.id}" if found else "",
        "effort": f"{r.effort}; runnable: {r.runnable}",
        "code": r.code,
    }
    listed = "".join(f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in facts.items() if value)
    return (_claims(found) if found else "") + f"<dl>{listed}</dl>"


def _claims(found: Measured) -> str:
    rows = "".join(
        f'<tr><th scope="row">{text(c.statement)}</th><td>{text(c.figure)} {text(c.spread)}</td>'
        f'<td>{text(c.threshold)}</td><td class="{"holds" if c.holds else "fails"}">{"yes" if c.holds else "no"}</td></tr>'
        for c in found.claims
    )
    head = "".join(f'<th scope="col">{h}</th>' for h in ("claim", "figure [95 %]", "asked", "holds"))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
