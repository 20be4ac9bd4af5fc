"""LoRA and DoRA to and from peft's LORA.

peft: y + scaling * B A x, scaling = lora_alpha / r (or / sqrt(r) with use_rslora); one module, one A and B.
To: the slices of a fused projection, the terms of a sum and an anchored start's own effect are stacked along the rank, which
is exact: [B1 B2] [A1; A2] = B1 A1 + B2 A2. From: ranks below the largest are filled with zeros, and scalings that differ go
into B. DoRA: a magnitude of each output beside them; rows of a fused projection that no slice changes keep the weight's length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.convert.folder import CONFIG, PREFIX, Folder, check_keys, number
from luthier.convert.names import (
    check_targets,
    exactly,
    first_match,
    modules_of,
    pattern_key,
    read_patterns,
    resolve,
    targets_of,
)
from luthier.convert.parts import Imported, Piece, one, slice_into
from luthier.errors import FileFormatError
from luthier.host.part import T
from luthier.host.places import Factors
from luthier.host.structure import structure_of

READ = frozenset(
    {
        "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
        "layers_to_transform", "layers_pattern", "fan_in_fan_out", "lora_dropout", "init_lora_weights", "eva_config",
        "megatron_core", "qalora_group_size", "use_dora",
    }
)  # fmt: skip
STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base as it is."""
A, B, M = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"


def to_config(pieces: Sequence[Piece], base: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """peft's configuration and tensors of a sum of low-rank updates, or of one DoRA."""
    from luthier.methods.low_rank.dora import row_norms

    dora = any(p.part.name == "dora" for p in pieces)
    if dora:
        one(pieces, "DoRA")
    terms: dict[str, list[tuple[Tensor, Tensor, float]]] = {}
    turned: dict[str, bool] = {}
    magnitudes: dict[str, Tensor] = {}
    for piece in pieces:
        part: Any = piece.part
        for anchor in (False, True):  # y + (d - d0)
            for site, t in piece.made(anchor):
                f = Factors(t["B"], t["A"], part.gain()) if dora else part.factors(T(t))
                scale = -piece.scale * f.scale if anchor else piece.scale * f.scale
                terms.setdefault(site.path, []).append((f.down, slice_into(base, site, f.up), scale))
                turned[site.path] = site.transposed
                if dora and not anchor:
                    if site.path not in magnitudes:
                        weight: Any = base.get_submodule(site.path).weight
                        weight = weight.detach().float()
                        magnitudes[site.path] = row_norms(weight.T if site.transposed else weight)
                    magnitudes[site.path][slice(*site.rows) if site.rows else slice(None)] = t["m"]
    order = [n for n, _ in base.named_modules() if n in terms]
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for path in order:
        scales = [s for _, _, s in terms[path]]
        common = max((abs(s) for s in scales), default=0.0)
        tensors[f"{PREFIX}{path}.{A}"] = torch.cat([a for a, _, _ in terms[path]], 0)
        tensors[f"{PREFIX}{path}.{B}"] = torch.cat(
            [b if s == common else b * (s / common) for _, b, s in terms[path]], 1
        )
        ranks[path] = len(tensors[f"{PREFIX}{path}.{A}"])
        alpha = common * ranks[path]
        if dora:
            tensors[f"{PREFIX}{path}.{M}"] = magnitudes[path]
        alphas[path] = round(alpha) if abs(alpha - round(alpha)) < 1e-9 * max(1.0, alpha) else alpha
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(turned.values()),
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": dora,
        "target_modules": exactly(base, order),
        "rank_pattern": {pattern_key(p): r for p, r in ranks.items() if r != rank},
        "alpha_pattern": {pattern_key(p): a for p, a in alphas.items() if a != alpha},
    }
    return config, tensors


