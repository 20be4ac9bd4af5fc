"""`luthier testbed`: the small pretrained models that come with Luthier, how they are made and what they can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli import options
from luthier.cli.show import as_json, figure, line, note, table

app = typer.Typer(
    help="The small pretrained models that come with Luthier: list, build, measure.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A testbed: luthier testbed list.")]
TOLERANCE = 0.02
"""A recomputed figure that differs by more is another figure."""


@app.command("list")
def listed(json: options.Json = False) -> None:
    """List the testbeds, with their size and what their cards say.

    luthier testbed list
    """
    from luthier.models.testbeds import card
    from luthier.models.testbeds.recipe import MODULES

    cards = card.installed()
    if json:
        as_json([made.model_dump() for made in cards.values()])
        return
    table(
        ["testbed", "what it is", "parameters", "MB", "steps", "minutes"],
        [
            [c.name, c.about, f"{c.parameters:,}", f"{c.bytes / 1e6:.1f}", c.steps, f"{c.seconds / 60:.0f}"]
            for c in cards.values()
        ],
        numbers=[2, 3, 4, 5],
    )
    if lacking := [name for name in MODULES if name not in cards]:
        note(f"Not built here: {', '.join(lacking)}. Build one: luthier testbed build NAME")
    note("Load one: luthier sites builtin:NAME. Its figures: luthier testbed measure NAME")


@app.command("build")
def build(
    name: Name,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder to write; testbeds/NAME unless said.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Other than the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Other than the recipe's.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure on fewer held-out instances.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Pretrain a testbed by its recipe, and measure it. Minutes to half an hour on one core.

    luthier testbed build llama --out my-llama
    """
    from luthier.models.testbeds.build import build as made_by

    folder = out or Path("testbeds") / name
    with _Bar(quiet or json) as bar:
        made = made_by(name, folder, steps=steps, seed=seed, quick=quick, told=bar.told)
    if json:
        as_json(made.model_dump())
        return
    _figures({**made.held_out, **made.skills}, None)
    line(f"{folder}: {made.parameters:,} parameters, {made.steps} steps in {made.seconds:.0f} s")


@app.command("measure")
def measure(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A testbed, or a folder that build wrote.")],
    quick: Annotated[bool, typer.Option("--quick", help="On fewer held-out instances.")] = False,
    json: options.Json = False,
) -> None:
    """Recompute a testbed's held-out figures, beside those on its card.

    luthier testbed measure llama
    """
    from luthier.models.testbeds import card
    from luthier.models.testbeds.build import measured, rounded
    from luthier.models.testbeds.recipe import MODULES, recipe

    folder = card.FOLDER / name if name in MODULES else Path(name)
    if name not in MODULES and not (folder / card.FILE).is_file():
        recipe(name)  # says which there are
    stored = card.read(folder)
    found = measured(folder, recipe(stored.name), quick)
    figures = rounded({**found.held_out, **found.skills})
    known = {**stored.held_out, **stored.skills}
    other = {k: (v, now) for k, v in stored.versions.items() if (now := card.versions().get(k)) != v}
    if json:
        as_json(
            {
                "name": stored.name,
                "quick": quick,
                "figures": figures,
                "card": known,
                "other_versions": {k: {"card": a, "here": b} for k, (a, b) in other.items()},
            }
        )
    else:
        _figures(figures, known)
    for what, (then, now) in other.items():
        why = ": its documentation is the corpus of the n-gram figures" if what == "python" else ""
        note(f"The card was measured with {what} {then}; this is {now}{why}.")
    differing = [k for k, v in figures.items() if abs(v - known.get(k, float("nan"))) > TOLERANCE]
    if differing and not quick:
        note(f"Differs from the card by more than {TOLERANCE}: {', '.join(differing)}")
        raise typer.Exit(1)


def _figures(figures: dict[str, float], known: dict[str, float] | None) -> None:
    header = ["held out", "figure", *(["card"] if known is not None else [])]
    rows: list[list[Any]] = [
        [k, figure(v), *([figure(known.get(k, float("nan")))] if known is not None else [])]
        for k, v in figures.items()
    ]
    table(header, rows, numbers=[1, 2])


class _Bar:
    """A progress bar on standard error that shows the loss."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def __enter__(self) -> _Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=self.quiet,
        )
        self.bar.start()
        self.task = self.bar.add_task("pretraining", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def told(self, step: int, steps: int, loss: float) -> None:
        self.bar.update(self.task, completed=step, total=steps, description=f"loss {loss:.3f}")
