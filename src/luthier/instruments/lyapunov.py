"""Lyapunov exponents: how fast a small deviation of a state grows or dies, of any map and of the selective scans of a model.

exponents(step, state, steps)    all of a map's, by re-orthogonalised tangents (Benettin et al. 1980)
scan_exponents(model, batch)     of a Mamba's layers on your own inputs: with the inputs held a scan's state map is diagonal, so that
                                 they are the time means of Delta_d A_dn exactly (S195); below 0, since A is
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from luthier.errors import OptionError
from luthier.host.applicable import Reason, because
from luthier.host.places.state import refuse_other_scans
from luthier.host.structure import structure_of


@torch.no_grad()
def exponents(
    step: Callable[[Tensor, int], Tensor], state: Tensor, steps: int, *, count: int | None = None
) -> Tensor:
    """(count,) exponents of `state_(t+1) = step(state_t, t)`, largest first, in natural logarithms per step.

    state: where it begins, of any shape; use float64. count: how many; None: as many as the state has numbers. Each step pushes
    `count` tangents through the map's derivative and makes them orthogonal again: the mean logarithms of what they were
    stretched by are the exponents. Raises OptionError for fewer steps than one and for a count above the state's numbers.
    """
    numbers = state.numel()
    count = numbers if count is None else count
    if steps < 1 or not 1 <= count <= numbers:
        raise OptionError(f"steps={steps}, count={count}: at least one step, and 1 to {numbers} exponents.")
    tangents = torch.eye(numbers, dtype=state.dtype, device=state.device)[:, :count]
    total = torch.zeros(count, dtype=state.dtype, device=state.device)
    for t in range(steps):

        def here(x: Tensor, t: int = t) -> Tensor:
            return step(x, t)

        def pushed(v: Tensor, here: Any = here, state: Tensor = state) -> Tensor:
            return torch.func.jvp(here, (state,), (v.view(state.shape),))[1].flatten()

        tangents, stretched = torch.linalg.qr(torch.vmap(pushed, in_dims=1, out_dims=1)(tangents))
        total += stretched.diagonal().abs().log()
        state = step(state, t)
    return (total / steps).sort(descending=True).values


@torch.no_grad()
def scan_exponents(model: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """{layer: (inner, states) exponents} of a model's selective scans on one batch, means over the tokens that are not padding.

    model: a loaded model, an `Adapted`, or the base module; what is attached takes part. Raises SiteError for a model without
    Mamba's selective scan.
    """
    base = getattr(model, "base", model)
    found: dict[str, Tensor] = {}
    mask = batch.get("attention_mask")
    with steps_of(base) as seen:
        model(batch) if hasattr(model, "adaptations") else base(**batch)
    for name, (steps, decay) in seen.items():
        kept = torch.ones(steps.shape[:2]) if mask is None else mask
        kept = kept.to(steps)[..., None]
        found[name] = (steps * kept).sum((0, 1))[:, None] / kept.sum() * decay
    return found


@contextmanager
def steps_of(base: Any) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """{layer: (Delta (rows, tokens, inner) after softplus, A (inner, states))} of the forward passes inside the block."""
    from luthier.errors import SiteError

    structure = structure_of(base)
    sites = [s for s in structure.sites if s.role == "ssm"]
    if not sites:
        raise because(
            SiteError(
                f"{structure.model} has no layer with a selective scan. Load a Mamba, or give `exponents` a map of your own."
            ),
            Reason.NO_SCAN,
        )
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = []
    for site in sites:
        mixer = base.get_submodule(site.path)
        refuse_other_scans(mixer, "scan_exponents", site.name)

        def read(module: Any, args: Any, out: Tensor, mixer: Any = mixer, name: str = site.name) -> None:
            decay = -torch.exp(mixer.A_log.float()).to(out.dtype)
            step = out[..., : -2 * decay.shape[1]]
            seen[name] = softplus(linear(step, mixer.dt_proj.weight, mixer.dt_proj.bias)), decay

        def called(module: Any, args: Any, out: Tensor, name: str = site.name) -> None:
            seen[name] = (
                softplus(out),
                seen[name][1],
            )  # where the module is called, with whatever is attached to it

        hooks += [mixer.x_proj.register_forward_hook(read), mixer.dt_proj.register_forward_hook(called)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
