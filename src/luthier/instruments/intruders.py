"""Intruder dimensions of a tuned model, and their repair (Shuttleworth et al. 2024, "LoRA vs Full Fine-tuning: An Illusion of Equivalence", S122).

One of the k top left singular vectors u_i of a tuned weight (out, in) is an intruder where it resembles none of the pretrained one's:
    max_j |u_i . u_j| < eps    over all left singular vectors u_j of the pretrained weight (min(out, in) of them)
Repair scales them in the tuned weight, which holds the pretrained one: W + (scale - 1) sum_i sigma_i u_i v_i^T over the intruders.
scale=0 removes them, 1 leaves all as it is.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError, OptionError

TOP, RESEMBLES = 10, 0.5
"""k and eps of the paper."""
PATIENCE = 2.0
"""Seconds after which progress is said."""


def resemblance(before: Tensor, after: Tensor, k: int = TOP) -> Tensor:
    """max_j |u_i . u_j| for the k top left singular vectors u_i of `after` over all u_j of `before`; both (out, in) -> (k,)."""
    known = torch.linalg.svd(_exact(before), full_matrices=False).U
    new = torch.linalg.svd(_exact(after), full_matrices=False).U[:, :k]
    return (new.mT @ known).abs().amax(1)


def scaled(weight: Tensor, which: Iterable[int], scale: float) -> Tensor:
    """W + (scale - 1) sum_i sigma_i u_i v_i^T over the singular components `which` (0: the largest). weight: (out, in)."""
    chosen = list(which)
    u, sigma, v = torch.linalg.svd(_exact(weight), full_matrices=False)
    change = (u[:, chosen] * sigma[chosen]) @ v[chosen]
    return (_exact(weight) + (scale - 1) * change).to(weight.dtype)


def _exact(weight: Tensor) -> Tensor:
    return weight.detach() if weight.dtype == torch.float64 else weight.detach().float()


@dataclass(frozen=True)
class Matrix:
    """One weight of both models."""

    path: str
    """Of its module in the tuned model."""
    role: str
    tower: str
    layer: int | None
    similar: tuple[float, ...]
    """How much each top singular vector resembles the most similar pretrained one, the largest singular value first."""
    intruders: tuple[int, ...]
    """Which of them are intruders."""


@dataclass(frozen=True)
class Intruders:
    """What was found in all matrices that both models have."""

    matrices: tuple[Matrix, ...]
    k: int
    eps: float
    left_out: tuple[str, ...]
    """Linear layers that only one of the models has."""

    @property
    def total(self) -> int:
        """Intruders over all matrices: the paper's statistic."""
        return sum(len(m.intruders) for m in self.matrices)

    @property
    def where(self) -> dict[str, tuple[int, ...]]:
        """{path: intruders} of the matrices that have some."""
        return {m.path: m.intruders for m in self.matrices if m.intruders}

    def counts(self) -> dict[str, dict[str, int]]:
        """{layer: {role: intruders}}; a layer is its block's number, with its tower where there are several."""
        several = len({m.tower for m in self.matrices}) > 1
        found: dict[str, dict[str, int]] = {}
        for m in self.matrices:
            name = "outside" if m.layer is None else str(m.layer)
            row = found.setdefault(f"{m.tower} {name}" if several and m.tower else name, {})
            row[m.role] = row.get(m.role, 0) + len(m.intruders)
        return found

    def card(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "intruders": self.total,
            "matrices": [asdict(m) for m in self.matrices],
            "layers": self.counts(),
            "k": self.k,
            "eps": self.eps,
            "left_out": list(self.left_out),
        }


@torch.no_grad()
def intruders(
    before: nn.Module,
    after: nn.Module,
    *,
    k: int = TOP,
    eps: float = RESEMBLES,
    targets: str = "*",
    say: Callable[[str], None] = lambda said: None,
) -> Intruders:
    """Look for intruders in the linear layers that the pretrained and the tuned model have in common.

    targets: roles or names to look at, as methods take them; a fused projection is one matrix, a weight that is tied to an
    embedding is left out. Raises ModelError where nothing is in common, or where one path holds matrices of two shapes.
    """
    if k < 1 or not 0 < eps <= 1:
        raise OptionError(f"k={k}, eps={eps:g}: k is 1 or more, and eps is above 0 and at most 1.")
    own, tuned = _matrices(before, targets), _matrices(after, targets)
    common = [path for path in tuned if path in own]
    if not common:
        raise ModelError(
            f"{type(before).__name__} and {type(after).__name__} have no linear layer in common"
            f"{'' if targets == '*' else f' among {targets!r}'}. Name a model and what was tuned from it."
        )
    found, told = [], time.monotonic()
    for i, path in enumerate(common):
        site, weight = tuned[path]
        old = own[path][1]
        if old.shape != weight.shape:
            raise ModelError(
                f"{path} is {tuple(old.shape)} in the base and {tuple(weight.shape)} in the tuned model: it was tuned from another one."
            )
        similar = resemblance(old.to(weight.device), weight, k).tolist()
        which = tuple(i for i, s in enumerate(similar) if s < eps)
        found.append(Matrix(path, site.role, site.tower, site.layer, tuple(similar), which))
        if time.monotonic() - told > PATIENCE:
            told = time.monotonic()
            say(f"{i + 1} of {len(common)} matrices, {sum(len(m.intruders) for m in found)} intruders so far")
    return Intruders(tuple(found), k, eps, tuple(sorted(set(own) ^ set(tuned))))


def _matrices(model: nn.Module, targets: str) -> dict[str, tuple[Any, Tensor]]:
    """{path: (site, weight (out, in))} of a model's linear layers."""
    from luthier.host.adaptation import site_weight
    from luthier.host.sites import find, is_linear
    from luthier.host.structure import structure_of

    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    out = {}
    for site in find(structure_of(model), targets):
        module: Any = model.get_submodule(site.path)
        if site.rows is None and is_linear(module) and id(module.weight) not in tables:
            weight = site_weight(model, site)
            assert weight is not None
            out[site.path] = (site, weight)
    return out


@torch.no_grad()
def repaired(tuned: nn.Module, which: Mapping[str, Iterable[int]], scale: float) -> nn.Module:
    """A copy of `tuned` with these singular components of these matrices scaled: {path: components}. The model stays as it is."""
    from luthier.host.sites import is_transposed

    if not 0 <= scale < 1:
        raise OptionError(f"scale={scale:g}: intruders are shrunk, by a factor from 0 (removed) to below 1.")
    made = copy.deepcopy(tuned)
    for path, components in which.items():
        module: Any = made.get_submodule(path)
        turned = is_transposed(module)
        weight = scaled(module.weight.T if turned else module.weight, components, scale)
        new = (weight.T if turned else weight).contiguous()
        module.weight = nn.Parameter(new, requires_grad=module.weight.requires_grad)
    return made


def as_many_at_random(found: Intruders, rng: torch.Generator) -> dict[str, tuple[int, ...]]:
    """The control of a repair: in each matrix as many of the k top components as it has intruders, drawn at random."""
    out = {}
    for m in found.matrices:
        if m.intruders:
            drawn = torch.randperm(len(m.similar), generator=rng)[: len(m.intruders)]
            out[m.path] = tuple(drawn.tolist())
    return out
