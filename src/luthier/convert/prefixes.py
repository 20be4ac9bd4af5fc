"""Prefix tuning (P-Tuning v2) to and from peft's PREFIX_TUNING: keys and values in every layer's cache, (length, 2 * layers * kv width).

peft fills the cache with the prefix, so that the input's positions begin behind it. Where a model
- looks positions up in a table (BERT, GPT-2), that is PTuningV2(positions="after");
- turns queries and keys (rotary: Llama), luthier's positions begin at 0 and the same scores need keys turned by the prefix's
  length: q R(n+i) k = q R(i) [R(-n) k]. They are turned here, by the model's own function, and back on export;
- adds a bias to the scores that depends on distance (T5), the prefix has one in peft: PTuningV2(positions="front"). Other such
  models (ALiBi) are refused.
Of an encoder-decoder peft puts a prefix into the decoder's self-attention alone: PTuningV2(targets="decoder:attention"), and gives
block l of L the keys and values 2l mod L of its file: where L is even, two blocks share them and half of the file does nothing.
An MLP that makes the prefix is settled: peft saves what it makes, and so does the export.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from luthier.convert.folder import CONFIG, Folder, check_keys, number
from luthier.convert.parts import Imported, Piece, one
from luthier.convert.prompts import PROMPT, one_tensor
from luthier.errors import FileFormatError, ModelError
from luthier.host.places.attention import position_tables
from luthier.host.sites import Site, Structure
from luthier.host.structure import structure_of

READ = frozenset(
    {
        "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
        "encoder_hidden_size", "prefix_projection", "init_weights",
    }
)  # fmt: skip
Policy = Literal["rotary", "table", "distance"]
POSITIONS: dict[Policy, Literal["own", "after", "front"]] = {
    "rotary": "own",
    "table": "after",
    "distance": "front",
}
"""The option of PTuningV2 that means what peft does."""
ROTARIES = frozenset({"default", "linear", "llama3"})
"""Kinds of rotary positions whose angle depends on the position alone, not on how long the sequence is."""


def to_config(pieces: Sequence[Piece], base: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """peft's configuration and tensor of one prefix in every layer."""
    piece = one(pieces, "A prefix")
    part: Any = piece.part
    structure = structure_of(base)
    sites = layers_of(structure)
    made = {site.name: t for site, t in piece.made()}
    if set(made) != {s.name for s in sites}:
        raise ModelError(
            f"peft puts a prefix into all {len(sites)} layers; this one is in {len(made)}. Choose targets='attention'."
        )
    if not part.length:
        raise ModelError("A prefix without tokens can't be exported: there is nothing in it.")
    policy = policy_of(base, structure)
    if part.positions != POSITIONS[policy]:
        raise ModelError(
            f"In peft a prefix of {structure.model} takes positions={POSITIONS[policy]!r}, and this one was trained with {part.positions!r}. "
            f"Fit it with positions={POSITIONS[policy]!r} to export it."
        )
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    for site, place in zip(sites, places(structure), strict=True):
        k, v = made[site.name]["K"], made[site.name]["V"]
        k = turned(base, structure, site, k, 1) if policy == "rotary" else k
        if place in pairs and not all(torch.equal(a, b) for a, b in zip(pairs[place], (k, v), strict=True)):
            raise ModelError(
                f"peft gives two blocks of a decoder with {len(sites)} the same prefix, and here they differ (at {site.name}). Use LoRA or (IA)3 there."
            )
        pairs[place] = k, v
    unread = tuple(torch.zeros_like(x) for x in pairs[0])
    rows = [x.transpose(0, 1) for i in range(len(sites)) for x in pairs.get(i, unread)]
    stacked = torch.stack(rows, 1)  # (length, 2 * layers, heads, width of a head)
    length, count, heads, dim = stacked.shape
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": length,
        "token_dim": heads * dim,
        "num_transformer_submodules": len(structure.towers),
        "num_attention_heads": heads,
        "num_layers": count // 2,
        "encoder_hidden_size": heads * dim,
        "prefix_projection": False,
    }
    return config, {PROMPT: stacked.reshape(length, -1)}


