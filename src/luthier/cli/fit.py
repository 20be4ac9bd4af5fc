"""`luthier fit`: adapt a model to data."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli import options
from luthier.cli.show import as_json, figure, line, note


def fit(
    model: options.Model,
    data: options.Data,
    method: Annotated[str, typer.Option("--method", help="One of `luthier methods`.")],
    out: Annotated[str, typer.Option("--out", help="Folder to write; the same command on it again resumes.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE...", help="Options of the method: --set rank=4 alpha=8."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="params=SIZE",
            help="The method as large (rank, width, length) as this allows: params=0.5% of the base, or params=20k.",
        ),
    ] = None,
    companion: Annotated[
        list[str] | None,
        typer.Option(
            "--companion",
            metavar="NAME=DIR",
            help="An adaptation that the method reads: --companion teacher=DIR.",
        ),
    ] = None,
    member: Annotated[
        list[str] | None,
        typer.Option(
            "--member",
            metavar="NAME=DIR",
            help="An adaptation that the method composes, frozen: --member nli=DIR. Once for each.",
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
    limit: options.Limit = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    batch_size: options.Batch = None,
    micro_batch: Annotated[
        int | None,
        typer.Option("--micro-batch", min=1, help="Rows at a time, adding up to a step; less memory."),
    ] = None,
    rate: options.Rate = None,
    seed: options.Drawn = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    precision: Annotated[str | None, typer.Option("--precision", help="Of training: fp32 or bf16.")] = None,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Less memory, more time.")] = False,
    patience: Annotated[
        int | None,
        typer.Option("--patience", min=1, help="Stop after so many epochs without a better validation."),
    ] = None,
    class_weights: Annotated[bool, typer.Option("--class-weights", help="Rare classes count more.")] = False,
    signal: Annotated[
        str | None,
        typer.Option(
            "--signal",
            help="auto: a linear head. For classification with a model that writes: choices ranks the labels as its answers, "
            "t_few does with T-Few's losses. contrastive: of --kind retrieval ('contrastive temperature=0.1'). infoprompt adds InfoPrompt's terms to a soft prompt's loss. Options stand behind "
            "the name: 'infoprompt head=0 representation=0.5'.",
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            "--after",
            help="The folder of an adaptation or a run, on this model, to begin with: of the same method, or of equal sizes.",
        ),
    ] = None,
    cache: Annotated[
        bool,
        typer.Option("--cache/--no-cache", help="Keep what the frozen lower part of the model computes."),
    ] = True,
    shard: Annotated[
        bool, typer.Option("--shard", help="Under torchrun: hold a part of the base on each process.")
    ] = False,
    resume_anyway: Annotated[
        bool, typer.Option("--resume-anyway", help="Go on with a run begun under other versions or threads.")
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Adapt a model to data.

    Writes the adaptation, its card, metrics, predictions and a learning curve to the folder --out.

    luthier fit --model builtin:minilm --data reviews.csv --method lora --set rank=4 --out out/
    """
    from luthier import methods
    from luthier.compare.budget import of_parameters

    chosen = methods.make(method, options.pairs(set_))
    limits = None if budget is None else of_parameters(budget)

    from luthier.compare.sized import said, sized
    from luthier.data.load import load_data
    from luthier.models.load import load
    from luthier.train.fit import fit
    from luthier.train.fitted import load_fitted

    rows = load_data(
        data,
        **options.given(
            input=options.columns(input),
            label=label,
            attributes=attribute,
            covariates=covariate,
            history=history,
            kind=kind,
            test=test,
        ),
        seed=seed,
        limit=limit,
    )
    base = load(model, device=device, dtype=dtype)
    if limits is not None:
        chosen = sized(chosen, base, limits)
        note(f"{chosen.name}: {said(chosen, base)}")
    wanted = options.given(
        after=load_fitted(after, base) if after is not None else None,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        micro_batch=micro_batch,
        rate=rate,
        precision=precision,
        patience=patience,
        signal=signal,
        cache=None if cache else "off",
    )
    others = {
        "companions": (companion, "--companion", "teacher=DIR"),
        "members": (member, "--member", "nli=DIR"),
    }
    for what, (given, option, example) in others.items():
        if given:
            from luthier.adaptations import load_adaptation

            named = options.pairs(given, option, example)
            wanted[what] = {name: load_adaptation(folder, base) for name, folder in named.items()}
    fitted = fit(
        base,
        rows,
        chosen,
        out=out,
        seed=seed,
        checkpointing=checkpointing,
        class_weights=class_weights,
        shard=shard,
        resume_anyway=resume_anyway,
        progress=not quiet,
        **wanted,
    )
    from luthier.train.launched import speaks

    if not speaks():
        return
    if json:
        as_json(fitted.metrics)
        return
    for split in ("validation", "test"):
        if figures := fitted.metrics.get(split):
            line(f"{split}: " + ", ".join(f"{k} {figure(v)}" for k, v in figures.items()))
    line(f"trained numbers: {figure(fitted.metrics.get('parameters', 0))}")
    controls = " --control LABEL" * len(fitted.task.attributes) + " --value NUMBER" * len(
        fitted.task.covariates
    )
    where = " --among FILE" if fitted.task.kind == "retrieval" else ""
    note(f'Written to {out}. Try: luthier predict {out} --text "..."{where}{controls}')
