"""`luthier slim`: a smaller dense model by truncated SVD, healed by distillation."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli import options
from luthier.cli.show import as_json, figure, line, note


def slim(
    model: options.Model,
    out: Annotated[str, typer.Option("--out", help="The folder of the slim model, which must not exist.")],
    ratio: Annotated[
        float, typer.Option("--ratio", min=1, help="How many times smaller the linear layers become: 2, 3.")
    ] = 2.0,
    targets: Annotated[
        str, typer.Option("--targets", help="Which linear layers of the blocks, as methods name them.")
    ] = "*",
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Inputs to distil on, as of fit; labels are not read. Without: SVD alone."
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of distillation.")] = 1000,
    batch_size: options.Batch = 32,
    rate: Annotated[float, typer.Option("--rate", min=0, help="Learning rate.")] = 1e-4,
    hidden: Annotated[float, typer.Option("--hidden", min=0, help="Weight of the blocks' outputs.")] = 1.0,
    logits: Annotated[float, typer.Option("--logits", min=0, help="Weight of the logits.")] = 0.0,
    bound: Annotated[float, typer.Option("--bound", min=0, help="Weight of the perturbation term.")] = 1.0,
    eps: Annotated[
        float, typer.Option("--eps", min=0, help="The largest change that the term wants.")
    ] = 1e-3,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of batches.")] = 0,
    input: options.Input = None,
    label: options.Label = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a smaller model: every linear layer becomes two thin ones, and learns to compute as the original did (PELA).

    What is written is a plain model for --model, to tune as any other.

    luthier slim --model builtin:vit --ratio 2 --data images/ --out slim/

    luthier fit --model slim/ --data builtin:digits --method full --out run/
    """
    from luthier.models.load import load
    from luthier.models.slim import svd_slim
    from luthier.models.write import refuse_existing, write_model
    from luthier.train.progress import progress_for

    refuse_existing(out)
    loaded = load(model, device=device, dtype=dtype)
    made = svd_slim(loaded, ratio, targets)
    told: dict[str, list[float]] = {}
    if data is not None:
        from luthier.data.load import load_data
        from luthier.train.distil import batches, distil

        read = load_data(data, **options.given(input=options.columns(input), label=label))
        size = batch_size or 32
        with progress_for(not quiet, True) as shown:
            shown.phase("distil", steps)
            told = distil(
                made,
                loaded,
                batches(loaded, read.train.inputs, size, seed),
                steps=steps,
                rate=rate,
                hidden=hidden,
                logits=logits,
                bound=bound,
                eps=eps,
                say=lambda step, loss: shown.step(step + 1, size, loss),
            )
    write_model(made.model, out)
    before, left = (sum(p.numel() for p in m.base.parameters()) for m in (loaded, made.model))
    if json:
        as_json(
            {
                "folder": out,
                "parameters": before,
                "left": left,
                "linear": {"parameters": made.ratio, "flops": made.ratio, "layers": len(made.layers)},
                "ranks": {each.path: each.rank for each in made.layers},
                "losses": told,
            }
        )
        return
    line(
        f"{out}: {left:,} of {before:,} parameters are left; of {len(made.layers)} linear layers {made.ratio:.0%}, and as much work"
    )
    for name, values in told.items():
        if values:
            note(f"{name}: {figure(values[0])} at first, {figure(values[-1])} at last")
    note(f"use: luthier fit --model {out} --data ... --method full")
