"""A base model with adaptations beside it. The base is never rewritten: what is attached is hooks and exchanged forwards."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError, OptionError
from luthier.host.adaptation import Adaptation
from luthier.host.applicable import Reason, because, can_generate
from luthier.host.combination import Combination
from luthier.host.context import CURRENT, GIVEN, Context
from luthier.host.entry import Entrance
from luthier.host.exchange import RECOMPUTED, exchange
from luthier.host.placed import Placed
from luthier.host.places import Stack
from luthier.host.places.output import ranked, reads_logits, summed
from luthier.host.recompute import Recomputed
from luthier.host.structure import structure_of


class Wire:
    """The identity of one adapted model: contexts of another are not its own. A copy gets its own."""


@dataclass(frozen=True)
class Scope:
    """What `using` and `given` set for the current thread or task."""

    wire: Wire
    active: tuple[str, ...] | None
    given: Mapping[str, Any]


SCOPES: ContextVar[tuple[Scope, ...]] = ContextVar("luthier_scopes", default=())


@dataclass
class Output:
    """What an adapted forward returns."""

    logits: Tensor | None
    """(rows, classes) from a head, or (rows, tokens, vocabulary) from a language model."""
    hidden: Tensor | None
    """(rows, tokens, width) or (rows, width), without prompts."""
    mask: Tensor | None
    raw: Any
    notes: dict[str, list[Any]]


class Adapted(nn.Module):
    """`base` with adaptations attached by name. While any is attached, the base is frozen and in evaluation mode."""

    wire: Wire

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        self.adaptations = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.structure = structure_of(base)
        self.__dict__["wire"] = Wire()
        self.ports: dict[str, Any] = {}
        self.attention: dict[str, Any] = {}
        self.configs: dict[int, Any] = {}
        self.bridges = 0
        self.prompts: dict[str, list[Placed]] = {}
        self.heads: list[Placed] = []
        self.stacks: list[Any] = []
        self.entrances: list[Entrance] = []
        self.signatures: dict[str, list[str]] = {}
        self.cache: Any = None
        """The frozen-prefix cache of a run, if any."""
        self.merged: dict[str, Any] = {}
        self._handles: dict[str, list[Any]] = {}
        self._own: list[Any] = []
        self._flags: tuple[dict[str, bool], list[bool]] | None = None
        self._recompute: list[Any] = []

    # -- attach and detach

    def attach(self, name: str, adaptation: Adaptation | Combination) -> Adaptation | Combination:
        """Attach and activate. Refuses, before anything is changed, what does not fit; a failure leaves no trace."""
        if not name or "." in name or "/" in name:
            raise OptionError(f"An attached adaptation needs a name without '.' and '/', not {name!r}.")
        if name in self.adaptations:
            raise OptionError(
                f"An adaptation named {name!r} is attached already. Detach it, or choose another name."
            )
        if not self._handles:
            self._begin()
        handles = self._handles[name] = []
        try:
            self.adaptations[name] = adaptation
            for index, (scale, term) in enumerate(terms(adaptation)):
                term.to(_device(self.base))
                for i, placed in enumerate(term.every_placed()):
                    placed.__dict__["wire"] = self.wire
                    placed.owner, placed.scale = name, scale
                    placed.key = f"{name}/{index}.{i}.{placed.part.name}"
                for placed in term.placed():
                    for handle in placed.part.install(placed, self):  # type: ignore[attr-defined]
                        handles.append(handle)
        except BaseException:
            self.detach(name)
            raise
        self.active = (*self.active, name)
        return adaptation

    def detach(self, name: str | None = None) -> None:
        """Take one adaptation (or all) away; the base is then bitwise what it was."""
        for n in [name] if name is not None else list(self._handles):
            if n not in self._handles:
                raise OptionError(
                    f"No adaptation named {n!r} is attached. There are: {', '.join(self._handles) or 'none'}."
                )
            if n in self.merged:
                self.unmerge(n)
            for handle in reversed(self._handles.pop(n)):
                handle.remove()
            self.active = tuple(a for a in self.active if a != n)
            if n in self.adaptations:
                del self.adaptations[n]
        if not self._handles:
            self._end()

    @contextlib.contextmanager
    def attached(self, adaptation: Adaptation | Combination, name: str = "attached") -> Iterator[Adapted]:
        """The adaptation is attached inside the block and gone after it."""
        self.attach(name, adaptation)
        try:
            yield self
        finally:
            self.detach(name)

    def _begin(self) -> None:
        parameters = self.base.named_parameters(remove_duplicate=False)
        self._flags = {n: p.requires_grad for n, p in parameters}, [m.training for m in self.base.modules()]
        self.structure = structure_of(self.base)
        self.base.requires_grad_(False).eval()
        self._own = [self.base.register_forward_pre_hook(self._enter, with_kwargs=True)]
        for tower in self.structure.towers:
            entrance = Entrance(self, tower)
            self.entrances.append(entrance)
            self.signatures[tower.name] = list(
                inspect.signature(self.base.get_submodule(tower.entry).forward).parameters
            )
            self._own += entrance.install()
        self._own.append(self.base.register_forward_hook(self._leave, always_call=True))

    def _end(self) -> None:
        for handle in self._own:
            handle.remove()
        self.checkpoint(False)
        self._own, self.entrances, self.signatures = [], [], {}
        if self._flags is not None:
            for name, p in self.base.named_parameters(remove_duplicate=False):
                # by name: a merged copy keeps parameters of its own, and biases that merging made
                known = name if name in self._flags[0] else name.removesuffix("bias") + "weight"
                p.requires_grad_(self._flags[0][known])
            for m, training in zip(self.base.modules(), self._flags[1], strict=True):
                m.training = training
            self._flags = None

    def train(self, mode: bool = True) -> Adapted:
        """Training mode of what is attached; everything frozen stays in evaluation mode."""
        for a in self.adaptations.values():
            a.train(mode)
        self.training = mode
        return self

    # -- the context of a forward

    @contextlib.contextmanager
    def using(self, *names: str) -> Iterator[Adapted]:
        """Only these adaptations are active, in this thread; none: the base."""
        if unknown := [n for n in names if n not in self.adaptations]:
            raise OptionError(
                f"No adaptation named {unknown[0]!r} is attached. There are: {', '.join(self.adaptations) or 'none'}."
            )
        token = SCOPES.set((*SCOPES.get(), Scope(self.wire, names, {})))
        try:
            yield self
        finally:
            SCOPES.reset(token)

    @contextlib.contextmanager
    def given(self, **extra: Any) -> Iterator[Adapted]:
        """Values that adaptations need with every forward inside the block (task, instruction, ...)."""
        token = SCOPES.set((*SCOPES.get(), Scope(self.wire, None, extra)))
        try:
            yield self
        finally:
            SCOPES.reset(token)

    def context(self) -> Context | None:
        """The context of this model's forward under way in this thread."""
        ctx = CURRENT.get()
        return ctx if ctx is not None and ctx.wire is self.wire else None

    def open(self, args: tuple, kwargs: Mapping[str, Any]) -> Context:
        """A context for a forward with these arguments."""
        scopes = [s for s in SCOPES.get() if s.wire is self.wire]
        active = next((s.active for s in reversed(scopes) if s.active is not None), self.active)
        first = args[0] if args and torch.is_tensor(args[0]) else None
        ids = kwargs.get("input_ids", first if first is not None and not first.is_floating_point() else None)
        like = next(
            (
                v
                for v in (
                    ids,
                    kwargs.get("inputs_embeds"),
                    kwargs.get("decoder_input_ids"),
                    first,
                    *kwargs.values(),
                )
                if torch.is_tensor(v)
            ),
            None,
        )
        mask, labels = kwargs.get("attention_mask"), kwargs.get("labels")
        ctx = Context(
            wire=self.wire,
            active=active,
            ids=ids,
            mask=mask if torch.is_tensor(mask) and mask.dim() == 2 else None,
            labels=labels,
            causal=bool(self.structure.towers) and self.structure.towers[0].causal,
        )
        rows = len(like) if like is not None and like.dim() else 1
        for scope in scopes:
            ctx.add_given(dict(scope.given), rows)
        ctx.labels = ctx.given.get("labels", labels)
        self._mixed(ctx, rows)
        ctx.unfolded = any(n not in active or n in ctx.rows for n in self.merged)
        ctx.folded = frozenset() if ctx.unfolded else frozenset(self.merged)
        self._phase(ctx, kwargs, ids)
        for name in active:
            for _, term in terms(self.adaptations[name]):
                for placed in term.every_placed():
                    ctx.made[placed.key] = placed.prepare(ctx)
        if any(a.placed.owner in active for port in self.attention.values() for a in port.edits):
            ctx.made["attention:"] = True
        return ctx

    def _mixed(self, ctx: Context, rows: int) -> None:
        """A batch that names an adaptation for each row."""
        who = ctx.given.get("adaptation")
        if who is None:
            return
        if unknown := sorted({w for w in who if w is not None and w not in self.adaptations}):
            raise OptionError(
                f"A row asks for the adaptation {unknown[0]!r}. Attached are: {', '.join(self.adaptations) or 'none'}."
            )
        if len(who) != rows:
            raise OptionError(f"{len(who)} names of adaptations were given for {rows} rows.")
        device = _device(self.base)
        ctx.rows = {n: torch.tensor([w == n for w in who], device=device) for n in ctx.active}

    def _phase(self, ctx: Context, kwargs: Mapping[str, Any], ids: Tensor | None) -> None:
        past = kwargs.get("past_key_values")
        held = past.get_seq_length() if past is not None and hasattr(past, "get_seq_length") else 0
        held = int(held)
        if held:
            marked = past.__dict__.get("luthier_prompts", {})  # type: ignore[union-attr]
            ctx.phase, ctx.seen = "decode", held - sum(marked.values())
        elif _has_state(kwargs.get("cache_params")):
            ctx.phase = "decode"
        like = ids if ids is not None else kwargs.get("inputs_embeds")
        if like is None or like.dim() < 2:
            return
        n = like.shape[1]
        went = getattr(kwargs.get("cache_params"), "luthier_next", None)
        stateful = ctx.phase == "decode" and not ctx.seen  # a recurrent state holds no tokens to count
        if stateful and ctx.mask is None:
            ctx.positions = None if went is None else went + torch.arange(n, device=like.device)
        elif ctx.mask is not None and ctx.mask.shape[1] >= n:
            ctx.positions = (ctx.mask.long().cumsum(-1) - 1).clamp(min=0)[:, -n:]
        else:
            ctx.positions = torch.arange(ctx.seen, ctx.seen + n, device=like.device)[None]
        said = kwargs.get("position_ids")
        if ctx.phase == "prefill" and said is not None and said.dim() == 2 and said.shape[1] == n:
            ctx.positions = said

    def _enter(self, base: nn.Module, args: tuple, kwargs: dict) -> Any:
        if self.context() is None:
            ctx = self.open(args, kwargs)
            ctx.made["opened"] = "", CURRENT.set(ctx)
        takes = next(iter(self.structure.towers)).takes if self.structure.towers else frozenset()
        if (
            torch.is_grad_enabled()
            and kwargs.get("past_key_values") is None
            and kwargs.get("use_cache") is None
            and "use_cache" in takes
        ):
            return args, {
                **kwargs,
                "use_cache": False,
            }  # a cache written in training is written again by whatever recomputes
        return args, kwargs

    def handing_sides(self, ctx: Context, tower: str) -> Any:
        """The walk that makes a tower hand on the base's states and, behind them, those of side networks; None: nothing does."""
        return next((w for w in self.stacks if w.tower == tower and w.sides and w.owner in ctx.active), None)

    def _leave(self, base: nn.Module, args: Any, out: Any) -> None:
        ctx = self.context()
        state = getattr(out, "cache_params", None)
        if state is not None and ctx is not None and ctx.positions is not None:
            state.luthier_next = ctx.positions[:, -1:] + 1  # generation goes on from it without the mask
        states = getattr(out, "encoder_last_hidden_state", None)
        first = self.structure.towers[0].name if self.structure.towers else ""
        walk = self.handing_sides(ctx, first) if ctx is not None and states is not None else None
        if walk is not None:
            out.encoder_last_hidden_state = walk.last(states)
        if ctx is not None and ctx.made.get("opened", (None,))[0] == "":
            CURRENT.reset(ctx.made["opened"][1])

    # -- forward

    def forward(self, batch: Mapping[str, Any], body: bool = False) -> Output:
        """One pass over a batch; keys in `GIVEN` are context, the others are the base's arguments.

        body: stop at the hidden states that a head would read, also where the model has a head of its own.
        """
        inputs = {k: v for k, v in batch.items() if k not in GIVEN}
        with self.given(**{k: v for k, v in batch.items() if k in GIVEN}):
            ctx = self.open((), inputs)
        heads = [p for p in self.heads if p.owner in ctx.active]
        of_words = reads_logits(heads)
        ranking = of_words and not body
        inside = bool(heads or body) and not ranking
        module = (
            self.base.get_submodule(self.exit_entry)
            if inside or not hasattr(self.base, "get_output_embeddings")
            else self.base
        )
        token = CURRENT.set(ctx)
        try:
            if torch.is_grad_enabled() and _takes_use_cache(type(module)):  # type: ignore[arg-type]
                inputs.setdefault("use_cache", False)
            if inside:
                inputs = (
                    {k: v for k, v in inputs.items() if not k.startswith("decoder_")}
                    if self._reads
                    else inputs
                )
            raw = module(inputs["x"]) if set(inputs) == {"x"} else module(**inputs)
            hidden = self._hidden(raw, ctx)
            mask = inputs.get("attention_mask")
            logits = getattr(raw, "logits", None)
            if ranking:
                logits = ranked(heads, logits, mask, ctx)
            elif heads and not of_words:  # with `body` there is nothing for one that ranks
                logits = self._logits(heads, hidden, mask, ctx)
        finally:
            CURRENT.reset(token)
        return Output(logits, hidden, mask, raw, ctx.notes)

    @property
    def _reads(self) -> bool:
        return any(t.reads for t in self.structure.towers)

    @property
    def exit_entry(self) -> str:
        """Path of the module whose hidden states a head reads: a decoder's body, an encoder."""
        return self.structure.towers[0].entry if self.structure.towers else ""

    def _hidden(self, raw: Any, ctx: Context) -> Tensor | None:
        hidden = getattr(raw, "last_hidden_state", None)
        if hidden is None:
            hidden = raw if torch.is_tensor(raw) else raw[0] if isinstance(raw, tuple) else None
        if hidden is None or hidden.dim() != 3 or not self._reads:
            return hidden
        if getattr(raw, "encoder_last_hidden_state", None) is not None:  # what the reading tower returned
            return hidden
        first = self.structure.towers[0].name
        if (walk := self.handing_sides(ctx, first)) is not None:
            hidden = walk.last(hidden)
        made = ctx.prompts.get(first)
        if made is not None and made.added:
            hidden = hidden[:, made.added :]
        return hidden

    def _logits(
        self, heads: list[Placed], hidden: Tensor | None, mask: Tensor | None, ctx: Context
    ) -> Tensor:
        if hidden is None:
            raise ModelError(
                f"{type(self.base).__name__} returns no hidden states, so a head has nothing to read."
            )
        return summed(heads, hidden, mask, ctx)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Transformers' `generate` of the base, with what is active here. ModelError where the base has no language head."""
        if not can_generate(self.base):
            raise because(
                ModelError(
                    f"{type(self.base).__name__} has no language model's head: it cannot generate. Load a decoder or an encoder-decoder."
                ),
                Reason.NO_GENERATION,
            )
        # without a cache every step is a forward over all tokens so far: which of them were given must be known
        ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        known = any(s.wire is self.wire and "instruction" in s.given for s in SCOPES.get())
        if (
            known
            or not torch.is_tensor(ids)
            or not torch.is_tensor(given := mask if mask is not None else torch.ones_like(ids))
        ):
            return self.base.generate(*args, **kwargs)  # type: ignore[operator]
        with self.given(instruction=given):
            return self.base.generate(*args, **kwargs)  # type: ignore[operator]

    # -- gradient checkpointing

    def checkpoint(self, on: bool = True) -> None:
        """Recompute every block in the backward pass, each under the context of its own forward."""
        for handle in self._recompute:
            handle.remove()
        self._recompute = []
        if on:
            if any(isinstance(p.part, Stack) for s in self.stacks for p in [s.placed]):
                raise because(
                    ModelError(
                        "A side or reversible network keeps no activations of the blocks: gradient checkpointing has nothing to save."
                    ),
                    Reason.KEEPS_NO_ACTIVATIONS,
                )
            for tower in self.structure.towers:
                for path in tower.blocks:
                    self._recompute.append(
                        exchange(self.base.get_submodule(path), Recomputed(self).forward, RECOMPUTED)
                    )

    # -- merge (luthier.host.merge)

    def merge(self, name: str, **given: Any) -> None:
        """Fold an adaptation into the weights, as new parameters; `unmerge` gives the old ones back, bitwise."""
        from luthier.host.merge import merge

        merge(self, name, given)

    def unmerge(self, name: str) -> None:
        from luthier.host.merge import unmerge

        unmerge(self, name)

    def __deepcopy__(self, memo: dict) -> Adapted:
        """A copy has a wire of its own and works apart from the original."""
        import copy

        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        memo[id(self.wire)] = Wire()
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        return new


@functools.cache
def _takes_use_cache(kind: type[nn.Module]) -> bool:
    """Asked of every forward: reading a signature takes as long as a small linear layer."""
    return "use_cache" in inspect.signature(kind.forward).parameters


def _has_state(cache: Any) -> bool:
    """Whether a recurrent model's cache already holds a state."""
    has = getattr(cache, "has_previous_state", None)
    return bool(has() if callable(has) else has)


def terms(adaptation: Any) -> list[tuple[float, Adaptation]]:
    """The weighted terms of what was attached: one for an adaptation, several for a combination."""
    if isinstance(adaptation, Combination):
        return adaptation.terms
    return [(1.0, adaptation)]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters(), torch.zeros(())).device
