"""A run: one walk through a plan's phases. Between any two steps it can be saved, and resumed bitwise (`snapshot`).

    run = Run(adapted, phases, batches, objective, recipe)
    run.go(watcher)              # told of every step: it logs, evaluates, saves

What a plan's functions read: main, another, companion, reset_optimiser, batch, loss, phase, step, total, state, extra, rng.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.errors import RunError
from luthier.host.part import Phase, sum_shares
from luthier.signals.objectives import Objective
from luthier.signals.optimisers import adamw, load_state, schedule, state_of
from luthier.train.batches import Batch, Batches
from luthier.train.trained import describe, rates_of, trained_tensors

Carry = Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]
"""{tensor name: old optimiser state -> new}: what survives a change of shapes."""


@dataclass(frozen=True)
class Recipe:
    """How a run trains, apart from its plan."""

    steps: int  # budget: shared out over the phases that bring no number of their own
    seed: int = 0
    rate: float | None = None  # of all parts but the head; None: each part's own
    head_rate: float = 1e-2
    decay: float | None = None  # weight decay; None: each part's own
    warmup: float = 0.06  # share of a phase's steps
    clip: float | None = 1.0  # largest gradient norm; None: not clipped
    precision: str = "fp32"


def share_out(phases: Sequence[Phase], budget: int) -> list[int]:
    """Steps of every phase; those without a number divide `budget` by their shares, and add up to it exactly."""
    whole, given, before = sum_shares(phases) or 1.0, [], 0.0
    for phase in phases:
        if phase.steps is not None:
            given.append(phase.steps)
        else:
            given.append(round(budget * (before + phase.share) / whole) - round(budget * before / whole))
            before += phase.share
    return given


class Watcher:
    """What a run tells how it goes. It may set run.stopped, which ends the phase."""

    def around_step(self, run: Run) -> AbstractContextManager[Any]:
        """Entered while a step is taken."""
        return nullcontext()

    def after_step(self, run: Run) -> None:
        """Called when a step, and what the plan does after it, is done: a moment at which the run can be saved."""

    def after_phase(self, run: Run) -> None:
        """Called after a phase's last step, before its `leave`."""


