"""The bridge into attention: Transformers' attention interface with its mask function, on the model's own copy of its config."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.host.applicable import Reason, because
from luthier.host.context import CURRENT, under_way

if TYPE_CHECKING:
    from luthier.host.adapted import Adapted
    from luthier.host.placed import At, Placed
    from luthier.host.sites import Site

PREFIX = "luthier_"


@dataclass(frozen=True)
class Attended:
    """What one layer's attention read. q: (rows, heads, tokens, dim); k, v: (rows, kv heads, length, dim)."""

    module: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    """bool, or what is added to the scores: (rows or 1, heads or 1, tokens, length); None: everything is seen."""
    scaling: float
    """What the scores are multiplied by: usually dim ** -0.5, 1 in T5."""
    position_bias: Tensor | None = None
    """Added to the scores besides the mask."""

    def log_mass(self) -> Tensor:
        """(rows, heads, tokens): log sum exp of the scores that attention put through its softmax; hugely negative where
        nothing is seen. In float32 or more; the scores of one layer are held at once, as unfused attention holds them."""
        return torch.logsumexp(self.scores()[0], -1)

    def weights(self) -> Tensor:
        """(rows, heads, tokens, length): the map of attention, in float32 or more; zero where nothing is seen."""
        scores, hidden = self.scores()
        weights = torch.softmax(scores, -1)
        return weights if hidden is None else weights.masked_fill(hidden, 0.0)

    def scores(self) -> tuple[Tensor, Tensor | None]:
        """(rows, heads, tokens, length) as the softmax gets them, and which of them are hidden."""
        work = torch.promote_types(self.q.dtype, torch.float32)
        kv = self.k.shape[1]
        q = self.q.to(work).unflatten(1, (kv, -1)) * self.scaling
        scores = (q @ self.k.to(work).mT[:, :, None]).flatten(1, 2)
        if self.position_bias is not None:
            scores = scores + self.position_bias
        if self.mask is not None:
            hidden = ~self.mask if self.mask.dtype == torch.bool else self.mask <= LEAST
            scores = scores if self.mask.dtype == torch.bool else scores + self.mask
            return scores.masked_fill(hidden, torch.finfo(work).min / 2), hidden
        return scores, None


LEAST = -1e4
"""A mask that adds this or less hides a key; masks in half precision add no less than -65,504."""


class AttentionPort:
    """What is attached to one attention module, and the implementation that it had."""

    def __init__(self, inner: str, path: str):
        self.inner, self.path = inner, path
        self.edits: list[At] = []
        self.distances: nn.Module | None = None
        """What computes the bias of its scores that depends on distance, where a part asked for it."""

    def active(self) -> list[tuple[At, Any]]:
        return [(a, c) for a, c in under_way(self.edits) if a.placed.owner in c.active]


def bridge(placed: Placed, adapted: Adapted) -> Iterator[Any]:
    """Route a part's attention modules through the bridge; yields what undoes it."""
    yield from bridged([(at, at.site) for at in placed.ats()], adapted)


def bridged(places: Sequence[tuple[At, Site]], adapted: Adapted) -> Iterator[Any]:
    """The same for what is attached elsewhere: each with the attention that it belongs to."""
    configs = {id(c): c for m in adapted.base.modules() if (c := getattr(m, "config", None)) is not None}
    for at, site in places:
        module = adapted.base.get_submodule(site.path)
        config = getattr(module, "config", None)
        if config is None or getattr(config, "_attn_implementation", None) is None:
            raise because(
                ModelError(
                    f"{at.part.name} needs attention that goes through Transformers' attention interface; {type(module).__name__} does not. "
                    "Choose a prompt, adapter or low-rank method instead."
                ),
                Reason.NO_INTERFACE,
            )
        if not site.head_dim:
            raise because(
                ModelError(
                    f"{at.part.name}: the width of a head is not known at {site.name}. Choose another method for this model."
                ),
                Reason.NO_HEAD_WIDTH,
            )
        port = adapted.attention.get(site.path)
        if port is None:
            port = adapted.attention[site.path] = AttentionPort(
                config._attn_implementation.removeprefix(PREFIX), site.path
            )
            module.__dict__["luthier_port"] = port
        port.edits.append(at)
        yield Unported(adapted, at, site.path)
    if not adapted.configs:
        adapted.configs = {
            key: (c, _bridged(c)) for key, c in configs.items() if getattr(c, "_attn_implementation", None)
        }
        _exchange(adapted.base, {id(old): new for old, new in adapted.configs.values()})
    adapted.bridges += 1
    yield Unbridged(adapted)


class Unported:
    def __init__(self, adapted: Adapted, at: At, path: str):
        self.adapted, self.at, self.path = adapted, at, path

    def remove(self) -> None:
        port = self.adapted.attention[self.path]
        port.edits = [a for a in port.edits if a is not self.at]
        if not port.edits:
            del self.adapted.attention[self.path]
            self.adapted.base.get_submodule(self.path).__dict__.pop("luthier_port", None)


class Unbridged:
    """Gives the model its own config back when the last attention edit leaves."""

    def __init__(self, adapted: Adapted):
        self.adapted = adapted

    def remove(self) -> None:
        self.adapted.bridges -= 1
        if not self.adapted.bridges:
            _exchange(self.adapted.base, {id(new): old for old, new in self.adapted.configs.values()})
            self.adapted.configs = {}


def _exchange(base: nn.Module, replace: dict[int, Any]) -> None:
    for m in base.modules():
        config = m.__dict__.get("config")
        if config is not None and id(config) in replace:
            m.__dict__["config"] = replace[id(config)]


