"""Structural pruning: a narrow copy of a block, from its own rows and columns (the start of ladder side networks, S200)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import OptionError
from luthier.host.applicable import Reason, because
from luthier.host.sites import Site, Structure, Tower, is_linear, is_transposed


def largest(weight: Tensor, count: int, dim: int) -> Tensor:
    """Indices along `dim` with the largest sums of magnitudes, in order."""
    return weight.abs().sum(1 - dim).topk(count).indices.sort().values


@dataclass(frozen=True)
class Sizes:
    """What is kept of a block."""

    width: Tensor
    """Indices of the residual width."""
    heads: int
    kv_heads: int
    head_dim: int
    old_width: int
    old_heads: int
    old_kv_heads: int
    reduction: int


def check_reduction(name: str, reduction: int, sites: Iterable[Site]) -> None:
    """OptionError where a width divided by `reduction` is nothing."""
    for s in sites:
        if s.in_features and s.in_features < reduction:
            raise OptionError(f"{name}: reduction={reduction} leaves nothing of the width {s.in_features}.")


def sizes_of(base: nn.Module, structure: Structure, tower: Tower, reduction: int, name: str) -> Sizes:
    """What is kept of a tower's blocks at 1 / reduction of its width, by the magnitudes of its embedding. name: the method's.

    OptionError where the blocks have no attention.
    """
    first = next((s for s in structure.sites if s.role == "attention" and s.tower == tower.name), None)
    if first is None or not first.head_dim:
        raise because(
            OptionError(
                f"{name}: the blocks of {structure.model} are not attention blocks; the side layers are cut from those."
            ),
            Reason.NO_ATTENTION_BLOCKS,
        )
    query = structure.partner(first, "attention.query")
    heads = query.out_features // first.head_dim if query is not None else first.heads
    table = tower.embedding or query.path  # type: ignore[union-attr]
    keep = largest(
        base.get_submodule(table).weight.detach().float(),  # type: ignore[union-attr,operator]
        max(1, tower.width // reduction),
        1,
    )
    kv = max(1, first.heads // reduction)
    groups = heads // first.heads
    return Sizes(keep, kv * groups, kv, first.head_dim, tower.width, heads, first.heads, reduction)


def narrow(block: nn.Module, path: str, sites: list[Site], sizes: Sizes) -> nn.Module:
    """A copy of `block` with whole heads, the largest hidden units and the chosen residual width."""
    small = copy.deepcopy(block)
    for m in small.modules():  # nothing that is attached to the original
        m._forward_hooks.clear()
        m._forward_pre_hooks.clear()
        for key in ("forward", "luthier_port"):
            m.__dict__.pop(key, None)
    roles = {s.path: s for s in sites if s.path.startswith(path + ".") and s.rows is None}
    inner, kv_inner = (
        torch.arange(sizes.heads * sizes.head_dim),
        torch.arange(sizes.kv_heads * sizes.head_dim),
    )
    fused = _fused(inner, kv_inner, sizes)
    hidden = _hidden(block, roles, path, sizes)
    outs = {"query": inner, "key": kv_inner, "value": kv_inner, "qkv": fused, "up": hidden, "gate": hidden}
    for name, module in list(small.named_modules()):
        site = roles.get(f"{path}.{name}")
        kind = site.role.rpartition(".")[2] if site is not None and "." in site.role else ""
        if is_linear(module):
            rows = outs.get(kind, sizes.width)
            columns = hidden if kind == "down" else inner if kind == "output" else sizes.width
            if site is not None and site.role in ("cross_attention.key", "cross_attention.value"):
                columns = torch.arange(site.in_features)  # they read another tower, at its full width
            _shrink(module, rows, columns)
        else:
            for key, p in module.named_parameters(recurse=False):
                if p.dim() == 1 and len(p) == sizes.old_width:
                    module._parameters[key] = nn.Parameter(p.detach()[sizes.width].clone())
                elif (
                    isinstance(module, nn.Embedding) and p.shape[1] == sizes.old_heads
                ):  # a relative position bias
                    module._parameters[key] = nn.Parameter(p.detach()[:, : sizes.heads].clone())
            if isinstance(module, nn.LayerNorm) and module.normalized_shape == (sizes.old_width,):
                module.normalized_shape = (len(sizes.width),)
        _renumber(module, sizes)
    return small.requires_grad_(True)


def _fused(inner: Tensor, kv_inner: Tensor, sizes: Sizes) -> Tensor:
    q, kv = sizes.old_heads * sizes.head_dim, sizes.old_kv_heads * sizes.head_dim
    return torch.cat([inner, q + kv_inner, q + kv + kv_inner])


def _hidden(block: nn.Module, roles: dict[str, Site], path: str, sizes: Sizes) -> Tensor:
    down = next((s for s in roles.values() if s.role == "mlp.down"), None)
    if down is None:
        return sizes.width
    weight = block.get_submodule(down.path[len(path) + 1 :]).weight.detach()  # type: ignore[union-attr,operator]
    weight = weight.T if down.transposed else weight
    return largest(weight, max(1, weight.shape[1] // sizes.reduction), 1)


def _shrink(module: nn.Module, rows: Tensor, columns: Tensor) -> None:
    turned = is_transposed(module)
    weight = module.weight.detach().T if turned else module.weight.detach()  # type: ignore[union-attr,operator]
    weight = weight[rows][:, columns].clone()
    module.weight = nn.Parameter(weight.T.contiguous() if turned else weight)
    bias = getattr(module, "bias", None)
    if bias is not None:
        module.bias = nn.Parameter(bias.detach()[rows].clone())
    if turned:
        module.nf = len(rows)  # type: ignore[assignment]
    else:
        module.in_features, module.out_features = len(columns), len(rows)  # type: ignore[assignment]


def _renumber(module: nn.Module, sizes: Sizes) -> None:
    """Sizes that a module remembers as numbers: heads by name, the rest by value."""
    inside = sizes.heads * sizes.head_dim
    for key, value in list(module.__dict__.items()):
        if not isinstance(value, int) or isinstance(value, bool) or key in ("training", "layer_idx"):
            continue
        if key in ("num_key_value_heads",):
            setattr(module, key, sizes.kv_heads)
        elif (
            "head" in key
            and "dim" not in key
            and "size" not in key
            and "group" not in key
            and value == sizes.old_heads
        ):
            setattr(module, key, sizes.heads)
        elif (
            key in ("split_size", "all_head_size", "inner_dim", "embed_dim", "attention_dim")
            and value == sizes.old_heads * sizes.head_dim
        ):
            setattr(module, key, inside)


def redraw(layers: nn.ModuleList, base: nn.Module, narrower: float, rng: torch.Generator) -> None:
    """Draw layers anew as the base's family initialises itself; deviations grow with sqrt(narrower), as the fan-in shrank."""
    begin: Any = getattr(base, "_init_weights", lambda m: getattr(m, "reset_parameters", lambda: None)())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
        layers.apply(
            begin
        )  # what a module holds before itself: an attention says better than its projections how those begin
        for p in layers.parameters():
            if p.dim() == 2:
                p.mul_(narrower**0.5)
