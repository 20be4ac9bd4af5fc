"""Control Prefixes: a prefix for all rows, and one for each label of a row's attributes (Clive et al. 2022, "Control Prefixes for Parameter-Efficient Text Generation", S305).

In every layer K = [C_n[a_n], ..., C_1[a_1], P, K_input], V likewise    a: the row's labels, one for each attribute
P: (heads, length, head_dim)  C_i: (heads, labels * control_length, head_dim)
trained: 2 * length * heads * head_dim per site (and 2 * control_length * heads * head_dim for each label)
Not an identity at step 0; not a weight change: it cannot merge.

`labels` says what there is: "formal, plain | short, long" are two attributes of two labels. The rows' labels come with every
batch under `attributes` (`--attribute COLUMN` names a column of the data): names or numbers, one a row, or a tuple of them where
there are several attributes. Without labels, or with control_length=0, it is p_tuning_v2. reparameterise: by `luthier.sources.control_mlp`, one network for
each kind of attention, which general and control prefixes share; `luthier.sources.settle` folds it away.

Differs: without `reparameterise` keys and values train by themselves, and begin normal; `targets` is every tower's own
attention ("attention | cross_attention" adds the decoder's reading of its encoder, which the paper always has); a label that
was not declared raises, or (unseen=zero) has keys and values of zero; neighbours by word vectors are the caller's.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor
from torch.nn.functional import dropout

from luthier.errors import RunError
from luthier.host.context import Context
from luthier.host.part import Free, method
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
from luthier.sources.control_mlp import ControlMLP
from luthier.sources.labels import declared, number, of_rows


@method("control_prefixes", targets="attention", rate=1e-2)
class ControlPrefixes(PTuningV2):
    labels: str = ""  # the labels of each attribute: "formal, plain | short, long"
    control_length: NonNegativeInt = 5  # tokens of a label's own prefix
    unseen: Literal["raise", "zero"] = "raise"  # what becomes of a label that is not among them

    def __post_init__(self):
        if self.reparameterise and type(self.source) is Free:
            object.__setattr__(self, "source", ControlMLP())

    def check(self, sites) -> None:
        super().check(sites)
        declared(self.name, self.labels)

    @property
    def attributes(self) -> list[list[str]]:
        """The labels of each attribute; none where labels have no tokens of their own."""
        return declared(self.name, self.labels) if self.control_length else []

    def tensors(self, site, layout):
        made = dict(super().tensors(site, layout))
        for i, names in enumerate(self.attributes):
            shape = (site.heads, len(names) * self.control_length, site.head_dim)
            made |= {f"K{i}": shape, f"V{i}": shape}
        return made

    def keys_values(self, t, ctx):
        if not self.attributes:
            return super().keys_values(t, ctx)
        chosen = self.chosen(ctx, t.K.device)  # (rows, attributes)
        made = []
        for which in ("K", "V"):
            tables = [t[f"{which}{i}"] for i in range(len(self.attributes))]
            controls = [looked_up(table, chosen[:, i], self.control_length) for i, table in enumerate(tables)]
            general = t[which].expand(len(chosen), -1, -1, -1)
            whole = torch.cat([*reversed(controls), general], -2)
            made.append(dropout(whole, self.prefix_dropout, t.training))
        return tuple(made)

    def chosen(self, ctx: Context, device: torch.device) -> Tensor:
        """(rows, attributes): which label each row has; -1: one with zero keys and values."""
        key = f"attributes:{self.unseen}:{self.labels}"
        if key not in ctx.made:
            ctx.made[key] = torch.tensor([self._row(row) for row in of_rows(ctx)], device=device)
        return ctx.made[key]

    def _row(self, labels: tuple[object, ...] | None) -> list[int]:
        """One row's labels as numbers."""
        n = len(self.attributes)
        if labels is None:
            return [-1] * n
        if len(labels) != n:
            raise RunError(
                f"{self.name}: a row has {len(labels)} labels ({str(labels)[:60]}), and there are {n} attributes. Give one for each."
            )
        return [
            number(self.name, label, names, self.unseen == "zero")
            for label, names in zip(labels, self.attributes, strict=True)
        ]


def looked_up(table: Tensor, which: Tensor, length: int) -> Tensor:
    """The rows' own entries, zero for -1. table: (heads, labels * length, dim), or with batch rows in front; which: (rows,)
    -> (rows, heads, length, dim)."""
    each = table.unflatten(-2, (-1, length)).movedim(-3, -4)  # ([rows,] labels, heads, length, dim)
    at = which.clamp(min=0)
    own = each[at] if each.dim() == 4 else each[torch.arange(len(at), device=at.device), at]
    return own * (which >= 0)[:, None, None, None]
