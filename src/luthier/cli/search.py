"""`luthier search`: which forms or modules, where and how large, suit a data set under a budget."""

from __future__ import annotations

import json as text
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli import options
from luthier.cli.show import as_json, figure, line, note, table


def search(
    model: options.Model,
    data: options.Data,
    method: Annotated[str, typer.Option("--method", help="A method with a space to search: glora or noah.")],
    budget: Annotated[
        str,
        typer.Option(
            "--budget", help="Most parameters that train: params=0.5% of the base's, or params=20000."
        ),
    ],
    out: Annotated[str, typer.Option("--out", help="Folder to write; the same command on it again resumes.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE...", help="Options of the method, the largest to try: --set rank=8."
        ),
    ] = None,
    input: options.Input = None,
    label: options.Label = None,
    kind: options.Kind = None,
    limit: options.Limit = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", min=0, help="Of the supernet, over the training rows [30].")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Of the supernet, instead of epochs.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Generations of the evolution.")] = 20,
    population: Annotated[int, typer.Option("--population", min=1, help="Candidates of a generation.")] = 50,
    retrain: Annotated[
        bool | None,
        typer.Option(
            "--retrain/--keep",
            help="Train the winner anew, or keep the supernet's weights [as the paper does: noah anew, glora keeps].",
        ),
    ] = None,
    retrain_epochs: Annotated[
        float | None,
        typer.Option("--retrain-epochs", min=0, help="Of the winner, where it is trained anew [10]."),
    ] = None,
    retrain_steps: Annotated[
        int | None, typer.Option("--retrain-steps", min=1, help="Of the winner, instead of epochs.")
    ] = None,
    batch_size: options.Batch = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0, help="Learning rate; else each part's own.")
    ] = None,
    signal: Annotated[str | None, typer.Option("--signal", help="As of fit.")] = None,
    seed: options.Drawn = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Search forms (GLoRA) or modules and sizes (NOAH) for each layer under a budget of parameters.

    A supernet of all choices is trained once, evolution scores choices on the validation rows, and the winner is written as an
    adaptation: luthier eval OUT, luthier predict OUT, luthier fit --method METHOD --after OUT. The test rows are scored once, at the end.

    luthier search --model builtin:vit --data builtin:digits --method glora --budget params=0.5% --out found/
    """
    from luthier import methods

    chosen = methods.make(method, options.pairs(set_))

    from luthier.data.load import load_data
    from luthier.models.load import load
    from luthier.search.evolution import Evolution
    from luthier.search.search import search
    from luthier.train.checkpoint import replace_bytes

    columns = options.given(input=options.columns(input), label=label, kind=kind)
    rows = load_data(data, **columns, seed=seed, limit=limit)
    base = load(model, device=device, dtype=dtype)
    found = search(
        base,
        rows,
        chosen,
        budget=budget,
        out=out,
        evolution=Evolution.of(rounds, population),
        seed=seed,
        progress=not quiet,
        **options.given(
            epochs=epochs, steps=steps, retrain=retrain, retrain_epochs=retrain_epochs, retrain_steps=retrain_steps,
            batch_size=batch_size, rate=rate, signal=signal,
        ),
    )  # fmt: skip
    told: dict[str, Any] = {
        "method": method,
        "parameters": found.parameters,
        "allowed": found.allowed,
        "candidates": len(found.candidates),
        "validation": found.validation,
        "test": {} if rows.test is None else found.fitted.score(rows.test),
        "layouts": found.layouts,
    }
    replace_bytes(Path(out) / "metrics.json", text.dumps(told, indent=1).encode())
    if json:
        as_json({**told, "out": out})
        return
    parts = found.fitted.adaptation.method.parts()
    shown = [
        (parts[int(i)].name, site, " ".join(f"{k}={v}" for k, v in layout.items()))
        for i, here in found.layouts.items()
        for site, layout in here.items()
    ]
    table(["part", "site", "layout"], shown)
    line(
        f"{figure(found.parameters)} of {figure(found.allowed)} parameters; {len(found.candidates)} candidates"
    )
    for name in ("validation", "test"):
        if told[name]:
            line(f"{name}: " + ", ".join(f"{k} {figure(v)}" for k, v in told[name].items()))
    note(f"Written to {out}.")