def _bridged(config: Any) -> Any:
    """A copy of a config that names our attention and mask functions; the user's object is not touched."""
    inner = config._attn_implementation.removeprefix(PREFIX)
    _register(inner)
    new = copy.copy(config)
    new._attn_implementation_internal = PREFIX + inner
    if new._attn_implementation != PREFIX + inner:
        new._attn_implementation = PREFIX + inner
    return new


def _register(inner: str) -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(PREFIX + inner, luthier_attention)
    AttentionMaskInterface.register(PREFIX + inner, MaskFunction(inner))


class MaskFunction:
    """The inner mask function, asked for an explicit mask where prefixes must be told from the causal part."""

    def __init__(self, inner: str):
        self.inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        ctx = CURRENT.get()
        if ctx is not None and any(k.startswith("attention:") for k in ctx.made):
            kwargs["allow_is_causal_skip"] = False
        return ALL_MASK_ATTENTION_FUNCTIONS[self.inner](*args, **kwargs)


def _inner(module: nn.Module, name: str) -> Callable:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


def luthier_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Any]:
    """Attention of one layer with its attached edits. q: (rows, heads, tokens, dim); k, v: (rows, kv heads, length, dim)."""
    port: AttentionPort | None = module.__dict__.get("luthier_port")
    if port is None:
        name = module.config._attn_implementation.removeprefix(PREFIX)  # type: ignore[union-attr,operator]
        return _inner(module, name)(module, q, k, v, mask, **kwargs)
    on = port.active()
    for at, ctx in on:
        if getattr(at.part, "keys_values", None) is None:
            continue
        pk, pv = (
            x.to(k.dtype).expand(len(k), *x.shape[-3:]) for x in at.part.keys_values(at.t(ctx, k.dtype), ctx)
        )  # type: ignore[attr-defined]
        n = pk.shape[-2]
        if not n:
            continue
        if at.placed.scale != 1.0:
            raise because(
                ModelError(
                    f"{at.part.name} has no additive effect: it cannot be scaled by {at.placed.scale}."
                ),
                Reason.NOT_ADDITIVE,
            )
        k, v = torch.cat([pk, k], -2), torch.cat([pv, v], -2)
        mask = _lengthened(module, mask, q, k, n, ctx.rows.get(at.placed.owner))
        bias = kwargs.get("position_bias")
        if bias is not None:
            kwargs["position_bias"] = torch.cat([_bias_of_prefix(port, at.part, bias, n), bias], -1)
    out, weights = _inner(module, port.inner)(module, q, k, v, mask, **kwargs)
    for at, ctx in on:
        if getattr(at.part, "sees_attention", False):  # an edit of what the closing projection returns
            ctx.attended = port.path, _attended(module, q, k, v, mask, kwargs)
        if getattr(at.part, "attend", None) is not None:
            seen = _attended(module, q, k, v, mask, kwargs)
            out = at.blend(at.part.attend(seen, out, at.t(ctx, k.dtype), ctx), out, ctx)
    return out, weights


def _bias_of_prefix(port: AttentionPort, part: Any, bias: Tensor, n: int) -> Tensor:
    """(1, heads, tokens, n): none, or that of n keys right in front of those that the bias is for."""
    if not part.in_front() or port.distances is None:
        return bias.new_zeros(*bias.shape[:-1], n)
    tokens, keys = bias.shape[-2], n + bias.shape[-1]
    whole = port.distances.compute_bias(tokens, keys, bias.device, past_seen_tokens=keys - tokens)  # type: ignore[operator]
    return whole[..., :n].to(bias.dtype).expand(len(bias), -1, -1, -1)


def _attended(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> Attended:
    """What an edit of the output is told. Raises where scores are more than products, a bias and a mask."""
    name = type(module).__name__
    if odd := [a for a in ("softcap", "s_aux") if kwargs.get(a) is not None]:
        raise ModelError(
            f"{name} bends its attention scores ({odd[0]}), which an edit of attention's output does not know. Choose key/value prefixes."
        )
    causal = getattr(module, "is_causal", False) and mask is None and q.shape[-2] > 1
    if causal or (mask is not None and mask.dim() != 4):
        raise ModelError(
            f"{name} gave attention no explicit mask over queries and keys, which an edit of its output reads. Use attn_implementation='sdpa'."
        )
    scaling = kwargs.get("scaling")
    scaling = q.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return Attended(module, q, k, v, mask, scaling, kwargs.get("position_bias"))


def _lengthened(
    module: nn.Module, mask: Tensor | None, q: Tensor, k: Tensor, n: int, rows: Tensor | None
) -> Tensor | None:
    """The mask with n more columns in front: seen by every query of the rows that are served."""
    if mask is None:
        if getattr(module, "is_causal", False) and q.shape[-2] > 1:
            raise ModelError(
                f"{type(module).__name__} gave attention no explicit causal mask: key/value prefixes would shift it. Use attn_implementation='sdpa'."
            )
        if rows is None:
            return None
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=q.device).expand(
            len(q), 1, q.shape[-2], k.shape[-2] - n
        )
    if mask.dim() == 2:  # flash attention: a padding mask
        seen = torch.ones(len(q), n, dtype=mask.dtype, device=mask.device)
        return torch.cat([seen if rows is None else seen * rows[:, None], mask], -1)
    served = torch.ones(len(q), dtype=torch.bool, device=q.device) if rows is None else rows
    seen = served[:, None, None, None].expand(len(q), 1, mask.shape[-2], n)
    mask = mask.expand(len(q), -1, -1, -1)
    if mask.dtype != torch.bool:
        seen = mask.new_zeros(seen.shape).masked_fill(~seen, torch.finfo(mask.dtype).min)
    if mask.shape[1] != 1:
        seen = seen.expand(-1, mask.shape[1], -1, -1)
    return torch.cat([seen, mask], -1)
