"""`luthier eval`: score an adaptation on data."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli import options
from luthier.cli.adaptation import open_adaptation
from luthier.cli.show import as_json, figure, note, table


def evaluate(
    directory: options.Directory,
    data: options.Data,
    part: Annotated[
        str | None, typer.Option("--part", help="train, validation or test; else test where there is one.")
    ] = None,
    model: options.Base = None,
    input: options.Input = None,
    label: options.Label = None,
    history: options.History = None,
    limit: options.Limit = None,
    batch_size: options.Batch = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Score an adaptation on labelled data.

    The data is read with the columns and labels of the adaptation's own task.

    luthier eval out/ --data reviews-2.csv
    """
    fitted = open_adaptation(directory, model, device, dtype)
    from luthier.data.load import load_split

    rows = load_split(
        data,
        fitted.task,
        part=part,
        **options.given(input=options.columns(input), label=label, history=history),
    )
    rows = options.first(rows, limit)
    scores = fitted.score(rows, **options.given(batch_size=batch_size))
    if json:
        as_json({"adaptation": directory, "data": data, "rows": len(rows), "metrics": scores})
        return
    table(["metric", "value"], [(k, figure(v)) for k, v in scores.items()], numbers=[1])
    note(f"{len(rows):,} rows")
