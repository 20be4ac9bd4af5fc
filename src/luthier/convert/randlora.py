"""RandLoRA to and from peft's RANDLORA, with the bases in peft's file (save_projection).

Both are scale sum_n B_n diag(lambda_n) A diag(gamma_n). peft pairs the columns of its (max, N, r) base with the rows of A in the
order (r, N): column k N + n of the flat base is column k of B_n. It cuts the base to the N of each module before that, so that modules
whose N differs would read other bases. peft draws in half precision, in whichever kind the machine has, so that its own seeds can't
be followed: what is read back is what luthier wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from luthier.convert.folder import CONFIG, Folder, number
from luthier.convert.names import exactly
from luthier.convert.parts import Imported, Piece
from luthier.convert.whole import makes, plain, read, seed_of, whole
from luthier.errors import FileFormatError, ModelError
from luthier.host.sites import Site

READ = frozenset(
    {"r", "randlora_alpha", "projection_prng_key", "save_projection", "randlora_dropout", "sparse", "very_sparse"}
)  # fmt: skip
LAMBDA, GAMMA = "randlora_lambda", "randlora_gamma"
A, B = "base_model.randlora_A", "base_model.randlora_B"
OWN = ("randlora_A", "randlora_B")
"""peft writes the bases at every module as well."""


def pieces_of(site: Site, rank: int) -> int:
    """N of a module."""
    return -(-min(site.in_features, site.out_features) // rank)


def bases(a: Tensor, b: Tensor, sites: Sequence[Site], rank: int) -> tuple[Tensor, Tensor]:
    """Ours, (rank, least) and (N, most, rank), as peft's (r, 1, min) and (max, N', r): sizes that no module reads hold zeros."""
    outputs, inputs = max(s.out_features for s in sites), max(s.in_features for s in sites)
    n, least = pieces_of(sites[0], rank), min(outputs, inputs)
    down = a.new_zeros(rank, 1, least)
    down[:, 0, : a.shape[1]] = a
    up = b.new_zeros(max(outputs, inputs), -(-least // rank), rank)
    up[:, :n] = b.permute(1, 2, 0).reshape(-1, n, rank)  # (most, rank, N), read as (N, rank)
    return down, up


def to_config(pieces: Sequence[Piece], base: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """peft's configuration and tensors."""
    found = whole(pieces, base, "RANDLORA")
    part: Any = pieces[0].part
    sites = [s for s, _ in found.values()]
    if len({pieces_of(s, part.rank) for s in sites}) > 1:
        raise ModelError(
            "randlora: the smaller sides of these modules differ, and peft's RANDLORA gives such modules other bases. Choose targets "
            "with one smaller side, or export it as a merged model."
        )
    _, first = next(iter(found.values()))
    down, up = bases(first["A"], first["B"], sites, part.rank)
    tensors = {A: down, B: up}
    for path, (_, t) in found.items():
        tensors |= {f"base_model.model.{path}.{LAMBDA}": t["lam"].mT, f"base_model.model.{path}.{GAMMA}": t["gamma"]}  # fmt: skip
    config = {
        "peft_type": "RANDLORA", "r": part.rank, "randlora_alpha": plain(part.scale * part.rank), "projection_prng_key": part.seed,
        "save_projection": True, "randlora_dropout": 0.0, "sparse": False, "very_sparse": False, "bias": "none",
        "fan_in_fan_out": any(s.transposed for s in sites), "init_weights": True, "target_modules": exactly(base, list(found)),
    }  # fmt: skip
    return config, tensors


def from_folder(folder: Folder, base: nn.Module, drop: frozenset[str]) -> Imported:
    """The RandLoRA that a folder describes. FileFormatError for what it cannot be exactly."""
    was = read(folder, base, drop, READ, (LAMBDA, GAMMA, *OWN), beside=frozenset({A, B}))
    rank = int(number(folder.config, "r", 32, least=1))
    for s in was.sites:
        n, least = pieces_of(s, rank), min(s.in_features, s.out_features)
        copies = {k: folder.shapes.get(f"base_model.{k}", ()) for k in OWN if k in was.keys[s.name]}
        was.check(folder, s, {LAMBDA: (rank, n), GAMMA: (n, least), **copies})
    method = _method(folder, was.sites, rank, was.targets)

    def fill(found: Mapping[str, Tensor]) -> dict[tuple[int, str, str], Tensor]:
        out = {}
        for s in was.sites:
            out[0, s.name, "lam"] = found[was.keys[s.name][LAMBDA]].mT
            out[0, s.name, "gamma"] = found[was.keys[s.name][GAMMA]]
        return out

    return Imported(method, [list(was.sites)], fill, was.notes)


def _method(folder: Folder, sites: Sequence[Site], rank: int, targets: str) -> Any:
    """The method whose seed makes the file's bases."""
    from luthier.methods.low_rank.randlora import RandLoRA

    seed = seed_of(folder.config, "projection_prng_key", 0)
    scale = number(folder.config, "randlora_alpha", 640) / rank
    outputs, inputs = max(s.out_features for s in sites), max(s.in_features for s in sites)
    least = min(outputs, inputs)
    wanted = {A: (rank, 1, least), B: (max(outputs, inputs), -(-least // rank), rank)}
    sound = {k: folder.shapes.get(k) for k in wanted} == wanted
    if sound and len({pieces_of(s, rank) for s in sites}) == 1:
        values = folder.tensors()
        for basis in ("uniform", "ternary"):
            method = RandLoRA(rank=rank, scale=scale, seed=seed, basis=basis, targets=targets)
            if makes(
                method, sites, values, lambda a, b: dict(zip((A, B), bases(a, b, sites, rank), strict=True))
            ):
                return method
    raise FileFormatError(
        f"{CONFIG}: the bases are not what luthier makes of projection_prng_key={seed}: peft draws its own in half precision, which "
        "depends on the machine. Merge it in peft and load the merged model."
    )
