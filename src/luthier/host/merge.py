"""Merging: folding an adaptation into weights, and giving the old ones back bitwise."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from luthier.errors import ModelError, OptionError
from luthier.host.applicable import Reason, because
from luthier.host.context import CURRENT, Context
from luthier.host.part import Part

if TYPE_CHECKING:
    from luthier.host.adapted import Adapted


def mergeable(part: Part) -> bool:
    """Whether a part is a change of weights that can be folded in."""
    from luthier.host.places import Subset, WeightEdit

    return isinstance(part, Subset) or (
        isinstance(part, WeightEdit) and (part.delta is not None or part.delta_bias is not None)
    )


@torch.no_grad()
def merge(adapted: Adapted, name: str, given: Mapping[str, Any]) -> None:
    """Give every site of `name` a new Parameter with the change folded in; heads stay attached. A layer without a bias gets one where
    the change has any, until `unmerge`.

    given: one row of whatever the adaptation's source needs (task, text). The kept originals make `unmerge` exact, and a tied weight is not written twice. Non-finite results raise and change nothing.
    """
    from luthier.host.adapted import terms
    from luthier.host.places import Subset
    from luthier.host.places.weight import tied

    if name not in adapted.adaptations:
        raise OptionError(
            f"No adaptation named {name!r} is attached. There are: {', '.join(adapted.adaptations) or 'none'}."
        )
    if name in adapted.merged:
        raise OptionError(f"{name!r} is merged already.")
    refuse_parts(adapted.base)
    parts = [
        p for _, term in terms(adapted.adaptations[name]) for p in term.placed() if p not in adapted.heads
    ]
    for placed in parts:
        if not mergeable(placed.part):
            raise because(
                ModelError(
                    f"{placed.part.name} is not a change of weights: it cannot merge. Keep it attached instead."
                ),
                Reason.NOT_A_WEIGHT,
            )
    # values that replace a weight come before changes that are added to it, as in a forward
    parts.sort(key=lambda placed: not isinstance(placed.part, Subset))
    ctx = Context(wire=adapted.wire, active=(name,), given=dict(given))
    for placed in parts:
        ctx.made[placed.key] = placed.prepare(ctx)
    new: dict[str, dict[str, torch.Tensor]] = {}
    token = CURRENT.set(ctx)
    try:
        for placed in parts:
            for at in placed.ats():
                part: Any = at.part
                others = tied(adapted.base, at.site.path) if part.owns_parameters else []
                for path in [at.site.path, *others]:
                    module = adapted.base.get_submodule(path)
                    now = new.get(path) or dict(module.named_parameters(recurse=False))
                    new[path] = part.parameters(at, module, now, ctx)
    finally:
        CURRENT.reset(token)
    for path, tensors in new.items():
        for key, value in tensors.items():
            if not torch.isfinite(value).all():
                raise ModelError(
                    f"Merging {name!r} would make {path}.{key} infinite or NaN; nothing was merged."
                )
    kept: dict[str, dict[str, nn.Parameter | None]] = {}
    shared: dict[int, list[nn.Parameter]] = {}
    for path, tensors in new.items():
        module = adapted.base.get_submodule(path)
        for key, value in tensors.items():
            old = module._parameters[key]
            if value is not old:
                kept.setdefault(path, {})[key] = old
                dtype = value.dtype if old is None else old.dtype
                made = nn.Parameter(value.detach().to(dtype).clone(), requires_grad=False)
                # modules that shared the old parameter and change alike go on sharing
                same = [] if old is None else shared.setdefault(id(old), [])
                alike = [p for p in same if torch.equal(p, made)]
                same.append(made)
                module._parameters[key] = alike[0] if alike else made
    adapted.merged[name] = kept
    for path, replaced in kept.items():
        adapted.ports[path].kept[name] = replaced


def refuse_parts(base: nn.Module) -> None:
    """A base of which each of several processes holds a part has no weights to fold anything into. ModelError."""
    if any(hasattr(p, "to_local") for p in base.parameters()):
        raise ModelError(
            "The base is sharded over several processes: load the adaptation on a whole base to merge it."
        )


def merged_copy(base: nn.Module, adaptation: Any, *, head: bool = True, **given: Any) -> nn.Module:
    """A copy of `base` with the adaptation folded into its weights: a plain module, or, where there is an output head, the
    copy with the head attached, called as `module(batch).logits`. head=False leaves it out: always a plain module. The base
    itself is untouched."""
    from luthier.host.adapted import Adapted

    refuse_parts(base)
    made = Adapted(copy.deepcopy(base))
    made.attach("merged", copy.deepcopy(adaptation))
    made.merge("merged", **given)
    if made.heads and head:
        return made.eval()
    made.merged = {}  # nothing to give back: the copy keeps its new weights
    made.detach("merged")
    return made.base


def unmerge(adapted: Adapted, name: str) -> None:
    """Put the original parameters back. Merges are undone in any order only if they share no weight."""
    if name not in adapted.merged:
        raise OptionError(f"{name!r} is not merged.")
    names = list(adapted.merged)
    for later in names[names.index(name) + 1 :]:
        if shared := set(adapted.merged[later]) & set(adapted.merged[name]):
            raise OptionError(
                f"{later!r} was merged after {name!r} into {sorted(shared)[0]}: unmerge {later!r} first."
            )
    for path, tensors in adapted.merged.pop(name).items():
        adapted.ports[path].kept.pop(name, None)
        module = adapted.base.get_submodule(path)
        for key, old in tensors.items():
            module._parameters[key] = old
