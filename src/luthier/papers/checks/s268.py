"""S268, SoKA: a weight taken apart into Kronecker products, the start made of it, and its loss beside LoRA's."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Beats, Equals, Reported

TASK, STEPS, SEEDS, TUNING_SEED = "order-a", 100, (0, 1, 2), 3
LARGEST, RATES = 8, (1 / 3, 1.0, 3.0, 9.0)
SETTINGS: dict[str, Any] = {"batch_size": 16}

CHECK = Check(
    "S268",
    "Every weight is a sum of Kronecker products of which the first terms are its best approximation; started from them an update is nothing, "
    "its rank follows the spectrum, and it trains to a loss no higher than that of a LoRA of a quarter more numbers.",
    claims=(
        Beats(
            "loss",
            "minus the loss on held-out rows after all steps: at least that of LoRA on the same sites with 25 % more numbers or above, mean of 3 seeds",
            arm="soka",
            over="lora",
            ties=True,
        ),
        AtLeast("more", "numbers that the LoRA beside it trains, of SoKA's", 1.25),
        AtMost("sum", "the sum of all terms equals the weight (largest difference)", 1e-5),
        AtMost(
            "tail",
            "what so many terms leave over equals the tail of sigma^2 (largest relative difference)",
            1e-4,
        ),
        Equals("start", "values of the logits that differ from the base's at step 0", 0),
        AtMost(
            "factored",
            "the product on activations equals torch.kron of the factors, m1 n1 != m2 n2 (largest difference, fp32)",
            1e-5,
        ),
        Equals("monotone", "layers whose rank falls where tau grows", 0),
        Reported("ranks", "mean rank of a layer by its energy alone, at each tau"),
    ),
    covers=(
        "luthier.methods.kronecker.soka",
        "luthier.sources.kronecker",
        "luthier.starts.kronecker",
        "luthier.methods.low_rank.lora",
        "luthier.methods.low_rank.pair",
        "testbed:llama",
    ),
    data="weights of the Llama testbed; the comparison there, on a task that it was not pretrained on",
    against="LoRA at its own best of four learning rates, with the least rank that has 25 % more numbers than SoKA at rank 8 at most",
    minutes=6,
    notes="Which matrix is decomposed, and how energy and elbow combine, could not be looked up: the weight itself, and the smaller of the two.",
)


def sites(run: Any) -> Any:
    import luthier as lt
    from luthier.host.adaptation import Adaptation, site_weight

    base = run.model("llama").base
    made = Adaptation.new(lt.methods.SoKA(targets="attention.* | mlp.*"), base)
    return [(at.site.name, site_weight(base, at.site)) for at in made.at()]


@CHECK.measures("sum", "tail", "factored", cheap=True)
def taken_apart(run: Any) -> None:
    import torch

    from luthier.sources.kronecker import components, kron, product, split

    for name, weight in sites(run):
        s = split(*weight.shape)
        u, sigma, v = components(weight, s)
        u = sigma[:, None, None] * u
        run.record("sum", (kron(u, v) - weight).abs().max(), arm=name)
        for terms in (1, 8, len(sigma) // 2):
            left = (weight.double() - kron(u[:terms], v[:terms])).square().sum()
            tail = sigma[terms:].square().sum()
            run.record("tail", (left - tail).abs() / tail, arm=f"{name}, {terms} terms")
        first, second = u[:8].float(), v[:8].float()
        dense: Any = sum(torch.kron(a, b) for a, b in zip(first, second, strict=True))
        x = torch.randn(16, weight.shape[1], generator=torch.Generator().manual_seed(0))
        if s.a1 * s.a2 == s.b1 * s.b2:
            raise RuntimeError(
                f"the factors of {name} have as many numbers each, so that a mix-up of them would not show"
            )
        run.record("factored", (product(x, first, second) - x @ dense.T).abs().max(), arm=name)


@CHECK.measures("start", "monotone", "ranks", cheap=True)
def start_and_ranks(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.methods.kronecker.soka import by_energy
    from luthier.sources.kronecker import spectrum, split

    base = run.model("llama").base
    model: Any = Adapted(base)
    batch = {"input_ids": torch.randint(20, 200, (4, 12), generator=torch.Generator().manual_seed(0))}
    made = Adaptation.new(lt.methods.SoKA(), base)
    with torch.no_grad():
        alone = model(batch).logits
        with model.attached(made):
            run.record("start", (model(batch).logits != alone).sum())
            for p in made.trainable().values():
                p.mul_(1.1)
            if torch.allclose(model(batch).logits, alone, atol=1e-2):
                raise RuntimeError("the factors change nothing, so that equality would show nothing")
    before: dict[str, int] = {}
    for tau in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0):
        for name, weight in sites(run):
            rank = by_energy(spectrum(weight, split(*weight.shape)), tau)
            run.record("monotone", int(rank < before.get(name, 0)), arm=f"{name}, {tau}")
            run.record("ranks", rank, arm=f"{tau}")
            before[name] = rank


@CHECK.measures("loss", "more")
def beside_lora(run: Any) -> None:
    import luthier as lt
    from luthier.host import Adaptation

    model, data = run.model("llama"), run.data(TASK).limit(validation=60)
    soka = lt.methods.SoKA(largest=LARGEST)
    count = lambda method: Adaptation.new(method, model.base).counts()["method"]
    mine = count(soka)
    rank = next(r for r in range(1, 64) if count(lt.methods.LoRA(rank=r)) >= 1.25 * mine)
    lora = lt.methods.LoRA(rank=rank, alpha=2.0 * rank)
    run.record("more", count(lora) / mine)
    for name, method in {"soka": soka, "lora": lora}.items():

        def after(rate: float, seed: int, name: str = name, method: Any = method) -> float:
            label = f"{name} {rate:.3g}"
            curve = run.curve(
                "loss", label, model, data, method, every=STEPS, seed=seed, rate=rate, steps=STEPS, **SETTINGS
            )
            return float(curve[-1][1]["loss"])

        def tried(rate: float, after: Any = after) -> float:
            return float(after(rate, TUNING_SEED))

        rate = run.best_of(
            "loss", name, tried, method.rate, rates=RATES, seed=TUNING_SEED, lowest=True, called="loss"
        )
        for seed in SEEDS:
            run.record("loss", -after(rate, seed), arm=name, seed=seed, rate=rate)
