"""What cannot be asked of a method on a model, and why: a closed list of architectural reasons, decided by the host alone.

Every refusal that follows from the model's architecture carries its `Reason` and says it in its own words; options that merely
do not fit (a rank above the width) carry none. Conformance tests skip for nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from torch import nn

from luthier.errors import LuthierError

if TYPE_CHECKING:
    from luthier.host.part import Part
    from luthier.host.sites import Site, Tower


class Reason(StrEnum):
    """The list. A value is the words that every error of this reason holds."""

    NO_SITE = "No site matches"
    NO_PARAMETER = "has such parameters"
    NO_PARTNER = "which the block of"
    NO_BLOCKS = "list of blocks"
    NO_SCAN = "no layer with a selective scan"
    NO_MIXING = "lets one token read another"
    NO_ATTENTION_BLOCKS = "not attention blocks"
    NO_INTERFACE = "Transformers' attention interface"
    NO_HEAD_WIDTH = "the width of a head is not known"
    NO_GENERATION = "cannot generate"
    NO_POSITIONS = "no explicit positions"
    NOT_LINEAR = "edits linear weights"
    NOT_A_CONVOLUTION = "edits convolutions"
    NOT_A_WEIGHT = "not a change of weights"
    NOT_ADDITIVE = "no additive effect"
    WALKS_BLOCKS = "replaces the walk through the blocks"
    KEEPS_NO_ACTIVATIONS = "keeps no activations of the blocks"
    NEEDS_VALUES = "needs the values of the base"
    ROWS_SHARE = "the same values for all rows"
    BLOCKS_SHARE = "share positions or a cache"
    BYPASSED = "bypasses these modules"

    @property
    def short(self) -> str:
        """A few words for tables."""
        return self.name.lower().replace("_", " ")


class Ability(StrEnum):
    """What may be asked of a method on a model, beyond what all can that attach."""

    ATTACH = "attach"
    MERGE = "merge"
    SCALE = "scale"
    SHARE_ROWS = "share a batch by row"
    RECOMPUTE = "recompute in the backward pass"
    GENERATE = "generate"
    WITHOUT_VALUES = "load over a base on the meta device"


def because(error: LuthierError, reason: Reason) -> LuthierError:
    """`error`, which says `reason` in its words, marked with it."""
    assert reason.value in str(error), f"an error for {reason.name} must say {reason.value!r}: {error}"
    error.reason = reason
    return error


def why_not(
    method: Part,
    base: nn.Module,
    ability: Ability = Ability.ATTACH,
    batch: Mapping[str, Any] | None = None,
    members: Mapping[str, Any] | None = None,
) -> Reason | None:
    """The architectural reason for which `base` cannot carry `method`, or do `ability` with it; None: it can.

    ATTACH attaches it and takes it away again; batch: one of the base's, with which sites that its forward bypasses are found as
    well; members: adaptations that the method refers to. The other abilities are asked of what attaches, and read off its
    parts and the structure. Any other refusal (an option that does not fit) is raised.
    """
    from luthier.host.adapted import Adapted

    if ability is not Ability.ATTACH:
        if ability is Ability.GENERATE and not can_generate(base):
            return Reason.NO_GENERATION
        return _of(method, base, ability)
    adapted = Adapted(base)
    try:
        _attach(adapted, method, batch, members)
    except LuthierError as error:
        if error.reason is None:
            raise
        return Reason(error.reason)
    finally:
        for name in list(adapted.adaptations):
            adapted.detach(name)
    return None


def _attach(
    adapted: Any, method: Part, batch: Mapping[str, Any] | None, members: Mapping[str, Any] | None
) -> None:
    from luthier.host.adaptation import Adaptation
    from luthier.host.probe import reached, refuse_dead

    found = None
    if batch is not None and any(p.wherever for p in method.parts()):
        found = reached(adapted.base, lambda: _value(adapted(batch)))
    made = Adaptation.new(method, adapted.base, reached=found, members=members, unfilled=True)
    adapted.attach("asked", made)
    if batch is not None:
        refuse_dead(adapted, "asked", batch)


def _value(out: Any) -> Any:
    return (out.logits if out.logits is not None else out.hidden).float().pow(2).mean()


def _of(method: Part, base: nn.Module, ability: Ability) -> Reason | None:
    """The first reason among a method's parts, from where they would stand in the model's structure."""
    from luthier.host.places import Stack
    from luthier.host.structure import structure_of

    structure = structure_of(base)
    # one that walks the blocks refuses before they run, and so before what is in them
    for part in sorted(method.parts(), key=lambda p: not isinstance(p, Stack)):
        sites = part.sites(structure)
        towers = [t for t in structure.towers if any(s.tower == t.name for s in sites)]
        if (found := reason_of(part, sites, towers, ability)) is not None:
            return found
    return None


def reason_of(part: Part, sites: Sequence[Site], towers: Sequence[Tower], ability: Ability) -> Reason | None:
    """Why `part`, at these sites of these towers, cannot do `ability`."""
    from luthier.host.merge import mergeable
    from luthier.host.places import AttentionEdit, Stack, Subset, TokenPrompt

    if ability is Ability.MERGE and not mergeable(part):
        return Reason.NOT_A_WEIGHT
    replaces = isinstance(part, AttentionEdit) and part.keys_values is not None
    if ability is Ability.SCALE and (isinstance(part, (Stack, TokenPrompt)) or replaces):
        return Reason.NOT_ADDITIVE
    if ability is Ability.RECOMPUTE and isinstance(part, Stack):
        return Reason.KEEPS_NO_ACTIVATIONS
    if ability is Ability.WITHOUT_VALUES and builds(part):
        return Reason.NEEDS_VALUES
    if ability is Ability.SHARE_ROWS:
        if isinstance(part, Stack):
            return Reason.WALKS_BLOCKS
        if isinstance(part, Subset) and any(rows_share(s) for s in sites):
            return Reason.ROWS_SHARE
        if isinstance(part, TokenPrompt) and any("position_ids" not in t.takes for t in towers):
            return Reason.NO_POSITIONS
    return None


def builds(part: Part) -> bool:
    """Whether a part makes a network of its own out of the base's weights."""
    from luthier.host.part import Part

    return type(part).build is not Part.build


def rows_share(site: Site) -> bool:
    """Whether a module's output belongs to no row: a table inside a block, as T5's relative positions, is read once for all."""
    return site.role == "embedding.other" and site.layer is not None


def can_generate(base: nn.Module) -> bool:
    """Whether a base writes text through Transformers' `generate`."""
    able = getattr(base, "can_generate", None)
    return callable(getattr(base, "generate", None)) and (able is None or bool(able()))
