"""Prefix tuning (P-Tuning v2) to and from peft's PREFIX_TUNING: keys and values in every layer's cache, (length, 2 * layers * kv width).

peft fills the cache with the prefix, so that the input's positions begin behind it. Where a model
- looks positions up in a table (BERT, GPT-2), that is PTuningV2(positions="after");
- turns queries and keys (rotary: Llama), luthier's positions begin at 0 and the same scores need keys turned by the prefix's
  length: q R(n+i) k = q R(i) [R(-n) k]. They are turned here, by the model's own function, and back on export;
- adds a bias to the scores that depends on distance (T5, ALiBi), the prefix gets one in peft and none here: refused.
An MLP that makes the prefix is settled: peft saves what it makes, and so does the export.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
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
    if policy == "table" and part.positions != "after":
        raise ModelError(
            "peft's positions of the input begin behind the prefix, and this prefix was trained with positions from 0. "
            "Fit it with positions='after' to export it."
        )
    rows = []
    for site in sites:
        k, v = made[site.name]["K"], made[site.name]["V"]
        rows += [turned(base, structure, site, k, 1) if policy == "rotary" else k, v]
    stacked = torch.stack(
        [r.transpose(0, 1) for r in rows], 1
    )  # (length, 2 * layers, heads, width of a head)
    length, count, heads, dim = stacked.shape
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": length,
        "token_dim": heads * dim,
        "num_transformer_submodules": 1,
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
    if config.get("num_transformer_submodules") not in (None, 1):
        raise FileFormatError(
            f"{CONFIG}: num_transformer_submodules=2 is a prefix of an encoder-decoder, whose biases by distance luthier's prefixes don't take part in. Use LoRA or (IA)3 there."
        )
    structure = structure_of(base)
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
        for i, site in enumerate(sites):
            k, v = rows[:, 2 * i].transpose(0, 1), rows[:, 2 * i + 1].transpose(0, 1)
            out[0, site.name, "K"] = turned(base, structure, site, k, -1) if policy == "rotary" else k
            out[0, site.name, "V"] = v
        return out

    positions: Literal["own", "after"] = "after" if policy == "table" else "own"
    return Imported(PTuningV2(length=length, positions=positions), [sites], fill, notes)


def layers_of(structure: Structure) -> list[Site]:
    """The attention of every block of the only tower, all of one shape. ModelError otherwise."""
    sites = [s for s in structure.sites if s.role == "attention"]
    shapes = {(s.heads, s.head_dim) for s in sites}
    if len(structure.towers) != 1 or len(sites) != len(structure.towers[0].blocks) or len(shapes) != 1:
        raise ModelError(
            f"{structure.model} is not one tower with one attention of one shape in every block, as a prefix needs to be exchanged with peft. Use LoRA or (IA)3 there."
        )
    return sites


def policy_of(base: nn.Module, structure: Structure) -> Literal["rotary", "table"]:
    """How a model knows positions. ModelError where a prefix can't mean the same in both libraries."""
    tower = structure.towers[0]
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
    raise ModelError(
        f"{structure.model} knows positions in a way in which a prefix means something else in peft (a bias by distance, or angles that depend on the length). Use LoRA or (IA)3 there."
    )


@torch.no_grad()
def turned(base: nn.Module, structure: Structure, site: Site, k: Tensor, sign: int) -> Tensor:
    """Keys (heads, length, head_dim) turned by `sign` * length positions, by the model's own rotary function.

    ModelError where that is not a rotation (angles scaled, a function of another form).
    """
    entry: Any = base.get_submodule(structure.towers[0].entry)
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
