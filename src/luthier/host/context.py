"""The context of one forward pass: who is active, for which rows, in which phase. Built before the first block, never process-wide."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.errors import RunError

if TYPE_CHECKING:
    from luthier.host.placed import At


class Current(threading.local):
    """The context of this thread's forward, if any: two threads which share a model do not read each other's.

    A forward neither awaits nor yields, so one for each thread is enough, and compilers read it without leaving the graph (a ContextVar
    they do not).
    """

    now: Context | None = None

    def get(self) -> Context | None:
        return self.now

    def set(self, ctx: Context | None) -> Context | None:
        """-> what was there, for `reset`."""
        before, self.now = self.now, ctx
        return before

    def reset(self, before: Context | None) -> None:
        self.now = before


CURRENT = Current()

GIVEN = frozenset(
    {
        "adaptation",
        "answers",
        "attributes",
        "covariates",
        "example",
        "history",
        "history_mask",
        "instruction",
        "labels",
        "phase",
        "task",
        "text",
        "weights",
    }
)
"""Keys of a batch that are context and never reach the base's forward."""


@dataclass(eq=False)
class Context:
    """What one forward is about. Whatever recomputes (checkpointing, reversible blocks) re-enters its own."""

    wire: object = None
    """Which adapted model this forward belongs to; others' hooks ignore it."""
    active: tuple[str, ...] = ()
    folded: frozenset[str] = frozenset()
    """Adaptations that are merged into the weights: their weight edits must not act twice."""
    unfolded: bool = False
    """Some row or the whole forward is without an adaptation that is merged: the weights from before all merges serve it."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """{adaptation: (rows,) bool}: in a mixed batch, the rows that it serves; absent: all."""
    phase: str = "prefill"
    """`prefill`, or `decode` when the cache already holds tokens."""
    seen: int = 0
    """Tokens in the cache, prompt tokens not counted."""
    tower: str = ""
    """The tower whose forward is under way; empty between towers."""
    embeds: bool = True
    """Whether that tower embeds the caller's tokens, which `mask` and `instruction` are of, rather than pixels."""
    ids: Tensor | None = None
    mask: Tensor | None = None
    """(rows, tokens) as the caller gave it, without prompts."""
    positions: Tensor | None = None
    """(1 or rows, tokens) positions of the caller's tokens; None where a recurrent state does not say how far it went."""
    labels: Tensor | None = None
    causal: bool = False
    """Whether the first tower is a decoder, whose labels are tokens of its own sequence."""
    given: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    """What sources prepared once for this forward, by part."""
    entering: dict[str, Tensor] = field(default_factory=dict)
    """{tower: (rows, tokens, width)}: its sequence without prompts, embedded, or as it enters the block where a prompt is being
    made; what prompts that are made from the input read."""
    prompts: dict[str, Any] = field(default_factory=dict)
    """{tower: prompts in front of its sequence}."""
    inputs: dict[str, Tensor] = field(default_factory=dict)
    """Inputs of modules that parts elsewhere asked to read, by module path."""
    attended: tuple[str, Any] | None = None
    """The last attention that a part asked to see: its module's path, and what it read (`luthier.host.bridge.Attended`)."""
    notes: dict[str, list[Any]] = field(default_factory=dict)
    """What parts report (gates, balance terms, side states), read by objectives."""

    def note(self, key: str, value: Any) -> None:
        """Report a value of this forward to the objective, under `key`."""
        self.notes.setdefault(key, []).append(value)

    def need(self, key: str) -> Any:
        """A value that the caller must give with every batch; missing ones raise RunError naming the key."""
        if self.given.get(key) is None:
            raise RunError(
                f"This adaptation needs {key!r} with every batch and none was given. Add it to the batch, or use `with adapted.given({key}=...)`."
            )
        return self.given[key]

    def instruction(self, length: int) -> Tensor | None:
        """(rows, length) bool: which of `length` tokens are the instruction, not the answer; None: all of them.

        In training the answer is what the labels mark; a prompt made from the input must not read it.
        """
        marked = self.given.get("instruction")
        if marked is not None:
            marked = marked.bool()
            if marked.shape[1] < length:  # tokens generated since are answer
                marked = torch.cat([marked, marked.new_zeros(len(marked), length - marked.shape[1])], 1)
            return marked[:, :length]
        labels = self.labels
        if (
            self.causal
            and labels is not None
            and labels.dim() == 2
            and self.ids is not None
            and labels.shape == self.ids.shape
        ):
            free = labels == -100
            if not (free | (labels == self.ids)).all():  # tags of tokens, not tokens of an answer
                return self.mask.bool()[:, -length:] if self.mask is not None else None
            free = free if self.mask is None else free & self.mask.bool()
            if not free.any(1).all():
                raise RunError(
                    "Every token of a row is a label, so a prompt made from the input would read the answer. Give instruction=(rows, tokens)."
                )
            return free
        return self.mask.bool()[:, -length:] if self.mask is not None else None

    @contextlib.contextmanager
    def again(self, tower: str = "", embeds: bool = True) -> Iterator[None]:
        """Re-enter this context, for whatever recomputes a part of the forward, inside the tower that it was in."""
        token, before = CURRENT.set(self), (self.tower, self.embeds)
        self.tower, self.embeds = tower, embeds
        try:
            yield
        finally:
            self.tower, self.embeds = before
            CURRENT.reset(token)

    def add_given(self, extra: dict[str, Any], rows: int) -> None:
        """Take what the caller gave by row; beams and samples repeat each row in place, and it follows them."""
        for key, value in extra.items():
            if torch.is_tensor(value) and value.dim() and 0 < len(value) < rows and rows % len(value) == 0:
                value = value.repeat_interleave(rows // len(value), 0)
            elif isinstance(value, (list, tuple)) and 0 < len(value) < rows and rows % len(value) == 0:
                value = [v for v in value for _ in range(rows // len(value))]
            self.given[key] = value


def pieces(positions: Tensor | None) -> Tensor | None:
    """(1 or rows, tokens): which of the sequences packed in a row each token belongs to; None: there is one."""
    if positions is None or positions.dim() != 2:
        return None
    starts = positions.diff(dim=1) != 1
    if not starts.any():
        return None
    return torch.nn.functional.pad(starts.long().cumsum(1), (1, 0))


def under_way(edits: Sequence[At]) -> list[tuple[At, Context]]:
    """Those whose model's forward is under way, each with its context."""
    with_context = [(at, at.ctx) for at in edits]  # with `:=` in a comprehension compilers leave the graph
    return [(at, ctx) for at, ctx in with_context if ctx is not None]
