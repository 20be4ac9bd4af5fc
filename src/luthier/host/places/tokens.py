"""The place in front of a tower's sequence: prompt tokens, at the input and, for deep prompts, again at every block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.host.applicable import Reason, because
from luthier.host.part import Part, T
from luthier.host.sites import Site, Structure

if TYPE_CHECKING:
    from luthier.host.adapted import Adapted
    from luthier.host.context import Context
    from luthier.host.placed import At, Placed


class TokenPrompt(Part):
    """tokens(t, ctx) -> (length, width) or (rows, length, width), optionally a pair with `visible`, (rows or 1, length) bool.

    A token that is not visible is hidden from attention and takes no position. deep: `tokens_at(h, t, ctx)` at every block
    replaces the prompt's positions there; h is the sequence without prompts.

    In a decoder's row that packs several sequences (positions that start again, no mask) each of them sees one and the same prompt.
    """

    deep: ClassVar[bool] = False
    hides: ClassVar[bool] = False
    """Whether `tokens` may return `visible`."""
    speaks: ClassVar[bool] = False
    """Whether an objective reads what a decoder makes of the prompt's own tokens: (rows, length, width), noted as `prompt`."""

    def tokens(self, t: T, ctx: Context) -> Tensor | tuple[Tensor, Tensor]:
        raise NotImplementedError

    def tokens_at(self, h: Tensor, t: T, ctx: Context) -> Tensor:
        raise NotImplementedError

    def sites(self, structure: Structure, name: str | None = None) -> Sequence[Site]:
        """Towers without an embedding of tokens (images, features) take prompts at their first block."""
        if name is None:
            refuse_without_mixing(self.name, structure)
        if (
            name is None
            and self.targets == "embedding"
            and not any(s.role == "embedding" for s in structure.sites)
        ):
            if not structure.towers:
                raise because(
                    ModelError(
                        f"{self.name} needs a model with a list of blocks, which {structure.model} does not have."
                    ),
                    Reason.NO_BLOCKS,
                )
            first = structure.towers[0]
            return [
                s for s in structure.sites if s.role == "block" and s.tower == first.name and s.layer == 0
            ]
        return super().sites(structure, name)

    def install(self, placed: Placed, adapted: Adapted) -> Iterator[Any]:
        for at in placed.ats():
            if self.deep and at.site.role == "block":
                yield adapted.base.get_submodule(at.site.path).register_forward_pre_hook(
                    DeepTokens(at).replace, with_kwargs=True
                )
        tower = placed.ats()[0].site.tower
        adapted.prompts.setdefault(tower, []).append(placed)
        yield Prompting(adapted, tower, placed)


def refuse_without_mixing(name: str, structure: Structure) -> None:
    """ModelError where no token could see another that is put in front of it."""
    if not any(s.role.startswith(("attention", "ssm", "conv")) for s in structure.sites):
        raise because(
            ModelError(
                f"{name} puts tokens in front of a sequence, but no module of {structure.model} lets one token read another."
            ),
            Reason.NO_MIXING,
        )


class Prompting:
    """Takes a prompt away from its tower again."""

    def __init__(self, adapted: Adapted, tower: str, placed: Placed):
        self.adapted, self.tower, self.placed = adapted, tower, placed

    def remove(self) -> None:
        left = [p for p in self.adapted.prompts.pop(self.tower) if p is not self.placed]
        if left:
            self.adapted.prompts[self.tower] = left


class DeepTokens:
    """Replaces a deep prompt's positions at the entry of one block."""

    def __init__(self, at: At):
        self.at = at

    def replace(self, module: Any, args: tuple, kwargs: dict) -> Any:
        at, ctx = self.at, self.at.ctx
        if not at.on or ctx is None or ctx.phase != "prefill":
            return None
        made = ctx.prompts.get(at.site.tower)
        if made is None or at.placed.key not in made.spans:
            return None
        start, length = made.spans[at.placed.key]
        h = args[0] if args else kwargs["hidden_states"]
        part: TokenPrompt = at.part  # type: ignore[assignment]
        ctx.entering[at.site.tower] = made.cut(h)
        new = (
            part.tokens_at(ctx.entering[at.site.tower], at.t(ctx, h.dtype), ctx)
            .expand(len(h), -1, -1)
            .to(h.dtype)
        )
        if made.behind is None:
            h = torch.cat([h[:, :start], new, h[:, start + length :]], 1)
        else:  # in a recurrent tower the prompts stand behind the padding of each row
            places = made.behind[:, None] + torch.arange(start, start + length, device=h.device)
            h = h.scatter(1, places[..., None].expand(-1, -1, h.shape[-1]), new)
        return ((h, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": h})
