"""Slim models: linear layers replaced by two thin ones from the truncated SVD (Guo et al. 2024, "PELA: Learning Parameter-Efficient Models with Low-Rank Approximation", S213).

W (m, n) ~ U V    U: (m, r)  V: (r, n)    r = floor(m n / (c (m + n))) for the compression ratio c, so that r (m + n) ~ m n / c
Every linear layer of the blocks is replaced; norms, embeddings, heads and what lies outside the blocks stay. A slim model is a plain dense
model: it is tuned, saved and loaded as any other, by Luthier. Its configuration names the replaced layers under `luthier_slim`;
Transformers alone does not know them. `luthier.train.distil` is the stage that heals it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

from torch import nn

from luthier.errors import ModelError, OptionError
from luthier.host.adaptation import site_weight
from luthier.host.sites import find, is_linear, is_transposed
from luthier.host.slim import Slim, truncated
from luthier.host.structure import structure_of
from luthier.models.model import Model

KEY = "luthier_slim"
"""In a configuration: {path of a replaced layer: its rank}."""
READ_DIRECTLY = ("ssm.dt",)
"""Roles whose weight a model's own code reads without calling the layer."""


@dataclass(frozen=True)
class Layer:
    """One replaced layer."""

    path: str
    outputs: int
    inputs: int
    rank: int

    @property
    def dense(self) -> int:
        """Numbers of the dense weight, m n: also its multiplications per token."""
        return self.outputs * self.inputs

    @property
    def slim(self) -> int:
        """Numbers of both factors, r (m + n): also their multiplications per token."""
        return self.rank * (self.outputs + self.inputs)


@dataclass(frozen=True)
class Slimmed:
    """A slim copy of a model, and what was replaced in it."""

    model: Model
    layers: tuple[Layer, ...]

    @property
    def ratio(self) -> float:
        """Of the replaced layers: the share of parameters, and of multiplications, that is left."""
        return sum(each.slim for each in self.layers) / sum(each.dense for each in self.layers)


def rank_of(outputs: int, inputs: int, ratio: float) -> int:
    """floor(m n / (c (m + n))), and 1 at least."""
    return max(1, int(outputs * inputs / (ratio * (outputs + inputs))))


def svd_slim(model: Model, ratio: float = 2.0, targets: str = "*", rank: int | None = None) -> Slimmed:
    """A slim copy of `model`, which stays as it is. rank: of every layer, at most its smaller side, instead of the ratio's.

    targets: which linear layers of the blocks, as methods take them. Raises OptionError for a ratio that would not make
    anything smaller, ModelError where there is nothing to replace.
    """
    if ratio <= 1 and rank is None:
        raise OptionError(
            f"ratio={ratio:g} makes nothing smaller: give one above 1; 2 and 3 are the paper's."
        )
    made: Any = copy.deepcopy(model.base)
    tables = {id(m.weight) for m in made.modules() if isinstance(m, nn.Embedding)}
    layers = []
    for site in find(structure_of(model.base), targets):
        module: Any = made.get_submodule(site.path)
        # a subclass of Linear may be one whose weight is read without a call
        plain = type(module) is nn.Linear or is_transposed(module)
        if (
            site.rows is not None
            or site.layer is None
            or site.role in READ_DIRECTLY
            or not plain
            or id(module.weight) in tables
        ):
            continue
        weight = site_weight(made, site)
        assert weight is not None
        m, n = weight.shape
        layer = Layer(site.path, m, n, min(m, n, rank) if rank else rank_of(m, n, ratio))
        _put(made, site.path, truncated(weight, module.bias, layer.rank))
        layers.append(layer)
    if not layers:
        raise ModelError(
            f"{model.name} has no linear layers in blocks among {targets!r}: there is nothing to replace."
        )
    made.requires_grad_(False)
    if getattr(made, "config", None) is not None:
        setattr(made.config, KEY, {each.path: each.rank for each in layers})
    return Slimmed(replace(model, base=made, name=f"{model.name}, slim", _fingerprint=None), tuple(layers))


def _put(base: nn.Module, path: str, module: nn.Module) -> None:
    holder, _, name = path.rpartition(".")
    setattr(base.get_submodule(holder), name, module)


def class_with(cls: Any, raw: Mapping[str, Any], source: str) -> Any:
    """A class of Transformers whose models are made with the slim layers that a configuration names; itself where it names none.

    ModelError for names and ranks that the model cannot have.
    """
    ranks = raw.get(KEY)
    if ranks is None:
        return cls

    def refuse(why: str) -> ModelError:
        return ModelError(f"{source!r} names slim layers that it cannot have ({why}). Fetch the model again.")

    if not isinstance(ranks, dict):
        raise refuse("no table of paths and ranks")

    @wraps(cls.__init__)  # its arguments are looked at
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, *args, **kwargs)
        for path, rank in ranks.items():
            try:
                old: Any = self.get_submodule(path)
            except AttributeError:
                raise refuse(f"there is no {str(path)[:60]!r}") from None
            if not is_linear(old):
                raise refuse(f"{path[:60]!r} is not linear")
            inputs, outputs = old.weight.shape if is_transposed(old) else old.weight.shape[::-1]
            if type(rank) is not int or not 1 <= rank <= min(inputs, outputs):
                raise refuse(f"rank {str(rank)[:20]} at {path[:60]!r}")
            _put(self, path, Slim(inputs, outputs, rank, old.bias is not None))

    return type(cls.__name__, (cls,), {"__init__": build, "__module__": cls.__module__})
