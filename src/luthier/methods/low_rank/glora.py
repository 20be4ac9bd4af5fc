"""GLoRA: every change of a linear layer in one formula (Chavan et al. 2023, "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning", S319).

f(x) = (W0 + W0 * A + B) x + W0 C + D * b0 + E + b0    * elementwise
A, B: lora, (out, rank) (rank, in); vector, (out, 1); scalar, (1, 1); or none
C: lora, (in, rank) (rank, 1); vector, (in, 1); or none    D, E: vector, (out,); scalar, (1,); or none
trained: A * rank * (in + out) + B * rank * (in + out) + C * rank * (in + 1) + D * out + E * out per site

So 4 * 4 * 3 * 3 * 3 = 432 forms of a layer; the options give every layer one, of which the count above is the largest (a letter is 0
where its form is none). `luthier search --method glora` looks for a form per layer under a budget; the layout keeps it. A scales the
weight, B adds to it, C is what a prompt in front of the layer's input would add, D scales and E shifts the bias. Of a product the first
factor starts at zero and the second as Xavier's; vectors and scalars start at zero: step 0 is the base. All merges: W0 * A + B is
added to the weight, W0 C + D * b0 + E to the bias; a layer without a bias gets one when merged.

Differs: a layer without a bias has no D. At keys C, D and E are left out: they move all scores of a query alike, and softmax does
not see that. Fused projections are one layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from luthier.errors import FileFormatError
from luthier.host.part import Layout, Spec, method, zeros
from luthier.host.places import WeightEdit
from luthier.host.sites import Site
from luthier.selection.space import Gene, Space

MATRIX = ("lora", "vector", "scalar", "none")
COLUMN = ("lora", "vector", "none")
BIAS = ("vector", "scalar", "none")
FORMS: Mapping[str, tuple[str, ...]] = {"A": MATRIX, "B": MATRIX, "C": COLUMN, "D": BIAS, "E": BIAS}
"""What each letter may be, the largest first."""
Matrix = Literal["lora", "vector", "scalar", "none"]
Column = Literal["lora", "vector", "none"]
Bias = Literal["vector", "scalar", "none"]


def xavier(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Uniform with bound sqrt(6 / (fan-in + fan-out))."""
    return (2 * torch.rand(shape, generator=rng) - 1) * (6 / sum(shape)) ** 0.5


def value(t: Any, letter: str) -> Tensor | None:
    """A, B or C as it enters the formula, up to broadcasting; None where its form is none."""
    if f"{letter}2" in t:
        return t[f"{letter}1"] @ t[f"{letter}2"]  # type: ignore[no-any-return]
    return t.get(f"{letter}1")  # type: ignore[no-any-return]


@method("glora", targets="*attention.* | mlp.*", rate=2e-3, identity_start=True)
class GLoRA(WeightEdit):
    rank: PositiveInt = 4  # of the products; at most min(in, out) of every site
    a: Matrix = "lora"  # what scales the weight: lora, vector, scalar or none
    b: Matrix = "lora"  # what is added to the weight: lora, vector, scalar or none
    c: Column = "lora"  # what is added to the layer's input, for all tokens alike: lora, vector or none
    d: Bias = "vector"  # what scales the bias: vector, scalar or none
    e: Bias = "vector"  # what is added to the bias: vector, scalar or none

    retrains: ClassVar[bool] = False
    """Whether a search trains its winner anew: it keeps the supernet's weights."""

    def sites(self, structure, name=None):
        return [
            s
            for s in super().sites(structure, name)
            if s.rows is None and len(dict(s.parameters).get("weight", ())) == 2
        ]

    def check(self, sites):
        self.check_rank(self.rank, sites)

    def layout(self, site):
        asked = dict(zip(FORMS, (self.a, self.b, self.c, self.d, self.e)))
        return {k: form if form in choices(site)[k] else "none" for k, form in asked.items()} | {
            "rank": self.rank
        }

    def tensors(self, site, layout):
        if any(layout[k] not in forms for k, forms in FORMS.items()):
            raise FileFormatError(
                f"glora at {site.name}: the layout {str(layout)[:120]} names a form that there is none of."
            )
        n, m, rank = site.out_features, site.in_features, layout["rank"]
        wanted: dict[str, Spec] = {}
        for k, (rows, columns) in {"A": (n, m), "B": (n, m), "C": (m, 1)}.items():
            first = {"lora": (rows, rank), "vector": (rows, 1), "scalar": (1, 1)}.get(layout[k])
            wanted |= {f"{k}1": Spec(first, zeros)} if first else {}
            wanted |= {f"{k}2": Spec((rank, columns), xavier)} if layout[k] == "lora" else {}
        for k in "DE":
            size = {"vector": (n,), "scalar": (1,)}.get(layout[k])
            wanted |= {k: Spec(size, zeros)} if size else {}
        return wanted

    def delta(self, weight, t):
        change = torch.zeros_like(weight)
        if (a := value(t, "A")) is not None:
            change = change + weight * a
        if (b := value(t, "B")) is not None:
            change = change + b
        return change

    def delta_bias(self, weight, bias, t):
        c = value(t, "C")
        added = [] if c is None else [(weight @ c).squeeze(-1)]
        added += [t.D * bias] if "D" in t and bias is not None else []
        added += [t.E] if "E" in t else []
        return sum(added, torch.zeros_like(weight[:, 0])) if added else None

    def idle(self, site, parameters):
        """D, where it scales a bias of zeros."""
        bias = parameters.get("bias")
        return ("D",) if bias is not None and not bias.any() else ()

    def carry(self, site, before):
        """A layer's form goes on with its tensors."""
        return before.layout or self.layout(site), before

    def space(self, sites):
        """A form for every letter of every layer, none larger than the options say; a layer's forms come from one parent."""
        options: dict[tuple[str, str], tuple[str, ...]] = {}
        for s in sites[0]:
            asked = self.layout(s)
            options |= {(s.name, k): forms[forms.index(asked[k]) :] for k, forms in choices(s).items()}
        genes = [Gene(f"{name}.{k}", name, o) for (name, k), o in options.items() if len(o) > 1]

        def layouts(chosen: Mapping[str, str]) -> dict[str, dict[str, Layout]]:
            found: dict[str, Layout] = {s.name: {} for s in sites[0]}
            for (name, k), o in options.items():
                found[name][k] = chosen.get(f"{name}.{k}", o[0])
            return {"0": {name: {**forms, "rank": self.rank} for name, forms in found.items()}}

        return Space(self.parts(), sites, genes, layouts)


def choices(site: Site) -> dict[str, tuple[str, ...]]:
    """The forms that each letter may have at a site, the largest first."""
    none = ("none",)
    if site.role.endswith("attention.key"):
        return {**FORMS, "C": none, "D": none, "E": none}
    return dict(FORMS) if any(n == "bias" for n, _ in site.parameters) else {**FORMS, "D": none}
