"""`luthier verbalise`: a knowledge base as rows of text to text, one value masked in each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli import options
from luthier.cli.show import as_json, note
from luthier.errors import OptionError


def verbalise(
    base: Annotated[
        str,
        typer.Argument(
            metavar="KB", help="A table: columns entity, slot, value, or one row for each entity."
        ),
    ],
    out: Annotated[str, typer.Option("--out", help="Folder to write: train, validation and test as JSONL.")],
    entity: Annotated[
        str | None,
        typer.Option("--entity", help="Column that names the entity, where the others are its slots."),
    ] = None,
    sentence: Annotated[
        str | None,
        typer.Option("--sentence", help="How a fact is told: text with {entity}, {slot} and {value}."),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template", metavar="SLOT=SENTENCE", help="The same for one slot; may be given again."
        ),
    ] = None,
    forms: Annotated[
        str, typer.Option("--forms", help="atomic (one slot a sentence), composite (all slots of an entity).")
    ] = "atomic,composite",
    mask: Annotated[
        str, typer.Option("--mask", help="What stands for the value; BART's is <mask>.")
    ] = "<extra_id_0>",
    pairs: Annotated[
        str | None,
        typer.Option("--pairs", help="JSONL to write for the probe: responses that differ in one value."),
    ] = None,
    question: Annotated[
        str, typer.Option("--question", help="The context of --pairs: text with {entity} and {slot}.")
    ] = "What is the {slot} of {entity}?",
    answer: Annotated[
        str, typer.Option("--answer", help="The response of --pairs: text with {value}.")
    ] = "It is {value}.",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the false values.")] = 0,
    json: options.Json = False,
) -> None:
    """Tell the facts of a knowledge base, one value masked in each, for an adapter that is to memorise them.

    The answer of a row is the whole fact. Training has every fact in every form; validation and test repeat the atomic ones, so
    that exact match there is the share of facts that were memorised.

    luthier verbalise restaurants.csv --entity name --out facts/ --pairs probe.jsonl
    """
    from luthier.data.facts import SENTENCE, Wording, by_entity, contrasted, masked_facts, read_facts
    from luthier.data.write import write_jsonl

    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise OptionError(f"--out {out}: the folder is not empty. Name a new one.")
    if pairs is not None and Path(pairs).exists():
        raise OptionError(f"--pairs {pairs}: there is such a file. Name a new one.")
    wording = Wording(
        sentence or SENTENCE, options.pairs(template, "--template", "food={entity} serves {value}")
    )
    facts = read_facts(base, entity)
    if odd := [slot for slot in wording.own or {} if slot not in {f.slot for f in facts}]:
        raise OptionError(
            f"--template {odd[0]}=...: no fact has this slot. Slots: {', '.join(slots(facts))}."
        )
    wanted = tuple(name.strip() for name in forms.split(","))
    rows = masked_facts(facts, wording, forms=wanted, mask=mask)
    asked = masked_facts(facts, wording, forms=("atomic",), mask=mask)
    told = contrasted(facts, question, answer, seed=seed) if pairs is not None else []
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows), ("validation", asked), ("test", asked)):
        write_jsonl(folder / f"{name}.jsonl", [{"input": r.input, "target": r.target} for r in part])
    if pairs is not None:
        write_jsonl(Path(pairs), [{"context": p.context, "right": p.right, "wrong": p.wrong} for p in told])
    counts = dict(Counter(r.form for r in rows))
    if json:
        found = {"facts": len(facts), "entities": len(by_entity(facts)), "slots": slots(facts)}
        as_json({**found, "rows": counts, "pairs": len(told), "out": out})
        return
    said = " and ".join(f"{n:,} {form}" for form, n in counts.items())
    note(f"{len(facts):,} facts of {len(by_entity(facts)):,} entities: {said} rows written to {out}. Try:")
    note(f"luthier fit --model M --data {out} --kind text2text --method knowledge_adapter --out run/")
    if pairs is not None:
        note(f"luthier instruments knowledge run/ --pairs {pairs}")


def slots(facts: list[Any]) -> list[str]:
    """The slots of some facts, in their order."""
    return list(dict.fromkeys(f.slot for f in facts))
