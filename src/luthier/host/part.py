"""What a method file writes: parts (place, source, start, selection), and a plan of phases (signal)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, dataclass_transform

import torch
from torch import Tensor

from luthier.host.options import options, register

if TYPE_CHECKING:
    from luthier.host.context import Context
    from luthier.host.sites import Site, Structure

C = TypeVar("C", bound=type)
Layout = dict[str, Any]
Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]


class Spec(NamedTuple):
    """One tensor of a part: its shape, how it starts, whether it trains, and whether a file holds it."""

    shape: tuple[int, ...]
    start: Draw | None = None
    """(shape, rng) -> tensor; None: the part's start decides."""
    trained: bool = True
    stored: bool = True
    """False: not in files, redrawn from the adaptation's seed (needs a `start`)."""
    dtype: torch.dtype = torch.float32
    bounds: tuple[int, int] | None = None
    """For integer tensors: smallest and largest value that a file may hold."""
    of_weight: Callable[[Tensor], Tensor] | None = None
    """Instead of `start`: (the site's own weight, (out, in) in float32) -> tensor."""

    @property
    def own(self) -> bool:
        """Whether it says itself how it starts."""
        return self.start is not None or self.of_weight is not None


SpecLike = Spec | tuple[int, ...]


def spec(value: SpecLike) -> Spec:
    """A bare shape is a trained float32 tensor that the start fills."""
    return value if isinstance(value, Spec) else Spec(tuple(value))


