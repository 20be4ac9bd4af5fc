"""The default optimiser of a phase, and its schedule as a function of the step."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PEAK = "peak"
"""Key of a parameter group: its learning rate before the schedule. Groups without it are left to their optimiser."""
DECAYS = "decays"
"""Key of a parameter group: [first, last] weight decay, for one that falls during the phase."""


def adamw(
    named: Mapping[str, Tensor],
    run: Any,
    rate: float | None = None,
    decay: float | None = None,
    factors: Mapping[str, float] | None = None,
    last_decay: float | None = None,
) -> torch.optim.Optimizer:
    """AdamW with one group per (rate, decay). rate, decay: for all tensors; None: each part's own, as the run says.

    factors: {regular expression over names: factor on the rate}, first match wins. last_decay: a weight decay above 0 falls to
    this by a cosine over the phase.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, tensor in named.items():
        own_rate, own_decay = run.rates(name)
        lr = own_rate if rate is None else rate
        lr *= next((f for pattern, f in (factors or {}).items() if re.search(pattern, name)), 1.0)
        wd = own_decay if decay is None else decay
        group = groups.setdefault((lr, wd), {"params": [], "lr": lr, "weight_decay": wd, PEAK: lr})
        if last_decay is not None and wd > 0:
            group[DECAYS] = [wd, last_decay]
        group["params"].append((name, tensor))
    return torch.optim.AdamW(list(groups.values()), fused=fused(named.values()))


def at_a_share(named: Mapping[str, Tensor], run: Any, *, part: int, share: float) -> torch.optim.Optimizer:
    """AdamW where a method's first part has its own rate or the run's, and `part` has `share` times that."""
    first, own = (next((run.rates(n)[0] for n in named if f".parts.{i}." in n), None) for i in (0, part))
    factor = share * first / own if first and own else 1.0
    return adamw(named, run, factors={rf"\.parts\.{part}\.": factor})


def fused(tensors: Any) -> bool:
    """One kernel per tensor instead of ten: where PyTorch has it (CPU and CUDA floating point)."""
    return all(t.is_floating_point() and t.device.type in ("cpu", "cuda") for t in tensors)


def factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over `warmup` (a share) of `steps`, then linear decay towards zero after the last step."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (steps - step) / max(1, steps - rising)


def schedule(optimiser: torch.optim.Optimizer, step: int, steps: int, warmup: float) -> None:
    """Set the learning rate of every group that has a peak, and the weight decay of those whose decay falls."""
    scale, fallen = factor(step, steps, warmup), cosine(step, steps)
    for group in optimiser.param_groups:
        if PEAK in group:
            group["lr"] = group[PEAK] * scale
        if DECAYS in group:
            first, last = group[DECAYS]
            group["weight_decay"] = last + (first - last) * fallen


def cosine(step: int, steps: int) -> float:
    """From 1 at the first step to 0 at the last, by half a cosine."""
    return (1 + math.cos(math.pi * step / max(1, steps - 1))) / 2


def names_of(optimiser: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> list[str]:
    """The name of each parameter in the order of the optimiser's own numbering."""
    by_id = {id(p): n for n, p in named.items()}
    return [by_id[id(p)] for group in optimiser.param_groups for p in group["params"]]


def state_of(optimiser: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """{parameter name: {key: tensor or number}}."""
    state, order = optimiser.state_dict()["state"], names_of(optimiser, named)
    return {order[i]: dict(values) for i, values in state.items()}


def load_state(
    optimiser: torch.optim.Optimizer, named: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Any]]
) -> None:
    """The inverse of `state_of`; names that are not trained now are left out."""
    whole, order = optimiser.state_dict(), names_of(optimiser, named)
    whole["state"] = {i: dict(state[n]) for i, n in enumerate(order) if n in state}
    optimiser.load_state_dict(whole)
