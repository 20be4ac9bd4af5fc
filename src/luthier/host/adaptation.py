"""An adaptation: a method's parts with their tensors at their sites. A value that exists, prints and saves without its base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import FileFormatError, ModelError, OptionError, SiteError
from luthier.host.applicable import Reason, because, builds
from luthier.host.options import from_card, to_card
from luthier.host.part import Layout, Part, Spec, Start
from luthier.host.placed import At, Fill, Placed
from luthier.host.quantised import refuse_quantised
from luthier.host.sites import Site
from luthier.host.structure import structure_of

LARGEST_REDRAWN = 2**31
"""Bytes that tensors redrawn from a seed may take: a hostile card must not allocate without bound."""


class Adaptation(nn.Module):
    """method: the choices; head: the output part of a task; members: adaptations that parts refer to, frozen."""

    def __init__(
        self,
        method: Part,
        sites: Sequence[Sequence[Site]],
        head: Part | None = None,
        layouts: Mapping[str, Mapping[str, Layout]] | None = None,
        members: Mapping[str, Adaptation] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.method, self.head, self.seed = method, head, seed
        self.members, self.parts = nn.ModuleDict(dict(members or {})), nn.ModuleList()
        self.task: dict[str, Any] | None = None
        self.preprocess: dict[str, Any] | None = None
        self.about: dict[str, Any] = {}
        """Where it came from (base name, metrics): carried in the card, decides nothing."""
        for i, part in enumerate(all_parts(method, head)):
            given = (layouts or {}).get(str(i), {})
            here = {s.name: dict(given[s.name]) if s.name in given else part.layout(s) for s in sites[i]}
            self.parts.append(Placed(part, sites[i], here, f"{i}.{part.name}"))
        for placed in self.placed():
            if placed.part.members:
                placed.members = [_member(placed, name, m) for name, m in self.members.items()]  # type: ignore[arg-type]
                if not placed.members:
                    raise OptionError(
                        f"{placed.part.name} refers to {' and '.join(placed.part.members)}, and none was given. Give each as members={{name: adaptation}}, or --member NAME=DIR."
                    )
        for m in self.members.values():
            m.requires_grad_(False)

    # -- making

    @classmethod
    def new(
        cls,
        method: Part,
        base: nn.Module,
        *,
        head: Part | None = None,
        seed: int = 0,
        members: Mapping[str, Adaptation] | None = None,
        statistics: Mapping[str, Mapping[str, Any]] | None = None,
        layouts: Mapping[str, Mapping[str, Layout]] | None = None,
        reached: Collection[str] | None = None,
        unfilled: bool = False,
    ) -> Adaptation:
        """A fresh adaptation for `base`.

        statistics: {site: {name: value}} for starts that need them (`luthier.host.calibrate`). reached: paths of modules that
        the task's loss reaches (`luthier.host.probe`); methods that adapt "everything" leave out the others. unfilled: what a
        start would fill from statistics is zero: for asking what attaches, before there are any.
        """
        structure = structure_of(base)
        parts = all_parts(method, head)
        sites: list[Sequence[Site]] = [
            [s for s in p.sites(structure) if reached is None or not p.wherever or s.path in reached]
            for p in parts
        ]
        for part, here in zip(parts, sites, strict=True):
            part.check_base(base, here)
            part.check(here)
        known = {} if unfilled else statistics or {}
        if layouts is None:
            layouts = first_layouts(parts, sites, base)
            if not unfilled:
                sites = _shared_out(parts, sites, known, layouts)
        made = cls(method, sites, head, layouts, members, seed)
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for placed in made.placed():
                placed.allocate(lambda p, site, specs: _begin(p, site, specs, base, known, rng, unfilled))
                placed.network = _network(placed, base, rng)
        device = next(base.parameters(), torch.zeros(())).device
        return made if device.type == "meta" else made.to(device)

    @classmethod
    def from_card(
        cls, card: Mapping[str, Any], base: nn.Module, stored_bytes: int | None = None
    ) -> Adaptation:
        """The adaptation that a card describes: tensors that files hold are zero, others are redrawn from the seed.

        stored_bytes: size of the file that backs it; a card that asks for more raises before anything is allocated.
        """
        structure = structure_of(base)
        try:
            method = from_card(card["method"], Part)
            head = from_card(card["head"], Part) if card.get("head") is not None else None
            members = {
                str(k): cls.from_card(c, base, stored_bytes) for k, c in dict(card.get("members", {})).items()
            }
            names, layouts, seed = card["sites"], dict(card["layouts"]), int(card["seed"])
            parts = all_parts(method, head)
            if not isinstance(card["layouts"], dict) or not isinstance(names, list):
                raise FileFormatError("The card's sites or layouts are malformed.")
            if len(names) != len(parts):
                raise FileFormatError(
                    f"The card lists sites for {len(names)} parts, but {method.name} has {len(parts)}."
                )
            sites = [
                [_site(structure, part, n) for n in here] for part, here in zip(parts, names, strict=True)
            ]
            for part, here in zip(parts, sites, strict=True):
                part.check_base(base, here)
                part.check(here)
            made = cls(method, sites, head, layouts, members, seed)
            for placed in made.placed():
                _check_size(placed, stored_bytes)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise FileFormatError(
                f"The card is malformed ({type(error).__name__}: {str(error)[:80]}). Is it a luthier card?"
            ) from None
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for placed in made.placed():
                placed.allocate(lambda p, site, specs: {k: _blank(s, rng) for k, s in specs.items()})
                placed.network = _network(placed, base, rng)
        made.task, made.preprocess, made.about = (
            card.get("task"),
            card.get("preprocess"),
            dict(card.get("about") or {}),
        )
        return made

    def placed(self) -> list[Placed]:
        return list(self.parts)  # type: ignore[arg-type]

    def every_placed(self) -> list[Placed]:
        """The parts of this adaptation and of all that it refers to."""
        return [*self.placed(), *(p for m in self.members.values() for p in m.every_placed())]  # type: ignore[operator]

    def reform(self, layouts: Mapping[str, Mapping[str, Layout]], fill: Fill) -> None:
        """Give sites new layouts, and all tensors by `fill(placed, site or None, specs)`."""
        for i, placed in enumerate(self.placed()):
            new = layouts.get(str(i))
            if new is None:
                continue
            for a in placed.ats():
                a.layout = dict(new.get(a.site.name, a.layout))
            placed.allocate(fill)
            placed.to(_device(self))

    # -- as a value

    def layouts(self) -> dict[str, dict[str, Layout]]:
        return {
            str(i): {a.site.name: a.layout for a in p.ats() if a.layout} for i, p in enumerate(self.placed())
        }

    def card(self) -> dict[str, Any]:
        """All but the tensors, as JSON."""
        return {
            "method": to_card(self.method),
            "head": to_card(self.head) if self.head is not None else None,
            "seed": self.seed,
            "sites": [[s.name for s in p.sites] for p in self.placed()],
            "layouts": self.layouts(),
            "members": {k: m.card() for k, m in self.members.items()},  # type: ignore[operator]
            "task": self.task,
            "preprocess": self.preprocess,
            "about": self.about,
        }

    def spec_of(self, name: str) -> Spec | None:
        """The spec of a tensor of `state()`; None for networks, anchors and members."""
        head, _, rest = name.partition(".")
        index, _, inner = rest.partition(".")
        return self.placed()[int(index)].specs.get(inner) if head == "parts" else None

    def state(self, everything: bool = False) -> dict[str, Tensor]:
        """Tensors by name; without `everything` only those that a file holds (not what a seed regenerates)."""
        return {
            k: v
            for k, v in self.state_dict().items()
            if everything or (s := self.spec_of(k)) is None or s.stored
        }

    def load_state(self, tensors: Mapping[str, Tensor], everything: bool = False) -> None:
        """Strict: missing, extra, mis-shaped, mistyped, non-finite or out-of-range tensors raise and change nothing."""
        want = self.state(everything)
        check_tensors(self, want, {k: (tuple(v.shape), v.dtype) for k, v in tensors.items()})
        for k, v in tensors.items():
            s = self.spec_of(k)
            if v.is_floating_point() and not torch.isfinite(v).all():
                raise FileFormatError(
                    f"The tensor {k} holds NaN or infinite values: the file is damaged or hostile."
                )
            if (
                s is not None
                and s.bounds
                and v.numel()
                and not (s.bounds[0] <= int(v.min()) and int(v.max()) <= s.bounds[1])
            ):
                raise FileFormatError(f"The tensor {k} holds an index outside {s.bounds[0]}..{s.bounds[1]}.")
        with torch.no_grad():
            for k, v in want.items():
                v.copy_(tensors[k])

    def trainable(self, pattern: str | None = None) -> dict[str, nn.Parameter]:
        """Tensors that train, by name; pattern: a regular expression that picks among all of this adaptation's own floats."""
        import re

        out = {}
        for name, p in self.named_parameters():
            s = self.spec_of(name)
            if name.startswith("members.") or ".anchor." in name or not p.is_floating_point():
                continue
            if re.search(pattern, name) if pattern is not None else (s is None or s.trained):
                out[name] = p
        return out

    def counts(self) -> dict[str, int]:
        """Trained parameters of the method and of the head."""
        heads = {i for i, p in enumerate(self.placed()) if p.part is self.head}
        out = {"method": 0, "head": 0}
        for name, p in self.trainable().items():
            out["head" if int(name.split(".")[1]) in heads else "method"] += p.numel()
        return out

    def hash(self) -> str:
        """sha256 of what a file would hold; where it came from does not count."""
        card = {k: v for k, v in self.card().items() if k != "about"}
        h = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
        for k, v in sorted(self.state().items()):
            h.update(f"{k}{tuple(v.shape)}{v.dtype}".encode())
            if v.numel():
                h.update(v.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return h.hexdigest()

    def at(self, part: int = 0) -> list[At]:
        """The sites of one part: what plans work on."""
        return self.placed()[part].ats()

    def __repr__(self) -> str:
        n = self.counts()
        return f"Adaptation({self.method}, sites={sum(len(p.sites) for p in self.placed())}, parameters={n['method']}+{n['head']})"

    # -- algebra (luthier.host.combination)

    def __mul__(self, factor: float) -> Any:
        from luthier.host.combination import Combination

        return Combination([(float(factor), self)])

    __rmul__ = __mul__

    def __neg__(self) -> Any:
        return self * -1.0

    def __add__(self, other: Any) -> Any:
        return self * 1.0 + other

    def __sub__(self, other: Any) -> Any:
        return self + (other * -1.0)


def _member(placed: Placed, name: str, adaptation: Adaptation) -> Placed:
    """The part of another adaptation that `placed` refers to: the first one at all of its sites."""
    for found in adaptation.placed():
        if set(placed.at) <= set(found.at):
            placed.part.check_member(name, found.part)
            return found
    held = {key for found in adaptation.placed() for key in found.at}
    lacking = next((a.site.name for a in placed.ats() if a.key not in held), placed.ats()[0].site.name)
    raise SiteError(
        f"{placed.part.name}: the member {name!r} ({adaptation.method.name}) has no part at all of its {len(placed.at)} sites, as {lacking}. Choose `targets` at which every member acts."
    )


def all_parts(method: Part, head: Part | None) -> list[Part]:
    return [*method.parts(), *([head] if head is not None else [])]


def check_tensors(
    adaptation: Adaptation,
    want: Mapping[str, Tensor],
    found: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
) -> None:
    """Names, shapes and dtypes of a file against what the card asks for."""
    if odd := sorted(set(want) ^ set(found)):
        kind = "missing" if odd[0] in want else "not expected"
        raise FileFormatError(
            f"{len(odd)} tensors are missing or not expected, first {odd[0][:120]!r} ({kind})."
        )
    for k, v in want.items():
        if tuple(v.shape) != found[k][0] or v.dtype != found[k][1]:
            raise FileFormatError(
                f"The tensor {k} is {found[k][1]} {found[k][0]}, expected {v.dtype} {tuple(v.shape)}."
            )


def _shared_out(
    parts: Sequence[Part],
    sites: Sequence[Sequence[Site]],
    statistics: Mapping,
    layouts: dict[str, Mapping[str, Layout]],
) -> list[Sequence[Site]]:
    """The sites that the parts' starts adapt; enters the layouts that they ask for there."""
    kept = list(sites)
    for i, (part, here) in enumerate(zip(parts, sites, strict=True)):
        if type(part.start).layouts is Start.layouts:
            continue
        for site in here:
            _refuse_missing(part, statistics.get(site.name, {}))
        if (shared := part.start.layouts(part, here, statistics)) is not None:
            kept[i], layouts[str(i)] = [s for s in here if s.name in shared], shared
    return kept


def _refuse_missing(part: Part, known: Mapping[str, Any]) -> None:
    if missing := [n for n in part.start.needs if n not in known]:
        raise OptionError(
            f"start {part.start.name!r} needs statistics of {', '.join(missing)}: run luthier.host.calibrate first."
        )


def _begin(
    placed: Placed,
    site: Site | None,
    specs: Mapping[str, Spec],
    base: nn.Module,
    statistics: Mapping,
    rng: torch.Generator,
    unfilled: bool = False,
) -> dict:
    """First values of a site's tensors: the start fills what the part wants, the source turns that into what trains."""
    if site is None:
        return {k: _own(placed, k, s, rng) for k, s in specs.items()}
    part, wanted = placed.part, placed.wanted()[site.name]
    weight = site_weight(base, site)

    def draw() -> dict[str, Tensor]:
        left = {k: s for k, s in wanted.items() if not s.own}
        if unfilled and part.start.needs:
            out = {k: torch.zeros(s.shape) for k, s in left.items()}
        else:
            known = {**statistics.get(site.name, {}), "parameters": site_parameters(base, site)}
            _refuse_missing(part, known)
            known["gain"] = part.gain()
            out = part.start.fill(site, left, weight, known, rng) if left else {}
        if set(out) != set(left):
            raise OptionError(
                f"start {part.start.name!r} fills {sorted(out)}, but {part.name} wants {sorted(left)}: choose another start."
            )
        return {k: _own(placed, k, s, rng, weight) if s.own else out[k] for k, s in wanted.items()}

    out = part.source.begin(part, site, draw)
    return {k: out[k] if k in out else _own(placed, k, s, rng, weight) for k, s in specs.items()}


def first_layouts(
    parts: Sequence[Part], sites: Sequence[Sequence[Site]], base: nn.Module
) -> dict[str, Mapping[str, Layout]]:
    """{part: {site: layout}} where the base's weights decide."""
    deciding = {i: p for i, p in enumerate(parts) if type(p).first_layout is not Part.first_layout}
    if deciding and any(p.is_meta for p in base.parameters()):
        raise because(
            ModelError(
                f"{next(iter(deciding.values())).name} reads the base's weights, which this one on the meta device does not hold. Load the base first."
            ),
            Reason.NEEDS_VALUES,
        )
    return {
        str(i): {s.name: p.first_layout(s, site_weight(base, s)) for s in sites[i]}
        for i, p in deciding.items()
    }


def _network(placed: Placed, base: nn.Module, rng: torch.Generator) -> nn.Module | None:
    if builds(placed.part) and any(p.is_meta for p in base.parameters()):
        raise because(
            ModelError(
                f"{placed.part.name} needs the values of the base, which this one on the meta device does not hold. Load the base first."
            ),
            Reason.NEEDS_VALUES,
        )
    if builds(placed.part):
        refuse_quantised(placed.part.name, base, structure_of(base).sites, "copies")
    return placed.part.build(base, placed.sites, rng)


def _own(placed: Placed, name: str, s: Spec, rng: torch.Generator, weight: Tensor | None = None) -> Tensor:
    if s.start is not None:
        return s.start(tuple(s.shape), rng)
    if s.of_weight is None or weight is None:
        raise SiteError(f"{placed.part.name}: nothing says how the tensor {name} starts.")
    return s.of_weight(weight.float())


def _blank(s: Spec, rng: torch.Generator) -> Tensor:
    if s.stored or s.start is None:
        return torch.zeros(tuple(s.shape), dtype=s.dtype)
    return s.start(tuple(s.shape), rng)


def _check_size(placed: Placed, stored_bytes: int | None) -> None:
    """What a card makes us allocate is bounded: by its file, or by a constant for what a seed redraws."""
    held = redrawn = 0
    for _, specs in placed.plan():
        for k, s in specs.items():
            size = s.dtype.itemsize
            for n in s.shape:
                if not isinstance(n, int) or n < 0:
                    raise FileFormatError(
                        f"{placed.part.name}: the card asks for a tensor {k} of shape {s.shape}."
                    )
                size *= n
            held, redrawn = (held + size, redrawn) if s.stored else (held, redrawn + size)
    if redrawn > LARGEST_REDRAWN or (stored_bytes is not None and held > stored_bytes):
        raise FileFormatError(
            f"{placed.part.name}: the card asks for {held + redrawn} bytes of tensors, more than its file holds."
        )


def _site(structure: Any, part: Part, name: str) -> Site:
    for s in part.sites(structure, name):
        if s.name == name:
            return s
    raise FileFormatError(
        f"{part.name} was trained at the site {str(name)[:120]!r}, which this model does not have: it is another base."
    )


def site_weight(base: nn.Module, site: Site) -> Tensor | None:
    """The weight at a site as (out, in), sliced; None where there is none."""
    if not site.path and site.role == "output":
        return None
    weight = getattr(base.get_submodule(site.path), "weight", None)
    if weight is None:
        return None
    weight = gathered(weight.detach())
    weight = weight.T if site.transposed else weight
    return weight[site.rows[0] : site.rows[1]] if site.rows else weight


def site_parameters(base: nn.Module, site: Site) -> dict[str, Tensor]:
    """The module's own parameters, as it stores them."""
    if site.role == "output":
        return {}
    own = base.get_submodule(site.path).named_parameters(recurse=False)
    return {n: gathered(p.detach()) for n, p in own}


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that several processes hold in parts: all of them must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters(), torch.zeros(())).device
