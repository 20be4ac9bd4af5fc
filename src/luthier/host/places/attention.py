"""The place inside attention: keys and values in front of a layer's own, or a change of what attention returns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.host.bridge import bridge
from luthier.host.part import Part, T

if TYPE_CHECKING:
    from luthier.host.adapted import Adapted
    from luthier.host.context import Context
    from luthier.host.placed import At, Placed
    from luthier.host.sites import Tower

POSITIONS = re.compile(r"(^|\.)(wpe|(embed_)?positions?(_embeddings?)?|pos_emb(ed(ding)?)?s?)$")


class AttentionEdit(Part):
    """keys_values(t, ctx) -> two of (heads, length, head_dim) or (rows, heads, length, head_dim), never masked;
    or attend(seen, out, t, ctx) -> out, (rows, tokens, heads, head_dim); seen: `luthier.host.bridge.Attended`.

    Content positions start at 0: prefixes take none, unless `shift` says by how many they move, or `in_front` that scores biased by
    distance see them right in front of the content.
    """

    keys_values: ClassVar[Any] = None
    attend: ClassVar[Any] = None

    def function(self, args: tuple, t: T, ctx: Context) -> Tensor:
        return self.attend(*args, t, ctx)

    def shift(self) -> int:
        """By how much the positions of the content grow, in models that look positions up in a table."""
        return 0

    def in_front(self) -> bool:
        """Whether keys and values have a distance to the content, in models that bias their scores by it."""
        return False

    def install(self, placed: Placed, adapted: Adapted) -> Iterator[Any]:
        yield from bridge(placed, adapted)
        if self.in_front():
            for at in placed.ats():
                if at.site.role == "attention":
                    tower = adapted.structure.tower(at.site.tower)
                    adapted.attention[at.site.path].distances = self._biases(adapted, tower, at.site.path)
        if not self.shift():
            return
        tower = adapted.structure.tower(placed.sites[0].tower)
        tables = position_tables(adapted.base, tower)
        if not tables:
            raise ModelError(
                f"{self.name} moves the positions of its input, but {adapted.structure.model} looks up no positions in a table. "
                "Leave them as they are (positions='own')."
            )
        for path in tables:
            yield adapted.base.get_submodule(path).register_forward_pre_hook(Shifted(placed.ats()[0]).move)

    def _biases(self, adapted: Adapted, tower: Tower, path: str) -> nn.Module:
        """The module whose bias by distance a site's attention adds: its own, or the first one of its tower."""
        own = [
            path,
            *(s.path for s in adapted.structure.sites if s.role == "attention" and s.tower == tower.name),
        ]
        for module in map(adapted.base.get_submodule, own):
            if hasattr(module, "compute_bias") and hasattr(module, "relative_attention_bias"):
                return module
        raise ModelError(
            f"{self.name} stands in front of its input for scores that are biased by distance, which {adapted.structure.model} does not have. "
            "Leave positions='own'."
        )


class Shifted:
    """Moves the positions that a table is asked for, in the rows that a part serves."""

    def __init__(self, at: At):
        self.at = at

    def move(self, table: Any, args: tuple) -> Any:
        at, ctx = self.at, self.at.ctx
        if not at.on or ctx is None:
            return None
        positions, n = args[0], at.part.shift()
        if positions.shape[-1] + n > table.num_embeddings:
            raise ModelError(
                f"{n} positions of the prefix and {positions.shape[-1]} of the input do not fit the model's {table.num_embeddings}. "
                f"Use inputs of at most {table.num_embeddings - n} tokens (max_length)."
            )
        rows = ctx.rows.get(at.placed.owner)
        return (positions + (n if rows is None else n * rows.long()[:, None]),)


def position_tables(base: nn.Module, tower: Tower) -> list[str]:
    """Paths of the embeddings in which a tower looks up absolute positions; none for rotary or relative ones."""
    prefix = tower.entry + "." if tower.entry else ""
    return [
        name
        for name, module in base.named_modules()
        if name.startswith(prefix)
        and POSITIONS.search(name)
        and isinstance(module, nn.Embedding)
        and type(module).forward is nn.Embedding.forward
        and not name.startswith(tuple(b + "." for b in tower.blocks))
    ]
