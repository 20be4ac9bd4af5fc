"""`luthier stream`: adapt a model to one task after another."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli import options
from luthier.cli.show import as_json, figure, note, table


def stream(
    model: options.Model,
    data: Annotated[
        list[str], typer.Option("--data", help="A task's data, as of fit; once for each task, in order.")
    ],
    method: Annotated[str, typer.Option("--method", help="One of `luthier methods`, e.g. q_tuning.")],
    out: Annotated[str, typer.Option("--out", help="Folder to write; the same command on it again resumes.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE...", help="Options of the method: --set length=4 queue=5."),
    ] = None,
    afresh: Annotated[
        bool,
        typer.Option("--afresh", help="Begin every task anew: what a continual method is compared with."),
    ] = False,
    after: Annotated[
        str | None,
        typer.Option("--after", help="The folder of an adaptation or a run that the first task begins with."),
    ] = None,
    input: options.Input = None,
    label: options.Label = None,
    kind: options.Kind = None,
    limit: options.Limit = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", min=0, help="Passes over each task's training rows [3].")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Of each task, instead of epochs.")
    ] = None,
    batch_size: options.Batch = None,
    rate: options.Rate = None,
    signal: Annotated[str | None, typer.Option("--signal", help="As of fit.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the first task.")] = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Adapt a model to one task after another (continual learning).

    Each task begins with what the one before hands on and keeps an adaptation of its own in the folder --out. Shown are each
    task's test score by its own adaptation, and by the last one where that can answer it.

    luthier stream --model builtin:t5 --data builtin:departments --data builtin:verdicts --method q_tuning --signal choices --out out/
    """
    from luthier import methods

    chosen = methods.make(method, options.pairs(set_))

    from luthier.data.load import load_data
    from luthier.models.load import load
    from luthier.streams.stream import stream
    from luthier.train.fitted import load_fitted

    columns = options.given(input=options.columns(input), label=label, kind=kind)
    tasks = [load_data(one, **columns, seed=seed, limit=limit) for one in data]
    base = load(model, device=device, dtype=dtype)
    found = stream(
        base,
        tasks,
        chosen,
        out=out,
        afresh=afresh,
        after=load_fitted(after, base) if after is not None else None,
        seed=seed,
        say=None if quiet else note,
        progress=not quiet,
        **options.given(epochs=epochs, steps=steps, batch_size=batch_size, rate=rate, signal=signal),
    )
    if json:
        as_json({"method": method, "tasks": found.scores, "out": out})
        return
    rows = [(s["task"], s["metric"], *("" if s[k] is None else figure(s[k]) for k in ("own", "last"))) for s in found.scores]  # fmt: skip
    table(["task", "metric", "own", "last"], rows, numbers=[2, 3])
    note(f"Written to {out}, one folder per task.")
