"""Prompts as values: task prompt vectors, their arithmetic, and their use on other origins ("Task Prompt Vectors", 2024, S351).

T = P_t - P_0        P_t: a trained prompt or prefix, P_0: where it began    shapes: as the prompt's, at every site
P = P_0' + sum_t w_t T_t    on any origin P_0' of the same lengths, over the same base

    a, b = prompt_vector(fitted_a), prompt_vector(fitted_b)
    start = (a + b).on(origin_of(fitted_a))        # an adaptation: score it, save it, or tune it further (after=...)
    other = (0.5 * a).on(drawn_like(fitted_a, seed=7))

An origin is stored (source=from_origin, the method `task_prompt`), or drawn again from the seed on the card where the start needs
nothing but the base. Differences of several layers (deep prompts, prefixes) are added site by site.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.errors import OptionError
from luthier.host.adaptation import Adaptation
from luthier.host.options import to_card
from luthier.host.places import AttentionEdit, TokenPrompt
from luthier.sources.from_origin import FromOrigin
from luthier.sources.settle import settled

Values = dict[str, dict[str, Tensor]]
"""{site: {tensor: value}}."""


@dataclass(frozen=True)
class PromptVector:
    """What training added to a prompt. values: {site: {tensor: difference}}; base: the fingerprint of its base."""

    values: Values
    base: str

    def __mul__(self, factor: float) -> PromptVector:
        return self._each(lambda x: x * float(factor))

    __rmul__ = __mul__

    def __neg__(self) -> PromptVector:
        return self * -1.0

    def __add__(self, other: PromptVector) -> PromptVector:
        if not isinstance(other, PromptVector):
            return NotImplemented
        self.check_like(other.values, other.base)
        return PromptVector(
            {s: {k: v + other.values[s][k] for k, v in held.items()} for s, held in self.values.items()},
            self.base,
        )

    def __sub__(self, other: PromptVector) -> PromptVector:
        return self + (-other)

    def norm(self) -> float:
        """Euclidean length over all sites."""
        return float(_flat(self.values).norm())

    def cosine(self, other: PromptVector) -> float:
        """Of the angle between two vectors; NaN where one is zero."""
        self.check_like(other.values, other.base)
        return cosine(_flat(self.values), _flat(other.values))

    def random_like(self, seed: int) -> PromptVector:
        """A random vector whose every tensor has the norm of this one's: a control for arithmetic."""
        rng = torch.Generator().manual_seed(seed)

        def drawn(x: Tensor) -> Tensor:
            noise = torch.randn(x.shape, generator=rng)
            return noise * (x.norm() / noise.norm())

        return self._each(drawn)

    def on(self, origin: Prompt) -> Adaptation:
        """The adaptation whose prompt is the origin plus this vector; it keeps the two apart. Head and task are the origin's."""
        self.check_like(origin.values, origin.base)
        like = origin.like
        method = dataclasses.replace(like.method, source=FromOrigin())
        made = Adaptation.from_card({**like.card(), "method": to_card(method)}, origin.module)
        with torch.no_grad():
            for old, new in zip(like.placed(), made.placed(), strict=True):
                for a, b in zip(old.ats(), new.ats(), strict=True):
                    given = (
                        origin.values.get(a.site.name, {}) if old.part is not like.head else dict(a.values)
                    )
                    for name, value in given.items():
                        b.values[name].copy_(value)
                        if old.part is not like.head:
                            b.values[f"{name}_T"].copy_(self.values[a.site.name][name])
        made.about = {k: v for k, v in like.about.items() if k not in ("validation", "test", "rows", "steps")}
        return made

    def check_like(self, values: Values, base: str) -> None:
        """Refuse, with OptionError, prompts of another base, other sites or other lengths."""
        if base != self.base:
            raise OptionError(
                f"These prompts belong to two bases (fingerprints {self.base[:12]} and {base[:12]}). Combine prompts of one base."
            )
        mine, theirs = _shapes(self.values), _shapes(values)
        for key in {**mine, **theirs}:
            if mine.get(key) != theirs.get(key):
                raise OptionError(
                    f"These prompts differ in shape: {key[1]} at {key[0]} is {mine.get(key, 'absent')} in one and "
                    f"{theirs.get(key, 'absent')} in the other. Combine prompts of one kind and length."
                )

    def _each(self, function: Callable[[Tensor], Tensor]) -> PromptVector:
        changed = {s: {k: function(v) for k, v in held.items()} for s, held in self.values.items()}
        return PromptVector(changed, self.base)


