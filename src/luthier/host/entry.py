"""How a sequence enters and leaves a tower with prompts in front: embeddings, mask, positions, token types, hidden states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.host.applicable import Reason, because
from luthier.host.context import CURRENT, Context, pieces

if TYPE_CHECKING:
    from luthier.host.adapted import Adapted
    from luthier.host.sites import Tower


@dataclass
class Prompts:
    """What stands in front of a tower's sequence in one forward."""

    tokens: list[Tensor] = field(default_factory=list)
    visible: list[Tensor] = field(default_factory=list)
    """(rows, length) bool for each."""
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    """{part: (start, length)}."""
    added: int = 0
    hidden: bool = False
    """Whether a part said that some tokens are not visible."""
    input: Tensor | None = None
    """(rows, tokens, width): the embedded sequence that they stand in front of."""
    behind: Tensor | None = None
    """(rows,) padding that the prompts stand behind, in a recurrent tower; None: they stand in front of everything."""

    def mask(self) -> Tensor:
        return torch.cat(self.visible, 1)

    def put_behind(self, x: Tensor) -> Tensor:
        """x: (rows, added + tokens, ...), prompts first -> padding, prompts, the rest."""
        if self.behind is None:
            return x
        place, pads = torch.arange(x.shape[1], device=x.device)[None], self.behind[:, None]
        source = torch.where(place < pads, place + self.added, place - pads)
        return _take(x, torch.where(place < pads + self.added, source, place))

    def said(self, x: Tensor, part: str) -> Tensor:
        """x as the tower leaves it -> one part's prompt, (rows, length, ...)."""
        start, length = self.spans[part]
        if self.behind is None:
            return x[:, start : start + length]
        return _take(x, self.behind[:, None] + torch.arange(start, start + length, device=x.device))

    def cut(self, x: Tensor) -> Tensor:
        """x: (rows, added + tokens, ...) as the tower leaves it, without prompts."""
        if self.behind is None:
            return x[:, self.added :]
        place = torch.arange(x.shape[1] - self.added, device=x.device)[None]
        return _take(x, place + self.added * (place >= self.behind[:, None]))


