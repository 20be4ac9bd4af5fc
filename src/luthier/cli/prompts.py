"""`luthier prompts`: soft prompts as values."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from luthier.cli import options
from luthier.cli.show import as_json, figure, line, note, table
from luthier.errors import OptionError

app = typer.Typer(help="Soft prompts as values.", rich_markup_mode=None, no_args_is_help=True)
Folders = Annotated[list[str], typer.Argument(metavar="DIR...", help="Run folders or adaptations' folders.")]
Out = Annotated[str, typer.Option("--out", help="The folder to write.")]


@app.command("combine")
def combine(
    directories: Folders,
    out: Out,
    weight: Annotated[
        list[float] | None,
        typer.Option("--weight", help="Of each prompt's vector, in their order [1]; -1 takes it away."),
    ] = None,
    scale: Annotated[float, typer.Option("--scale", help="Of the whole sum.")] = 1.0,
    origin: Annotated[
        str,
        typer.Option(
            "--origin",
            help="What the sum is added to: own (the first prompt's origin), a seed that draws another, or a folder's prompt.",
        ),
    ] = "own",
    model: options.Base = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Add up what prompts learned, as task prompt vectors: origin + scale * sum of weight * (prompt - its origin).

    The result has the task and the head of whatever its origin belongs to. Score it, or tune it further with
    `luthier fit --after`.

    luthier prompts combine run-a/ run-b/ --weight 1 --weight 0.5 --out both/
    """
    from luthier.cli.adaptation import open_all
    from luthier.host.files import save
    from luthier.merging.prompt_vectors import drawn_like, origin_of, prompt_of, prompt_vector

    weights = weight or [1.0] * len(directories)
    if len(weights) != len(directories):
        raise OptionError(
            f"{len(weights)} weights were given for {len(directories)} prompts: give one for each."
        )
    found, base = open_all([*directories, *([] if _drawn(origin) else [origin])], model, device, dtype)
    vectors = [prompt_vector(one, base) for one in found[: len(directories)]]
    total = vectors[0] * (scale * weights[0])
    for w, v in zip(weights[1:], vectors[1:], strict=True):
        total = total + v * (scale * w)
    if origin == "own":
        start = origin_of(found[0], base)
    elif origin.isdecimal():
        start = drawn_like(found[0], int(origin), base)
    else:
        start = prompt_of(found[-1], base)
    save(total.on(start), out, base.fingerprint)
    said: dict[str, Any] = {
        "folder": out,
        "vector": total.norm(),
        "origin": start.norm(),
        "terms": dict(zip(directories, weights, strict=True)),
    }
    if json:
        as_json(said)
        return
    line(
        f"{out}: a sum of {len(vectors)} prompt vectors, of length {total.norm():.4g} on an origin of {start.norm():.4g}"
    )


def _drawn(origin: str) -> bool:
    return origin == "own" or origin.isdecimal()


