"""VeRA to and from peft's VERA: diag(b) B diag(d) A, with the shared pair in peft's file (save_projection).

peft makes another pair of a seed. To: the pair is written. From: it must be what the named seed makes, here or in peft (basis=peft).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from luthier.convert.folder import CONFIG, Folder, number
from luthier.convert.names import exactly
from luthier.convert.parts import Imported, Piece
from luthier.convert.whole import makes, named, read, seed_of, whole
from luthier.errors import FileFormatError

READ = frozenset({"r", "projection_prng_key", "save_projection", "vera_dropout", "d_initial"})
NAMES = {"vera_lambda_b": "b", "vera_lambda_d": "d"}
A, B = "base_model.vera_A", "base_model.vera_B"


def to_config(pieces: Sequence[Piece], base: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """peft's configuration and tensors."""
    found = whole(pieces, base, "VERA")
    part: Any = pieces[0].part
    _, first = next(iter(found.values()))
    config = {
        "peft_type": "VERA", "r": part.rank, "projection_prng_key": part.seed, "save_projection": True, "vera_dropout": 0.0,
        "d_initial": part.initial, "bias": "none", "fan_in_fan_out": any(s.transposed for s, _ in found.values()),
        "init_weights": True, "target_modules": exactly(base, list(found)),
    }  # fmt: skip
    return config, {**named(found, NAMES), A: first["A"], B: first["B"]}


def from_folder(folder: Folder, base: nn.Module, drop: frozenset[str]) -> Imported:
    """The VeRA that a folder describes. FileFormatError for what it cannot be exactly."""
    from luthier.methods.low_rank.vera import VeRA

    was = read(folder, base, drop, READ, tuple(NAMES), beside=frozenset({A, B}))
    rank = int(number(folder.config, "r", 256, least=1))
    for s in was.sites:
        was.check(folder, s, {"vera_lambda_b": (s.out_features,), "vera_lambda_d": (rank,)})
    seed = seed_of(folder.config, "projection_prng_key", 0)
    options: dict[str, Any] = {"rank": rank, "seed": seed, "targets": was.targets}
    method = VeRA(**options, basis="peft")
    wanted = {A: (rank, max(s.in_features for s in was.sites)), B: (max(s.out_features for s in was.sites), rank)}  # fmt: skip
    stored = {k: folder.shapes[k] for k in (A, B) if k in folder.shapes}
    if stored:
        if stored != wanted:
            raise FileFormatError(
                f"The shared pair is {stored}, and these modules need {wanted}: it is another base."
            )
        values = folder.tensors()
        made = [
            m for m in (method, VeRA(**options)) if makes(m, was.sites, values, lambda a, b: {A: a, B: b})
        ]
        if not made:
            raise FileFormatError(
                f"{CONFIG}: the shared pair {A}, {B} is not what projection_prng_key={seed} makes, and luthier's vera keeps the seed alone. Merge it in peft and load the merged model."
            )
        method = made[0]

    def fill(found: Mapping[str, Tensor]) -> dict[tuple[int, str, str], Tensor]:
        return {(0, s.name, ours): found[was.keys[s.name][k]] for s in was.sites for k, ours in NAMES.items()}

    return Imported(method, [list(was.sites)], fill, was.notes)
