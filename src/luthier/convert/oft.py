"""OFT to and from peft's OFT.

peft turns a row, x <- x R; here x <- R x. With Cayley's transform R(q)^T = R(-q), so that the entries change their sign.
peft's default is a truncated series in place of the transform's inverse (use_cayley_neumann), which is another, not quite orthogonal
function: it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from luthier.convert.folder import CONFIG, PREFIX, Folder
from luthier.convert.names import exactly
from luthier.convert.parts import Imported, Piece
from luthier.convert.whole import read, whole
from luthier.errors import FileFormatError

READ = frozenset({"r", "oft_block_size", "module_dropout", "eps", "num_cayley_neumann_terms"})
R = "oft_R.weight"


def to_config(pieces: Sequence[Piece], base: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """peft's configuration and tensors."""
    found = whole(pieces, base, "OFT", linear=True)
    part: Any = pieces[0].part
    config = {
        "peft_type": "OFT", "r": 0, "oft_block_size": part.block, "module_dropout": 0.0, "bias": "none", "coft": False,
        "block_share": False, "use_cayley_neumann": False, "fan_in_fan_out": False,
        "init_weights": True, "target_modules": exactly(base, list(found)),
    }  # fmt: skip
    return config, {f"{PREFIX}{path}.{R}": -t["q"] for path, (_, t) in found.items()}


def from_folder(folder: Folder, base: nn.Module, drop: frozenset[str]) -> Imported:
    """The OFT that a folder describes. FileFormatError for what it cannot be exactly."""
    from luthier.methods.orthogonal.oft import OFT

    config = {"use_cayley_neumann": True, **folder.config}  # peft's default where the key is missing
    was = read(folder._replace(config=config), base, drop, READ, (R,))
    blocks = {s.in_features // max(1, was.shapes(folder, s)[R][0]) for s in was.sites}
    if len(blocks) != 1:
        raise FileFormatError(
            f"{CONFIG}: r={str(config.get('r'))[:20]} makes blocks of the sizes {sorted(blocks)}, and luthier's oft has one size. Train it with oft_block_size."
        )
    (block,) = blocks
    for s in was.sites:
        was.check(folder, s, {R: (s.in_features // max(1, block), block * (block - 1) // 2)})

    def fill(found: Mapping[str, Tensor]) -> dict[tuple[int, str, str], Tensor]:
        return {(0, s.name, "q"): -found[was.keys[s.name][R]] for s in was.sites}

    options: dict[str, Any] = {"block": block, "targets": was.targets}
    method = OFT(**options)
    return Imported(method, [list(was.sites)], fill, was.notes)
