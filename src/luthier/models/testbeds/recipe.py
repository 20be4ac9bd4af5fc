"""Recipe: all that decides a testbed's weights, and the list of them.

A recipe names the module that makes it. Such a module has four functions, and is all that a new testbed adds:

    model(recipe) -> nn.Module                  built with the recipe's seed, in training mode
    batches(recipe) -> Iterator[list[dict]]     the parts of every step's batch, as keyword arguments of forward;
                                                each part weighs alike in the loss
    write_files(recipe, folder)                 what lies beside the weights: tokenizer or image settings
    measure(loaded, quick) -> Figures           held-out figures of a loaded `luthier.models.Model`

and may have kept(trained) -> nn.Module, the part of the trained model that is written, where that isn't all of it.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from importlib.resources import files
from types import ModuleType
from typing import Any

from luthier.errors import ModelError

ROOM = "luthier.models.testbeds"
MODULES: dict[str, str] = {
    "llama": "decoder",
    "gpt2": "decoder",
    "t5": "encoder_decoder",
    "bert": "masked",
    "vit": "vit",
    "mamba": "mamba",
}
"""Testbed -> the module of this room that holds its recipe, in a dict `RECIPES`."""


@dataclass(frozen=True)
class Recipe:
    """What is built, from what, and for how long.

    architecture is a class of Transformers and config the arguments of its configuration; rate is AdamW's
    highest learning rate, reached after the share `warmup` of the steps and then lowered on a cosine to a
    twentieth, and where `relative` is set a share of each tensor's own root mean square; muon, where it is not 0, is the rate of
    Muon for the blocks' matrices, and rate that of AdamW for the rest; second
    holds what is other in a second stage, which goes on with fresh optimisers, a new warm-up and the next seed; mix says how much of what is in a batch, in the module's own words; sources are the modules of
    this room, besides the recipe's own, that decide which batches there are.
    """

    name: str
    about: str
    architecture: str
    config: Mapping[str, Any]
    steps: int
    batch: int
    length: int
    rate: float
    corpus: str
    mix: Mapping[str, float]
    sources: tuple[str, ...] = ("corpus", "tokens", "texts", "words", "skills")
    warmup: float = 0.02
    weight_decay: float = 0.05
    clip: float = 1.0
    seed: int = 0
    relative: bool = False
    muon: float = 0.0
    second: Mapping[str, Any] = field(default_factory=dict)
    kind: str = field(default="decoder")

    @property
    def stages(self) -> tuple[Recipe, ...]:
        """The recipe of each stage."""
        if not self.second:
            return (self,)
        return self, replace(self, seed=self.seed + 1, **self.second, second={})

    @property
    def total(self) -> int:
        """The steps of all stages; a module with `TAILS` runs the second one so many times."""
        first, *rest = self.stages
        return first.steps + getattr(self.module, "TAILS", 1) * sum(stage.steps for stage in rest)

    @property
    def module(self) -> ModuleType:
        return import_module(f"{ROOM}.{MODULES[self.name]}")


@dataclass(frozen=True)
class Figures:
    """What was measured on texts or instances that were held out.

    held_out  figures with those of the baselines beside them, by name; skills: exact match by skill
    """

    held_out: dict[str, float]
    skills: dict[str, float]


def recipe(name: str) -> Recipe:
    """The recipe called `name`. Raises ModelError for an unknown one."""
    if name not in MODULES:
        from luthier.host.options import did_you_mean

        raise ModelError(
            f"No testbed is called {name[:60]!r}.{did_you_mean(name, MODULES)} There are: {', '.join(MODULES)}."
        )
    return import_module(f"{ROOM}.{MODULES[name]}").RECIPES[name]


def digest(made: Recipe) -> str:
    """sha256 over the recipe's values and the syntax trees of the modules that make its batches, their
    comments and docstrings left out: whatever changes a testbed's weights changes it."""
    state = hashlib.sha256(json.dumps(asdict(made), sort_keys=True).encode())
    for module in ("pretrain", MODULES[made.name], *made.sources):
        tree = ast.parse(files(ROOM).joinpath(f"{module}.py").read_text("utf-8"))
        _drop_words(tree, {"measure", "RECIPES"} if module == MODULES[made.name] else set())
        state.update(_shape(tree).encode())
    return state.hexdigest()


def _drop_words(tree: ast.Module, apart: set[str]) -> None:
    """Takes out docstrings and bare strings, the functions that only measure, and the table of recipes, whose
    values are hashed as they are."""
    tree.body = [node for node in tree.body if not apart & set(_defines(node))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [
                n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
            ]


def _shape(value: object) -> str:
    """A syntax tree as text, without what is empty: later Pythons have more such fields."""
    if isinstance(value, ast.AST):
        kept = [(name, child) for name, child in ast.iter_fields(value) if child not in (None, [])]
        return f"{type(value).__name__}({','.join(f'{name}={_shape(child)}' for name, child in kept)})"
    if isinstance(value, list):
        return f"[{','.join(map(_shape, value))}]"
    return repr(value)


def _defines(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []
