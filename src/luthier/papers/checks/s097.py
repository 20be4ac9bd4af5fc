"""S097, Chain of LoRA (Xia et al. 2024): links change nothing where they join, and together reach a rank that one can't."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtLeast, AtMost, Beats, Equals

RANK, LINKS, WIDTH, STEPS = 4, 3, 48, 600
RATES = (1e-3, 3e-3, 1e-2, 3e-2)

CHECK = Check(
    "S097",
    "Folding a link in and beginning another changes no logit, the sum of T links reaches a rank above one link's, and a full-rank "
    "change of a teacher is learned better than by one LoRA of the same rank, steps and memory.",
    claims=(
        Beats(
            "loss",
            "the loss of one LoRA on a full-rank shift of a teacher, less the chain's after as many steps, 3 seeds",
            arm="lora",
            over="chain",
        ),
        AtMost(
            "joint",
            "logits before and after a link is folded in and another begun (largest difference)",
            1e-5,
        ),
        AtLeast("rank", "the rank of W_T - W_0, over all sites", RANK + 1),
        AtMost("rank_most", "the same, at most links x rank", RANK * LINKS),
        Equals(
            "memory",
            "numbers that train, and numbers of the optimiser, in any link less those of one LoRA",
            0,
        ),
    ),
    covers=("luthier.methods.low_rank.chain", "luthier.methods.low_rank.pair", "testbed:llama"),
    data="the Llama testbed for the identities; a linear teacher of width 48 whose weight is moved by a matrix of full rank",
    against="one LoRA of the same rank and as many steps, each arm at its own best of four learning rates",
    minutes=2,
)


@CHECK.measures("joint", "rank", "rank_most", "memory", cheap=True)
def links_join(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.signals.optimisers import adamw

    model = run.model("llama")
    adapted: Any = Adapted(model.base)
    method = lt.methods.ChainOfLoRA(rank=RANK, links=LINKS)
    made = Adaptation.new(method, model.base)
    one = Adaptation.new(lt.methods.LoRA(rank=RANK), model.base).counts()["method"]
    adapted.attach("main", made)
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(20, model.base.config.vocab_size, (4, 24), generator=rng)
    for link in range(LINKS):
        if link:
            with torch.no_grad():
                before = adapted({"input_ids": ids}).logits
                method.link(SimpleNamespace(main=made, rng=rng))
                after = adapted({"input_ids": ids}).logits
            run.record("joint", (after - before).abs().max(), arm=f"link {link + 1}")
        trained = {f"main.{k}": v for k, v in made.trainable().items()}
        run.record("memory", sum(v.numel() for v in trained.values()) - one, arm=f"trained, link {link + 1}")
        optimiser = adamw(trained, SimpleNamespace(rates=lambda name: (3e-3, 0.0)))
        for _ in range(3):
            optimiser.zero_grad()
            adapted({"input_ids": ids}).logits.square().mean().backward()
            optimiser.step()
        held = sum(v.numel() for s in optimiser.state.values() for v in s.values() if v.dim())
        run.record("memory", held - 2 * one, arm=f"optimiser, link {link + 1}")
    for at in made.at():
        change = method.delta(None, at.t(None)).detach().double()
        found = int(torch.linalg.matrix_rank(change, rtol=1e-6))
        run.record("rank", found, arm=at.site.name)
        run.record("rank_most", found, arm=at.site.name)


def learned(method: Any, rate: float, seed: int) -> float:
    """Loss on fresh inputs after learning a full-rank shift of one linear layer."""
    import torch

    from luthier.host import Adaptation, Adapted
    from luthier.train.run import share_out

    rng = torch.Generator().manual_seed(seed)
    shift = torch.randn(WIDTH, WIDTH, generator=rng) * WIDTH**-0.5
    base: Any = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH, bias=False))
    with torch.no_grad():
        base[0].weight.copy_(torch.randn(WIDTH, WIDTH, generator=rng) * WIDTH**-0.5)
    adapted: Any = Adapted(base)
    made = Adaptation.new(method, base, seed=seed)
    adapted.attach("main", made)

    def loss() -> torch.Tensor:
        x = torch.randn(64, WIDTH, generator=rng)
        with torch.no_grad():
            y = base[0].weight @ x.T + shift @ x.T
        return (adapted({"x": x}).hidden - y.T).square().mean()

    run = SimpleNamespace(main=made, rng=rng)
    phases = method.phases()
    for phase, steps in zip(phases, share_out(phases, STEPS), strict=True):
        if phase.enter is not None:
            phase.enter(run)
        optimiser = torch.optim.AdamW(made.trainable().values(), lr=rate, weight_decay=0.0)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = rate * (1 - step / steps)
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()
    with torch.no_grad():
        return sum(float(loss()) for _ in range(20)) / 20


@CHECK.measures("loss")
def full_rank_teacher(run: Any) -> None:
    import luthier as lt

    arms = {
        "chain": lt.methods.ChainOfLoRA(rank=RANK, links=LINKS, targets="0"),
        "lora": lt.methods.LoRA(rank=RANK, targets="0"),
    }
    for name, method in arms.items():

        def tried(rate: float, method: Any = method) -> float:
            return learned(method, rate, 100)

        rate = run.best_of("loss", name, tried, 1.0, rates=RATES, seed=100, lowest=True, called="loss")
        for seed in range(3):
            value = run.once([name, rate, seed], lambda m=method, r=rate, s=seed: learned(m, r, s))
            run.say(f"S097: {name} at rate {rate:.2g}, seed {seed}: loss {value:.4f}")
            run.record("loss", value, arm=name, seed=seed, rate=rate)
