"""The loop that pretrains a testbed: AdamW, a warm-up and a cosine, clipped gradients, one page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from luthier.errors import ModelError
from luthier.models.testbeds.recipe import Recipe

LAST = 0.05
"""The learning rate's share that is left at the end."""


def share(step: int, steps: int, warmup: float) -> float:
    """The share of the highest learning rate at a step, counted from 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def size(tensor: torch.Tensor) -> float:
    """A tensor's root mean square, or a thousandth where that is less (as Adafactor; Shazeer and Stern, 2018)."""
    return max(1e-3, float(tensor.detach().norm()) / math.sqrt(tensor.numel()))


def _optimisers(model: nn.Module, recipe: Recipe) -> list[tuple[torch.optim.Optimizer, float]]:
    """AdamW, a group for each tensor, and its rate; before it, where the recipe asks, Muon for the matrices inside
    the blocks (Jordan, 2024)."""
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    blocks = [p for p in model.parameters() if p.ndim == 2 and id(p) not in embedded and recipe.muon]
    inside = {id(p) for p in blocks}
    rest = [p for p in model.parameters() if id(p) not in inside]
    groups = [{"params": [p], "weight_decay": recipe.weight_decay if p.ndim > 1 else 0.0} for p in rest]
    adamw = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), fused=True)
    if not blocks:
        return [(adamw, recipe.rate)]
    if not hasattr(torch.optim, "Muon"):
        raise ModelError(
            f"The recipe of {recipe.name!r} trains with Muon, which torch has from 2.9 on; this is "
            f"{torch.__version__}. Install a later torch."
        )
    muon = torch.optim.Muon(blocks, lr=recipe.muon, momentum=0.95, weight_decay=recipe.weight_decay)
    return [(muon, recipe.muon), (adamw, recipe.rate)]


def pretrain(
    recipe: Recipe,
    *,
    told: Callable[[int, int, float, nn.Module], None] = lambda step, steps, loss, model: None,
) -> tuple[Any, float]:
    """The trained model in evaluation mode, and the seconds that it took.

    told: called after every step with its number, the number of steps, the loss and the model. Matrix products
    run in bfloat16 where the processor has it, everything else in float32; the same recipe gives the same
    weights on the same machine with as many threads.
    """
    begun = time.monotonic()
    torch.set_flush_denormal(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = recipe.module.model(recipe).train()
            done = 0
            for stage in recipe.stages:
                _train(model, stage, done, recipe.total, told)
                done += stage.steps
    finally:
        torch.set_flush_denormal(False)
    return model.eval(), time.monotonic() - begun


def _train(
    model: nn.Module,
    recipe: Recipe,
    done: int,
    total: int,
    told: Callable[[int, int, float, nn.Module], None],
) -> None:
    """One stage, told as the steps from `done` on of `total`."""
    optimisers = _optimisers(model, recipe)
    batches = recipe.module.batches(recipe)
    for step in range(recipe.steps):
        for optimiser, rate in optimisers:
            for group in optimiser.param_groups:
                scale = size(group["params"][0]) if recipe.relative else 1.0
                group["lr"] = rate * share(step, recipe.steps, recipe.warmup) * scale
        parts = next(batches)
        whole = 0.0
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**part).loss / len(parts)
            loss.backward()
            whole += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimiser, _ in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        told(done + step + 1, total, whole, model)
