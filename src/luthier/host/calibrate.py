"""Statistics of activations for starts that need them: one pass over some batches without gradients.

What stands on padding is left out. Sites that receive one tensor (query, key, value) are gathered once and share the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ModelError, OptionError, SiteError
from luthier.host.adapted import Adapted
from luthier.host.context import Context
from luthier.host.functional import first
from luthier.host.sites import Site

Statistic = Callable[[Any, Tensor], Any]
"""(state so far or None, (tokens, in)) -> state, a new one. With an attribute `answers_only` it is not shown tokens whose label
is ignored."""


def input_moment(state: Tensor | None, x: Tensor) -> Tensor:
    """Sum of x x^T over tokens: (in, in), in double."""
    now = x.T.double() @ x.double()
    return now if state is None else state + now


def input_mean(state: Any, x: Tensor) -> Any:
    """(sum of x, number of tokens)."""
    total, n = (0, 0) if state is None else state
    return total + x.double().sum(0), n + len(x)


STATISTICS: dict[str, Statistic] = {"input_moment": input_moment, "input_mean": input_mean}


class _Pass:
    """One pass: which site gathers what, and which sites receive the same tensor as another."""

    def __init__(self, adapted: Adapted, asked: Mapping[str, Statistic]):
        self.adapted, self.asked = adapted, asked
        self.found: dict[str, dict[str, Any]] = {}
        self.same: dict[str, str] = {}
        """{site: the one that gathers for it}."""
        self.now: dict[int, tuple[Tensor, str]] = {}
        """Inputs of the forward under way, held so that no id is given out twice: {id: (input, the site that took it)}."""

    def take(self, site: Site, x: Tensor) -> None:
        """What one site receives in one call."""
        taken = self.now.get(id(x))
        if taken is not None and taken[1] != site.name and site.name not in self.found:
            self.same[site.name] = taken[1]
            return
        if site.name in self.same:
            raise ModelError(
                f"{site.name} received the same as {self.same[site.name]} and now does not: its statistics can't be gathered."
            )
        self.now[id(x)] = x, site.name
        ctx = self.adapted.context()
        mine = self.found.setdefault(site.name, {})
        for name, update in self.asked.items():
            seen = _tokens(x, ctx, site, self.adapted, bool(getattr(update, "answers_only", False)))
            if len(seen):
                mine[name] = update(mine.get(name), seen)

    def values(self, sites: Iterable[Site]) -> dict[str, dict[str, Any]]:
        return {s.name: dict(self.found.get(self.same.get(s.name, s.name), {})) for s in sites}


class _Hook:
    def __init__(self, site: Site, into: _Pass):
        self.site, self.into = site, into

    def __call__(self, module: Any, args: tuple, kwargs: dict) -> None:
        self.into.take(self.site, first(args, kwargs))


def _tokens(x: Tensor, ctx: Context | None, site: Site, adapted: Adapted, answers_only: bool) -> Tensor:
    """(tokens, in) of x: (rows, tokens, in) or (..., in), without padding."""
    flat = x.detach().reshape(-1, x.shape[-1])
    if ctx is None or x.dim() < 2:
        return flat
    reads = any(t.name == site.tower and t.reads for t in adapted.structure.towers)
    own = reads and not site.role.startswith(("cross_attention.key", "cross_attention.value"))
    labels = ctx.labels if torch.is_tensor(ctx.labels) and ctx.labels.dim() == 2 else None
    keep = None if own or ctx.mask is None else ctx.mask.bool()
    if labels is not None and (own or (answers_only and ctx.causal)):
        answer = labels != -100
        keep = answer if keep is None or keep.shape != answer.shape else keep & answer
    if keep is None or keep.numel() != len(flat) or (x.dim() > 2 and keep.shape != x.shape[:2]):
        return flat
    return flat[keep.reshape(-1).to(flat.device)]


@torch.no_grad()
def calibrate(
    adapted: Adapted,
    sites: Iterable[Site],
    needs: Sequence[str] | Mapping[str, Statistic | None],
    batches: Iterable[Mapping[str, Any]],
    enough: Callable[[Mapping[str, Mapping[str, Any]]], bool] | None = None,
    *,
    body: bool = False,
) -> dict[str, dict[str, Any]]:
    """{site: {statistic: value}} of the base's own activations over some batches.

    needs: names of what is known here (`STATISTICS`), or names with functions of their own. enough: asked after every batch,
    with what was found so far; true ends the pass. body: only up to the hidden states that a head reads. OptionError for a name
    that nobody knows, SiteError for sites that receive nothing.
    """
    named = dict.fromkeys(needs) if not isinstance(needs, Mapping) else dict(needs)
    if unknown := [n for n, own in named.items() if own is None and n not in STATISTICS]:
        raise OptionError(f"No statistic is called {unknown[0]!r}. There are: {', '.join(STATISTICS)}.")
    sites = list(sites)
    gathers = _Pass(adapted, {n: own or STATISTICS[n] for n, own in named.items()})
    handles = [
        adapted.base.get_submodule(s.path).register_forward_pre_hook(_Hook(s, gathers), with_kwargs=True)
        for s in sites
    ]
    try:
        with adapted.using():
            for batch in batches:
                gathers.now.clear()
                adapted(batch, body=body)
                if enough is not None and enough(gathers.values(sites)):
                    break
    finally:
        for h in handles:
            h.remove()
    found = gathers.values(sites)
    if idle := [name for name, own in found.items() if own.keys() != named.keys()]:
        raise SiteError(
            f"{len(idle)} of {len(sites)} sites receive nothing from the rows that statistics are gathered on, first {idle[0]}. "
            "Choose other targets, or other rows."
        )
    return found
