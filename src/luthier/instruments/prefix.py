"""Does a prefix suffice for a task, or must attention change? And what a prefix can do to attention at all (S062).

In one head, content unchanged, m prefix positions with values v_j give   t'_i = sum_j A'_ij v_j + (1 - alpha_i) t_i
alpha_i = sum_j A'_ij; the content's weights keep their ratios: A'_ik / (1 - alpha_i) = A_ik. So a prefix adds a bias in the span of
its values, and cannot make one content token matter more against another, as a change of the projections can.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ModelError, OptionError

ATTENTION = "*attention.query | *attention.key | *attention.value | *attention.output"
RATES = (1 / 3, 1.0, 3.0)
"""Multiples of each method's own learning rate that are tried; the best on validation is kept."""


@dataclass(frozen=True)
class Sufficiency:
    """Scores of a prefix and of LoRA in attention with as many numbers, on the same rows and seeds."""

    prefix: dict[int, float]
    lora: dict[int, float]
    numbers: dict[str, int]
    """How many numbers each trains."""
    metric: str
    higher_is_better: bool
    margin: float
    """What the prefix may lack and still suffice."""

    @property
    def lacks(self) -> list[float]:
        """By how much LoRA is better, seed by seed."""
        sign = 1 if self.higher_is_better else -1
        return [sign * (self.lora[s] - self.prefix[s]) for s in self.prefix]

    @property
    def verdict(self) -> str:
        """`prefix suffices`, `attention must change`, or `undecided` where the interval over seeds holds the margin."""
        from luthier.papers.claims import interval

        low, high = interval(self.lacks)
        if low is None or high is None:
            return "undecided"
        return (
            "prefix suffices"
            if high <= self.margin
            else "attention must change"
            if low > self.margin
            else "undecided"
        )

    def card(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "verdict": self.verdict,
            "metric": self.metric,
            "prefix": self.prefix,
            "lora": self.lora,
            "lacks": fmean(self.lacks),
            "margin": self.margin,
            "numbers": self.numbers,
        }


def equal_methods(base: Any, rank: int = 4) -> dict[str, Any]:
    """A prefix and LoRA of this rank on all four projections of attention; the prefix is as long as keeps it at most as large.

    Raises OptionError where not even one prefix token fits.
    """
    from luthier import methods

    def numbers(method: Any) -> int:
        from luthier.host import Adaptation

        return int(Adaptation.new(method, base).counts()["method"])

    lora = methods.LoRA(rank=rank, targets=ATTENTION)
    length = numbers(lora) // numbers(methods.PTuningV2(length=1))
    if length < 1:
        raise OptionError(
            f"rank={rank}: a prefix of one token trains more numbers than LoRA of this rank. Choose a larger rank."
        )
    return {"prefix": methods.PTuningV2(length=length), "lora": lora}


def prefix_suffices(
    model: Any,
    data: Any,
    *,
    rank: int = 4,
    seeds: Iterable[int] = (0, 1, 2),
    rates: Iterable[float] = RATES,
    margin: float = 0.02,
    progress: bool = False,
    **settings: Any,
) -> Sufficiency:
    """Train both at equal numbers, each at its own best learning rate, and compare them on the test rows.

    rates: multiples of each method's own rate, tried with the first seed and chosen on validation. margin: what the prefix may
    lack. settings go to `luthier.fit`. A prefix that lacks more after all rates is evidence that the task needs an attention
    pattern that the model does not have; one that does not can be elicited. Raises OptionError for data without validation and
    test rows.
    """
    from luthier.host import Adaptation
    from luthier.train.fit import fit

    seeds, rates = list(seeds), list(rates)
    if data.validation is None or data.test is None or not seeds or not rates:
        raise OptionError("prefix_suffices needs validation and test rows, a seed and a rate at least.")
    metric = data.task.metric
    better = bool(getattr(data.task, "higher_is_better", True))
    sign = 1 if better else -1
    settings = {"evaluate_every": 1_000_000, **settings}
    found: dict[str, dict[int, float]] = {}
    chosen = equal_methods(model.base, rank)
    for name, method in chosen.items():
        fits = {
            r: fit(model, data, method, seed=seeds[0], rate=method.rate * r, progress=progress, **settings)
            for r in rates
        }
        best = max(fits, key=lambda r: sign * fits[r].score(data.validation)[metric])
        found[name] = {}
        for s in seeds:
            made = (
                fits[best]
                if s == seeds[0]
                else fit(model, data, method, seed=s, rate=method.rate * best, progress=progress, **settings)
            )
            found[name][s] = float(made.score(data.test)[metric])
    numbers = {n: int(Adaptation.new(m, model.base).counts()["method"]) for n, m in chosen.items()}
    return Sufficiency(found["prefix"], found["lora"], numbers, metric, better, margin)


