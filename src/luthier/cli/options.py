"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from luthier.errors import OptionError

Model = Annotated[str, typer.Option("--model", help="builtin:NAME, a local folder, or a hub name.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="builtin:NAME, CSV, JSONL, Parquet, NPZ, an image folder, a datasets folder or hub name.",
    ),
]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", help="Column of the input; for pairs of texts, two: --input a --input b or a,b."),
]
Label = Annotated[str | None, typer.Option("--label", help="Column of the label or target.")]
Attribute = Annotated[
    list[str] | None,
    typer.Option(
        "--attribute",
        help="Column of a label that the adaptation is told with every row (a control, a language); may be given again.",
    ),
]
Covariate = Annotated[
    list[str] | None,
    typer.Option(
        "--covariate",
        help="Column of a number that the adaptation is told with every row (a quality); of images also sharpness, which is measured.",
    ),
]
History = Annotated[
    str | None,
    typer.Option(
        "--history",
        help="Column of histories: lists of texts, oldest first (CSV: JSON lists), for methods that read one.",
    ),
]
Kind = Annotated[
    str | None,
    typer.Option(
        "--kind",
        help="classification, multilabel, regression, text2text, tagging or retrieval, when it cannot be guessed.",
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first rows.")]
Directory = Annotated[str, typer.Argument(metavar="DIR", help="A run folder or an adaptation's folder.")]
Base = Annotated[
    str | None,
    typer.Option("--model", help="The base model, where the adaptation's card names no embedded one."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="Of the base model: auto, float32, bfloat16, float16.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Batch = Annotated[int | None, typer.Option("--batch-size", min=1, help="Rows per step.")]
Epochs = Annotated[float | None, typer.Option("--epochs", min=0, help="Passes over the training rows [3].")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Steps, instead of epochs.")]
Rate = Annotated[float | None, typer.Option("--rate", min=0, help="Learning rate; else the method's own.")]
Drawn = Annotated[int, typer.Option("--seed", min=0, help="Of all that is random.")]


def given(**settings: Any) -> dict[str, Any]:
    """The settings that were given: those left out keep the default of the function that they go to."""
    return {k: v for k, v in settings.items() if v is not None}


def columns(input: list[str] | None) -> str | tuple[str, str] | None:
    """`--input` as one column or two. Raises OptionError for more."""
    if not input:
        return None
    names = input[0].split(",") if len(input) == 1 and input[0].count(",") == 1 else input
    if len(names) > 2:
        raise OptionError(f"--input names {len(names)} columns; a row has one text, or two for pairs.")
    return names[0] if len(names) == 1 else (names[0].strip(), names[1].strip())


def pairs(items: list[str] | None, option: str = "--set", example: str = "rank=4") -> dict[str, str]:
    """`key=value` items of an option as a dict. Raises OptionError for another form, and for a key given twice."""
    found: dict[str, str] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise OptionError(f"{option} takes pairs such as {example}; {item!r} is none.")
        if key in found:
            raise OptionError(f"{option} gives {key!r} twice: {found[key]!r} and {value!r}.")
        found[key] = value
    return found


def first(rows: Any, limit: int | None) -> Any:
    """The first `limit` rows of a split."""
    return rows if limit is None or limit >= len(rows) else rows.select(range(limit))
