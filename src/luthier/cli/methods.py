"""`luthier methods`: what there is to choose from, without loading torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from luthier.cli import options
from luthier.cli.show import as_json, figure, line, note, table


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One method, with its options.")
    ] = None,
    matrix: Annotated[
        bool,
        typer.Option("--matrix", help="Methods by architectures: how many tested properties apply and hold."),
    ] = False,
    choices: Annotated[
        bool,
        typer.Option(
            "--choices", help="Methods by the five choices: carrier, source, start, selection, signal."
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """List the methods, or say all about one.

    luthier methods lora
    luthier methods --choices
    luthier methods --matrix
    """
    from luthier import methods as room

    if name is not None:
        found = room.entry(name)
        as_json(found) if json else describe(found)
    elif json:
        as_json(list(room.entries().values()))
    elif matrix:
        across([e for e in room.entries().values() if e["architectures"]])
    elif choices:
        table(
            ["method", "carrier", "source", "start", "selection", "signal"],
            by_choices(room.entries().values()),
        )
    else:
        entries = sorted(room.entries().values(), key=lambda e: (e["place"], e["name"]))
        table(
            ["method", "what it is", "place", "source", "start", "papers"],
            [
                [e["name"], e["summary"], e["place"], e["source"], e["start"], ", ".join(e["papers"])]
                for e in entries
            ],
        )
        note(
            f"{len(entries)} methods. All about one: luthier methods NAME. All by their choices: luthier methods --choices"
        )


def by_choices(entries: Iterable[dict[str, Any]]) -> list[list[str]]:
    """A row for each method: its name and its five choices."""
    return [
        [e["name"], e["carrier"], e["source"], e["start"], e["targets"] or "its own", e["signal"]]
        for e in sorted(entries, key=lambda e: (e["carrier"], e["name"]))
    ]


def across(entries: list[dict[str, Any]]) -> None:
    """The methods by architectures; in a cell, the properties that hold, or why none applies."""
    names = list(dict.fromkeys(a for e in entries for a in e["architectures"]))
    rows = [[e["name"], *(cell(e["architectures"].get(a)) for a in names)] for e in entries]
    table(["method", *names], rows)
    note(
        "In a cell: properties of the conformance suite that hold, of those that it has; or why the model cannot carry the method. "
        "Reasons for the others: luthier methods NAME"
    )


def cell(found: dict[str, Any] | None) -> str:
    """`22`, `20 of 22`, or the reason for which nothing applies."""
    if found is None:
        return ""
    missing = sum(found["not_applicable"].values())
    if not found["holds"]:
        return ", ".join(found["not_applicable"])
    return f"{found['holds']} of {found['holds'] + missing}" if missing else str(found["holds"])


def carried(e: dict[str, Any]) -> str:
    """One line on the architectures of a method."""
    return "; ".join(
        f"{a} {cell(found)}"
        + (f" ({', '.join(found['not_applicable'])})" if found["holds"] and found["not_applicable"] else "")
        for a, found in e["architectures"].items()
    )


def describe(e: dict[str, Any]) -> None:
    """The five choices, the options and the docstring of one method."""
    for text in e["doc"].splitlines():
        line(text) if text.strip() else print()
    print()
    yes = {True: "yes", False: "no"}
    choices = [
        ("place", e["place"]),
        ("carrier", e["carrier"]),
        ("source", e["source"]),
        ("start", e["start"] + (" (outputs begin as the base's)" if e["identity_start"] else "")),
        ("selection", e["targets"] or "its own"),
        ("signal", e["signal"]),
        ("learning rate", figure(e["rate"])),
        ("merges", yes[e["mergeable"]]),
        ("phases", ", ".join(e["phases"])),
        ("tested on", carried(e)),
        ("in Python", f"luthier.methods.{e['class']}"),
    ]
    table(["choice", ""], choices)
    if e["options"]:
        table(
            ["option", "type", "default", "meaning"],
            [
                [o["name"], o["type"], "(required)" if o["required"] else shown(o["default"]), o["meaning"]]
                for o in e["options"]
            ],
        )
        o = e["options"][0]
        note(
            f"Set one: luthier fit --method {e['name']} --set {o['name']}={shown(o['default']) or '...'} ..."
        )


def shown(value: Any) -> str:
    """A default as it would be typed."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