@dataclass(frozen=True)
class Bias:
    """What a prefix did to the attention of one layer whose input it does not change. All are largest absolute differences."""

    alpha: Tensor
    """(tokens that are not padding, heads): attention on the prefix."""
    outside: float
    """What of t' - (1 - alpha) t lies outside the span of the prefix's values."""
    formula: float
    """t' - (1 - alpha) t against the values weighted by the attention on them."""
    ratios: float
    """The content's weights against (1 - alpha) times those without the prefix."""


@torch.no_grad()
def prefix_bias(base: Any, adaptation: Any, batch: Mapping[str, Any]) -> Bias:
    """Measure the identity at the first layer that an attention edit enters, in the base's own kind of number.

    Raises ModelError where the layer does not return its attention weights.
    """
    from luthier.host import Adapted

    adapted = Adapted(base)
    at = next(a for p in adaptation.placed() for a in p.ats() if "attention" in a.site.role)
    out = adapted.structure.partner(at.site, f"{at.site.role}.output")
    held = base.config._attn_implementation
    base.set_attn_implementation("eager")
    try:
        plain, before = _watched(adapted, at.site.path, out.path, batch)  # type: ignore[union-attr]
        with adapted.attached(adaptation):
            shown, after = _watched(adapted, at.site.path, out.path, batch)  # type: ignore[union-attr]
            ctx = adapted.open((), batch)
            t = at.t(ctx, before.dtype)
            _, values = at.part.keys_values(t, ctx)
    finally:
        base.set_attn_implementation(held)
    n, heads = values.shape[-2], plain.shape[1]
    values = values.repeat_interleave(heads // values.shape[-3], -3)  # grouped heads share keys and values
    t0, t1 = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (before, after))
    alpha = shown[..., :n].sum(-1)
    bias = t1 - (1 - alpha)[..., None] * t0
    basis = torch.linalg.qr(values.mT.double()).Q  # (heads, head_dim, n)
    outside = bias.double() - bias.double() @ basis @ basis.mT
    changed = shown[..., n:] - (1 - alpha)[..., None] * plain
    mask = batch.get("attention_mask")
    real = torch.ones_like(alpha[:, 0], dtype=torch.bool) if mask is None else mask.bool()

    def largest(x: Tensor) -> float:
        return float(x.transpose(1, 2)[real].abs().max())

    return Bias(
        alpha.transpose(1, 2)[real],
        largest(outside),
        largest(bias - shown[..., :n] @ values),
        largest(changed),
    )


def _watched(adapted: Any, attention: str, output: str, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(weights (rows, heads, tokens, keys), what enters the output projection (rows, tokens, heads * head_dim))."""
    seen: dict[str, Any] = {}
    base = adapted.base
    hooks = [
        base.get_submodule(attention).register_forward_hook(lambda m, a, out: seen.update(weights=out)),
        base.get_submodule(output).register_forward_pre_hook(lambda m, a: seen.update(states=a[0])),
    ]
    try:
        adapted({**batch, "output_attentions": True})
    finally:
        for hook in hooks:
            hook.remove()
    returned = seen["weights"] if isinstance(seen["weights"], tuple) else ()
    weights = [w for w in returned if torch.is_tensor(w) and w.dim() == 4]
    if not weights:
        raise ModelError(
            f"{type(base).__name__}: the attention at {attention} does not return its weights, which the measurement reads."
        )
    return weights[-1], seen["states"]
