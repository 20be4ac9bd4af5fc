"""LoRA-Pro: steps of low-rank factors that change the weight as full tuning would, as nearly as they can (Wang et al. 2024, S173).

W = W_0 + s B A. A step (dA, dB) changes W by s (B dA + dB A): a low-rank image of the full gradient g, which only its own gradients
g_A = s B^T g and g_B = s g A^T know. The nearest such image to g is that of, for any X,

    dA = (1 / s^2) (B^T B)^-1 g_A + X A
    dB = (1 / s^2) (I - B (B^T B)^-1 B^T) g_B (A A^T)^-1 - B X

and the X that changes g_A and g_B least solves  B^T B X + X A A^T = -(1 / s^2) (B^T B)^-1 g_A A^T.

    optimiser: g~ = s (B dA + dB A), (out, in);  AdamW's moments of g~, and its step w;  then the same once more for
    g_A = s B^T w, g_B = s w A^T, with X: what A and B move by. Weight decay is apart, on A and B.

A damping of 1e-8 on the diagonals of B^T B and A A^T lets B = 0 begin: there g_A = 0, so that dA = 0, dB = (1 / s^2) g_B (A A^T)^-1 and g~ = g P_A.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.errors import OptionError
from luthier.signals.optimisers import PEAK

DAMPING = 1e-8


def adjusted(
    a: Tensor,
    b: Tensor,
    g_a: Tensor,
    g_b: Tensor,
    scale: float,
    *,
    nearest: bool = True,
    damping: float = DAMPING,
) -> tuple[Tensor, Tensor]:
    """(dA, dB) for A: (r, in), B: (out, r) and their gradients. nearest: with the X above, otherwise with X = 0."""
    one = torch.eye(len(a), dtype=torch.float64, device=a.device)
    # r x r: in double, because B begins at zero
    bb, aa = b.T.double() @ b.double(), a.double() @ a.T.double()
    left, right = torch.linalg.inv(bb + damping * one), torch.linalg.inv(aa + damping * one)
    d_a = (left.to(a.dtype) @ g_a) / scale**2
    d_b = g_b @ right.to(a.dtype)
    d_b = (d_b - b @ (left.to(a.dtype) @ (b.T @ d_b))) / scale**2
    if nearest:
        x = sylvester(bb + damping * one, aa + damping * one, -(d_a.double() @ a.T.double())).to(a.dtype)
        d_a, d_b = d_a + x @ a, d_b - b @ x
    return d_a, d_b


def sylvester(p: Tensor, q: Tensor, c: Tensor) -> Tensor:
    """X with P X + X Q = C for symmetric positive P and Q."""
    (p_values, p_vectors), (q_values, q_vectors) = torch.linalg.eigh(p), torch.linalg.eigh(q)
    inner = p_vectors.T @ c @ q_vectors / (p_values[:, None] + q_values)
    return p_vectors @ inner @ q_vectors.T


def equivalent(a: Tensor, b: Tensor, d_a: Tensor, d_b: Tensor, scale: float) -> Tensor:
    """s (B dA + dB A): (out, in), what a step of the factors does to the weight."""
    return scale * (b @ d_a + d_b @ a)


class LoRAPro(torch.optim.Optimizer):
    """A group with a `scale` is a pair [A, B]; others are plain AdamW."""

    def __init__(
        self, groups: list[dict[str, Any]], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ):
        super().__init__(groups, {"betas": betas, "eps": eps, "weight_decay": 0.0, "scale": None})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if group["scale"] is None:
                moves = [(p, self._adam(p, p.grad, group)) for p in group["params"] if p.grad is not None]
            else:
                moves = self._pair(group)
            for p, move in moves:
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * move)

    def _pair(self, group: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
        (a, b), s = group["params"], group["scale"]
        if a.grad is None or b.grad is None:
            return []
        whole = equivalent(a, b, *adjusted(a, b, a.grad, b.grad, s, nearest=False), s)
        step = self._adam(b, whole, group)
        d_a, d_b = adjusted(a, b, s * b.T @ step, s * step @ a.T, s)
        return [(a, d_a), (b, d_b)]

    def _adam(self, key: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        """AdamW's normalised step for a gradient, whose moments are kept under `key`."""
        state, (first, second) = self.state[key], group["betas"]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(grad), exp_avg_sq=torch.zeros_like(grad))
        state["step"] += 1
        state["exp_avg"].lerp_(grad, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(grad, grad, value=1 - second)
        root = (state["exp_avg_sq"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        return state["exp_avg"] / (1 - first ** state["step"]) / root


def lora_pro(named: Mapping[str, Tensor], run: Any) -> torch.optim.Optimizer:
    """A phase's optimiser: pairs of factors by LoRA-Pro, all else (a head, a magnitude) by AdamW. OptionError where there is no pair."""
    groups: list[dict[str, Any]] = []
    for name, tensor in named.items():
        if name.endswith(".values.A") and f"{name[:-1]}B" in named:
            continue  # with its B
        rate, decay = run.rates(name)
        group = {"params": [(name, tensor)], "lr": rate, "weight_decay": decay, PEAK: rate}
        mate = f"{name[:-1]}A"
        if name.endswith(".values.B") and mate in named:
            adaptation, part = re.match(r"([^.]+)\.parts\.(\d+)\.", name).groups()  # type: ignore[union-attr]
            scale = run.adapted.adaptations[adaptation].placed()[int(part)].part.gain()
            group |= {"params": [(mate, named[mate]), (name, tensor)], "scale": scale}
        groups.append(group)
    if not any("scale" in g for g in groups):
        raise OptionError(
            "optimiser=lora_pro moves pairs of low-rank factors A and B, and none trains here. Choose a low-rank method, e.g. lora."
        )
    return LoRAPro(groups)
