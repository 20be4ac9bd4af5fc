"""Cells of the suite: every registered method, with options small enough for these models, on every architecture.

A method joins by being registered. Its integer options above 4 become 4 where the method accepts that; each yes-or-no option
also makes a variant of its own, `name+option`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from luthier import methods
from luthier.errors import LuthierError
from luthier.host import Adaptation, Adapted, Part, structure
from luthier.host.adaptation import site_weight
from luthier.host.applicable import Ability, Reason, why_not
from luthier.host.calibrate import calibrate
from luthier.host.places import Stack, WeightEdit
from luthier.host.probe import reached
from luthier.host.sites import Structure, is_linear
from luthier.host.structure import structure_of
from luthier.methods.adapters.bottleneck import Adapter
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.side.knowledge_adapter import KnowledgeAdapter
from luthier.signals.objectives import Objective
from luthier.train.batches import Batches, Encoded
from luthier.train.run import Recipe, Run, share_out
from luthier.train.snapshot import own_randomness
from tests.host import bed
from tests.host.copies import Template

SMALL = 4
GATES = (".values.s",)
"""Tensors that open and close others (selective_lora's scores): a closed gate leaves what is behind it dead, as it should."""
MOST = 6.0
"""The largest change of a weight, in norms of the weight: products of several random factors can come to hundreds."""
ARCHITECTURES = tuple(bed.BASES)
SMALLER: dict[str, dict[str, Any]] = {"gpt2": {"blocks": 2}, "t5": {"blocks": 2, "factor": 0.7}}
"""The others have a block between others. T5's gated layers multiply how bfloat16 rounds: with these weights by less."""


def small(kind: type) -> Any:
    """A choice with its integer options at most SMALL, also of choices in it; one that does not allow that keeps its default."""
    chosen: dict[str, Any] = {}
    for f in dataclasses.fields(kind):
        if hasattr(type(f.default), "registered_kind"):
            given = {o.name: getattr(f.default, o.name) for o in dataclasses.fields(f.default)}
            ints = {k: SMALL for k, v in given.items() if type(v) is int and v > SMALL}
            chosen[f.name] = dataclasses.replace(f.default, **ints)
        elif type(f.default) is int and f.default > SMALL:
            try:
                kind(**chosen, **{f.name: SMALL})
            except (LuthierError, ValueError):
                continue
            chosen[f.name] = SMALL
    return kind(**chosen)


def variants(kind: type) -> dict[str, Part]:
    """The method itself, and once more for each of its yes-or-no options turned over."""
    made = small(kind)
    found = {kind.name: made}  # type: ignore[attr-defined]
    for f in dataclasses.fields(kind):
        if type(f.default) is bool:
            found[f"{kind.name}+{f.name}={str(not f.default).lower()}"] = dataclasses.replace(  # type: ignore[attr-defined]
                made, **{f.name: not f.default}
            )
    return found


@cache
def parts() -> dict[str, Part]:
    """Every method of luthier.methods by name; output heads are parts of others."""
    found: dict[str, Part] = {}
    for name, entry in sorted(methods.entries().items()):
        if entry["place"] != "output":
            found |= variants(methods.get(name))
    return found


@cache
def prototype(architecture: str) -> nn.Module:
    return bed.base(architecture, **SMALLER.get(architecture, {}))


@cache
def known(architecture: str) -> Any:
    structure_of(prototype(architecture))
    return structure._KNOWN[prototype(architecture)]


@cache
def template(architecture: str) -> Template:
    return Template(prototype(architecture))


class Squares(Objective):
    """An objective that any output has: squares of what is not padding."""

    def mean(self, out: Any, batch: Any) -> Tensor:
        y = (out.logits if out.logits is not None else out.hidden).float()
        return (y - torch.cos(torch.arange(y.numel()).view(y.shape) * 0.7)).pow(2).mean()

    def normaliser(self, batch: Any) -> float:
        return 1.0


def stacked(rows: list[dict[str, Tensor]], **_: Any) -> dict[str, Tensor]:
    return {k: torch.stack([r[k] for r in rows]) for k in rows[0]}


@torch.no_grad()
def beyond_measure(adaptation: Adaptation, base: nn.Module) -> bool:
    """Whether a change of a weight is many times the weight, so that float32 would show only how it rounds."""
    for at in adaptation.at():
        linear = isinstance(at.part, WeightEdit) and is_linear(base.get_submodule(at.site.path))
        if linear and at.part.delta and not at.part.source.by_row:
            weight: Any = site_weight(base, at.site)
            if at.part.delta(weight, at.t(None)).norm() > MOST * weight.norm():
                return True
    return False


@dataclass(frozen=True)
class Cell:
    """One method on one architecture. Everything that it gives is fresh: a property may do with it what it likes."""

    method: str
    architecture: str
    own: Part | None = None
    """Instead of the registered method's part."""

    def __str__(self) -> str:
        return f"{self.method}-{self.architecture}"

    @property
    def part(self) -> Part:
        return self.own if self.own is not None else parts()[self.method]

    @property
    def structure(self) -> Structure:
        return known(self.architecture)[1]  # type: ignore[no-any-return]

    def base(self) -> nn.Module:
        """A copy of the architecture's one random model."""
        made = template(self.architecture).copy()
        structure._KNOWN[made] = known(self.architecture)  # it need not be found again
        return made

    def batch(self, **options: Any) -> dict[str, Tensor]:
        return bed.batch(self.architecture, **options)

    def why_not(self, ability: Ability = Ability.ATTACH) -> Reason | None:
        """The host's reason, if any."""
        return _why_not(self, ability)

    def new(self, base: nn.Module, seed: int = 0) -> Adaptation:
        """The adaptation as its plan's first phase finds it."""
        return _begun(self, seed).copy()

    def shaken(self, base: nn.Module, seed: int = 0, amount: float = 0.2) -> Adaptation:
        """The same with every trained tensor but gates' scores moved from its start, by less where a weight would change beyond measure."""
        return _shaken(self, seed, amount).copy()

    def adapted(self, shake: bool = True, seed: int = 0) -> Adapted:
        """A base with the adaptation attached as "main"."""
        model = Adapted(self.base())
        model.attach("main", self.shaken(model.base, seed) if shake else self.new(model.base, seed))
        return model

    def partner(self, base: nn.Module, seed: int = 9) -> Adaptation:
        """An adaptation of another method that this architecture carries everywhere: a low-rank update."""
        roles = {s.role for s in self.structure.sites}
        where = next(r for r in ("mlp.up", "ssm.in", "linear") if r in roles)
        return bed.shaken(Adaptation.new(LoRA(rank=2, targets=where), base), 0.2, seed)

    def members(self, base: nn.Module) -> dict[str, Adaptation]:
        """What a method refers to: two adapters where it stands, if the architecture has such sites."""
        referring = [p for p in self.part.parts() if p.members]
        if not referring:
            return {}
        walks = isinstance(referring[0], Stack)
        kind: Part = KnowledgeAdapter(layers=1) if walks else Adapter(width=2)
        where = dataclasses.replace(kind, targets=referring[0].targets)
        if why_not(where, base) is not None:
            return {}
        return {k: bed.shaken(Adaptation.new(where, base), 0.2, i) for i, k in enumerate("ab")}

    def result(self, model: Adapted, x: dict[str, Any]) -> Tensor:
        return bed.result(model, x)

    def run(self, model: Adapted | None = None, seed: int = 0) -> Run:
        """A run of the method's whole plan, two steps or more in every phase."""
        if model is None:
            model = Adapted(self.base())
            model.attach("main", _fresh(self, seed).copy())
        for name in self.part.companions:  # what its plan reads and does not train
            model.attach(name, self.partner(model.base))
        x = self.batch(rows=8, seed=5)
        rows = [{k: v[i] for k, v in x.items()} for i in range(8)]
        import numpy as np

        data = Encoded(rows, None, stacked, np.zeros(8, dtype=np.int64))
        phases = self.part.phases()
        steps = next(n for n in range(1, 100) if min(share_out(phases, n)) >= 2)
        return Run(
            model,
            phases,
            Batches({"train": data}, batch_size=4, seed=seed),
            Squares(),
            Recipe(steps, seed=seed),
        )  # type: ignore[arg-type]


@cache
def _why_not(cell: Cell, ability: Ability) -> Reason | None:
    whole = ability is Ability.ATTACH  # what attaches is probed once
    base = cell.base()
    return why_not(cell.part, base, ability, cell.batch() if whole else None, cell.members(base))


@cache
def _fresh(cell: Cell, seed: int) -> Template:
    """As made: what the loss reaches is found where the method asks for "everything"."""
    base, found = cell.base(), None
    if any(p.wherever for p in cell.part.parts()):
        model = Adapted(base)
        found = reached(base, lambda: bed.result(model, cell.batch()).float().pow(2).mean())
    members = cell.members(base)
    return Template(started(cell.part, base, cell.batch(rows=8), seed=seed, reached=found, members=members))


def started(part: Part, base: nn.Module, batch: dict[str, Any], **options: Any) -> Adaptation:
    """A fresh adaptation; what its starts ask for is gathered on a batch, twice over for those that look back."""
    found: dict[str, dict[str, Any]] = {}
    for p in part.parts():
        if p.start.needs:
            model = Adapted(base)
            found |= calibrate(model, p.sites(model.structure), p.start.asks(p), [batch, batch])
    return Adaptation.new(part, base, statistics=found, **options)


@cache
def _begun(cell: Cell, seed: int) -> Template:
    """As the first phase of its plan leaves it before its first step: plans may choose there what trains."""
    made = _fresh(cell, seed).copy()
    if cell.part.phases()[0].enter is not None:
        model = Adapted(cell.base())
        model.attach("main", made)
        with own_randomness(seed):
            cell.run(model, seed).enter()
        model.detach()
    made.requires_grad_(False)
    for p in made.trainable().values():  # asks for gradients, as in a run
        p.requires_grad_(True)
    return Template(made)


@cache
def _shaken(cell: Cell, seed: int, amount: float) -> Template:
    base, first = cell.base(), cell.new(cell.base(), seed)
    while beyond_measure(made := bed.shaken(cell.new(base, seed), amount, seed + 2), base):
        amount /= 2
    kept = first.trainable()
    for name, p in made.trainable().items():
        if name.endswith(GATES):
            p.data.copy_(kept[name])
    return Template(made)


def all_cells() -> list[Cell]:
    return [Cell(m, a) for m in parts() for a in ARCHITECTURES]
