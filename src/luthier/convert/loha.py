"""LoHa to and from peft's LOHA: (alpha / r) (w1_a w1_b) * (w2_a w2_b), elementwise, the same four factors on both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from luthier.convert.folder import Folder, number
from luthier.convert.names import exactly
from luthier.convert.parts import Imported, Piece
from luthier.convert.whole import named, plain, read, whole

NAMES = {"hada_w1_a": "B1", "hada_w1_b": "A1", "hada_w2_a": "B2", "hada_w2_b": "A2"}
READ = frozenset({"r", "alpha", "rank_dropout", "module_dropout", "use_effective_conv2d"})


def to_config(pieces: Sequence[Piece], base: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """peft's configuration and tensors."""
    found = whole(pieces, base, "LOHA", linear=True)
    part: Any = pieces[0].part
    config = {
        "peft_type": "LOHA", "r": part.rank, "alpha": plain(part.alpha), "rank_dropout": 0.0, "module_dropout": 0.0,
        "init_weights": True, "use_effective_conv2d": False, "target_modules": exactly(base, list(found)),
    }  # fmt: skip
    return config, named(found, NAMES)


def from_folder(folder: Folder, base: nn.Module, drop: frozenset[str]) -> Imported:
    """The LoHa that a folder describes. FileFormatError for what it cannot be exactly."""
    from luthier.methods.low_rank.loha import LoHa

    was = read(folder, base, drop, READ, tuple(NAMES))
    rank, alpha = int(number(folder.config, "r", 8, least=1)), number(folder.config, "alpha", 8)
    for s in was.sites:
        up, down = (s.out_features, rank), (rank, s.in_features)
        was.check(folder, s, {"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": up, "hada_w2_b": down})

    def fill(found: Mapping[str, Tensor]) -> dict[tuple[int, str, str], Tensor]:
        return {(0, s.name, ours): found[was.keys[s.name][k]] for s in was.sites for k, ours in NAMES.items()}

    return Imported(
        LoHa(rank=rank, alpha=float(alpha), targets=was.targets), [list(was.sites)], fill, was.notes
    )
