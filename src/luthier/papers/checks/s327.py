"""S327, NOAH (Zhang et al. 2022): slices of shared modules, and whether a searched mix is worth more than one kind."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals

SIZE, LIMIT = 10, 12_000
ROWS = {"train": 240, "validation": 60, "test": 160}
SEEDS, RATES = range(3), (1.0, 3.0)
SUPERNET, STEPS, BATCH, ROUNDS, POPULATION, RANDOM = 100, 40, 8, 4, 8, 10
SETS = ("digits", "shapes", "places")
SINGLE = ("adapters", "lora", "prompts")

CHECK = Check(
    "S327",
    "A slice of a shared adapter, LoRA or prompt is a module of its own, size 0 everywhere is the frozen model, and under one limit of "
    "numbers the searched mix, trained anew, is on average at least as good as the best single kind and better than mixes at random.",
    claims=(
        AtMost("slice", "a supernet's outputs under 10 drawn choices and those of modules given the first rows and columns (largest)", 0),
        Equals("zero", "outputs at size 0 everywhere, less the frozen model's (largest)", 0),
        AtMost("drawn", "numbers that drawn, mutated and crossed choices train, less the limit (largest of 300)", 0),
        Beats(
            "single",
            "test accuracy of the searched mix, mean of 3 image sets: at least that of the best of the three kinds alone, 3 seeds",
            arm="searched",
            over="best_single",
            ties=True,
            seeds=3,
        ),
        Beats(
            "random",
            "test accuracy of the searched mix, mean of 3 image sets: above the mean of 10 mixes at random, trained as long, 3 seeds",
            arm="searched",
            over="random_mixes",
            seeds=3,
        ),
        AtMost("limit", "numbers that the winners train, less the limit (largest of 9)", 0),
    ),
    covers=(
        "luthier.methods.mixed.noah",
        "luthier.search.search",
        "luthier.search.evolution",
        "luthier.search.scorer",
        "luthier.search.supernet",
        "luthier.selection.space",
        "luthier.sources.slices",
        "luthier.host.places.block",
        "testbed:vit",
    ),
    data="the ViT testbed; handwritten digits, and generated images by shape and by place (drawn anew), 240 rows each for training",
    against="adapters, LoRA or prompts alone, each of the largest size within the limit; 10 random mixes within it; each arm at its own best of two learning rates on each set, and mixes at random at the searched one's",
    minutes=10,
    notes="Learning rates are tried as each part's own, and as 6e-3 for all parts. The best single kind is picked for each set by "
    "validation.",
)  # fmt: skip


def images(name: str, run: Any) -> Any:
    """One of the three sets, cut to `ROWS`."""
    import numpy as np

    from luthier.data.split import Data, Split
    from luthier.data.task import Task
    from luthier.models.testbeds.images import FACTORS, batch

    if name == "digits":
        return run.data("digits").limit(**ROWS)
    factor = {"shapes": "shape", "places": "place"}[name]
    drawn, labels = batch(np.random.default_rng([319, 327]), sum(ROWS.values()), glyphs=0.0)
    targets = labels[:, list(FACTORS).index(factor)].astype(np.int64)
    kind = Task(
        kind="classification", modality="image", input="image", label=factor, metric="accuracy",
        labels=tuple(f"{factor} {i}" for i in range(FACTORS[factor])),
    )  # fmt: skip
    parts, begin = {}, 0
    for part, n in ROWS.items():
        parts[part] = Split(drawn[begin : begin + n], targets[begin : begin + n])
        begin += n
    return Data(parts["train"], parts["validation"], parts["test"], kind, name)


@CHECK.measures("slice", "zero", "drawn", cheap=True)
def slices(run: Any) -> None:
    import random

    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.search.supernet import Supernet, choose, space_of, taken

    base, method = run.model("vit").base, lt.methods.NOAH(size=SIZE)
    net = Adaptation.new(Supernet(of=method), base)
    space, rng, draw = space_of(method, net), torch.Generator().manual_seed(0), random.Random(0)
    size = base.config.image_size
    x = {"pixel_values": torch.randn(2, base.config.num_channels, size, size, generator=rng)}

    def outputs(*made: Any) -> list[Any]:
        found = []
        for one in made:
            model: Any = Adapted(base)
            if one is not None:
                model.attach("main", one)
            out = model(x)
            found.append(out.logits if out.logits is not None else out.hidden)
            model.detach()
        return found

    with torch.no_grad():
        for p in net.trainable().values():
            p.add_(0.1 * torch.randn(p.shape, generator=rng))
        plain, whole = outputs(None, net)
        if torch.allclose(plain, whole, atol=1e-2):
            raise RuntimeError("the modules change nothing, so that equality would show nothing")
        for turn in range(10):
            layouts = space.layouts(space.drawn(draw))
            choose(net, layouts)
            a, b = outputs(net, taken(net, method, layouts, base))
            run.record("slice", (a - b).abs().max(), arm=f"choice {turn}")
        choose(net, {i: {site: {"size": 0} for site in here} for i, here in layouts.items()})
        run.record("zero", (outputs(net)[0] - plain).abs().max())
    genomes = [space.drawn(draw, LIMIT) for _ in range(2)]
    for _ in range(149):
        genomes.append(space.mutated(draw.choice(genomes), draw, 0.3, LIMIT))
        genomes.append(space.crossed(draw.choice(genomes), draw.choice(genomes), draw, LIMIT))
    run.record("drawn", max(space.count(g) for g in genomes) - LIMIT)


@CHECK.measures("single", "random", "limit")
def mixes(run: Any) -> None:
    from functools import partial
    from statistics import mean

    import luthier as lt

    model, method = run.model("vit"), lt.methods.NOAH(size=SIZE)
    found: dict[str, dict[int, list[float]]] = {
        arm: {s: [] for s in SEEDS} for arm in ("searched", "best_single", "random_mixes")
    }
    for name in SETS:
        data = images(name, run)
        trials = {f: run.once([name, "search", f, 0], partial(go, model, data, method, f, 0)) for f in RATES}
        best = max(trials, key=lambda f: trials[f]["validation"])
        single, rate = best_single(run, model, data, name)
        for seed in SEEDS:
            said = run.once([name, "search", best, seed], partial(go, model, data, method, best, seed))
            run.record("limit", said["parameters"] - LIMIT, arm=name, seed=seed)
            others = partial(at_random, run, model, data, method, best, seed)
            alone = partial(accuracy, data.test, run, model, data, single, rate, seed)
            found["searched"][seed].append(said["test"])
            found["random_mixes"][seed].append(run.once([name, "random", best, seed], others))
            found["best_single"][seed].append(run.once([name, "single", seed], alone))
    for seed in SEEDS:
        for claim, arms in (
            ("single", ("searched", "best_single")),
            ("random", ("searched", "random_mixes")),
        ):
            for arm in arms:
                run.record(claim, mean(found[arm][seed]), arm=arm, seed=seed)


def rate_of(method: Any, factor: float) -> float | None:
    """The rate of all parts; None: each part's own."""
    return None if factor == 1.0 else method.rate * factor