@app.command("compare")
def compare(
    directories: Folders,
    model: options.Base = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """How far prompts went from their origins, and the cosines between their vectors.

    luthier prompts compare run-a/ run-b/ run-c/
    """
    from luthier.cli.adaptation import open_all
    from luthier.merging.prompt_vectors import origin_of, prompt_of

    found, base = open_all(directories, model, device, dtype)
    origins = [origin_of(one, base) for one in found]
    vectors = [prompt_of(one, base) - start for one, start in zip(found, origins, strict=True)]
    lines: list[dict[str, Any]] = [
        {
            "prompt": name,
            "vector": vector.norm(),
            "origin": start.norm(),
            "ratio": vector.norm() / start.norm() if start.norm() else None,
            "cosines": {n: vector.cosine(v) for n, v in zip(directories, vectors, strict=True)},
        }
        for name, vector, start in zip(directories, vectors, origins, strict=True)
    ]
    if json:
        as_json(lines)
        return
    keys = ["vector", "origin", "ratio"]
    head = ["", "prompt", *keys, *(f"cosine to {i}" for i in range(1, len(lines) + 1))]
    rows = [
        [i, x["prompt"], *(figure(x[k]) for k in keys), *(figure(c) for c in x["cosines"].values())]
        for i, x in enumerate(lines, 1)
    ]
    table(head, rows, numbers=range(2, len(head)))
    note(
        "vector: what training added; ratio: its length as a share of the origin's. Sums need a ratio well above 0."
    )


@app.command("words")
def words(
    directory: options.Directory,
    near: Annotated[int, typer.Option("--near", min=1, help="How many words for each prompt token.")] = 3,
    model: options.Base = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """The words of the vocabulary that are nearest to a soft prompt's tokens. Do not read them as what it says.

    luthier prompts words run/ --near 3
    """
    from luthier.cli.adaptation import open_any
    from luthier.instruments.waywardness import words_of

    found, base = open_any(directory, model, device, dtype)
    nearest = words_of(base, found, near)
    if json:
        as_json([[{"word": w, "distance": d} for w, d in token] for token in nearest])
        return
    lines = [[i, *(f"{w} ({d:.3g})" for w, d in token)] for i, token in enumerate(nearest, 1)]
    table(["token", *(f"nearest {i}" for i in range(1, near + 1))], lines, numbers=[0])
    note(
        "Words near a prompt need not say what it does: luthier instruments waywardness measures how little."
    )


@app.command("share")
def share(
    model: options.Model,
    tasks: Annotated[
        list[str],
        typer.Option(
            "--task",
            metavar="NAME=DATA",
            help="A task and its data; two at least: --task a=a.csv --task b=b.csv.",
        ),
    ],
    out: Out,
    length: Annotated[int, typer.Option("--length", min=1, help="Prompt tokens.")] = 20,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of a task's factors.")] = 1,
    distil: Annotated[
        float,
        typer.Option(
            "--distil", min=0, help="Weight of the distance to each task's own prompt; 0: none is tuned."
        ),
    ] = 0.9,
    teacher_steps: Annotated[
        int | None,
        typer.Option("--teacher-steps", min=1, help="For each task's own prompt; else as --steps."),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option("--after", metavar="DIR", help="A shared prompt of other tasks to begin with."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of the joint training.")] = 1000,
    rate: options.Rate = None,
    batch_size: options.Batch = None,
    limit: options.Limit = None,
    seed: options.Drawn = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train one prompt that several tasks share, and each task's own factors (MPT). Answers are written as text.

    First a prompt is tuned on each task, then all tasks train together. The runs lie in --out and resume. Then
    `luthier prompts task` takes what a new task starts with.

    luthier prompts share --model builtin:t5 --task a=a.csv --task b=b.csv --out shared/
    """
    from luthier.adaptations import load_adaptation
    from luthier.data.load import load_data
    from luthier.merging import multitask
    from luthier.methods.prompts.mpt_group import MPTGroup
    from luthier.models.load import load
    from luthier.sources.task_factors import TaskFactors

    named = options.pairs(tasks, "--task", "a=a.csv")
    base = load(model, device=device, dtype=dtype)
    data = {n: multitask.as_written(load_data(d, seed=seed, limit=limit)) for n, d in named.items()}
    fitted = multitask.share(
        base,
        data,
        MPTGroup(length=length, source=TaskFactors(rank=rank), distil=distil),
        teacher_steps=teacher_steps,
        after=load_adaptation(after, base) if after is not None else None,
        out=out,
        steps=steps,
        seed=seed,
        progress=not quiet,
        **options.given(rate=rate, batch_size=batch_size),
    )
    held = {n: v.numel() for n, v in fitted.adaptation.at()[0].values.items()}
    each = sum(v for n, v in held.items() if n != "P") // len(named)
    said = {"folder": f"{out}/joint", "tasks": list(named), "shared": held["P"], "each": each}
    if json:
        as_json(said)
        return
    line(f"{out}/joint: {held['P']:,} shared numbers, and {each:,} for each of {len(named)} tasks")
    note(f"Try: luthier prompts task {out}/joint --out start/, then luthier fit --method mpt --after start/")


@app.command("task")
def task(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="What `luthier prompts share` wrote: its joint/.")
    ],
    out: Out,
    name: Annotated[
        str | None,
        typer.Option("--task", help="One of its tasks; else the mean of all, for a new task to start from."),
    ] = None,
    model: options.Base = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Take one task out of a shared prompt, or the mean of all tasks, as an adaptation of the method mpt.

    luthier prompts task shared/joint --out start/
    """
    from luthier.cli.adaptation import open_any
    from luthier.host.files import save
    from luthier.merging.multitask import one_task

    found, base = open_any(directory, model, device, dtype)
    made = one_task(found, base, name)
    save(made, out, base.fingerprint)
    said = {"folder": out, "task": name, "parameters": made.counts()["method"]}
    if json:
        as_json(said)
        return
    line(f"{out}: {f'the task {name}' if name else 'the mean of all tasks'}, {said['parameters']:,} numbers")