def from_folder(folder: Folder, base: nn.Module, drop: frozenset[str]) -> Imported:
    """The prefix that a folder holds. FileFormatError for other sizes, ModelError for models that can't carry it exactly."""
    from luthier.methods.prefixes.p_tuning_v2 import PTuningV2

    config = folder.config
    check_keys(config, READ, drop)
    structure = structure_of(base)
    stacks = config.get("num_transformer_submodules")
    if stacks not in (None, len(structure.towers)):
        raise FileFormatError(
            f"{CONFIG}: num_transformer_submodules={stacks!r}, but {structure.model} has {len(structure.towers)}: it is another base."
        )
    policy = policy_of(base, structure)
    sites = layers_of(structure)
    length = int(number(config, "num_virtual_tokens", least=1))
    shape, kv = one_tensor(folder), sites[0].heads * sites[0].head_dim
    stated = tuple(config.get(k) for k in ("num_layers", "token_dim", "num_attention_heads"))
    wanted = (len(sites), kv, sites[0].heads)
    if shape != (length, 2 * len(sites) * kv) or any(
        s is not None and s != w for s, w in zip(stated, wanted, strict=True)
    ):
        raise FileFormatError(
            f"{PROMPT} is {shape} with (num_layers, token_dim, num_attention_heads)={stated}; this model needs "
            f"({length}, {2 * len(sites) * kv}) with {wanted}: it is another base, or {CONFIG} is not this file's."
        )
    notes = []
    if config.get("prefix_projection"):
        notes.append("the prefix's MLP is settled: its keys and values are free tensors now")

    def fill(found: Mapping[str, Tensor]) -> dict[tuple[int, str, str], Tensor]:
        rows = found[PROMPT].view(length, 2 * len(sites), sites[0].heads, sites[0].head_dim)
        out = {}
        for i, site in zip(places(structure), sites, strict=True):
            k, v = rows[:, 2 * i].transpose(0, 1), rows[:, 2 * i + 1].transpose(0, 1)
            out[0, site.name, "K"] = turned(base, structure, site, k, -1) if policy == "rotary" else k
            out[0, site.name, "V"] = v
        return out

    made = PTuningV2(length=length, positions=POSITIONS[policy])
    if len(structure.towers) > 1:
        made = replace(made, targets=f"{sites[0].tower}:attention")
    return Imported(made, [sites], fill, notes)


def layers_of(structure: Structure) -> list[Site]:
    """The attention of every block of the last tower (of two, the decoder), all of one shape. ModelError otherwise."""
    towers = structure.towers
    sites = [s for s in structure.sites if s.role == "attention" and s.tower == towers[-1].name]
    shapes = {(s.heads, s.head_dim) for s in sites}
    odd = len(towers) > 1 and (len(towers) > 2 or len(towers[0].blocks) != len(towers[1].blocks))
    if odd or len(sites) != len(towers[-1].blocks) or len(shapes) != 1:
        raise ModelError(
            f"{structure.model} has not one attention of one shape in every block, and as many blocks in an encoder as in its decoder, as a prefix needs to be exchanged with peft. "
            "Use LoRA or (IA)3 there."
        )
    return sites


def places(structure: Structure) -> list[int]:
    """For each block which of a file's pairs of keys and values peft gives it."""
    blocks = len(structure.towers[-1].blocks)
    return [len(structure.towers) * i % blocks for i in range(blocks)]


def policy_of(base: nn.Module, structure: Structure) -> Policy:
    """How a model knows positions. ModelError where a prefix can't mean the same in both libraries."""
    tower = structure.towers[-1]
    entry: Any = base.get_submodule(tower.entry)
    config = getattr(entry, "config", None)
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise ModelError(
            f"{structure.model} attends within a window, which hides peft's prefix from later tokens and never luthier's. Use LoRA or (IA)3 there."
        )
    rotary = [m for m in base.modules() if hasattr(m, "inv_freq")]
    if len(rotary) == 1 and getattr(entry, "rotary_emb", None) is rotary[0]:
        if getattr(rotary[0], "rope_type", "default") in ROTARIES:
            return "rotary"
    elif not rotary and position_tables(base, tower):
        return "table"
    elif not rotary and any(hasattr(m, "relative_attention_bias") for m in entry.modules()):
        return "distance"
    raise ModelError(
        f"{structure.model} knows positions in a way in which a prefix means something else in peft (a bias by distance, or angles that depend on the length). Use LoRA or (IA)3 there."
    )


@torch.no_grad()
def turned(base: nn.Module, structure: Structure, site: Site, k: Tensor, sign: int) -> Tensor:
    """Keys (heads, length, head_dim) turned by `sign` * length positions, by the model's own rotary function.

    ModelError where that is not a rotation (angles scaled, a function of another form).
    """
    entry: Any = base.get_submodule(structure.towers[-1].entry)
    turn = getattr(sys.modules[type(base.get_submodule(site.path)).__module__], "apply_rotary_pos_emb", None)
    device = next(base.parameters()).device
    keys = k.detach().to(device, torch.float32)[None]
    place = torch.full((1, keys.shape[2]), keys.shape[2], device=device)
    try:
        cos, sin = (x.float() for x in entry.rotary_emb(keys, place))
        made = turn(keys, keys, cos, sign * sin)[1]  # type: ignore[misc]
        back = turn(made, made, cos, -sign * sin)[1]  # type: ignore[misc]
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        made, back = keys, keys + 1
    if back.shape != keys.shape or not torch.allclose(back, keys, atol=1e-4, rtol=1e-4):
        raise ModelError(
            f"{structure.model} turns its keys in a way that is not a plain rotation, so a prefix can't be exchanged with peft. Use LoRA or (IA)3 there."
        )
    return made[0].to(k.device)
