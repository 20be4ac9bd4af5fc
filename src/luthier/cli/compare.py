"""`luthier compare`: the same budget for several methods, beside baselines; a table and an HTML report."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from luthier.cli import options


def compare(
    model: Annotated[str, typer.Option("--model", help="builtin:NAME, a local folder, or a hub name.")],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="builtin:NAME, CSV, JSONL, Parquet, NPZ, an image folder, a datasets folder or hub name.",
        ),
    ],
    methods: Annotated[
        str,
        typer.Option(
            "--methods", help="Joined by commas, with options after a colon: lora,lora:rank=4,alpha=8,bitfit."
        ),
    ],
    out: Annotated[str, typer.Option("--out", help="Folder to write; the same command on it again resumes.")],
    budget: Annotated[
        str,
        typer.Option(
            "--budget", help="For every arm: params=1%,minutes=5,epochs=2,steps=200,rows=1500,memory=2GB."
        ),
    ] = "",
    sized: Annotated[
        bool,
        typer.Option(
            "--sized", help="Every method as large (rank, width, length) as the budget's params allow."
        ),
    ] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many runs of every method.")] = 1,
    grid: Annotated[
        bool,
        typer.Option(
            "--grid/--no-grid", help="Try three learning rates for every method, chosen on validation."
        ),
    ] = True,
    factors: Annotated[
        str | None,
        typer.Option(
            "--factors", help="Try these multiples of every method's own rate instead: 0.1,0.3,1,3,10."
        ),
    ] = None,
    input: options.Input = None,
    label: options.Label = None,
    attribute: options.Attribute = None,
    covariate: options.Covariate = None,
    history: options.History = None,
    kind: options.Kind = None,
    test: Annotated[
        str | None, typer.Option("--test", help="A file of test rows; else a part is split off.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Use only the first rows of the data.")
    ] = None,
    train_rows: Annotated[
        int | None, typer.Option("--train-rows", min=1, help="Train on the first rows only.")
    ] = None,
    epochs: options.Epochs = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Rows per step [32].")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The first seed, and that of the split.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the base model: auto, float32, bfloat16, float16.")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Spread the runs over so many processes of this machine."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="[ADDRESS]",
            help="Spread the runs over a Ray cluster: auto (one that runs; the default), local (one begun here), or an address.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Compare methods under one budget.

    Prints a leaderboard; writes results.json, leaderboard.csv, report.html and every run to the folder --out.
    Ends with 1 if an arm failed: the others are on the board all the same.

    luthier compare --model builtin:minilm --data reviews.csv --methods lora,bitfit --budget params=1% --seeds
    3 --out out/
    """
    from luthier.compare.arms import parse_arms
    from luthier.compare.budget import Budget
    from luthier.compare.grid import parse
    from luthier.errors import OptionError

    wanted = Budget.parse(budget)  # mistakes in the command are named before anything is loaded
    if epochs is not None and wanted.epochs is not None:
        raise OptionError(
            f"--epochs {epochs:g} and --budget epochs={wanted.epochs:g} are both given. Keep one."
        )
    if epochs == 0:
        raise OptionError("--epochs 0 trains nothing. Give a number above 0.")
    parse_arms(methods)
    if factors is not None and not grid:
        raise OptionError("--factors and --no-grid are both given. Keep one.")
    tried = parse(grid if factors is None else factors)

    from luthier.compare.compare import compare
    from luthier.data.load import load_data
    from luthier.models.load import load
    from luthier.train.launched import speaks

    columns = _columns(input)
    rows = load_data(
        data,
        seed=seed,
        limit=limit,
        **_given(
            input=columns,
            label=label,
            attributes=attribute,
            covariates=covariate,
            history=history,
            kind=kind,
            test=test,
        ),
    )
    if train_rows is not None:
        rows = rows.limit(train=train_rows)
    made = compare(
        load(model, device=device, dtype=dtype), rows, methods, budget=wanted, sized=sized, seeds=seeds,
        grid=tried or False,
        out=out, seed=seed,
        progress=not quiet, workers=workers, ray=ray, **_given(epochs=epochs, batch_size=batch_size),
    )  # fmt: skip
    if not speaks():
        pass
    elif json:
        import sys
        from json import dumps

        sys.stdout.write(dumps(made.results, indent=1, ensure_ascii=True) + "\n")
    else:
        from rich.console import Console

        from luthier.data.write import plain

        screen = Console(highlight=False)
        screen.print(made.table())
        screen.print(f"\nReport: {plain(out)}/report.html", markup=False, soft_wrap=True)
        best = next((a for a in made if a["kind"] == "method"), None)
        if best is not None:
            where = f"{plain(out)}/runs/{best['name']}-{made.results['seeds'][0]}"
            screen.print(
                f"Use the best method: luthier predict {where} --data FILE", markup=False, soft_wrap=True
            )
    if made.failed or not made.succeeded:
        raise typer.Exit(1)


def _given(**settings: Any) -> dict[str, Any]:
    """The settings that were given: those left out keep the default of the function that they go to."""
    return {k: v for k, v in settings.items() if v is not None}


def _columns(names: list[str] | None) -> str | tuple[str, str] | None:
    """--input as one column or two."""
    from luthier.errors import OptionError

    if not names:
        return None
    split = [
        n.strip() for n in (names[0].split(",") if len(names) == 1 and names[0].count(",") == 1 else names)
    ]
    if len(split) > 2:
        raise OptionError(f"--input names {len(split)} columns; a row has one text, or two for pairs.")
    return split[0] if len(split) == 1 else (split[0], split[1])
