"""LoKr to and from peft's LOKR: (alpha / r) (w1 kron w2), w2 = w2_a w2_b.

peft keeps w2 whole where r is at least half its larger side: to peft the product is written there, and on the way back a whole w2 is
a product with the identity. A w1 that is itself a product (decompose_both) is multiplied out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from luthier.convert.folder import CONFIG, PREFIX, Folder, number
from luthier.convert.names import exactly
from luthier.convert.parts import Imported, Piece
from luthier.convert.whole import plain, read, whole
from luthier.errors import FileFormatError, ModelError
from luthier.host.sites import Site
from luthier.sources.kronecker import Split, divisor, split

READ = frozenset(
    {
        "r", "alpha", "rank_dropout", "module_dropout", "rank_dropout_scale", "use_effective_conv2d", "decompose_both", "decompose_factor",
    }
)  # fmt: skip
W1, W1A, W1B, W2, W2A, W2B = (
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
)  # fmt: skip


def theirs(side: int, factor: int) -> int:
    """The left factor's size along a side, as peft divides it: `factor` where it divides the side, else never above the square root."""
    if factor and side % factor == 0:
        return factor
    return divisor(side, min(factor or side, isqrt(side)))


def is_whole(s: Split, rank: int) -> bool:
    """Whether peft keeps the right factor as one matrix."""
    return rank >= max(s.b1, s.b2) / 2


def to_config(pieces: Sequence[Piece], base: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """peft's configuration and tensors."""
    found = whole(pieces, base, "LOKR", linear=True)
    part: Any = pieces[0].part
    tensors: dict[str, Tensor] = {}
    for path, (site, t) in found.items():
        s = split(site.out_features, site.in_features, part.factor, part.factor)
        if (s.a1, s.a2) != (theirs(site.out_features, part.factor), theirs(site.in_features, part.factor)):
            raise ModelError(
                f"lokr: factor={part.factor} divides {site.name} as ({s.a1}, {s.a2}), and peft's LOKR divides it otherwise. Train with a "
                "factor that divides both sides, or with factor=0."
            )
        right = {W2: t["B"] @ t["A"]} if is_whole(s, part.rank) else {W2A: t["B"], W2B: t["A"]}
        tensors |= {f"{PREFIX}{path}.{k}": v for k, v in {W1: t["C"], **right}.items()}
    config = {
        "peft_type": "LOKR", "r": part.rank, "alpha": plain(part.alpha), "decompose_both": False, "decompose_factor": part.factor or -1,
        "rank_dropout": 0.0, "module_dropout": 0.0, "init_weights": True, "target_modules": exactly(base, list(found)),
    }  # fmt: skip
    return config, tensors


def from_folder(folder: Folder, base: nn.Module, drop: frozenset[str]) -> Imported:
    """The LoKr that a folder describes. FileFormatError for what it cannot be exactly."""
    from luthier.methods.kronecker.lokr import LoKr

    was = read(folder, base, drop, READ, (W1A, W1B, W1, W2A, W2B, W2))
    peft_rank, alpha = int(number(folder.config, "r", 8, least=1)), number(folder.config, "alpha", 8)
    splits = {}
    for site in was.sites:
        shapes = was.shapes(folder, site)
        left = shapes.get(W1) or (*shapes.get(W1A, ())[:1], *shapes.get(W1B, ())[1:])
        sides = (site.out_features, site.in_features)
        if len(left) != 2 or any(a < 1 or n % a for a, n in zip(left, sides, strict=True)):
            raise FileFormatError(
                f"The tensors at {site.name} are {shapes}, whose left factor does not divide this model's {sides}: it is another base."
            )
        s = splits[site.name] = Split(*left, sides[0] // left[0], sides[1] // left[1])
        first = {W1: left} if W1 in shapes else {W1A: (left[0], peft_rank), W1B: (peft_rank, left[1])}
        right = {W2: (s.b1, s.b2)} if W2 in shapes else {W2A: (s.b1, peft_rank), W2B: (peft_rank, s.b2)}
        was.check(folder, site, {**first, **right})
    rank = max(
        min(splits[s.name].b1, splits[s.name].b2) if W2 in was.keys[s.name] else peft_rank for s in was.sites
    )
    narrow = min(was.sites, key=lambda s: min(splits[s.name].b1, splits[s.name].b2))
    if rank > min(splits[narrow.name].b1, splits[narrow.name].b2):
        raise FileFormatError(
            f"The right factors need the rank {rank}, which is above the smaller side of that at {narrow.name}, and luthier's lokr has one "
            "rank for all modules. Merge it in peft, or train it on modules of one size, or with a smaller r."
        )

    def fill(found: Mapping[str, Tensor]) -> dict[tuple[int, str, str], Tensor]:
        out = {}
        for site in was.sites:
            t = {k: found[v] for k, v in was.keys[site.name].items()}
            b, a = _pair(t[W2]) if W2 in t else (t[W2A], t[W2B])
            out[0, site.name, "C"] = t[W1] if W1 in t else t[W1A] @ t[W1B]
            out[0, site.name, "B"] = torch.cat([b, b.new_zeros(len(b), rank - b.shape[1])], 1)
            out[0, site.name, "A"] = torch.cat([a, a.new_zeros(rank - len(a), a.shape[1])], 0)
        return out

    method = LoKr(
        rank=rank, alpha=alpha / peft_rank * rank, factor=_factor(folder, was.sites, splits), targets=was.targets
    )  # fmt: skip
    return Imported(method, [list(was.sites)], fill, was.notes)


def _pair(w: Tensor) -> tuple[Tensor, Tensor]:
    """B A = w, of the rank of its smaller side."""
    b1, b2 = w.shape
    return (torch.eye(b1), w) if b1 <= b2 else (w, torch.eye(b2))


def _factor(folder: Folder, sites: Sequence[Site], splits: Mapping[str, Split]) -> int:
    """The option that divides every site as the file does."""
    said = folder.config.get("decompose_factor", -1)
    sizes = sorted({a for s in splits.values() for a in (s.a1, s.a2)})
    for factor in (said if type(said) is int and said > 0 else 0, *sizes):
        if all(split(s.out_features, s.in_features, factor, factor) == splits[s.name] for s in sites):
            return factor
    raise FileFormatError(
        f"{CONFIG}: decompose_factor={str(said)[:20]} divides the modules in a way that no one factor of luthier's lokr does. Merge it in peft and load the merged model."
    )