class Run:
    """Where a run stands, and how it takes a step."""

    def __init__(
        self,
        adapted: Any,
        phases: Sequence[Phase],
        batches: Batches,
        objective: Objective,
        recipe: Recipe,
        *,
        head: Any = None,
        processes: Any = None,
    ):
        self.adapted, self.phases, self.batches, self.objective = adapted, list(phases), batches, objective
        self.recipe, self.seed, self.head, self.processes = recipe, recipe.seed, head, processes
        self.steps = share_out(self.phases, recipe.steps)
        self.index, self.step, self.total = 0, 0, 0
        self.entered = self.stopped = False
        self.state: dict[str, Any] = {}
        self.extra: dict[str, Tensor] = {}
        self.rng = torch.Generator().manual_seed(recipe.seed)
        self.named: dict[str, Tensor] = {}
        self.optimiser: torch.optim.Optimizer | None = None
        self.losses: list[tuple[int, Tensor]] = []  # (step, loss) not yet read: reading waits for a GPU

    # -- what plans read

    @property
    def main(self) -> Any:
        """The adaptation that is being made."""
        return self.adapted.adaptations["main"]

    @property
    def phase(self) -> Phase:
        return self.phases[self.index]

    @property
    def uses(self) -> tuple[str, ...]:
        return self.phase.uses or ("main",)

    def another(self, name: str) -> Any:
        """An adaptation that a companion() made, or that fit was given as one of the method's `companions`."""
        if name not in self.adapted.adaptations:
            have = ", ".join(self.adapted.adaptations)
            raise RunError(
                f"Phase {self.phase.name!r} asks for the adaptation {name!r}; this run holds: {have}."
            )
        return self.adapted.adaptations[name]

    def companion(
        self, name: str, method: Any, seed: int = 0, members: Any = None, *, head: bool = True
    ) -> Any:
        """Another adaptation on the same base (teacher, slow copy, supernet): saved with the run, active where a phase uses it.

        head: whether it gets an output head of its own, like the main one's.
        """
        from luthier.host import Adaptation

        part = self.head if head else None
        made = Adaptation.new(method, self.adapted.base, head=part, seed=seed, members=members)
        self.adapted.attach(name, made)
        made.to(self.device)
        return made

    def batch(self, stream: str | None = None) -> Batch:
        """This step's batch of a stream (default: the phase's), the share of this process."""
        return self.batches.whole(stream or self.stream, self.total)

    def loss(self, batch: Batch) -> Tensor:
        """The phase's objective, a mean over the batch, with the phase's adaptations active."""
        with self.adapted.using(*self.uses), self.autocast():
            if self.phase.objective is not None:
                return self.phase.objective(self, batch)
            return self.objective.loss(self, batch)

    def gradient(self, tensor: Tensor) -> Tensor:
        """d loss / d tensor on this step's batch: for scores of importance. Nothing else receives a gradient."""
        return self.gradients([tensor])[0]

    def gradients(self, tensors: Sequence[Tensor], ahead: int = 0) -> list[Tensor]:
        """`gradient` of several; ahead: on the batch of so many steps later."""
        total = [torch.zeros_like(t) for t in tensors]
        for piece, share in zip(*self.shared_out(ahead)):
            with torch.enable_grad():
                found = torch.autograd.grad(self.loss(piece) * share, list(tensors))
            total = [t + g for t, g in zip(total, found, strict=True)]
        return [self.processes.sum(t) for t in total] if self.world > 1 else total

    def reset_optimiser(self, carry: Carry | None = None) -> None:
        """Build the phase's optimiser again, after shapes changed; what `carry` maps of the old state stays."""
        old = state_of(self.optimiser, self.named) if self.optimiser is not None and carry is not None else {}
        self.named = trained_tensors(self.adapted, self.uses, self.phase.trains)
        self.adapted.eval()  # companions that do not train have no dropout
        for name in self.uses:
            self.adapted.adaptations[name].train()
        self.optimiser = (self.phase.optimiser or adamw)(self.named, self) if self.named else None
        if carry is not None and self.optimiser is not None:
            kept = {n: carry[n](s) if n in carry else s for n, s in old.items()}
            load_state(self.optimiser, self.named, kept)

    def rates(self, name: str) -> tuple[float, float]:
        """(learning rate, weight decay) of a trained tensor: the run's, else its part's own."""
        rate, decay, is_head = rates_of(self.adapted, name)
        mine = self.recipe.head_rate if is_head else (rate if self.recipe.rate is None else self.recipe.rate)
        return mine, decay if self.recipe.decay is None else self.recipe.decay

    @property
    def stream(self) -> str:
        return self.phase.data or "train"

    @property
    def device(self) -> Any:
        return self.batches.device

    # -- the walk

    def go(self, watch: Watcher | None = None) -> Run:
        """From where the run stands to the end of its last phase."""
        watch = watch or Watcher()
        while self.index < len(self.phases):
            if not self.entered:
                self.enter()
            while self.step < self.steps[self.index] and not self.stopped:
                with watch.around_step(self):
                    (self.phase.step or Run.gradient_step)(self)
                self.step, self.total = self.step + 1, self.total + 1
                for every, act in self.phase.every.items():
                    if self.step % every == 0:
                        act(self)
                watch.after_step(self)
            watch.after_phase(self)
            if self.phase.leave:
                self.phase.leave(self)
            self.index, self.entered = self.index + 1, False
        self.optimiser = None
        return self

    def enter(self) -> None:
        """Begin a phase."""
        self.step, self.stopped, self.optimiser, self.entered = 0, False, None, True
        if self.phase.enter:
            self.phase.enter(self)
        self.reset_optimiser()
        if not self.named and self.phase.step is None:
            raise RunError(
                f"Phase {self.phase.name!r} trains no tensor: nothing matches trains={self.phase.trains!r}."
            )

    @property
    def last(self) -> bool:
        return self.index == len(self.phases) - 1

    # -- one step

    def gradient_step(self) -> None:
        """One update from one batch, however many pieces and processes it is cut into."""
        assert self.optimiser is not None
        schedule(self.optimiser, self.step, self.steps[self.index], self.recipe.warmup)
        pieces, shares = self.shared_out()
        if getattr(self.optimiser, "forward_only", False):
            found: Any = self.optimiser.step(lambda: self.forward_only_loss(pieces, shares))  # type: ignore[arg-type,return-value]
            loss = torch.as_tensor(found)
        else:
            self.optimiser.zero_grad(set_to_none=True)
            loss = torch.zeros((), device=self.device)
            for piece, share in zip(pieces, shares):
                part = self.loss(piece) * share if share != 1 else self.loss(piece)
                part.backward()
                loss = loss + part.detach()
            loss = self.sum_over_processes(loss)
            if self.step == 0 and not self.phase.partial:
                self.check_reached()
            if self.recipe.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.named.values(), self.recipe.clip)
            self.optimiser.step()
        self.losses.append((self.total, loss.detach()))

    def shared_out(self, ahead: int = 0) -> tuple[list[Batch], list[float]]:
        """The step's micro batches on this process, and each one's share of the whole batch's loss; ahead: of a later step."""
        at = self.total + ahead
        pieces, idle = self.batches.pieces(self.stream, at), 0
        if self.processes is not None and self.processes.sharded:  # all must take as many forwards
            idle = self.batches.most_pieces(self.stream, at) - len(pieces)
        if self.world == 1 and len(pieces) == 1:
            return pieces, [1.0]
        counts = [self.objective.normaliser(p) for p in pieces]
        whole = (
            self.processes.sum(torch.tensor(sum(counts), dtype=torch.float64))
            if self.world > 1
            else sum(counts)
        )
        shares = [c / (float(whole) or 1.0) for c in counts]
        return [*pieces, *idle * [self.batches.repeated(self.stream, 0, 1)]], [*shares, *idle * [0.0]]

    def forward_only_loss(self, pieces: list[Batch], shares: list[float]) -> Tensor:
        """For optimisers that need no gradient: the whole batch's loss."""
        with torch.no_grad():
            total = torch.zeros((), device=self.device)
            for piece, share in zip(pieces, shares):
                total = total + self.loss(piece) * share
            return self.processes.sum(total) if self.world > 1 else total

    def sum_over_processes(self, loss: Tensor) -> Tensor:
        """Add up gradients and loss over processes, as one buffer.

        Once per step, after all backward passes: right for several forwards in one loss, for phases that reach only some
        tensors, and for plans that change what trains, where wrappers with hooks on every gradient are not.
        """
        if self.world == 1:
            return loss
        tensors = list(self.named.values())
        reached = torch.tensor([float(t.grad is not None) for t in tensors], device=self.device)
        grads = [(torch.zeros_like(t) if t.grad is None else t.grad).float().flatten() for t in tensors]
        flat = self.processes.sum(torch.cat([*grads, reached, loss.float().reshape(1)]))
        *parts, reached, total = flat.split([*(g.numel() for g in grads), len(tensors), 1])
        for tensor, part, hit in zip(tensors, parts, reached.tolist()):
            tensor.grad = part.view_as(tensor).to(tensor.dtype) if hit else None
        return total[0]

    def check_reached(self) -> None:
        dead = [n for n, p in self.named.items() if p.grad is None]
        if dead:
            raise RunError(
                f"Phase {self.phase.name!r}: the loss does not reach {len(dead)} of {len(self.named)} trained tensors: "
                f"{describe(dead)}. Choose other targets, or train only the rest (trains=...)."
            )

    @property
    def rate(self) -> float:
        """The largest learning rate of the moment; 0 for optimisers without one."""
        groups = self.optimiser.param_groups if self.optimiser is not None else []
        return max((float(g.get("lr", 0.0)) for g in groups), default=0.0)

    def read_losses(self) -> list[tuple[int, float]]:
        """(step, loss) of the steps since the last reading. RunError if one is not finite."""
        held, self.losses = [(step, float(value)) for step, value in self.losses], []
        for step, value in held:
            if not math.isfinite(value):
                now = f" (now {self.rate:.3g})" if self.rate else ""
                raise RunError(
                    f"The loss is {value} at step {step + 1}, phase {self.phase.name!r}: lower --rate{now}"
                    f"{', or use --precision fp32' if self.recipe.precision != 'fp32' else ''}, and look for odd values in the data."
                )
        return held

    @property
    def world(self) -> int:
        return self.batches.world

    def autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.precision == "bf16":
            return torch.autocast(torch.device(self.device).type, torch.bfloat16)
        return nullcontext()