@dataclass(frozen=True)
class Prompt:
    """A prompt's values, and the adaptation (settled: without a source) whose method, head and task it has."""

    values: Values
    base: str
    like: Adaptation
    module: Any
    """The base that the adaptation belongs to."""

    def norm(self) -> float:
        return float(_flat(self.values).norm())

    def __sub__(self, other: Prompt) -> PromptVector:
        mine = PromptVector(self.values, self.base)
        mine.check_like(other.values, other.base)
        return mine - PromptVector(other.values, other.base)


def prompt_of(fitted: Any, model: Any = None) -> Prompt:
    """The prompt that a fitted adaptation answers with. model: the base of an adaptation that is not fitted.

    OptionError for what is no prompt or prefix, or makes its prompt from the input.
    """
    adaptation, model = _both(fitted, model)
    parts = adaptation.method.parts()
    if len(parts) != 1 or not isinstance(parts[0], (TokenPrompt, AttentionEdit)):
        raise OptionError(
            f"{adaptation.method.name} is no prompt or prefix of one part: it has no prompt vector."
        )
    plain = settled(adaptation, model.base)
    held = plain.placed()[0].ats()
    values = {a.site.name: {k: v.detach().float().cpu().clone() for k, v in a.values.items()} for a in held}
    return Prompt(values, model.fingerprint, plain, model.base)


def origin_of(fitted: Any, model: Any = None) -> Prompt:
    """Where a fitted prompt began: stored, or drawn again. OptionError where neither is possible."""
    adaptation, model = _both(fitted, model)
    now = prompt_of(adaptation, model)
    if isinstance(adaptation.placed()[0].part.source, FromOrigin):
        stored = {
            a.site.name: {k: a.values[k].detach().float().cpu().clone() for k in now.values[a.site.name]}
            for a in adaptation.at()
        }
        return dataclasses.replace(now, values=stored)
    return drawn_like(adaptation, adaptation.seed, model)


def drawn_like(fitted: Any, seed: int, model: Any = None) -> Prompt:
    """An untrained prompt of the same method, as a fit with this seed begins it; head and task are the fitted one's.

    OptionError where its start needs more than the base.
    """
    adaptation, model = _both(fitted, model)
    start = adaptation.placed()[0].part.start
    if start.needs:
        raise OptionError(
            f"{adaptation.method.name} began from start={start.name}, which cannot be drawn again from its card. Train with the "
            "method task_prompt (source=from_origin), which stores its origin."
        )
    fresh = Adaptation.new(adaptation.method, model.base, head=adaptation.head, seed=seed)
    return dataclasses.replace(prompt_of(adaptation, model), values=prompt_of(fresh, model).values)


def prompt_vector(fitted: Any, model: Any = None) -> PromptVector:
    """T = P_t - P_0 of a fitted prompt. OptionError where its origin is not known."""
    return prompt_of(fitted, model) - origin_of(fitted, model)


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two tensors of one shape, flattened; NaN where one is zero."""
    size = float(a.norm() * b.norm())
    return float(a.flatten() @ b.flatten()) / size if size else math.nan


def _both(fitted: Any, model: Any) -> tuple[Adaptation, Any]:
    adaptation = getattr(fitted, "adaptation", fitted)
    model = model if model is not None else getattr(fitted, "model", None)
    if not isinstance(adaptation, Adaptation) or model is None:
        raise OptionError("Give one fitted adaptation, or an adaptation with its model (model=...).")
    return adaptation, model


def _flat(values: Values) -> Tensor:
    return torch.cat([v.flatten() for held in values.values() for v in held.values()])


def _shapes(values: Values) -> dict[tuple[str, str], tuple[int, ...]]:
    return {(s, k): tuple(v.shape) for s, held in values.items() for k, v in held.items()}
