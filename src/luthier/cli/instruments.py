"""`luthier instruments`: analyses of a model and of how it trains on your data."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from luthier.cli import options
from luthier.cli.show import as_json, figure, note, table
from luthier.errors import OptionError

app = typer.Typer(
    help="Analyses of a model and of how it trains on your data.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
Reference = Annotated[
    str | None, typer.Option("--reference", help="A model to compare with, named as --model.")
]
Rows = Annotated[int, typer.Option("--rows", min=1, help="How many rows to look at.")]
Seed = Annotated[int, typer.Option("--seed", help="What is drawn, and the order of batches.")]


def opened(
    model: str, data: str, input: list[str] | None, label: str | None, device: str, limit: int | None = None
) -> tuple[Any, Any]:
    """The model and the data of a command."""
    from luthier.data.load import load_data
    from luthier.models.load import load

    loaded = load(model, device=device)
    return loaded, load_data(data, **options.given(input=options.columns(input), label=label, limit=limit))


@app.command("lyapunov")
def lyapunov(
    model: options.Model,
    data: options.Data,
    rows: Rows = 32,
    input: options.Input = None,
    label: options.Label = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Lyapunov exponents of a Mamba's layers on your texts: below 0, a deviation of the state dies.

    luthier instruments lyapunov --model builtin:mamba --data reviews.csv
    """
    from luthier.instruments.lyapunov import scan_exponents

    loaded, found = opened(model, data, input, label, device)
    shown = options.first(found.train, rows)
    pre = loaded.preprocess
    batch = {k: v.to(loaded.device) for k, v in pre.collate(pre.encode(shown.inputs)).items()}
    layers = {n: (float(v.max()), float(v.mean())) for n, v in scan_exponents(loaded.base, batch).items()}
    if json:
        as_json(
            {"layers": {n: {"largest": a, "mean": b} for n, (a, b) in layers.items()}, "rows": len(shown)}
        )
        return
    table(
        ["layer", "largest", "mean"],
        [[n, figure(a), figure(b)] for n, (a, b) in layers.items()],
        numbers=[1, 2],
    )
    note(f"per token, in natural logarithms, over {len(shown)} rows")


@app.command("divergence")
def divergence(
    model: options.Model,
    data: options.Data,
    method: Annotated[str, typer.Option("--method", help="What trains: luthier methods.")] = "lora",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Options of the method: rank=4 alpha=8 ...")
    ] = None,
    reference: Reference = None,
    reference_method: Annotated[
        str | None, typer.Option("--reference-method", help="What trains there; else the same method.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of each run.")] = 200,
    seed: Seed = 0,
    batch_size: options.Batch = None,
    input: options.Input = None,
    label: options.Label = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """How far training in bfloat16 leaves the path of training in float32: mean |difference| of the losses.

    luthier instruments divergence --model builtin:llama --data reviews.csv --set rank=4
    """
    from luthier.instruments.divergence import precision_divergence
    from luthier.methods import make

    chosen = {model: make(method, options.pairs(set_))}
    if reference is not None:
        chosen[reference] = make(reference_method, {}) if reference_method else chosen[model]
    found = {}
    for name, part in chosen.items():
        loaded, rows = opened(name, data, input, label, device)
        given = options.given(batch_size=batch_size)
        found[name] = precision_divergence(loaded, rows, part, steps=steps, seed=seed, **given)
    if json:
        as_json(
            {
                n: {"mean": d.mean, "relative": d.relative, "fp32": d.full, "bf16": d.lower}
                for n, d in found.items()
            }
        )
        return
    lines = [
        [n, figure(d.mean), figure(d.relative), figure(d.full[-1]), figure(d.lower[-1])]
        for n, d in found.items()
    ]
    table(["model", "divergence", "of the loss", "last in fp32", "last in bf16"], lines, numbers=[1, 2, 3, 4])
    note(f"mean over {steps} steps, seed {seed}")


