"""What changes of whole modules share: one part, one set of tensors at each module, the same numbers in peft's file under its names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from luthier.convert.folder import CONFIG, PREFIX, Folder, check_keys
from luthier.convert.names import check_targets, modules_of, resolve, targets_of
from luthier.convert.parts import Piece, one
from luthier.errors import FileFormatError, ModelError
from luthier.host.sites import Site
from luthier.host.structure import structure_of

TARGETS = frozenset({"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "init_weights"})  # fmt: skip
"""Keys that every one of these types has."""
DROPOUTS = ("rank_dropout", "module_dropout", "vera_dropout", "randlora_dropout")


def whole(pieces: Sequence[Piece], base: nn.Module, kind: str, linear: bool = False) -> dict[str, tuple[Site, Mapping[str, Tensor]]]:  # fmt: skip
    """{path: (site, tensors)} in the model's order. linear: whether peft's type takes nn.Linear alone. ModelError for what it can't hold."""
    piece = one(pieces, pieces[0].part.name)
    if piece.made(True):
        raise ModelError(
            f"{piece.part.name}: the effect of its start is taken off, and peft's {kind} has no place for that. Export it as a merged model, or train it with another start."
        )
    found = {}
    for site, t in piece.made():
        if site.rows is not None:
            raise ModelError(
                f"{piece.part.name}: {site.name} is a slice of a fused projection, and peft's {kind} changes whole modules. Choose other targets, or lora or dora."
            )
        if linear and site.transposed:
            raise ModelError(
                f"{piece.part.name}: peft's {kind} takes nn.Linear only, and {site.name} is a Conv1D. Use lora or dora there."
            )
        found[site.path] = (site, t)
    return {n: found[n] for n, _ in base.named_modules() if n in found}


def named(found: Mapping[str, tuple[Site, Mapping[str, Tensor]]], names: Mapping[str, str]) -> dict[str, Tensor]:  # fmt: skip
    """The file's tensors; names: {peft's suffix: our name}."""
    return {f"{PREFIX}{path}.{k}": t[v] for path, (_, t) in found.items() for k, v in names.items()}


def plain(value: float) -> float:
    """A whole number as an integer, as peft writes it."""
    return round(value) if abs(value - round(value)) < 1e-9 * max(1.0, value) else value


class Read(NamedTuple):
    """A folder's modules, in the model's order. keys: {site's name: {suffix: key}}."""

    sites: list[Site]
    keys: dict[str, dict[str, str]]
    targets: str
    notes: list[str]

    def shapes(self, folder: Folder, site: Site) -> dict[str, tuple[int, ...]]:
        return {k: folder.shapes[v] for k, v in self.keys[site.name].items()}

    def check(self, folder: Folder, site: Site, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """FileFormatError unless exactly these tensors are there."""
        found = self.shapes(folder, site)
        if found != dict(wanted):
            raise FileFormatError(
                f"The tensors at {site.name} are {found}, and this model with {CONFIG} needs {dict(wanted)}: it is another base, or the "
                "file is not whole. Save the adapter anew."
            )


def read(folder: Folder, base: nn.Module, drop: frozenset[str], known: frozenset[str], suffixes: Sequence[str], beside: frozenset[str] = frozenset()) -> Read:  # fmt: skip
    """The modules that a folder names, with every key of the configuration accounted for. beside: tensors of no module."""
    check_keys(folder.config, TARGETS | known, drop)
    modules = modules_of((k for k in folder.shapes if k not in beside), suffixes)
    structure = structure_of(base)
    resolved = resolve(base, structure, modules)
    notes = check_targets(folder.config, resolved, base)
    notes += [f"{k} acts in training only and is left out" for k in DROPOUTS if folder.config.get(k)]
    sites = [s for s in structure.sites if s in resolved.sites.values()]
    keys = {s.name: modules[n] for n, s in resolved.sites.items()}
    return Read(sites, keys, targets_of(structure, sites), notes)


def makes(method: Any, sites: Sequence[Site], found: Mapping[str, Tensor], as_peft: Callable[[Tensor, Tensor], Mapping[str, Tensor]]) -> bool:  # fmt: skip
    """Whether a method's seed makes the shared pair of a file. as_peft: A and B here -> the tensors of the file."""
    specs = method.shared(sites)
    a, b = (specs[k].start(specs[k].shape, torch.Generator()) for k in ("A", "B"))
    return all(torch.allclose(v, found[k], rtol=1e-5, atol=1e-7) for k, v in as_peft(a, b).items())


def seed_of(config: Mapping[str, Any], key: str, default: int) -> int:
    """A seed that a configuration names."""
    value = config.get(key, default)
    if type(value) is not int or not 0 <= value < 2**63:
        raise FileFormatError(
            f"{CONFIG}: {key}={str(value)[:60]} is no seed of at least 0. Merge it in peft."
        )
    return value
