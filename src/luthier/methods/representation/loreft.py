"""LoReFT: hidden states of a few tokens, edited in a subspace (Wu et al. 2024, "ReFT: Representation Finetuning for Language Models").

h <- h + R^T (W h + b - R h)    R: (sets, rank, width), orthonormal rows  W: (sets, rank, width)  b: (sets, rank)
At the `first` and the `last` tokens of the input, behind every block. The input is what the model was given: padding, prompts of
other adaptations and the answer are not of it. sets: one for the first and one for the last tokens, or one (`tied`); where the
ends meet, the nearer one has the token.
trained: 2 * sets * rank * width + sets * rank per site
Step 0 is the base (W = R, b = 0). Acts on activations: it cannot merge.

Differs: the paper's public code draws W apart from R (start.apart) and may drop out of the whole edited state; here nothing is dropped.
Where rows are shorter than first + last, the paper halves both numbers. In an encoder-decoder the encoder alone is edited.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from luthier.errors import ModelError, OptionError
from luthier.host.ends import ends
from luthier.host.options import options
from luthier.host.part import Source, Start, method, zero
from luthier.host.places import ActivationEdit
from luthier.sources.orthonormal import Orthonormal
from luthier.starts.rotated import Rotated


def picked(chosen: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(rows, tokens) bool, at most `most` of a row true -> (rows, most) indices, and which of these were chosen."""
    index = chosen.long().argsort(dim=1, descending=True, stable=True)[:, :most]
    return index, chosen.gather(1, index)


@options
class EndsEdit(ActivationEdit):
    """change(z, R, W, b) is added to the states z, (rows, n, width), of the input's first and last tokens."""

    rank: PositiveInt = 8  # dimensions of the subspace
    first: NonNegativeInt = 7  # how many tokens at the input's beginning
    last: NonNegativeInt = 7  # how many at its end
    tied: bool = False  # whether first and last tokens share one edit

    def sites(self, structure, name=None):
        reading = {t.name for t in structure.towers if t.reads is not None}  # they write, and have no input
        return [s for s in super().sites(structure, name) if s.tower not in reading]

    def check(self, sites):
        if not sites:
            raise OptionError(
                f"{self.name} edits the tower that reads the input, not the one that writes: choose targets=block."
            )
        if not self.first + self.last:
            raise OptionError(f"{self.name}: first=0 and last=0 leave no token. Set one of them.")
        for s in sites:
            if self.rank > s.out_features:
                raise OptionError(
                    f"{self.name}: rank={self.rank} is above the width {s.out_features} of {s.name}. Choose a smaller rank."
                )

    def layout(self, site):
        return {"sets": 1 if self.tied or not (self.first and self.last) else 2}

    def tensors(self, site, layout):
        shape = (layout["sets"], self.rank, site.out_features)
        return {"R": shape, "W": shape, "b": shape[:2]}

    def change(self, z: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def edit(self, h, t, ctx):
        if h.dim() != 3:
            raise ModelError(
                f"{self.name} edits tokens, but a site gave {h.dim()} dimensions. Choose targets whose outputs are (rows, tokens, width)."
            )
        found = ends(ctx, h.shape[1], h.device)
        if found is None:
            return h
        first, last = found.before < self.first, found.behind < self.last
        groups = [(first | last, self.first + self.last)]
        if t.layout["sets"] == 2:
            last = last & ~(first & (found.before <= found.behind))
            groups = [(first & ~last, self.first), (last, self.last)]
        for i, (chosen, most) in enumerate(groups):
            index, own = picked(chosen.expand(len(h), -1), h.shape[1] if found.packed else most)
            index = index[..., None].expand(-1, -1, h.shape[-1])
            z = h.gather(1, index)
            change = self.change(z, t.R[..., i, :, :], t.W[..., i, :, :], t.b[..., i, None, :])
            h = h.scatter_add(1, index, torch.where(own[..., None], change, 0.0).to(h.dtype))
        return h


@method("loreft", targets="block", rate=2e-3, identity_start=True)
class LoReFT(EndsEdit):
    source: Source = Orthonormal()  # what makes R of what trains
    start: Start = Rotated()  # how R and W begin

    def change(self, z, r, w, b):
        return (z @ (w - r).mT + b) @ r


@method("direft", targets="block", rate=2e-3, identity_start=True)
class DiReFT(EndsEdit):
    """DiReFT: the same without the difference and without orthonormal rows: h <- h + R^T (W h + b), cheaper to train.

    Step 0 is the base (R = 0).
    """

    start: Start = zero("R")  # how R, W and b begin

    def change(self, z, r, w, b):
        return (z @ w.mT + b) @ r
