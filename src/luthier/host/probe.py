"""Probing: which modules the loss reaches, which attached sites change the output, and which entries cannot matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import SiteError
from luthier.host.adaptation import Adaptation, site_parameters
from luthier.host.adapted import Adapted, terms
from luthier.host.applicable import Reason, because
from luthier.host.part import Part
from luthier.host.places import Subset
from luthier.host.structure import KEY


def reached(base: nn.Module, loss: Callable[[], Tensor]) -> set[str]:
    """Paths of modules with a parameter that `loss()` depends on; one forward and backward, gradients are given back."""
    parameters = list(base.parameters())
    flags, grads = [p.requires_grad for p in parameters], [p.grad for p in parameters]
    try:
        for p in parameters:
            p.grad = None
            p.requires_grad_(p.is_floating_point())
        with torch.enable_grad():
            loss().backward()
        return {
            n for n, m in base.named_modules() if any(p.grad is not None for p in m.parameters(recurse=False))
        }
    finally:
        for p, flag, grad in zip(parameters, flags, grads, strict=True):
            p.grad = None
            p.requires_grad_(flag)
            p.grad = grad


class _Probe:
    """Adds a zero with a gradient to what a module returns, and remembers whether it was called."""

    def __init__(self) -> None:
        self.zero: Tensor | None = None

    def hook(self, module: Any, args: Any, out: Any) -> Any:
        h = out[0] if isinstance(out, tuple) else out
        if self.zero is None:
            self.zero = torch.zeros((), dtype=h.dtype, device=h.device, requires_grad=True)
        # constant along no dimension: norms see it (of channels too), and softmax sees a change of keys
        wave = torch.cos(torch.arange(h[:1].numel(), device=h.device)).view(h[:1].shape)
        h = h + self.zero * wave.to(h.dtype)
        return (h, *out[1:]) if isinstance(out, tuple) else h


def dead_sites(adapted: Adapted, name: str, batch: Mapping[str, Any]) -> list[str]:
    """Sites of `name` whose module the forward bypasses, or whose output nothing reads: an edit there does nothing."""
    held: dict[int, list[str]] = {}  # a weight that several modules have acts through any of them
    for path, module in adapted.base.named_modules():
        if torch.is_tensor(weight := getattr(module, "weight", None)):
            held.setdefault(id(weight), []).append(path)
    tied = {path for paths in held.values() if len(paths) > 1 for path in paths}
    wanted = {
        at.site.path: at.site.name
        for _, term in terms(adapted.adaptations[name])
        for placed in term.placed()
        for at in placed.ats()
        if at.site.role not in ("output", "embedding")
        and at.site.path
        and hasattr(adapted.base.get_submodule(at.site.path), "weight")
        and at.site.path not in tied
    }
    probes = {path: _Probe() for path in wanted}
    handles = [adapted.base.get_submodule(p).register_forward_hook(probe.hook) for p, probe in probes.items()]
    try:
        with torch.enable_grad(), adapted.using(name):
            out = adapted(batch)
            y = out.logits if out.logits is not None else out.hidden
            assert y is not None
            if y.requires_grad:  # else the forward has called no probed module at all
                weights = 1 + 0.5 * torch.cos(torch.arange(y.numel(), device=y.device)).view(y.shape)
                (weights * y.float().pow(2)).sum().backward()  # weighed: of unit vectors the sum is constant
    finally:
        for h in handles:
            h.remove()
        for p in adapted.parameters():
            p.grad = None
    return [
        wanted[path]
        for path, probe in probes.items()
        if probe.zero is None or probe.zero.grad is None or float(probe.zero.grad) == 0
    ]


def cannot_matter(adaptation: Adaptation, base: nn.Module) -> list[str]:
    """Trained tensors that have no effect whatever their values: a key bias shifts all scores of a query alike, and softmax
    does not see it. They are reported, not refused: they belong to what the method says it trains (`Part.idle` says others)."""
    found = []
    for i, placed in enumerate(adaptation.placed()):
        if isinstance(placed.part, Subset):
            keys = [a for a in placed.ats() if a.site.role.endswith("attention.key") and "bias" in a.values]
            found += [f"parts.{i}.at.{a.key}.values.bias" for a in keys]
        for a in placed.ats() if type(placed.part).idle is not Part.idle else ():
            idle = placed.part.idle(a.site, site_parameters(base, a.site))
            found += [f"parts.{i}.at.{a.key}.values.{name}" for name in idle if name in a.values]
        for name, module in placed.network.named_modules() if placed.network is not None else ():
            if KEY.match(name.rpartition(".")[2]) and getattr(module, "bias", None) is not None:
                found.append(f"parts.{i}.network.{name}.bias")
    return found


def refuse_dead(adapted: Adapted, name: str, batch: Mapping[str, Any]) -> None:
    """Raise SiteError where an attached site does nothing."""
    if dead := dead_sites(adapted, name, batch):
        raise because(
            SiteError(
                f"{len(dead)} sites do not change the output of {adapted.structure.model}, first {dead[0]}: the model bypasses these modules. "
                "Choose other targets. See: luthier sites MODEL."
            ),
            Reason.BYPASSED,
        )
