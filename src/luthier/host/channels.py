"""How large each channel is at some sites, class by class, over rows of a task: which channels a task uses (S026)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.host.adapted import Adapted
from luthier.host.functional import first
from luthier.host.sites import Site

CLASS_TOKENS = frozenset({"cls_token", "class_embedding", "class_token"})


class _Sums:
    """Squares of one site's outputs, summed by class: (classes, width)."""

    def __init__(self, adapted: Adapted, site: Site, stream: bool):
        self.adapted, self.site, self.stream = adapted, site, stream
        self.classes = torch.zeros(0, dtype=torch.long)
        self.sums = torch.zeros(0, site.out_features, dtype=torch.float64)
        self.entered: Tensor | None = None
        tower = next((t for t in adapted.structure.towers if t.name == site.tower), None)
        self.embeds = tower is not None and tower.embedding is not None and tower.reads is None
        entry = adapted.base.get_submodule(tower.entry) if tower is not None else adapted.base
        names = {n.rpartition(".")[2] for n, _ in entry.named_parameters()}
        self.first = 1 if not self.embeds and names & CLASS_TOKENS else 0

    def enter(self, module: Any, args: tuple, kwargs: dict) -> None:
        self.entered = first(args, kwargs)

    def exit(self, module: Any, args: Any, out: Any) -> None:
        h = out[0] if isinstance(out, tuple) else out
        if self.stream and self.entered is not None:
            h = h + self.entered
        h = h[..., slice(*self.site.rows)] if self.site.rows else h
        squares = h.double().square().flatten(1, -2)  # (rows, tokens, width)
        ctx = self.adapted.context()
        mask = ctx.mask if ctx is not None and self.embeds else None
        if mask is not None and mask.shape == squares.shape[:2]:
            squares = squares * mask[..., None]
        own = squares[:, self.first :].sum(1).cpu()
        if (more := int(self.classes.max()) + 1 - len(self.sums)) > 0:
            self.sums = torch.cat([self.sums, self.sums.new_zeros(more, own.shape[-1])])
        self.sums.index_add_(0, self.classes, own)


@torch.no_grad()
def class_norms(
    adapted: Adapted,
    sites: Sequence[Site],
    batches: Iterable[tuple[Tensor, Mapping[str, Any]]],
    *,
    stream: bool = False,
) -> dict[str, Tensor]:
    """{site: (width,)}: the L2 norm of every channel over a class's rows and tokens, a mean over the classes that occur.

    batches: ((rows,) class numbers, batch). Padding and the class token of images are left out. stream: of what enters the site's block
    plus what the site returns, the residual stream behind an attention, instead of what it returns.
    """
    each = {s.name: _Sums(adapted, s, stream) for s in sites}
    handles = []
    for s in sites:
        sums = each[s.name]
        handles.append(adapted.base.get_submodule(s.path).register_forward_hook(sums.exit))
        block = adapted.structure.partner(s, "block") if stream else None
        if block is not None:
            module = adapted.base.get_submodule(block.path)
            handles.append(module.register_forward_pre_hook(sums.enter, with_kwargs=True))
    seen: set[int] = set()
    try:
        with adapted.using():
            for classes, batch in batches:
                for sums in each.values():
                    sums.classes = classes
                seen |= set(classes.tolist())
                adapted(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: s.sums[sorted(seen)].sqrt().mean(0) for name, s in each.items()}
