"""`luthier check`: re-run the checks of the catalogue's rows, or show what is stored of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli import options
from luthier.cli.show import as_json, line, note, table
from luthier.errors import LuthierError, OptionError

if TYPE_CHECKING:
    from luthier.papers.check import Check
    from luthier.papers.results import Result


def check(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Rows such as S294; none: all.", show_default=False),
    ] = None,
    room: Annotated[
        str | None, typer.Option("--room", help="Only rows of this room: prompts, weights ...")
    ] = None,
    claim: Annotated[list[str] | None, typer.Option("--claim", help="Measure only these claims.")] = None,
    cheap: Annotated[bool, typer.Option("--cheap", help="Measure only what takes seconds.")] = False,
    stored: Annotated[bool, typer.Option("--stored", help="Run nothing: show the stored figures.")] = False,
    store: Annotated[
        bool, typer.Option("--store", help="Keep the figures in the package, in place of those stored.")
    ] = False,
    work: Annotated[
        Path, typer.Option("--work", help="Where a check that is interrupted leaves what it has done.")
    ] = Path("out/checks"),
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Re-run checks: each a statement about a method, with a threshold, measured here and now.

    Ends with 1 if a claim does not hold. A check that was interrupted goes on where it stopped.

    luthier check S294

    luthier check --room prompts --cheap
    """
    from luthier.papers import check as declared
    from luthier.papers.catalogue import filtered
    from luthier.papers.results import stored as kept

    if store and (cheap or claim):
        raise OptionError("--store keeps whole checks: leave out --cheap and --claim.")
    within = {r.id for r in filtered(room=room)}
    wanted = [i.upper() for i in dict.fromkeys(ids)] if ids else declared.ids()
    chosen = [made for made in map(declared.check, wanted) if made.id in within]
    if not chosen:
        raise OptionError(
            f"No check of the room {room!r} is among them. There are: {', '.join(declared.ids())}."
        )
    results: list[Result] = []
    failed: dict[str, str] = {}
    for made in chosen:
        if stored:
            if (found := kept(made.id)) is not None:
                results.append(found)
            else:
                failed[made.id] = "nothing is stored: leave out --stored"
        else:
            try:
                results.append(_measure(made, claim or (), cheap, work, quiet))
            except LuthierError as error:
                if len(chosen) == 1:
                    raise
                failed[made.id] = str(error)
                note(f"{made.id}: {error}")
                continue
            if store:
                from luthier.papers.results import store as write

                write(results[-1])
        if results and results[-1].check is made and not json:
            _show(results[-1], bool(claim) or cheap)
    if json:
        as_json(
            [_record(r, bool(claim) or cheap) for r in results] + [_failed(i, e) for i, e in failed.items()]
        )
    if failed or not all(_holds(r, bool(claim) or cheap) for r in results):
        raise typer.Exit(1)


def _measure(made: Check, claims: Any, cheap: bool, work: Path, quiet: bool) -> Result:
    from luthier.papers.checking import chosen, measure

    if not chosen(made, claims, cheap):
        raise OptionError(f"Nothing in the check {made.id} takes only seconds. Leave out --cheap.")
    if not quiet:
        note(f"{made.id}: {made.statement} (about {made.minutes:g} min in all)")
    return measure(made, only=claims, cheap=cheap, work=work, say=(lambda text: None) if quiet else note)


def _judged(result: Result, part: bool) -> list[Any]:
    """Claims with their verdicts; of a check that was run in part, those that were measured."""
    return [(c, v) for c, v in result.verdicts if v.figure is not None or not part]


def _holds(result: Result, part: bool) -> bool:
    return all(v.holds for _, v in _judged(result, part))


def _record(result: Result, part: bool) -> dict[str, Any]:
    record = result.record()
    if part:
        measured = {c.id for c, _ in _judged(result, True)}
        record["claims"] = [c for c in record["claims"] if c["id"] in measured]
        first = next((c for c in record["claims"] if not c["holds"]), record["claims"][0])
        record |= {"claim": first["id"], "figure": first["figure"], "threshold": first["threshold"]}
        record |= {"spread": None if first["low"] is None else [first["low"], first["high"]]}
        record["holds"] = all(c["holds"] for c in record["claims"])
    return record


def _failed(id: str, error: str) -> dict[str, Any]:
    from luthier.papers.check import check as declared

    empty = dict.fromkeys(("figure", "threshold", "spread", "seconds"))
    return {"id": id, "statement": declared(id).statement, **empty, "holds": False, "error": error}


def _show(result: Result, part: bool) -> None:
    from luthier.papers.results import in_words

    made = result.check
    line(f"{made.id}: {made.statement}")
    rows = []
    for claim, verdict in _judged(result, part):
        arms = ", ".join(f"{name} {value:.4g}" for name, value in (verdict.arms or {}).items())
        rows.append(
            [claim.id, claim.statement, in_words(claim, verdict), arms, "yes" if verdict.holds else "NO"]
        )
    table(["claim", "statement", "figure", "means of arms", "holds"], rows)
    stale = "" if result.fresh else "; the code has changed since"
    line(f"data: {made.data}; against: {made.against}")
    if made.notes:
        line(f"note: {made.notes}")
    line(f"{result.stored.seconds:g} s on {result.stored.date}{stale}")
    print()
