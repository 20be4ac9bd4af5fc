"""`luthier mix`: unlabelled texts of several languages among the rows of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import options
from luthier.cli.show import as_json, note
from luthier.errors import OptionError


def mix(
    data: options.Data,
    out: Annotated[str, typer.Option("--out", help="Folder to write: train, validation and test as JSONL.")],
    texts: Annotated[
        list[str],
        typer.Option(
            "--texts",
            metavar="LANGUAGE=FILE",
            help="Unlabelled texts: a .txt of lines, or a table with a column text; may be given again.",
        ),
    ],
    language: Annotated[str, typer.Option("--language", help="The language of --data.")] = "en",
    task: Annotated[str, typer.Option("--task", help="What the task of --data is called.")] = "task",
    objectives: Annotated[
        str, typer.Option("--objectives", help="What is learned from texts: spans, continue, order, write.")
    ] = "spans,continue,order,write",
    share: Annotated[float, typer.Option("--share", help="Of the training rows, those made of texts.")] = 0.5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all that is drawn.")] = 0,
    input: options.Input = None,
    label: options.Label = None,
    limit: options.Limit = None,
    json: options.Json = False,
) -> None:
    """Mix unlabelled texts of several languages into a task of text to text.

    Every row gets two attributes, its language and its task, for methods that hold a part for each (factored_prompt).

    luthier mix --data en.csv --task summary --texts en=en.txt --texts sw=sw.txt --out mixed/
    """
    from luthier.data.load import load_data
    from luthier.data.unlabelled import mixed, read_texts
    from luthier.data.write import write_jsonl

    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise OptionError(f"--out {out}: the folder is not empty. Name a new one.")
    several = {name: read_texts(path) for name, path in options.pairs(texts, "--texts", "sw=sw.txt").items()}
    rows = load_data(
        data,
        kind="text2text",
        seed=seed,
        limit=limit,
        **options.given(input=options.columns(input), label=label),
    )
    wanted = tuple(name.strip() for name in objectives.split(","))
    made = mixed(rows, several, language=language, task=task, objectives=wanted, share=share, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in made.parts.items():
        records = [
            {"input": x, "target": y, "language": told, "task": what}
            for x, y, (told, what) in zip(part.inputs, part.targets, part.attributes.tolist(), strict=True)
        ]
        write_jsonl(folder / f"{name}.jsonl", records)
    languages = list(dict.fromkeys([language, *several]))
    if json:
        as_json({"rows": made.rows, "languages": languages, "tasks": [task, *wanted], "out": out})
        return
    note(
        f"{made.rows['train']:,} training rows written to {out}, {len(rows.train):,} of them of the task. Try:"
    )
    note(
        f"luthier fit --model M --data {out} --kind text2text --attribute language --attribute task --method factored_prompt "
        f'--set languages="{", ".join(languages)}" tasks="{", ".join((task, *wanted))}" --out run/'
    )
