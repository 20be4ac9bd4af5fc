"""S195, the stability of Mamba (Halloran et al. 2024): exponents of its scan, and fine-tuning in lower precision."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats, Reported

TOKENS, DEVIATION = 512, 1e-4
TASK, SHOTS = "verdicts", 4
SETTINGS: dict[str, Any] = {"steps": 200, "batch_size": 16}

CHECK = Check(
    "S195",
    "A deviation of a Mamba's state dies as the products of its step sizes say, and LoRA on a Mamba leaves its full-precision path "
    "less in bfloat16 than on a transformer of its size.",
    claims=(
        Beats(
            "divergence",
            "mean |loss in bf16 - loss in fp32| over 200 LoRA steps: the transformer's above the Mamba's, mean of 3 seeds",
            arm="transformer",
            over="mamba",
        ),
        AtMost(
            "logistic", "the estimator on the logistic map at r = 4 against ln 2 (relative difference)", 0.01
        ),
        AtMost(
            "layer",
            "the estimator on one S6 layer with its inputs held against the largest time mean of Delta_d A_dn (difference, "
            "float64)",
            1e-10,
        ),
        AtMost("stable", "the largest exponent of that layer", 0),
        AtMost(
            "deviation",
            "a deviation of 1e-4 of the state after each of 512 steps against its start times exp(A sum of Delta) (largest "
            "difference, as a share of 1e-4, float64)",
            1e-10,
        ),
        AtMost("grows", "the deviation's norm after a step as a share of that before it (largest)", 1),
        AtMost(
            "merged",
            "LoRA merged into in_proj and x_proj against unmerged (largest difference of logits)",
            1e-5,
        ),
        Reported(
            "gain",
            "gain in accuracy from 0 to 4 demonstrations of the pretrained Mamba and of the transformer",
        ),
    ),
    covers=(
        "luthier.instruments.lyapunov",
        "luthier.instruments.divergence",
        "luthier.instruments.shots",
        "luthier.methods.low_rank.lora",
        "luthier.methods.low_rank.pair",
        "luthier.models.scan",
        "testbed:llama",
        "testbed:mamba",
    ),
    data="the logistic map and a Mamba layer of default initialisation; losses on builtin:mamba, builtin:llama and a task that neither "
    "was pretrained on",
    against="the Llama testbed under LoRA of the same rank on its attention and feed-forward projections, same steps and rows",
    minutes=8,
    notes="Both models take a linear head and each method's own learning rate; in "
    "bf16 what trains stays float32, and so does the scan, as in the kernels.",
)


@CHECK.measures("logistic", "layer", "stable", "deviation", "grows", cheap=True)
def exponents_of_a_scan(run: Any) -> None:
    import math

    import torch

    from luthier.instruments.lyapunov import exponents, scan_exponents, steps_of
    from luthier.models.scan import selective_scan
    from luthier.papers.checks.s295 import model, tokens

    start = torch.tensor(0.3, dtype=torch.float64)
    found = exponents(lambda x, t: 4 * x * (1 - x), start, 5000)[0]
    run.record("logistic", abs(float(found) / math.log(2) - 1))

    base, rng = model(1, torch.float64, width=16, states=4), torch.Generator().manual_seed(0)
    given = {"input_ids": tokens(1, TOKENS)}
    (means,) = scan_exponents(base, given).values()
    caught: dict[str, Any] = {}
    mixer = base.backbone.layers[0].mixer
    hook = mixer.x_proj.register_forward_hook(lambda m, a, out: caught.update(u=a[0], selected=out))
    with steps_of(base) as seen, torch.no_grad():
        base(**given)
    hook.remove()
    ((steps, A),) = seen.values()
    B, C = caught["selected"][..., -2 * mixer.ssm_state_size :].chunk(2, -1)
    u = caught["u"]

    def step(h: Any, t: int) -> Any:
        return torch.exp(steps[0, t, :, None] * A) * h + (steps[0, t] * u[0, t])[:, None] * B[0, t]

    top = exponents(step, torch.zeros_like(means), TOKENS)[0]
    run.record("layer", abs(float(top - means.max())), numbers=means.numel())
    run.record("stable", means.max())

    with torch.no_grad():
        moved = torch.randn(1, *A.shape, generator=rng, dtype=torch.float64)
        moved = DEVIATION * moved / moved.abs().max()
        held, other, left, before = torch.zeros_like(moved), moved, moved, moved.norm()
        for t in range(TOKENS):
            at = (u[:, t : t + 1], steps[:, t : t + 1], A, B[:, t : t + 1], C[:, t : t + 1])
            held, other = selective_scan(*at, held)[1], selective_scan(*at, other)[1]
            left = left * torch.exp(steps[:, t, :, None] * A)
            gap = other - held
            run.record("deviation", (gap - left).abs().max() / DEVIATION, step=t)
            run.record("grows", gap.norm() / before, step=t)
            before = gap.norm()


@CHECK.measures("merged", cheap=True)
def merging(run: Any) -> None:
    import torch

    import luthier as lt
    from luthier.host import Adaptation, Adapted
    from luthier.papers.checks.s295 import model, tokens

    base, rng = model(3), torch.Generator().manual_seed(0)
    adapted: Any = Adapted(base)
    made = Adaptation.new(lt.methods.LoRA(rank=4, targets="ssm.in | ssm.x"), base)
    # of more rows than a weight has, the update is added to the weight anyway, as when it is merged
    given = {"input_ids": tokens(1, 20)}
    with torch.no_grad():
        alone = adapted(given).logits
        adapted.attach("main", made)
        for p in made.trainable().values():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.1)
        apart = adapted(given).logits
        if torch.allclose(apart, alone, atol=1e-3):
            raise RuntimeError("the update changes nothing, so that equality would show nothing")
        adapted.merge("main")
        run.record("merged", (adapted(given).logits - apart).abs().max())


@CHECK.measures("divergence", "gain")
def training(run: Any) -> None:
    import luthier as lt
    from luthier.instruments.divergence import precision_divergence
    from luthier.instruments.shots import k_shot

    data = run.data(TASK)
    arms = {
        "mamba": ("mamba", lt.methods.LoRA(rank=8, targets="ssm.projections")),
        "transformer": (
            "llama",
            lt.methods.LoRA(rank=8, targets="*attention.query | *attention.value | mlp.*"),
        ),
    }
    for arm, (name, method) in arms.items():
        model = run.model(name)
        size = sum(p.numel() for p in model.base.parameters())
        for seed in range(3):

            def go(model: Any = model, method: Any = method, seed: int = seed) -> float:
                return precision_divergence(model, data, method, seed=seed, **SETTINGS).mean

            mean = run.once(["divergence", arm, seed], go)
            run.record("divergence", mean, arm=arm, seed=seed, parameters=size)

        def shots(model: Any = model) -> float:
            return k_shot(model, data, (SHOTS,), rows=200).gain(SHOTS)

        run.record("gain", run.once(["gain", arm], shots), arm=arm)
