"""S319, GLoRA (Chavan et al. 2023): 432 forms of a linear layer that all fold in, and a search among them."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Equals

RANK, UNIFORM = 4, 2
ROWS = {"train": 300, "validation": 150}
SEEDS, RATES = range(3), (1 / 3, 1.0, 3.0)
STEPS, BATCH, ROUNDS, POPULATION, RANDOM = 240, 16, 6, 16, 10

CHECK = Check(
    "S319",
    "All 432 forms of a generalised LoRA layer fold into weight and bias and begin as the base, one of them is LoRA, and forms found by "
    "evolution on validation rows are on test rows at least as good as LoRA of as many numbers and better than forms at random.",
    claims=(
        AtMost("merged", "outputs of one layer, attached and merged, less the formula written out: all 432 forms, with and without a bias (largest, fp32)", 1e-5),
        AtMost("models", "merged less attached outputs of 20 random whole models, of the largest output (the ViT testbed)", 1e-5),
        Equals("start", "outputs before training less the base's, all 432 forms, with and without a bias (largest)", 0),
        Equals("lora", "a low-rank B alone less LoRA of scale 1: changes of the weight (largest difference)", 0),
        Beats(
            "uniform",
            "test accuracy of the form that the search found: at least that of LoRA on the same layers, which trains no fewer numbers, 3 seeds",
            arm="searched",
            over="uniform_lora",
            ties=True,
            seeds=3,
        ),
        Beats(
            "random",
            "test accuracy of the form that the search found: above the mean of 10 forms at random under the same budget and weights, 3 seeds",
            arm="searched",
            over="random_forms",
            seeds=3,
        ),
        AtMost("budget", "numbers that the winner trains, less those of the LoRA (largest of 3 seeds)", 0),
    ),
    covers=(
        "luthier.methods.low_rank.glora",
        "luthier.methods.low_rank.lora",
        "luthier.search.search",
        "luthier.search.evolution",
        "luthier.search.scorer",
        "luthier.search.supernet",
        "luthier.selection.space",
        "luthier.sources.slices",
        "testbed:vit",
    ),
    data="identities on drawn layers and the ViT testbed; the search on that testbed and handwritten digits, 300 rows for training",
    against="LoRA of rank 2 on every linear layer, for as many steps; 10 random forms in the same supernet; each arm at its own best of three learning rates",
    minutes=8,
)  # fmt: skip


def layer(bias: bool, rng: Any) -> Any:
    """One linear layer that has a role."""
    import torch

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = torch.nn.Linear(24, 16, bias=bias)

        def forward(self, x: Any) -> Any:
            return self.fc1(x)

    made = Layer().requires_grad_(False)
    for p in made.parameters():
        p.copy_(torch.randn(p.shape, generator=rng) / 24**0.5)
    return made


def formula(layer: Any, x: Any, at: Any) -> Any:
    """W0 x + (W0 * A) x + B x + W0 C + D * b0 + E + b0, with A to E as full matrices and columns."""
    w, b, held = layer.weight, layer.bias, dict(at.values.items())

    def full(letter: str, rows: int, columns: int) -> Any:
        form = at.layout[letter]
        if form == "none":
            return w.new_zeros(rows, columns)
        first = held[f"{letter}1"] if f"{letter}1" in held else held[letter][:, None]
        return first @ held[f"{letter}2"] if form == "lora" else first.expand(rows, columns)

    n, m = w.shape
    y = x @ w.T + x @ (w * full("A", n, m)).T + x @ full("B", n, m).T
    y = y + (w @ full("C", m, 1)).T + full("E", n, 1).T
    return y if b is None else y + full("D", n, 1).T * b + b


@CHECK.measures("merged", "start", "lora", cheap=True)
def one_layer(run: Any) -> None:
    from itertools import product

    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.methods.low_rank.glora import FORMS

    rng = torch.Generator().manual_seed(0)
    for bias in (True, False):
        base, x = layer(bias, rng), torch.randn(8, 24, generator=rng)
        alone, worst, start = base(x), 0.0, 0.0
        for forms in product(*FORMS.values()):
            method = lt.methods.GLoRA(rank=RANK, targets="fc1", **dict(zip("abcde", forms)))
            made, model = Adaptation.new(method, base), Adapted(base)
            model.attach("main", made)
            with torch.no_grad():
                start = max(start, float((model({"x": x}).hidden - alone).abs().max()))
                for p in made.trainable().values():
                    p.copy_(torch.randn(p.shape, generator=rng) * 0.3)
                attached = model({"x": x}).hidden
                want = formula(base.fc1, x, made.at()[0])
                model.merge("main")
                for found in (attached, model({"x": x}).hidden):
                    worst = max(worst, float((found - want).abs().max()))
                model.unmerge("main")
            acts = bias or set(forms[:3]) != {"none"} or forms[4] != "none"
            if made.trainable() and acts and torch.allclose(attached, alone, atol=1e-3):
                raise RuntimeError(f"{forms} change nothing, so that equality would show nothing")
            model.detach("main")
        arm = "with a bias" if bias else "without"
        run.record("merged", worst, arm=arm)
        run.record("start", start, arm=arm)
    none = {"a": "none", "c": "none", "d": "none", "e": "none"}
    ours = lt.methods.GLoRA(rank=RANK, b="lora", **none)
    theirs = lt.methods.LoRA(rank=RANK, alpha=RANK)
    made = Adaptation.new(lt.methods.GLoRA(rank=RANK, targets="fc1", b="lora", **none), base)
    values: Any = made.at()[0].values
    values["B1"].data.normal_(generator=rng)
    t = made.at()[0].t(None)
    mine = ours.delta(base.fc1.weight, t)
    t.update(A=t.B2, B=t.B1)
    run.record("lora", (mine - theirs.delta(base.fc1.weight, t)).abs().max())


@CHECK.measures("models", cheap=True)
def whole_models(run: Any) -> None:
    import random

    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.host.structure import structure_of

    base, method = run.model("vit").base, lt.methods.GLoRA(rank=RANK)
    space = method.space([method.sites(structure_of(base))])
    rng, draw = torch.Generator().manual_seed(0), random.Random(0)
    size = base.config.image_size
    x = {"pixel_values": torch.randn(2, base.config.num_channels, size, size, generator=rng)}
    model: Any = Adapted(base)
    read = lambda: (lambda out: out.logits if out.logits is not None else out.hidden)(model(x))
    with torch.no_grad():
        for turn in range(20):
            made = Adaptation.new(method, base, layouts=space.layouts(space.drawn(draw)), seed=turn)
            for p in made.trainable().values():
                p.add_(0.02 * torch.randn(p.shape, generator=rng))
            model.attach("main", made)
            attached = read()
            model.merge("main")
            run.record("models", (read() - attached).abs().max() / attached.abs().max(), arm=f"form {turn}")
            model.detach("main")


@CHECK.measures("uniform", "random", "budget")
def searched(run: Any) -> None:
    import luthier as lt
    from luthier.host import Adaptation

    model, data = run.model("vit"), run.data("digits").limit(**ROWS)
    method = lt.methods.GLoRA(rank=RANK)
    lora = lt.methods.LoRA(rank=UNIFORM, alpha=2 * UNIFORM, targets=method.targets)
    allowed = Adaptation.new(lora, model.base).counts()["method"]
    validation = {
        f: run.once(["search", f, 0], lambda f=f: go(model, data, method, allowed, f, 0)) for f in RATES
    }
    best = max(RATES, key=lambda f: validation[f]["validation"])
    for seed in SEEDS:
        found = run.once(["search", best, seed], lambda s=seed: go(model, data, method, allowed, best, s))
        for claim in ("uniform", "random"):
            run.record(claim, found["test"], arm="searched", seed=seed, rate=method.rate * best)
        run.record("random", found["random"], arm="random_forms", seed=seed, rate=method.rate * best)
        run.record("budget", found["parameters"] - allowed, seed=seed)
    run.compare(
        "uniform",
        model,
        data,
        {"uniform_lora": lora},
        seeds=SEEDS,
        rates=RATES,
        steps=STEPS,
        batch_size=BATCH,
    )


def go(model: Any, data: Any, method: Any, allowed: int, factor: float, seed: int) -> dict[str, Any]:
    """One search, and forms at random with the weights of the same supernet; the test rows are scored once for each."""
    import random
    import tempfile
    from statistics import mean

    from luthier.search.evolution import Evolution
    from luthier.search.search import search
    from luthier.search.supernet import taken
    from luthier.train.fitted import as_fitted, load_fitted

    rate = None if factor == 1.0 else method.rate * factor
    with tempfile.TemporaryDirectory() as out:
        found = search(
            model, data, method, budget=f"params={allowed}", out=f"{out}/s", evolution=Evolution.of(ROUNDS, POPULATION),
            steps=STEPS, batch_size=BATCH, rate=rate, seed=seed, progress=False,
        )  # fmt: skip
        net = load_fitted(f"{out}/s/supernet", model).adaptation
    draw, others = random.Random(seed), []
    for _ in range(RANDOM):
        layouts = found.space.layouts(found.space.drawn(draw, allowed))
        others.append(as_fitted(taken(net, method, layouts, model.base), model).score(data.test)["accuracy"])
    return {
        "validation": found.validation["accuracy"],
        "test": found.fitted.score(data.test)["accuracy"],
        "random": mean(others),
        "parameters": found.parameters,
    }
