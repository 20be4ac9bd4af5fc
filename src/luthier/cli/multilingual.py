"""`luthier multilingual`: one adapter for several programming languages, scored on each and probed for what it forgot (S049)."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from luthier.cli import options
from luthier.cli.show import as_json, figure, note, table
from luthier.errors import OptionError


def multilingual(
    model: options.Model,
    data: Annotated[
        list[str],
        typer.Option(
            "--data", metavar="LANGUAGE=DATA", help="A language and its pairs; two languages at least."
        ),
    ],
    out: Annotated[str, typer.Option("--out", help="Folder to write; the same command on it again resumes.")],
    kind: Annotated[
        str,
        typer.Option("--kind", help="retrieval: find the label's text by the input's; text2text: write it."),
    ] = "retrieval",
    low_resource: Annotated[
        bool, typer.Option("--low-resource", help="Only 200 pairs of each language, drawn by the seed.")
    ] = False,
    per_language: Annotated[
        int | None, typer.Option("--per-language", min=1, help="Another number of pairs of each language.")
    ] = None,
    width: Annotated[int, typer.Option("--width", min=1, help="Of the adapter's bottleneck.")] = 128,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", help="Instead of the adapter, to compare with: full, lora, ... (luthier methods)."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE...", help="Options of --method.")
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Also measure what was forgotten, by linear probes of the last block."),
    ] = False,
    input: options.Input = None,
    label: options.Label = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    batch_size: options.Batch = None,
    rate: options.Rate = None,
    signal: Annotated[
        str | None, typer.Option("--signal", help="As of fit: 'contrastive temperature=0.1'.")
    ] = None,
    seed: options.Drawn = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train one adapter on the pairs of several languages: code search, or summaries of code.

    luthier multilingual --model M --data python=py.csv --data ruby=rb.csv --input docstring --label code --low-resource --probe --out run/

    luthier multilingual --model builtin:t5 --kind text2text --data a=a.csv --data b=b.csv --input code --label docstring --out run/
    """
    if low_resource and per_language is not None:
        raise OptionError("--low-resource is --per-language 200: give one of them.")
    if set_ and method is None:
        raise OptionError("--set gives options of --method: name one.")
    from luthier import methods
    from luthier.data.load import load_data
    from luthier.models.load import load
    from luthier.recipes import multilingual_adapter as recipe

    if kind not in recipe.KINDS:
        raise OptionError(f"--kind {kind[:40]!r}: choose {' or '.join(recipe.KINDS)}.")
    chosen = None if method is None else methods.make(method, options.pairs(set_))
    columns = options.given(input=options.columns(input), label=label)
    named = options.pairs(data, "--data", "python=py.csv")
    languages = {name: load_data(source, kind=kind, seed=seed, **columns) for name, source in named.items()}
    base = load(model, device=device, dtype=dtype)
    made = recipe.one_adapter(
        base,
        languages,
        method=chosen,
        width=width,
        per_language=recipe.LOW_RESOURCE if low_resource else per_language,
        out=out,
        seed=seed,
        progress=not quiet,
        **options.given(epochs=epochs, steps=steps, batch_size=batch_size, rate=rate, signal=signal),
    )
    found = recipe.probed(base, {"tuned": made.fitted}, languages, seed=seed) if probe else []
    if json:
        as_json({**made.card(), "probes": [one.card() for one in found], "out": out})
        return
    show(made, found)
    note(f"trains {100 * made.share:.2f} % of the model's numbers. Written to {out}")


def show(made: Any, found: list[Any]) -> None:
    """Scores by language, and what was lost."""
    metrics = list(dict.fromkeys(k for scores in made.scores.values() for k in scores))
    lines = [
        [name, f"{made.rows[name]:,}", *(figure(scores[k]) for k in metrics)]
        for name, scores in made.scores.items()
    ]
    table(["language", "pairs", *metrics], lines, numbers=range(1, len(metrics) + 2))
    if found:
        lost = [
            [p.property, *(figure(p.accuracy[n]) for n in ("base", "tuned")), figure(p.loss("tuned"))]
            for p in found
        ]
        table(["linear probe", "base", "tuned", "lost"], lost, numbers=[1, 2, 3])
