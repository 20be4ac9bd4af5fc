"""`luthier meta`: learn what a prompt begins with, and how its gradients are turned, from unlabelled text."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli import options
from luthier.cli.show import as_json, figure, line, note


def meta(
    model: options.Model,
    text: Annotated[
        str, typer.Option("--text", help="Unlabelled sentences: a text file, one a line, or data as of fit.")
    ],
    out: Annotated[str, typer.Option("--out", help="Folder of the adaptation to write.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE...", help="Options of supmer: --set length=20 rank=32."),
    ] = None,
    embedder: Annotated[
        str, typer.Option("--embedder", help="The encoder whose sentence embeddings are clustered.")
    ] = "builtin:minilm",
    input: options.Input = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Outer steps.")] = 300,
    tasks: Annotated[int, typer.Option("--tasks", min=1, help="Pseudo tasks of an outer step.")] = 4,
    rows: Annotated[int, typer.Option("--rows", min=2, help="Rows of support, and of query.")] = 16,
    ways: Annotated[int, typer.Option("--ways", min=2, max=10, help="Choices of a question.")] = 4,
    clusters: Annotated[int, typer.Option("--clusters", min=2, help="Clusters of sentences.")] = 250,
    seed: options.Drawn = 0,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Learn a prompt's start and a regulator of its gradients from unlabelled text (SUPMER).

    What is written is an adaptation to begin with: luthier fit --method supmer --after OUT.

    luthier meta --model builtin:t5 --text sentences.txt --set length=20 --out start/
    """
    from luthier import methods

    chosen = methods.make("supmer", options.pairs(set_))

    from luthier.host.files import save
    from luthier.meta.initialise import Meta, initialise
    from luthier.meta.texts import sentences
    from luthier.models.load import load
    from luthier.train.progress import progress_for

    found = sentences(text, **options.given(input=options.columns(input)))
    base, encoder = load(model, device=device), load(embedder, device=device)
    shown = progress_for(not quiet, True)
    losses: list[float] = []

    def tell(step: int, loss: float) -> None:
        losses.append(loss)
        shown.step(step, tasks * 2 * rows, loss)

    with shown:
        shown.say(f"{len(found):,} sentences are embedded and clustered first")
        shown.phase("meta", steps)
        settings = Meta(steps=steps, tasks=tasks, rows=rows, ways=ways, clusters=clusters, seed=seed)
        made = initialise(base, found, method=chosen, embedder=encoder, meta=settings, tell=tell)
    save(made, out, base.fingerprint)
    told = {
        **made.about,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "out": out,
    }
    if json:
        as_json(told)
        return
    line(f"{figure(made.about['sentences'])} sentences in {figure(made.about['clusters'])} clusters")
    line(f"loss of the questions: {figure(losses[0])} at first, {figure(losses[-1])} at last")
    note(f"Written to {out}. Begin with it: luthier fit --method supmer --after {out} ...")