class Entrance:
    """The hooks of one tower. Bound methods of an object that copies with the adapted model."""

    def __init__(self, adapted: Adapted, tower: Tower):
        self.adapted, self.tower = adapted, tower
        self.read = any(t.reads == tower.name for t in adapted.structure.towers)
        sites = adapted.structure.sites
        self.recurrent = any(s.role.startswith("ssm") and s.tower == tower.name for s in sites)

    def install(self) -> list[Any]:
        base, tower = self.adapted.base, self.tower
        entry = base.get_submodule(tower.entry)
        hooks = [
            entry.register_forward_pre_hook(self.enter, with_kwargs=True),
            entry.register_forward_hook(self.leave, with_kwargs=True, always_call=True),
            base.get_submodule(tower.blocks[-1]).register_forward_hook(self.trim),
        ]
        if tower.embedding is None:
            hooks.append(
                base.get_submodule(tower.blocks[0]).register_forward_pre_hook(
                    self.first_block, with_kwargs=True
                )
            )
        return hooks

    # -- hooks

    def enter(self, module: Any, args: tuple, kwargs: dict) -> Any:
        ctx = self.adapted.context()
        if ctx is None:  # a tower called on its own, as generation does with encoders
            ctx = self.adapted.open(args, kwargs)
            ctx.made["opened"] = self.tower.name, CURRENT.set(ctx)
        ctx.tower, ctx.embeds = self.tower.name, self.tower.embedding is not None
        if self.tower.reads is not None and kwargs.get("encoder_hidden_states") is not None:
            walk = self.adapted.handing_sides(ctx, self.tower.reads)
            if walk is not None:
                states, mask = kwargs["encoder_hidden_states"], kwargs.get("encoder_attention_mask")
                kwargs = {**kwargs, "encoder_hidden_states": walk.split(states, ctx, mask)}
            kwargs = self._lengthen_read(ctx, kwargs)
        if self.tower.embedding is None or not self._active(ctx):
            return args, kwargs
        return self._lengthen(ctx, module, args, dict(kwargs))

    def first_block(self, module: Any, args: tuple, kwargs: dict) -> Any:
        """Towers without an embedding of tokens: prompts are put in front of what enters the first block."""
        ctx = self.adapted.context()
        if ctx is None or not self._active(ctx):
            return None
        h = args[0] if args else kwargs["hidden_states"]
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        if mask is not None:
            raise ModelError(
                f"Prompts in front of the tower {self.tower.name!r} are not possible under an attention mask."
            )
        ctx.entering[self.tower.name] = h
        made = self.prompts(ctx, len(h), h.device)
        made.input = h
        h = torch.cat([*(t.to(h.dtype).expand(len(h), -1, -1) for t in made.tokens), h], 1)
        return ((h, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": h})

    def trim(self, module: Any, args: Any, out: Any) -> Any:
        """Encoders are trimmed behind their last block, before a pooler reads a position; decoders where they end."""
        ctx = self.adapted.context()
        made = ctx.prompts.get(self.tower.name) if ctx is not None else None
        if made is None or not made.added or self.read or self.tower.causal or ctx.phase != "prefill":  # type: ignore[union-attr]
            return None
        return (out[0][:, made.added :], *out[1:]) if isinstance(out, tuple) else out[:, made.added :]

    def leave(self, module: Any, args: Any, kwargs: Any, out: Any) -> Any:
        ctx = self.adapted.context()
        if ctx is None:
            return None
        ctx.tower = ""
        made = ctx.prompts.get(self.tower.name)
        if made is not None and made.added and not self.read and ctx.phase == "prefill" and out is not None:
            if self.tower.causal:
                for placed in self._active(ctx):
                    if placed.part.speaks:
                        ctx.note("prompt", made.said(_first(out), placed.key))
                out = _cut(out, made)
            states = getattr(out, "hidden_states", None)
            if states is not None:
                n = out.last_hidden_state.shape[1]
                out.hidden_states = tuple(
                    made.cut(s) if s is not None and s.shape[1] == n + made.added else s for s in states
                )
        opened = ctx.made.get("opened")
        if opened is not None and opened[0] == self.tower.name:
            CURRENT.reset(opened[1])
        return out

    # -- prompts

    def _active(self, ctx: Context) -> list[Any]:
        return [p for p in self.adapted.prompts.get(self.tower.name, ()) if p.owner in ctx.active]

    def prompts(self, ctx: Context, rows: int, device: torch.device) -> Prompts:
        """The prompts of this forward, made once."""
        if self.tower.name in ctx.prompts:
            return ctx.prompts[self.tower.name]
        made = Prompts()
        for placed in self._active(ctx):
            if placed.scale != 1.0:
                raise because(
                    ModelError(
                        f"{placed.part.name} has no additive effect: it cannot be scaled by {placed.scale}."
                    ),
                    Reason.NOT_ADDITIVE,
                )
            first = next(a for a in placed.ats() if a.site.role.endswith("embedding") or a.site.layer == 0)
            tokens = placed.part.tokens(first.t(ctx), ctx)
            tokens, visible = tokens if isinstance(tokens, tuple) else (tokens, None)
            length = tokens.shape[-2]
            made.hidden |= visible is not None
            visible = (
                torch.ones(rows, length, dtype=torch.bool, device=device)
                if visible is None
                else visible.bool().expand(rows, -1)
            )
            served = ctx.rows.get(placed.owner)
            if served is not None:
                visible, made.hidden = visible & served[:, None], True
            made.spans[placed.key] = (made.added, length)
            made.tokens.append(tokens)
            made.visible.append(visible)
            made.added += length
        if made.hidden and "position_ids" not in self.tower.takes:
            raise because(
                ModelError(
                    f"Some rows do not see a prompt of this batch, and {self.adapted.structure.model} has no explicit positions that could skip it. "
                    "Give these rows separate batches, or use a bank."
                ),
                Reason.NO_POSITIONS,
            )
        ctx.prompts[self.tower.name] = made
        return made

    def _lengthen(self, ctx: Context, module: Any, args: tuple, kw: dict) -> tuple[tuple, dict]:
        if args:
            names = [n for n in list(self.adapted.signatures[self.tower.name]) if n not in kw]
            kw = {**dict(zip(names, args, strict=False)), **kw}
        ids, embeds, mask = kw.get("input_ids"), kw.get("inputs_embeds"), kw.get("attention_mask")
        rows, n = (ids if ids is not None else embeds).shape[:2]  # type: ignore[union-attr]
        device = (ids if ids is not None else embeds).device  # type: ignore[union-attr]
        if ctx.phase == "prefill":
            ctx.entering[self.tower.name] = self._embed(ids) if embeds is None else embeds
        made = self.prompts(ctx, rows, device)
        self._check(ctx, kw, n, made)
        visible = made.mask()
        if mask is not None and mask.dim() != 2:
            raise ModelError(f"Prompts need a mask of shape (rows, tokens), not {tuple(mask.shape)}.")
        if mask is None and made.hidden:
            mask = torch.ones(rows, ctx.seen + n, dtype=torch.long, device=device)
        if mask is not None:
            kw["attention_mask"] = torch.cat([visible.to(mask.dtype), mask], 1)
        positions = kw.get("position_ids")
        packed = pieces(positions) if mask is None and ctx.phase == "prefill" and self.tower.causal else None
        if packed is not None:
            kw["attention_mask"] = self._packed(ctx, packed.expand(rows, -1), made)
        if "position_ids" in self.tower.takes and (
            made.hidden or positions is not None or (mask is not None and self.tower.causal)
        ):
            own = positions if positions is not None else ctx.positions
            if own is None:
                own = torch.arange(n, device=device)[None]
            count = visible.cumsum(1).long()  # a token that is hidden takes no position
            own = own + count[:, -1:]
            kw["position_ids"] = (
                own
                if ctx.phase == "decode"
                else torch.cat([(count - 1).clamp(min=0), own.expand(rows, -1)], 1)
            )
        kw.pop("cache_position", None)  # counted without prompts; the model counts again from its cache
        if ctx.phase == "prefill":
            embeds = made.input = ctx.entering[self.tower.name]
            front = torch.cat([t.to(embeds.dtype).expand(rows, -1, -1) for t in made.tokens], 1)
            if mask is not None and self.recurrent:
                # a state decays over padding too: none may lie between the prompts and what they stand for
                made.behind = (mask == 0).long().cumprod(1).sum(1)
                kw["attention_mask"] = made.put_behind(kw["attention_mask"])
            kw["inputs_embeds"] = made.put_behind(torch.cat([front, embeds], 1))
            kw.pop("input_ids", None)
            types = kw.get("token_type_ids")
            if types is not None:
                kw["token_type_ids"] = torch.cat([types.new_zeros(rows, made.added), types], 1)
        return (), kw

    def _embed(self, ids: Any) -> Tensor:
        return self.adapted.base.get_submodule(self.tower.embedding)(ids)  # type: ignore[arg-type]

    def _packed(self, ctx: Context, pieces: Tensor, made: Prompts) -> Tensor:
        """(rows, 1, places, places), bool or added to the scores: every piece of a packed row sees the prompts and itself."""
        base = self.adapted.base
        config = getattr(base.get_submodule(self.tower.entry), "config", None)
        window = getattr(config, "sliding_window", None) is not None
        inner = str(getattr(config, "_attn_implementation", "")).removeprefix("luthier_")
        if made.hidden or window or inner not in ("eager", "sdpa") or any(t.dim() == 3 for t in made.tokens):
            raise ModelError(
                "Rows packed of several sequences (positions that start again) can't share these prompts: they are made for a whole row, or are not in every row, "
                "or the model's attention takes no mask that shows them to each sequence (a sliding window, flash attention). Give each sequence a row of its own."
            )
        pieces = torch.cat([pieces.new_full((len(pieces), made.added), -1), pieces], 1)
        seen = (pieces[:, None] == pieces[:, :, None]) | (pieces[:, None] == -1)
        seen = seen.tril()[:, None]
        if inner == "sdpa":
            return seen
        dtype = ctx.entering[self.tower.name].dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(
            ~seen, torch.finfo(dtype).min
        )

    def _check(self, ctx: Context, kw: dict, n: int, made: Prompts) -> None:
        past = kw.get("past_key_values")
        if past is not None:
            if getattr(past, "is_compileable", False):
                raise ModelError(
                    "Prompt tokens lengthen the sequence, and a static cache is sized without them. Use a dynamic cache."
                )
            mark = past.__dict__.setdefault("luthier_prompts", {})
            if ctx.phase == "prefill":
                mark[self.tower.name] = made.added
            elif mark.get(self.tower.name) != made.added:
                raise ModelError(
                    "The key/value cache was filled without these prompts. Start generation with the adaptation attached."
                )
        config = getattr(self.adapted.base.get_submodule(self.tower.entry), "config", None)
        limit = getattr(config, "max_position_embeddings", None)
        if isinstance(limit, int) and 0 < limit < ctx.seen + n + made.added:
            raise ModelError(
                f"{made.added} prompt tokens and {ctx.seen + n} tokens of input do not fit the model's {limit} positions. "
                f"Use a shorter prompt, or inputs of at most {limit - made.added} tokens (max_length)."
            )

    def _lengthen_read(self, ctx: Context, kwargs: dict) -> dict:
        """This tower attends to one that was lengthened: so is its mask of what it reads."""
        states, mask = kwargs["encoder_hidden_states"], kwargs.get("encoder_attention_mask")
        source = next(e for e in self.adapted.entrances if e.tower.name == self.tower.reads)
        active = source._active(ctx)
        if not active:
            return kwargs
        rows = states.shape[0]
        made = (
            source.prompts(ctx, rows, states.device)
            if ctx.rows or any(p.part.hides for p in active)
            else None
        )
        if mask is None:
            if made is None or not made.hidden:
                return kwargs
            mask = torch.ones(rows, states.shape[1] - made.added, dtype=torch.long, device=states.device)
        extra = states.shape[1] - mask.shape[1]
        if extra <= 0:
            return kwargs
        front = mask.new_ones(rows, extra) if made is None else made.mask().to(mask.dtype)
        return {**kwargs, "encoder_attention_mask": torch.cat([front, mask], 1)}


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x: (rows, tokens, ...), index: (rows, places) -> (rows, places, ...)."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def _first(out: Any) -> Tensor:
    """The states among what a tower returns."""
    return out if torch.is_tensor(out) else out[0] if isinstance(out, tuple) else out.last_hidden_state


def _cut(out: Any, made: Prompts) -> Any:
    """A tower's output without its prompts."""
    if torch.is_tensor(out):
        return made.cut(out)
    if isinstance(out, tuple):
        return (made.cut(out[0]), *out[1:])
    out.last_hidden_state = made.cut(out.last_hidden_state)
    return out
