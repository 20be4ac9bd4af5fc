"""`luthier papers`: the catalogue, listed, filtered and searched by words, or by meaning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.errors import OptionError
from luthier.papers import catalogue
from luthier.papers.catalogue import Row

ID = re.compile(r"S\d{3}", re.I)
PAGE = "papers.html"
NEAREST = 10
"""How many rows a search by meaning shows unless --limit says otherwise: it ranks all of them."""


def papers(
    query: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUERY",
            help="Words that must all occur, or an id such as S282; with --html also the file to write.",
            show_default=False,
        ),
    ] = None,
    room: Annotated[
        str | None, typer.Option("--room", help="Only this room: prompts, weights, frugal ...")
    ] = None,
    family: Annotated[
        str | None, typer.Option("--family", help="Only this family: soft-prompt, low-rank ...")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="Only this kind: method, study, system ...")
    ] = None,
    modality: Annotated[
        str | None, typer.Option("--modality", help="Only this modality: text, vision ...")
    ] = None,
    status: Annotated[str | None, typer.Option("--status", help="works, partial, absent or guide.")] = None,
    meaning: Annotated[
        bool, typer.Option("--meaning", help="Search by meaning with the embedded sentence model.")
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Show at most so many rows.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per row, each on a line.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Show all that is known of each row.")] = False,
    html: Annotated[
        bool,
        typer.Option(
            "--html", help=f"Write a page, {PAGE} or the FILE.html that is named, instead of a list."
        ),
    ] = False,
) -> None:
    """List and search the catalogue of papers.

    luthier papers low-rank start

    luthier papers S282

    luthier papers --meaning "keep old tasks while learning new ones"

    luthier papers --html catalogue.html
    """
    path = PAGE
    if html and query and query[-1].lower().endswith((".html", ".htm")):
        query, path = query[:-1], query[-1]
    words = " ".join(query or ())
    filters = {"room": room, "family": family, "kind": kind, "modality": modality, "status": status}
    named = bool(query) and all(ID.fullmatch(word) for word in query or ())
    similar: dict[str, float] = {}
    if meaning:
        from luthier.papers.meaning import search_by_meaning

        near = search_by_meaning(words, None, limit or NEAREST, on_embedding=_say_embedding, **filters)
        found, similar = [r for r, _ in near], {r.id: s for r, s in near}
    elif named:
        kept = catalogue.filtered(**filters)
        found = [r for r in map(catalogue.row, dict.fromkeys(words.upper().split())) if r in kept]
    else:
        found = catalogue.find(words, **filters)
    if not found:
        _no_match(words, {k: v for k, v in filters.items() if v})
        raise typer.Exit(1)
    shown = found[:limit]
    if html:
        _write_page(shown, Path(path), json)
    elif json:
        _print_json(shown, similar)
    elif full or named:
        for r in shown:
            _print_full(r, similar)
    else:
        _print_table(shown, similar)
        _print_summary(shown, found)


def _say_embedding(count: int) -> None:
    from luthier.cli.show import note

    note(f"Embedding {count} papers with the sentence model; this happens once.")


def _write_page(shown: list[Row], path: Path, json: bool) -> None:
    from luthier.cli.show import as_json, line
    from luthier.compare.folder import write_text
    from luthier.papers.page import page

    if not path.parent.is_dir():
        raise OptionError(f"There is no folder {str(path.parent)!r} to write {path.name} to. Make it first.")
    source = page(shown)
    write_text(path, source)
    if json:
        as_json({"file": str(path), "rows": len(shown), "bytes": len(source.encode())})
    else:
        line(f"{path}: {len(shown)} papers in one file; open it in a browser")


def _print_json(shown: list[Row], similar: dict[str, float]) -> None:
    import json

    for r in shown:
        score = {"similarity": round(similar[r.id], 4)} if r.id in similar else {}
        # ASCII only: no terminal, pipe or code page can change what is read back.
        print(json.dumps({**r.record(), **score}))


def _print_table(shown: list[Row], similar: dict[str, float]) -> None:
    from luthier.cli.show import table
    from luthier.papers.results import stored

    def cells(r: Row) -> list[Any]:
        name = f"{r.system}: {r.title}" if r.system and not r.title.startswith(r.system) else r.title
        last = [f"{similar[r.id]:.2f}"] if similar else []
        measured = [figures.get(r.id, "")] if figures else []
        return [r.id, name, r.room, r.family, r.status, r.entry or "", *measured, *last]

    figures = {r.id: found.figure for r in shown if (found := stored(r.id)) is not None}
    more = [*(["measured"] if figures else []), *(["similarity"] if similar else [])]
    header = ["id", "paper", "room", "family", "status", "entry", *more]
    table(header, [cells(r) for r in shown])


def _print_summary(shown: list[Row], found: list[Row]) -> None:
    from luthier.cli.show import note

    counts = {s: sum(r.status == s for r in found) for s in catalogue.STATES}
    states = ", ".join(f"{n} {s}" for s, n in counts.items() if n)
    rest = f" (the first {len(shown)} are shown)" if len(shown) < len(found) else ""
    known = len(catalogue.rows())
    note(f"{len(found)} of {known} papers{rest}: {states}. All about one: luthier papers {shown[0].id}")


def _print_full(r: Row, similar: dict[str, float]) -> None:
    from luthier.cli.show import line, table
    from luthier.papers.results import stored

    record = r.record()
    record.pop("check")
    found = stored(r.id)
    line(f"{r.id}  {r.system}" if r.system else r.id)
    facts = {
        "title": r.title,
        "status": r.status + (f" (entry: {r.entry})" if r.entry else ""),
        "room": f"{r.room}; {r.family}" + (f", also {', '.join(r.also)}" if r.also else ""),
        "kind": f"{r.kind}; {', '.join(r.modality)}; effort {r.effort}; runnable: {r.runnable}",
        "mechanism": r.mechanism,
        "user gets": r.product,
        "needs": r.needs,
        "paper claims": r.claim,
        "check": r.check,
        "stored check": f"luthier check {r.id}" if found else "none yet",
        "measured": f"{found.figure}: {'holds' if found.holds else 'DOES NOT HOLD'}" if found else "",
        "cause": r.delivery.cause,
        "code": r.code,
        "similarity": f"{similar[r.id]:.2f}" if r.id in similar else "",
    }
    table(["", ""], [[name, text] for name, text in facts.items() if text])


def _no_match(words: str, filters: dict[str, str]) -> None:
    from luthier.cli.show import note, plain

    asked = [f"holds every word of {words!r}"] if words else []
    asked += [f"has {name} {value}" for name, value in filters.items()]
    if len(words.split()) > 1:
        hint = "Use fewer words, or search by meaning: --meaning"
    elif words:
        hint = "Check the spelling, or search by meaning: --meaning"
    else:
        hint = "Leave out a filter"
    note(plain(f"No paper {' and '.join(asked)}. {hint}"))
