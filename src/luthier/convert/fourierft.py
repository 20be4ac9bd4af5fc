"""FourierFT to and from peft's FOURIERFT: scaling Re(ifft2(C)), the same numbers at the same positions.

peft's file names a seed and no positions, and so only positions=peft, which are made as peft makes them, can be exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from luthier.convert.folder import Folder, number
from luthier.convert.names import exactly
from luthier.convert.parts import Imported, Piece
from luthier.convert.whole import named, plain, read, seed_of, whole
from luthier.errors import ModelError

READ = frozenset({"n_frequency", "scaling", "random_loc_seed"})
C = "fourierft_spectrum"


def to_config(pieces: Sequence[Piece], base: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """peft's configuration and tensors."""
    found = whole(pieces, base, "FOURIERFT")
    part: Any = pieces[0].part
    if part.positions != "peft":
        raise ModelError(
            "fourierft: peft's file can't say at which positions its coefficients stand, and peft makes others of the seed. Train it with "
            "positions=peft, or export it as a merged model."
        )
    config = {
        "peft_type": "FOURIERFT", "n_frequency": part.count, "scaling": plain(part.alpha), "random_loc_seed": part.seed, "bias": "none",
        "fan_in_fan_out": any(s.transposed for s, _ in found.values()), "init_weights": False,
        "target_modules": exactly(base, list(found)),
    }  # fmt: skip
    return config, named(found, {C: "c"})


def from_folder(folder: Folder, base: nn.Module, drop: frozenset[str]) -> Imported:
    """The FourierFT that a folder describes. FileFormatError for what it cannot be exactly."""
    from luthier.methods.spectral.fourierft import FourierFT

    was = read(folder, base, drop, READ, (C,))
    count = int(number(folder.config, "n_frequency", 1000, least=1))
    for s in was.sites:
        was.check(folder, s, {C: (count,)})

    def fill(found: Mapping[str, Tensor]) -> dict[tuple[int, str, str], Tensor]:
        return {(0, s.name, "c"): found[was.keys[s.name][C]] for s in was.sites}

    seed = seed_of(folder.config, "random_loc_seed", 777)
    alpha = float(number(folder.config, "scaling", 150.0))
    options: dict[str, Any] = {"count": count, "alpha": alpha, "seed": seed, "targets": was.targets}
    method = FourierFT(**options, positions="peft")
    return Imported(method, [list(was.sites)], fill, was.notes)
