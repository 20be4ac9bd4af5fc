"""Sites: named places of a model, each with a role that does not depend on the model's family; and how to select them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from luthier.errors import SiteError
from luthier.host.applicable import Reason, because
from luthier.host.options import did_you_mean


@dataclass(frozen=True)
class Site:
    """One place: a module, or the slice of a fused projection's outputs."""

    name: str
    """Unique in the model: the module's path, with `#query` for a slice."""
    path: str
    role: str
    """`attention.query`, `mlp.up`, `norm`, `block`, `embedding`, `head`, ... or `other`."""
    tower: str = ""
    layer: int | None = None
    in_features: int = 0
    out_features: int = 0
    rows: tuple[int, int] | None = None
    """Which outputs of a fused projection; None: all."""
    transposed: bool = False
    """The weight is stored (in, out)."""
    heads: int = 0
    """Key/value heads at attention sites, query heads at the projections that close them."""
    head_dim: int = 0
    parameters: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """The module's own parameters: (name, shape)."""
    scaling: float = 0.0
    """What attention multiplies its scores by, at attention sites."""

    def card(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Site:
        fixed = dict(card)
        fixed["rows"] = tuple(card["rows"]) if card.get("rows") is not None else None
        fixed["parameters"] = tuple((str(n), tuple(int(i) for i in s)) for n, s in card.get("parameters", ()))
        return cls(**fixed)


@dataclass(frozen=True)
class Tower:
    """A stack of blocks with its embedding and the module through which a sequence enters and leaves it."""

    name: str
    entry: str
    """Path of the module that takes ids, embeddings or pixels ("" is the model itself)."""
    blocks: tuple[str, ...]
    embedding: str | None
    causal: bool
    reads: str | None
    """The tower whose output this one attends to."""
    takes: frozenset[str]
    """Arguments of the entry's forward."""
    width: int


@dataclass(frozen=True)
class Structure:
    """A model's towers and sites."""

    model: str
    towers: tuple[Tower, ...]
    sites: tuple[Site, ...]

    def tower(self, name: str) -> Tower:
        return next(t for t in self.towers if t.name == name)

    def site(self, name: str) -> Site | None:
        return next((s for s in self.sites if s.name == name), None)

    def partner(self, site: Site, role: str) -> Site | None:
        """The site of another role in the same block."""
        return next(
            (s for s in self.sites if s.role == role and s.tower == site.tower and s.layer == site.layer),
            None,
        )

    def block_of(self, site: Site) -> int:
        """Index of the block that holds a site in its tower; -1 for what lies before the first."""
        if site.layer is not None:
            return site.layer
        tower = self.tower(site.tower)
        return len(tower.blocks) if site.role in AFTER_BLOCKS else -1


PRESETS = {
    "projections": (
        "*attention.query", "*attention.key", "*attention.value", "*attention.output", "mlp.gate", "mlp.up", "mlp.down",
    ),
    "ssm.projections": ("ssm.in", "ssm.x", "ssm.out"),
}  # fmt: skip
"""Names for several roles at once, as papers choose them. projections: all linear maps of attention and feed-forward layers, fused ones
by their slices. ssm.projections: where S195 puts LoRA in a Mamba; x_proj gives B, C and the
step, which one update of it ties. `ssm.dt` is left out: Transformers' mixer and the fused kernels read its weight without calling it
(where Luthier loaded the model its scan does: add `| ssm.dt`)."""

AFTER_BLOCKS = frozenset({"head", "norm.final", "pooler"})


def roles(sites: Iterable[Site]) -> dict[str, int]:
    """Roles with the number of their sites, in order of appearance."""
    counts: dict[str, int] = {}
    for s in sites:
        counts[s.role] = counts.get(s.role, 0) + 1
    return counts


def find(structure: Structure, targets: str) -> list[Site]:
    """The sites that `targets` selects, in the model's order.

    targets: terms joined by `|`; a term is a role, a name of several (`PRESETS`: `ssm.projections`) or a site name, `*` and `?` allowed, optionally with a tower in front
    (`decoder:attention.query`) and layers behind (`mlp.up[-4:]`, `block[0,2,5]`). A term that matches nothing, or a layer
    that does not exist, raises SiteError and lists what there is.
    """
    chosen: set[str] = set()
    terms = [t.strip() for t in targets.split("|") if t.strip()]
    if not terms:
        raise SiteError(f"No targets were given. Roles in {structure.model}: {_listing(structure)}.")
    for term in terms:
        match = re.fullmatch(
            r"(?:(?P<tower>[\w.]+):)?(?P<what>[^\[\]:]+)(?:\[(?P<layers>[-\d:,\s]+)\])?", term
        )
        if match is None:
            raise SiteError(
                f"The target {term!r} is not understood. Write a role or site name, as in 'attention.query[-4:]'."
            )
        whats = PRESETS.get(match["what"], (match["what"],))
        found = [
            s
            for s in structure.sites
            if (match["tower"] is None or s.tower == match["tower"])
            and any(fnmatchcase(s.role, w) or fnmatchcase(s.name, w) for w in whats)
        ]
        if not found:
            names = [*roles(structure.sites), *(s.name for s in structure.sites)]
            raise because(
                SiteError(
                    f"No site matches {term!r} in {structure.model}.{did_you_mean(match['what'], names)} "
                    f"Roles: {_listing(structure)}. See: luthier sites MODEL."
                ),
                Reason.NO_SITE,
            )
        if match["layers"]:
            found = _layers(found, match["layers"], term)
        chosen.update(s.name for s in found)
    return [s for s in structure.sites if s.name in chosen]


def _listing(structure: Structure) -> str:
    return ", ".join(f"{r} ({n})" for r, n in roles(structure.sites).items())


def _layers(found: Sequence[Site], selection: str, term: str) -> list[Site]:
    there = sorted({s.layer for s in found if s.layer is not None})
    if not there:
        raise SiteError(f"{term!r} selects layers, but none of its {len(found)} sites is in a block.")
    wanted: set[int] = set()
    for piece in (p.strip() for p in selection.split(",")):
        if ":" in piece:
            try:
                picked = there[slice(*(int(b) if b.strip() else None for b in piece.split(":")))]
            except ValueError:
                picked = []
            # a slice silently shrinks to what exists: the bounds are checked
            bounds = [int(b) for b in piece.split(":")[:2] if b.strip()]
            if not picked or any(not -len(there) <= b <= len(there) for b in bounds):
                raise SiteError(
                    f"{term!r}: layers {piece} do not all exist; there are layers {there[0]} to {there[-1]}."
                )
            wanted.update(picked)
        else:
            index = int(piece)
            if not -len(there) <= index < len(there):
                raise SiteError(
                    f"{term!r}: there is no layer {index}; there are layers {there[0]} to {there[-1]}."
                )
            wanted.add(there[index])
    return [s for s in found if s.layer in wanted]


def is_linear(module: nn.Module) -> bool:
    """A linear map whose weight is (out, in), or (in, out) as in GPT-2's Conv1D."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__ == "Conv1D"
        and hasattr(module, "nf")
        and weight is not None
        and weight.dim() == 2
        and weight.shape[1] == module.nf
    )