@app.command("shots")
def shots(
    model: options.Model,
    data: options.Data,
    shown: Annotated[
        list[int] | None, typer.Option("--shots", min=1, help="Demonstrations; several times for several.")
    ] = None,
    reference: Reference = None,
    rows: Rows = 100,
    seed: Seed = 0,
    input: options.Input = None,
    label: options.Label = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """What demonstrations in the prompt are worth: accuracy with k of them, and the gain over none.

    luthier instruments shots --model builtin:llama --data builtin:verdicts --shots 1 --shots 4
    """
    from luthier.instruments.shots import k_shot

    asked = shown or [1, 4]
    found = {}
    for name in dict.fromkeys([model, *([reference] if reference else [])]):
        loaded, read = opened(name, data, input, label, device)
        found[name] = k_shot(loaded, read, asked, rows=rows, seed=seed)
    whole = found[reference] if reference else None
    lines = []
    for k in found[model].accuracy:
        for name, made in found.items():
            share = None
            if k and whole is not None and name != reference and whole.gain(k) > 0:
                share = made.relative_gain(whole, k)
            lines.append(
                {
                    "model": name,
                    "shots": k,
                    "accuracy": made.accuracy[k],
                    "gain": made.gain(k),
                    "relative": share,
                }
            )
    if json:
        as_json({"rows": found[model].rows, "figures": lines})
        return
    keys = ["model", "shots", "accuracy", "gain", "relative"]
    table(
        keys, [[figure(x[k]) if x[k] is not None else "" for k in keys] for x in lines], numbers=[1, 2, 3, 4]
    )
    note(
        f"{found[model].rows} rows; relative: the gain as a share of the reference's, where that gains anything"
    )


@app.command("prefix")
def prefix(
    model: options.Model,
    data: options.Data,
    rank: Annotated[
        int, typer.Option("--rank", min=1, help="Of LoRA; the prefix is as long as has as many numbers.")
    ] = 4,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many; a verdict needs two.")] = 3,
    margin: Annotated[
        float, typer.Option("--margin", min=0, help="What a prefix may lack and still suffice.")
    ] = 0.02,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Of each run; else 3 epochs.")] = None,
    batch_size: options.Batch = None,
    input: options.Input = None,
    label: options.Label = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Does a prefix suffice for your task, or must attention change? A prefix against LoRA with as many numbers.

    luthier instruments prefix --model builtin:llama --data reviews.csv --seeds 3
    """
    from luthier.instruments.prefix import prefix_suffices

    loaded, rows = opened(model, data, input, label, device)
    wanted = options.given(steps=steps, batch_size=batch_size)
    found = prefix_suffices(
        loaded, rows, rank=rank, seeds=range(seeds), margin=margin, progress=not quiet, **wanted
    )
    if json:
        as_json(found.card())
        return
    lines = [
        [n, f"{found.numbers[n]:,}", *(figure(v) for v in of.values())]
        for n, of in (("prefix", found.prefix), ("lora", found.lora))
    ]
    head = ["method", "numbers", *(f"{found.metric}, seed {s}" for s in found.prefix)]
    table(head, lines, numbers=range(1, len(head)))
    note(f"{found.verdict} (a prefix may lack {margin:g})")


@app.command("transferability")
def transferability(
    target: Annotated[
        str, typer.Option("--target", help="A plain prompt that was trained on this data: a run folder.")
    ],
    data: options.Data,
    directories: Annotated[
        list[str], typer.Argument(metavar="DIR...", help="Prompts of source tasks: run folders.")
    ],
    rows: Rows = 128,
    model: options.Base = None,
    input: options.Input = None,
    label: options.Label = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Which trained prompt to transfer from: how near each source is to your task, as PANDA measures it.

    luthier instruments transferability run-a/ run-b/ --target run-mine/ --data reviews.csv
    """
    from luthier.cli.adaptation import open_all
    from luthier.data.load import load_data
    from luthier.instruments.transferability import transferability as measured

    (mine, *others), base = open_all([target, *directories], model, device, "auto")
    read = load_data(data, **options.given(input=options.columns(input), label=label))
    note(f"{len(directories) + 1} prompts over {min(rows, len(read.train))} rows")
    named = dict(zip(directories, others, strict=True))
    found = measured(base, read, mine, named, rows=rows)
    ordered = sorted(found.items(), key=lambda pair: -pair[1].similarity)
    if json:
        as_json(
            [{"source": n, "similarity": t.similarity, "prompt_cosine": t.prompt_cosine} for n, t in ordered]
        )
        return
    lines = [
        [n, figure(t.similarity), "" if t.prompt_cosine is None else figure(t.prompt_cosine)]
        for n, t in ordered
    ]
    table(["source", "similarity", "cosine of the prompts"], lines, numbers=[1, 2])
    note(
        "similarity is what --method panda takes as transfer=...; at 0 or below there is nothing to learn from a source"
    )


@app.command("fusion")
def fusion(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A run of adapter_fusion.")],
    data: options.Data,
    rows: Rows = 128,
    model: options.Base = None,
    input: options.Input = None,
    label: options.Label = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Which adapters a fusion listens to: its mean attention on each, layer by layer, over tokens of your data.

    luthier instruments fusion run/ --data reviews.csv
    """
    from luthier.cli.adaptation import open_adaptation
    from luthier.data.load import load_data
    from luthier.instruments.fusion import weights

    found = open_adaptation(directory, model, device, "auto")
    read = load_data(data, **options.given(input=options.columns(input), label=label))
    shown = options.first(read.train, rows)
    layers = weights(found, shown)
    if json:
        as_json({"layers": layers, "rows": len(shown)})
        return
    names = list(next(iter(layers.values())))
    lines = [[site, *(figure(each[n]) for n in names)] for site, each in layers.items()]
    table(["layer", *names], lines, numbers=list(range(1, len(names) + 1)))
    note(f"over the tokens of {len(shown)} rows; equal shares would be {figure(1 / len(names))}")


@app.command("knowledge")
def knowledge(
    pairs: Annotated[
        str,
        typer.Option("--pairs", help="A table: columns context, right, wrong (luthier verbalise --pairs)."),
    ],
    directories: Annotated[
        list[str] | None, typer.Argument(metavar="[DIR]...", help="Runs, such as of knowledge_adapter.")
    ] = None,
    model: options.Base = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """What a model knows of a knowledge base: of two responses that differ in one value it prefers the likelier.

    A row for the model alone, and one for every run. One that knows nothing is right in half of the pairs.

    luthier instruments knowledge run/ --pairs probe.jsonl
    """
    from luthier.cli.adaptation import open_all
    from luthier.instruments.knowledge import knowledge as measured
    from luthier.instruments.knowledge import read_pairs
    from luthier.models.load import load

    if not directories and model is None:
        raise OptionError("Which model? Give a run's folder, or --model.")
    read = read_pairs(pairs)
    runs, base = (
        open_all(directories, model, device, "auto")
        if directories
        else ([], load(model or "", device=device))
    )
    note(f"{len(read)} pairs, {1 + len(runs)} models")
    found = {"the model alone": measured(base, read)}
    found |= {name: measured(one, read) for name, one in zip(directories or [], runs, strict=True)}
    if json:
        as_json({name: one.card() for name, one in found.items()})
        return
    keys = ("accuracy", "low", "high", "right", "wrong")
    cards = [[name, *(figure(one.card()[k]) for k in keys)] for name, one in found.items()]
    table(["model", "accuracy", "from", "to", "perplexity, right", "wrong"], cards, numbers=[1, 2, 3, 4, 5])
    note("from, to: 95 %; 0.5 is chance")


@app.command("transfer")
def transfer(
    model: options.Model,
    data: options.Data,
    target: Annotated[
        list[str],
        typer.Option("--target", metavar="NAME=DATA", help="Rows in another language; may be given again."),
    ],
    distance: Annotated[
        list[str] | None,
        typer.Option("--distance", metavar="NAME=NUMBER", help="How far it is; else by its characters."),
    ] = None,
    lengths: Annotated[str, typer.Option("--lengths", help="Prompt tokens, joined by commas.")] = "1,5,10,50",
    mlp: Annotated[bool, typer.Option("--mlp/--no-mlp", help="Also prompts through an MLP.")] = True,
    along: Annotated[
        bool, typer.Option("--model-too/--frozen-only", help="Also train the model along with the prompt.")
    ] = True,
    model_rate: Annotated[
        float, typer.Option("--model-rate", min=0, help="Learning rate of the model's parameters.")
    ] = 5e-5,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many.")] = 1,
    grid: Annotated[
        bool,
        typer.Option("--grid/--no-grid", help="Try three rates, chosen on the source's validation rows."),
    ] = True,
    train_rows: Annotated[
        int | None, typer.Option("--train-rows", min=1, help="Train on the first rows only: few-shot.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Of each run; else 3 epochs.")] = None,
    signal: Annotated[
        str | None,
        typer.Option("--signal", help="auto: a head; else a model that writes ranks the labels (choices)."),
    ] = None,
    batch_size: options.Batch = None,
    input: options.Input = None,
    label: options.Label = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """What crosses languages: a prompt trained in one, scored in others, by length and by what trains with it.

    luthier instruments transfer --model bloom --data en.csv --target sw=sw.csv --target de=de.csv --train-rows 80
    """
    from luthier.data.load import load_split
    from luthier.instruments import transfer as study

    wanted = numbers("--lengths", lengths)
    known = {
        name: number("--distance", value)
        for name, value in options.pairs(distance, "--distance", "sw=0.7").items()
    }
    loaded, rows = opened(model, data, input, label, device)
    rows = rows.limit(train=train_rows)
    targets = {
        name: load_split(source, rows.task)
        for name, source in options.pairs(target, "--target", "sw=sw.csv").items()
    }
    found = study.transfer(
        loaded,
        rows,
        targets,
        lengths=wanted,
        reparameterise=(False, True) if mlp else (False,),
        frozen=(True, False) if along else (True,),
        model_rate=model_rate,
        seeds=range(seeds),
        rates=study.RATES if grid else (1.0,),
        known=known,
        progress=None if quiet else note,
        **options.given(steps=steps, batch_size=batch_size, signal=signal),
    )
    if json:
        as_json(found.card())
        return
    far = sorted(found.distances, key=found.distances.__getitem__)
    head = ["prompt", "trains", "keeps", study.SOURCE, *(f"{n} ({found.distances[n]:.2f})" for n in far)]
    lines = [
        [arm.name, f"{arm.trained:,}", f"{arm.kept:,}", *(figure(arm.mean(n)) for n in (study.SOURCE, *far))]
        for arm in found.arms
    ]
    table(head, lines, numbers=range(1, len(head)))
    note(f"{found.metric}, mean of {seeds} seeds; languages by their distance to the source, in brackets")


@app.command("languages")
def languages(
    written: Annotated[
        str, typer.Option("--written", help="What was written: predictions.jsonl of a run, or a .txt.")
    ],
    texts: Annotated[
        list[str],
        typer.Option(
            "--texts", metavar="LANGUAGE=FILE", help="Texts to know a language by; two languages at least."
        ),
    ],
    column: Annotated[
        str | None, typer.Option("--column", help="Of --written; else predicted, prediction or text.")
    ] = None,
    json: options.Json = False,
) -> None:
    """In which language a model writes: the share of its outputs in each. Tuned on one language, models forget others.

    luthier instruments languages --written run/predictions.jsonl --texts en=en.txt --texts sw=sw.txt
    """
    from luthier.data.unlabelled import read_texts
    from luthier.instruments.languages import Identifier

    known = options.pairs(texts, "--texts", "sw=sw.txt")
    identifier = Identifier({name: read_texts(path) for name, path in known.items()})
    outputs = read_texts(written, column)
    shares = {name: identifier.share(outputs, name) for name in known}
    if json:
        as_json({"rows": len(outputs), "shares": shares})
        return
    table(["language", "share of outputs"], [[n, figure(v)] for n, v in shares.items()], numbers=[1])
    note(f"{len(outputs):,} outputs, each in the language that its characters make likeliest")


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers from 1, joined by commas. OptionError that names the option."""
    try:
        found = [int(each) for each in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise OptionError(f"{option} {text[:60]!r}: give whole numbers from 1, joined by commas.")
    return found


def number(option: str, text: str) -> float:
    """A number from 0. OptionError that names the option."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise OptionError(f"{option} {text[:60]!r}: give a number from 0.")
    return found


@app.command("waywardness")
def waywardness(
    model: options.Model,
    data: options.Data,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="A text to hold prompts near; several times for several."),
    ] = None,
    texts: Annotated[int, typer.Option("--texts", min=1, help="Without --text: so many random ones.")] = 3,
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, help="Of a random text: the prompt's length.")
    ] = 8,
    gamma: Annotated[
        list[float] | None,
        typer.Option("--gamma", min=0, help="Weight of the distance to the text; several times for several."),
    ] = None,
    most: Annotated[float, typer.Option("--most", min=0, help="What a wayward prompt may lose.")] = 0.05,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Of each run; else 3 epochs.")] = None,
    rate: options.Rate = None,
    signal: Annotated[
        str | None, typer.Option("--signal", help="As of fit: choices ranks the labels as answers.")
    ] = None,
    seed: Seed = 0,
    batch_size: options.Batch = None,
    limit: options.Limit = None,
    input: options.Input = None,
    label: options.Label = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """How little the words nearest to a soft prompt can be trusted: can a good prompt be had near any text?

    luthier instruments waywardness --model builtin:llama --data reviews.csv --signal choices --text "write the answer twice"
    """
    from dataclasses import asdict

    from luthier.instruments.waywardness import GAMMAS, TRUST, random_texts
    from luthier.instruments.waywardness import waywardness as walk

    loaded, rows = opened(model, data, input, label, device, limit)
    chosen = text or random_texts(loaded, texts, tokens, seed)
    wanted = options.given(steps=steps, rate=rate, signal=signal, batch_size=batch_size)
    say = (lambda said: None) if quiet else note
    found = walk(loaded, rows, chosen, gammas=gamma or GAMMAS, say=say, seed=seed, **wanted)
    best = found.wayward(most)
    if json:
        points = [asdict(p) for p in found.points]
        as_json({"metric": found.metric, "wayward_gamma": best, "points": points})
        return
    head = ["gamma", "text", "projection", "F1", found.metric, "of the projection", "of the start"]
    lines = [
        [
            figure(p.gamma),
            p.text,
            p.projected,
            *(figure(v) for v in (p.f1, p.score, p.projected_score, p.start_score)),
        ]
        for p in found.points
    ]
    table(head, lines, numbers=[0, 3, 4, 5, 6])
    note(
        f"with gamma {best:g} prompts read as these texts and lose at most {most:g}: the words near a prompt say nothing of it"
        if best is not None
        else f"no gamma gives prompts that read as these texts (F1 above {TRUST:g}) and lose at most {most:g}"
    )


@app.command("intruders")
def intruders(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The pretrained model, named as --model.")],
    tuned: Annotated[
        str,
        typer.Argument(
            metavar="TUNED",
            help="What was tuned from it: a model named alike, a run folder, or an adaptation's folder.",
        ),
    ],
    k: Annotated[
        int, typer.Option("--k", min=1, help="Top singular vectors of each matrix to look at.")
    ] = 10,
    eps: Annotated[
        float, typer.Option("--eps", min=0, max=1, help="An intruder resembles no pretrained vector so much.")
    ] = 0.5,
    targets: Annotated[
        str,
        typer.Option("--targets", help="Matrices to look at, as methods name them: 'attention.* | mlp.*'."),
    ] = "*",
    repair: Annotated[
        float | None,
        typer.Option(
            "--repair", min=0, help="Scale intruders by this, below 1 (0.75 is usual), and write --out."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", help="The folder of the repaired model, which must not exist.")
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Singular vectors of tuned weights that resemble none of the pretrained ones: where tuning left the model's ways.

    luthier instruments intruders builtin:llama run/

    luthier instruments intruders builtin:llama run/ --repair 0.75 --out repaired/
    """
    from dataclasses import replace

    from luthier.instruments.intruders import intruders as look
    from luthier.instruments.intruders import repaired
    from luthier.models.load import load
    from luthier.models.write import refuse_existing, write_model

    if (repair is None) != (out is None):
        raise OptionError("--repair and --out go together: a factor below 1, and the folder to write.")
    if repair is not None and repair >= 1:
        raise OptionError(f"--repair {repair:g}: intruders are shrunk, by a factor from 0 to below 1.")
    if out is not None:
        refuse_existing(out)
    before = load(base, device=device, dtype=dtype)
    after = _tuned(tuned, before, device, dtype)
    found = look(
        before.base, after.base, k=k, eps=eps, targets=targets, say=(lambda said: None) if quiet else note
    )
    if out is not None and repair is not None:
        made = replace(after, base=repaired(after.base, found.where, repair), _fingerprint=None)
        write_model(made, out)
    if json:
        as_json({**found.card(), "repaired": out})
        return
    counts = found.counts()
    roles = list(dict.fromkeys(role for row in counts.values() for role in row))
    lines = [
        [name, *(str(row.get(r, "")) for r in roles), str(sum(row.values()))] for name, row in counts.items()
    ]
    table(["layer", *roles, "all"], lines, numbers=range(1, len(roles) + 2))
    note(
        f"{found.total} intruders in {len(found.matrices)} matrices: of the {k} top singular vectors of each, those that resemble no "
        f"pretrained one by {eps:g}"
    )
    if found.left_out:
        note(f"{len(found.left_out)} linear layers are in one of the models only and were left out")
    if out is not None:
        note(
            f"{out}: the tuned model with {found.total} intruders scaled by {repair:g}; load it as any model"
        )


@app.command("probing")
def probing(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The pretrained model, named as --model.")],
    tuned: Annotated[
        list[str],
        typer.Argument(
            metavar="TUNED...",
            help="What was tuned from it: models named alike, run folders, or adaptations' folders.",
        ),
    ],
    data: options.Data,
    layer: Annotated[
        list[int] | None,
        typer.Option(
            "--layer", min=1, help="Blocks whose features are probed; else the last. May be given again."
        ),
    ] = None,
    input: options.Input = None,
    label: options.Label = None,
    limit: options.Limit = None,
    seed: Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """What tuning forgets: linear probes of frozen features, before and after, of kinds of lexemes and of the texts' label.

    luthier instruments probing builtin:bert adapter/ full/ --data code.csv --input code --label language
    """
    from luthier.data.load import load_data
    from luthier.instruments.probing import probing as probed
    from luthier.models.load import load

    if len(set(tuned)) < len(tuned):
        raise OptionError("A tuned model is named twice: name each once.")
    rows = load_data(data, seed=seed, **options.given(input=options.columns(input), label=label, limit=limit))
    before = load(base, device=device, dtype=dtype)
    opened = {name: _adaptation_or_model(name, before, device, dtype) for name in tuned}
    parts = {"train": rows.train, "test": rows.test}
    note(", ".join(f"{len(part)} {name} texts" for name, part in parts.items() if part is not None))
    found = probed(before, opened, rows, layers=layer or (), label=rows.task.label, seed=seed)
    if json:
        as_json([one.card() for one in found])
        return
    head = ["layer", "property", "most frequent", "base", *(x for n in tuned for x in (n, "lost"))]
    lines = [
        [str(p.layer), p.property, figure(p.most_frequent), figure(p.accuracy["base"])]
        + [x for n in tuned for x in (figure(p.accuracy[n]), figure(p.loss(n)))]
        for p in found
    ]
    table(head, lines, numbers=[0, *range(2, len(head))])
    note("accuracy of a linear probe fitted to each model; lost: what the base's has beyond it")


def _adaptation_or_model(source: str, base: Any, device: str, dtype: str) -> Any:
    """What was tuned: a model, or an adaptation of the base."""
    from pathlib import Path

    from luthier.adaptations import folder_of, load_adaptation
    from luthier.models.load import load

    if not Path(source).is_dir() or (Path(source) / "config.json").is_file():
        return load(source, device=device, dtype=dtype)
    opened = load_adaptation(folder_of(source), base)
    return getattr(opened, "adaptation", opened)


def _tuned(source: str, base: Any, device: str, dtype: str) -> Any:
    """The tuned model: a model, or the base with an adaptation merged into a copy of it."""
    from dataclasses import replace

    from luthier.host.merge import merged_copy
    from luthier.models.model import Model

    opened = _adaptation_or_model(source, base, device, dtype)
    if isinstance(opened, Model):
        return opened
    made = merged_copy(base.base, opened, head=False)
    return replace(base, base=made, name=f"{base.name} with {source}", _fingerprint=None)