def zeros(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.zeros(shape)


def ones(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.ones(shape)


def normal(std: float) -> Draw:
    """Normal values with this standard deviation."""
    return lambda shape, rng: torch.randn(shape, generator=rng) * std


def uniform(bound: float) -> Draw:
    """Uniform values between -bound and bound."""
    return lambda shape, rng: (2 * torch.rand(shape, generator=rng) - 1) * bound


class T(dict):
    """Tensors of one site by name, read as attributes; `layout` and `members` beside them."""

    layout: Layout
    members: Sequence[Any]
    training: bool = False
    start: Any = None
    """What the same tensors were at an anchored start, for a part that takes it off itself."""

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(
                f"this part has no tensor {key!r}; it has {sorted(map(str, self))}"
            ) from None


class Source:
    """Where a part's numbers come from. `specs` turns what the part wants into what trains, `make` turns it back."""

    registered_kind: ClassVar[str] = "source"
    name: ClassVar[str] = ""
    by_row: ClassVar[bool] = False
    """Whether what it makes has a leading row dimension."""

    def specs(
        self, part: Part, site: Site, layout: Layout, wanted: Mapping[str, Spec]
    ) -> Mapping[str, SpecLike]:
        """What is kept per site for what the part wants there."""
        return wanted

    def begin(self, part: Part, site: Site, draw: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """First values, by name, of some or all of `specs`; `draw()` is one start of what the part wants."""
        return draw()

    def shared(self, part: Part, wanted: Mapping[str, Mapping[str, Spec]]) -> Mapping[str, SpecLike]:
        """Tensors kept once for all sites; wanted: {site name: specs}."""
        return {}

    def prepare(self, part: Part, t: T, wanted: Mapping[str, Mapping[str, Spec]], ctx: Context | None) -> Any:
        """Called once per forward with the shared tensors; what it returns is `made` in `make`."""
        return None

    def make(
        self, part: Part, site: Site, t: T, ctx: Context | None, made: Any = None
    ) -> Mapping[str, Tensor]:
        """The tensors that the part reads, possibly with a leading row dimension; t: per-site and shared tensors."""
        return t


@register("free")
class Free(Source):
    """The trained tensors are the ones that the part reads."""


class Start:
    """What a part's tensors are before training. `anchored`: the host subtracts the start's own effect, so step 0 is the base."""

    registered_kind: ClassVar[str] = "start"
    name: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()
    """Statistics that it takes where they are known, as in a fit, and does without elsewhere."""
    anchored: ClassVar[bool] = False

    def asks(self, part: Part) -> Mapping[str, Any]:
        """How each of `needs` and `uses` is gathered at `part`: (state, tokens) -> state, or None for what the host knows by that name."""
        return dict.fromkeys((*self.needs, *self.uses))

    def enough(self, part: Part, statistics: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether more batches would change nothing that matters: asked after each of them."""
        return False

    def layouts(
        self, part: Part, sites: Sequence[Site], statistics: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, Layout] | None:
        """Layouts by site that the statistics decide; sites that it leaves out are not adapted. None: the part's own."""
        return None

    def fill(
        self,
        site: Site,
        specs: Mapping[str, Spec],
        weight: Tensor | None,
        statistics: Mapping[str, Any],
        rng: torch.Generator,
    ) -> dict[str, Tensor]:
        """Values for the tensors without a start of their own. weight: the site's, (out, in), if it has one.

        statistics: what was asked for, the module's own `parameters`, and the part's `gain`.
        """
        raise NotImplementedError


@register("zero")
class Zero(Start):
    """One factor is zero, the others are normal with variance 1 / fan-in: the product is zero."""

    which: str = "B"  # name of the tensor that starts at zero

    def fill(self, site, specs, weight, statistics, rng):
        if self.which not in specs:
            from luthier.errors import OptionError

            raise OptionError(
                f"start 'zero' has which={self.which!r}, but the tensors here are {', '.join(specs)}."
            )
        return {
            k: torch.zeros(s.shape)
            if k == self.which
            else torch.randn(s.shape, generator=rng) / s.shape[-1] ** 0.5
            for k, s in specs.items()
        }


def zero(which: str) -> Start:
    """The start in which the tensor called `which` is zero."""
    return Zero(which=which)


@options
class Part:
    """One place of a method. The places (`luthier.host.places`) derive from it, methods from them."""

    targets: str = (
        ""  # where: roles or site names, joined by |, with [layers] slices: "attention.query[-4:] | mlp.up"
    )
    source: Source = Free()  # where the numbers come from

    registered_kind: ClassVar[str] = "method"
    name: ClassVar[str] = ""
    if TYPE_CHECKING:
        start: Any = None
    else:
        start = Zero()
    rate: ClassVar[float] = 1e-3
    """Default learning rate of AdamW for this part's tensors."""
    decay: ClassVar[float] = 0.0
    members: ClassVar[tuple[str, ...]] = ()
    """What other adaptations this part refers to, in words: at least one must be given, under any name, each with a part at
    every site of this one."""
    wherever: ClassVar[bool] = False
    """Whether `targets` means what of it the task's loss reaches (full tuning), rather than exactly those sites."""
    identity_start: ClassVar[bool] = False
    """Whether the docstring promises that the default start leaves outputs as the base's."""

    def parts(self) -> Sequence[Part]:
        return (self,)

    def phases(self) -> Sequence[Phase]:
        return (Phase("train"),)

    def gain(self) -> float:
        """What the part multiplies a product of its factors by: a start that takes a change over from elsewhere divides by it."""
        return 1.0

    def plain(self) -> Part:
        """The same part without a source: it reads what it holds."""
        return dataclasses.replace(self, source=Free())

    @property
    def companions(self) -> tuple[str, ...]:
        """Names of other adaptations that its plan reads (`run.another`) and that are not part of what it makes: teachers."""
        return ()

    def layout(self, site: Site) -> Layout:
        """Small JSON that decides every shape and structure at a site (rank, kept tokens, masks): may change in a run."""
        return {}

    def first_layout(self, site: Site, weight: Tensor | None) -> Layout:
        """The layout that a fresh adaptation has, where the base's weight decides it (a rank by its spectrum); weight: (out, in)."""
        return self.layout(site)

    def left(self, sites: Sequence[Sequence[Site]]) -> int | None:
        """How many numbers its plan leaves to train, where that decides what a budget counts; None: those of its first layouts.

        sites: those of each of its parts.
        """
        return None

    def tensors(self, site: Site, layout: Layout) -> Mapping[str, SpecLike]:
        return {}

    def shared(self, sites: Sequence[Site]) -> Mapping[str, SpecLike]:
        return {}

    def idle(self, site: Site, parameters: Mapping[str, Tensor]) -> Iterable[str]:
        """Tensors that have no effect at a site, whatever their values, because of the module's own parameters there."""
        return ()

    def carry(self, site: Site, before: T) -> tuple[Layout, Mapping[str, Tensor]]:
        """What this part begins with at a site on a further task: its layout, and tensors that do not begin as always.

        before: what is kept there of the task before, with its layout. Here all goes on where it stands, under its name.
        """
        return before.layout or self.layout(site), before

    def build(
        self, base: torch.nn.Module, sites: Sequence[Site], rng: torch.Generator
    ) -> torch.nn.Module | None:
        """A network of its own for parts that are more than tensors at sites (side networks)."""
        return None

    def sites(self, structure: Structure, name: str | None = None) -> Sequence[Site]:
        """The sites that `targets` selects; with `name`, those among which a card's site is looked up."""
        from luthier.host.sites import find

        return structure.sites if name is not None else find(structure, self.targets)

    def check(self, sites: Sequence[Site]) -> None:
        """Refuse, with OptionError or SiteError, options that do not fit these sites."""

    def check_base(self, base: torch.nn.Module, sites: Sequence[Site]) -> None:
        """Refuse, with ModelError, modules of this base that the part can't work on however its options are set."""

    def check_member(self, name: str, part: Part) -> None:
        """Refuse, with OptionError, a part of another adaptation that this one cannot refer to."""


class Method(Part):
    """Several parts under one name: override `parts()`."""

    def parts(self) -> Sequence[Part]:
        raise NotImplementedError


@dataclass_transform(kw_only_default=True, frozen_default=True)
def method(name: str, **defaults: Any) -> Callable[[C], C]:
    """Register a method: `@method("lora", targets="attention.query | attention.value", rate=1e-3)`."""
    return register(name, **defaults)


@dataclass
class Phase:
    """One stretch of a plan. Functions get the run; a run is saved between any two steps and resumes inside any phase."""

    name: str
    steps: int | None = None
    """Steps of this phase; None: `share` of the run's own budget of steps."""
    share: float = 1.0
    trains: str | None = None
    """Regular expression over tensor names `adaptation.part.site:tensor`; None: what the specs say."""
    uses: tuple[str, ...] | None = None
    """Active adaptations; None: ("main",)."""
    objective: Callable[[Any, Any], Tensor] | None = None
    """(run, batch) -> loss; None: the task's."""
    optimiser: Callable[[Mapping[str, Tensor], Any], torch.optim.Optimizer] | None = None
    """({name: parameter}, run) -> optimiser; None: AdamW at each part's rate, warm-up and linear decay."""
    step: Callable[[Any], None] | None = None
    """(run) -> None: replaces the gradient step (scores, closed forms, averages)."""
    enter: Callable[[Any], None] | None = None
    every: Mapping[int, Callable[[Any], None]] = field(default_factory=dict)
    leave: Callable[[Any], None] | None = None
    partial: bool = False
    """A step need not reach every trained tensor (supernets, experts)."""
    data: str | None = None
    """Which stream of batches; None: "train"."""


def sum_shares(phases: Iterable[Phase]) -> float:
    """Total share of the step budget over phases without steps of their own."""
    return sum(p.share for p in phases if p.steps is None)
