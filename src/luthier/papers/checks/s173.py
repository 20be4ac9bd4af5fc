"""S173, LoRA-Pro (Wang et al. 2024): the step that is nearest to the whole gradient, and the loss that it leaves."""

from __future__ import annotations

from typing import Any

from luthier.papers.check import Check
from luthier.papers.claims import AtMost, Beats

PROBLEMS, STEPS = 20, 120
RATES = (1 / 3, 1.0, 3.0, 9.0)

CHECK = Check(
    "S173",
    "LoRA-Pro's step is the low-rank image nearest to the whole gradient, whatever X; tuned alike, it leaves a training loss of at "
    "most LoRA's after as many steps.",
    claims=(
        Beats(
            "loss",
            "LoRA's training loss on the decoder's task less LoRA-Pro's after as many steps, mean of 3 seeds: not below 0",
            arm="lora",
            over="lora_pro",
            ties=True,
        ),
        AtMost("normal", "B^T (g~ - g) and (g~ - g) A^T against g (largest relative norm)", 1e-8),
        AtMost("x", "g~ with the chosen X less g~ with X = 0 (largest relative norm)", 1e-8),
        AtMost("distance", "||g~ - g|| less ||(I - P_B) g (I - P_A)|| (largest relative difference)", 1e-6),
        AtMost("plain", "||g~ - g|| over that of LoRA's own step, any length (largest ratio)", 1.0),
        AtMost("start", "B = 0: g~ less g P_A (largest relative norm)", 1e-6),
    ),
    covers=("luthier.signals.lora_pro", "luthier.methods.low_rank.pair", "testbed:llama"),
    data="20 random quadratic losses in float64; the Llama testbed on a generated task",
    against="LoRA of the same rank and scale, each arm at its own best of four learning rates",
    minutes=6,
    notes="Damping 1e-8 on the diagonals of B^T B and A A^T, as in the method; with B = 0 it leaves a relative 1e-8.",
)


@CHECK.measures("normal", "x", "distance", "plain", "start", cheap=True)
def nearest_image(run: Any) -> None:
    import torch

    from luthier.signals.lora_pro import adjusted, equivalent

    scale, rank = 1.5, 4
    for seed in range(PROBLEMS):
        rng = torch.Generator().manual_seed(seed)
        w, a, b, x, y = (
            torch.randn(s, generator=rng, dtype=torch.float64)
            for s in ((12, 10), (rank, 10), (12, rank), (30, 10), (30, 12))
        )
        a.requires_grad_(), b.requires_grad_()
        loss = (x @ (w + scale * b @ a).T - y).square().sum() / 2
        g_a, g_b = torch.autograd.grad(loss, (a, b))
        a, b = a.detach(), b.detach()
        g = (x @ (w + scale * b @ a).T - y).T @ x
        image = equivalent(a, b, *adjusted(a, b, g_a, g_b, scale), scale)
        without = equivalent(a, b, *adjusted(a, b, g_a, g_b, scale, nearest=False), scale)
        size = g.norm()
        run.record("normal", (b.T @ (image - g)).norm() / (size * b.norm()), arm="B", seed=seed)
        run.record("normal", ((image - g) @ a.T).norm() / (size * a.norm()), arm="A", seed=seed)
        run.record("x", (image - without).norm() / size, seed=seed)
        p_a, p_b = a.T @ torch.linalg.solve(a @ a.T, a), b @ torch.linalg.solve(b.T @ b, b.T)
        left = (g - p_b @ g) @ (torch.eye(10, dtype=torch.float64) - p_a)
        run.record("distance", ((image - g).norm() - left.norm()).abs() / size, seed=seed)
        step = equivalent(a, b, g_a, g_b, scale)
        best = (step * g).sum() / step.square().sum()  # the length at which LoRA's own step is nearest to g
        run.record("plain", (image - g).norm() / (best * step - g).norm(), seed=seed)
        zero = torch.zeros_like(b)
        first = equivalent(a, zero, *adjusted(a, zero, 0 * g_a, scale * g @ a.T, scale), scale)
        run.record("start", (first - g @ p_a).norm() / size, seed=seed)


@CHECK.measures("loss")
def training(run: Any) -> None:
    import luthier as lt

    model, data = run.model("llama"), run.data("order-a").limit(train=600, validation=16, test=16)
    arms = {"lora_pro": lt.methods.LoRAPro(rank=4, alpha=4.0), "lora": lt.methods.LoRA(rank=4, alpha=4.0)}
    run.losses("loss", model, data, arms, rates=RATES, steps=STEPS, batch_size=16, max_new_tokens=2)