def fitted(run: Any, model: Any, data: Any, method: Any, factor: float, seed: int, **options: Any) -> Any:
    return run.fit(
        model, data, method, seed=seed, rate=rate_of(method, factor), steps=STEPS, batch_size=BATCH, **options
    )


def accuracy(split: Any, *given: Any, **options: Any) -> float:
    """Of a fit, on a split."""
    return float(fitted(*given, **options).score(split)["accuracy"])


def go(model: Any, data: Any, method: Any, factor: float, seed: int) -> dict[str, Any]:
    """One search; the winner, trained anew, on validation and once on test rows."""
    from luthier.search.evolution import Evolution
    from luthier.search.search import search

    found = search(
        model, data, method, budget=f"params={LIMIT}", evolution=Evolution.of(ROUNDS, POPULATION), steps=SUPERNET,
        retrain_steps=STEPS, batch_size=BATCH, rate=rate_of(method, factor), seed=seed, progress=False,
    )  # fmt: skip
    return {
        "validation": found.fitted.score(data.validation)["accuracy"],
        "test": found.fitted.score(data.test)["accuracy"],
        "parameters": found.parameters,
    }


def at_random(run: Any, model: Any, data: Any, method: Any, factor: float, seed: int) -> float:
    """The mean test accuracy of random mixes, each trained as long as the winner."""
    import random
    from statistics import mean

    from luthier.host import Adaptation
    from luthier.search.supernet import space_of

    space = space_of(method, Adaptation.new(method, model.base))
    draw, scores = random.Random(seed), []
    for _ in range(RANDOM):
        layouts = space.layouts(space.drawn(draw, LIMIT))
        fresh = Adaptation.new(method, model.base, layouts=layouts, seed=seed)
        scores.append(accuracy(data.test, run, model, data, method, factor, seed, after=fresh))
    return mean(scores)


def best_single(run: Any, model: Any, data: Any, name: str) -> tuple[Any, float]:
    """The kind and the rate that are best on validation, each kind of the largest size within the limit."""
    from functools import partial

    import luthier as lt
    from luthier.host import Adaptation

    tried: list[tuple[float, Any, float]] = []
    for kind in SINGLE:
        of_size = partial(lt.methods.NOAH, **{other: False for other in SINGLE if other != kind})
        sizes = (
            n
            for n in range(40, 0, -1)
            if Adaptation.new(of_size(size=n), model.base).counts()["method"] <= LIMIT
        )
        method = of_size(size=next(sizes))
        for factor in RATES:
            trial = partial(accuracy, data.validation, run, model, data, method, factor, 0)
            tried.append((run.once([name, kind, factor], trial), method, factor))
            run.say(
                f"{run.check.id}: {kind} of size {method.size} on {name}, factor {factor:.3g}: validation {tried[-1][0]:.4f}"
            )
    _, method, factor = max(tried, key=lambda t: t[0])
    return method, factor
