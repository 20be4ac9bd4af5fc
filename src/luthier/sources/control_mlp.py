"""General and control prefixes from embeddings through one network for each kind of attention (Clive et al. 2022, "Control Prefixes", S305).

[K, V of all layers] = tanh(E W1 + b1) W2 + b2    E: rows of the general prefix, then of each label's control prefix, of one kind
Kinds: an encoder's attention, a decoder's, and a decoder's reading of its encoder. `luthier.sources.settle` folds it away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from pydantic import PositiveInt

from luthier.host.part import Source, Spec, normal, register, zeros

Wanted = Mapping[str, Mapping[str, Spec]]


def kinds(names: list[str]) -> list[list[str]]:
    """Sites that differ only in their numbers: the layers of one kind of attention."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    return list(found.values())


@register("control_mlp")
class ControlMLP(Source):
    """trained: kinds * (length * d + (d + 1) * inner) + (inner + 1) * 2 * sites * d, and kinds * control_length * d for each label"""

    inner: PositiveInt = 800  # width of the hidden layer

    def specs(self, part, site, layout, wanted):
        return {}

    def begin(self, part, site, draw):
        return {}

    def shared(self, part, wanted):
        made = {}
        for c, names in enumerate(kinds(list(wanted))):
            pairs = wanted[names[0]]
            width = max(_row(wanted[n]["K"]) for n in names)
            total = 2 * sum(_row(wanted[n]["K"]) for n in names)
            for key in _keys(pairs):
                made[f"E{key[1:]}_{c}"] = Spec((pairs[key].shape[1], width), normal(1.0))
            made[f"W1_{c}"] = Spec((width, self.inner), normal(width**-0.5))
            made[f"b1_{c}"] = Spec((self.inner,), zeros)
            made[f"W2_{c}"] = Spec((self.inner, total), normal(0.02))
            made[f"b2_{c}"] = Spec((total,), zeros)
        return made

    def prepare(self, part, t, wanted, ctx):
        out = {}
        for c, names in enumerate(kinds(list(wanted))):
            keys = _keys(wanted[names[0]])
            rows = torch.cat([t[f"E{key[1:]}_{c}"] for key in keys])
            lengths = [wanted[names[0]][key].shape[1] for key in keys]
            made = torch.tanh(rows @ t[f"W1_{c}"] + t[f"b1_{c}"]) @ t[f"W2_{c}"] + t[f"b2_{c}"]
            start = 0
            for name in names:
                heads, _, dim = wanted[name]["K"].shape
                for which in ("K", "V"):
                    piece = made[:, start : start + heads * dim].unflatten(-1, (heads, dim)).transpose(0, 1)
                    for key, rows in zip(keys, piece.split(lengths, 1), strict=True):
                        out[name, which + key[1:]] = rows
                    start += heads * dim
        return out

    def make(self, part, site, t, ctx, made=None):
        return {key: value for (name, key), value in made.items() if name == site.name}


def _keys(specs: Mapping[str, Spec]) -> list[str]:
    """K of the general prefix, then K0, K1, ... of the attributes."""
    return [name for name in specs if name.startswith("K")]


def _row(spec: Spec) -> int:
    """Numbers in the keys of one token."""
    return spec.shape[0] * spec.shape[2]