def from_folder(folder: Folder, base: nn.Module, drop: frozenset[str]) -> Imported:
    """The LoRA or DoRA that a folder describes. FileFormatError for what it cannot be exactly."""
    from luthier.methods.low_rank.dora import DoRA
    from luthier.methods.low_rank.lora import LoRA

    config = folder.config
    check_keys({k: v for k, v in config.items() if k != "init_lora_weights"}, READ, drop)
    start = config.get("init_lora_weights")
    if start is not None and start not in STARTS:
        check_keys({"init_lora_weights": start}, frozenset())
    dora = config.get("use_dora") is True
    modules = modules_of(folder.shapes, (A, B, M) if dora else (A, B))
    structure = structure_of(base)
    resolved = resolve(base, structure, modules)
    notes = check_targets(config, resolved, base)
    ranks = _ranks(folder, modules, resolved.sites, dora)
    scales = _scales(config, ranks)
    rank, largest = max(ranks.values()), max(scales.values())
    narrow = min(resolved.sites.values(), key=lambda s: min(s.in_features, s.out_features))
    if rank > min(narrow.in_features, narrow.out_features):
        raise FileFormatError(
            f"The adapter's largest rank {rank} is above min(in, out)={min(narrow.in_features, narrow.out_features)} at {narrow.name}, "
            "which luthier's LoRA does not allow. Train it with a smaller r."
        )
    sites = [s for s in structure.sites if s in resolved.sites.values()]
    name = {s.name: n for n, s in resolved.sites.items()}
    if config.get("lora_dropout"):
        notes.append("lora_dropout acts in training only and is left out")
    if len(set(ranks.values())) > 1:
        notes.append(f"ranks below {rank} are filled with zeros")
    if len(set(scales.values())) > 1:
        notes.append("scalings that differ between modules are part of B")

    def fill(found: Mapping[str, Tensor]) -> dict[tuple[int, str, str], Tensor]:
        out = {}
        for site in sites:
            keys = modules[name[site.name]]
            a, b = found[keys[A]], found[keys[B]]
            scale = scales[name[site.name]]
            if scale != largest:
                b = b * (scale / largest)
            out[0, site.name, "A"] = torch.cat([a, a.new_zeros(rank - len(a), a.shape[1])], 0)
            out[0, site.name, "B"] = torch.cat([b, b.new_zeros(len(b), rank - b.shape[1])], 1)
            if dora:
                out[0, site.name, "m"] = found[keys[M]]
        return out

    plain = len(set(ranks.values())) == 1 and len(set(scales.values())) == 1 and not config.get("use_rslora")
    alpha = (
        float(config["lora_alpha"])
        if plain and not config.get("alpha_pattern") and "lora_alpha" in config
        else largest * rank
    )
    method = (DoRA if dora else LoRA)(rank=rank, alpha=alpha, targets=targets_of(structure, sites))
    return Imported(method, [sites], fill, notes)


def _ranks(folder: Folder, modules: Mapping[str, Mapping[str, str]], sites: Mapping[str, Any], dora: bool) -> dict[str, int]:  # fmt: skip
    """{module: rank} from the tensors' shapes, which must agree with the model and with r and rank_pattern."""
    patterns, default = (
        read_patterns(folder.config, "rank_pattern"),
        number(folder.config, "r", default=8, least=1),
    )
    out = {}
    for name, keys in modules.items():
        needed = {A, B, M} if dora else {A, B}
        if set(keys) != needed:
            raise FileFormatError(
                f"The tensor {PREFIX}{name[:120]}.{min(needed - set(keys))} is missing: the file is not whole. Save the adapter anew."
            )
        wanted = first_match(patterns, name)
        rank = default if wanted is None else wanted
        site, a, b = sites[name], folder.shapes[keys[A]], folder.shapes[keys[B]]
        if rank < 1 or a != (rank, site.in_features) or b != (site.out_features, rank):
            raise FileFormatError(
                f"The tensors at {name[:120]!r} are {a} and {b}; for rank {rank:g} this model needs ({rank:g}, {site.in_features}) "
                f"and ({site.out_features}, {rank:g}): it is another base, or {CONFIG} is not this file's."
            )
        if dora and folder.shapes[keys[M]] != (site.out_features,):
            raise FileFormatError(
                f"The magnitudes at {name[:120]!r} are {folder.shapes[keys[M]]}; this model needs ({site.out_features},): it is another base."
            )
        out[name] = int(rank)
    return out


def _scales(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, float]:
    """{module: scaling}."""
    patterns, default = read_patterns(config, "alpha_pattern"), number(config, "lora_alpha", default=8)
    root = config.get("use_rslora") is True
    out = {}
    for name, rank in ranks.items():
        alpha = first_match(patterns, name)
        out[name] = float(default if alpha is None else alpha) / (rank**0.5 if root else rank)
    return out
