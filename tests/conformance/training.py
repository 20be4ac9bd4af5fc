"""Training: what moves, resuming, recomputing, mixed precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from luthier.host import Adapted
from luthier.host.applicable import Ability
from luthier.train import snapshot
from luthier.train.run import Watcher
from luthier.train.snapshot import own_randomness
from tests.conformance.cells import Cell
from tests.conformance.registry import BF16_BOUND, equal, property_of, values
from tests.host import bed


@property_of()
def training_moves_nothing_else(cell: Cell) -> None:
    """Inside every phase of the plan, between one step and the next; that all of it can move is `nothing_is_dead`."""
    run = cell.run()
    seen: list[tuple[int, set[str], dict[str, Tensor]]] = []
    base = values(run.adapted.base)

    def note(run: Any) -> None:
        state = {
            f"{n}.{k}": v.detach().clone()
            for n, a in run.adapted.adaptations.items()
            for k, v in a.state(everything=True).items()
        }
        trains = set() if run.phase.step else set(run.named)
        seen.append((run.index, trains, state))

    walk(run, note)
    assert equal(values(run.adapted.base), base)
    assert any(trains for _, trains, _ in seen)
    for (phase, trains, before), (now, _, after) in pairwise(seen):
        if phase == now:
            moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
            assert moved <= trains, moved - trains
            assert moved or not trains


def walk(run: Any, after_step: Callable[[Any], None]) -> None:
    """The whole plan."""

    class Tell(Watcher):
        def after_step(self, run: Any) -> None:
            after_step(run)

    with own_randomness(0):
        run.go(Tell())


@property_of()
def a_run_resumes_bitwise_inside_every_phase(cell: Cell) -> None:
    kept: dict[int, Any] = {}

    def keep(run: Any) -> None:
        if run.index not in kept:  # after the first of its steps
            state, tensors = snapshot.take(run)
            kept[run.index] = json.dumps(state), {k: v.clone() for k, v in tensors.items()}

    run = cell.run()
    walk(run, keep)
    want = values(run.main)
    assert sorted(kept) == list(range(len(run.phases)))
    for state, tensors in kept.values():
        again = cell.run()
        snapshot.put_back(again, json.loads(state), tensors)
        again.go()
        assert equal(values(again.main), want)


@property_of(Ability.RECOMPUTE)
def checkpointing_gives_the_same_gradients(cell: Cell) -> None:
    """With two contexts in one loss, and a forward of the base before the backward pass."""

    def gradients(recompute: bool) -> dict[str, Tensor | None]:
        model, x = cell.adapted(), cell.batch()
        model.attach("other", cell.partner(model.base))
        if recompute:
            model.checkpoint()
        with model.using("main"):
            loss = cell.result(model, x).float().pow(2).mean()
        with model.using("main", "other"):
            loss = loss + cell.result(model, x).float().pow(3).mean()
        with model.using(), torch.no_grad():
            cell.result(model, x)
        loss.backward()
        return {n: p.grad for n, p in model.adaptations["main"].trainable().items()}

    plain, recomputed = gradients(False), gradients(True)
    assert any(g is not None for g in plain.values())
    for n, g in plain.items():
        assert (g is None) == (recomputed[n] is None), n
        if g is not None:
            size = max(1.0, g.abs().max().item())
            bed.close(recomputed[n] / size, g / size, 1e-4)  # type: ignore[operator]


@property_of()
def autocast_is_finite_and_close(cell: Cell) -> None:
    model, x = Adapted(cell.base()), cell.batch()
    model.attach(
        "main", cell.shaken(model.base, amount=0.05)
    )  # random models amplify rounding as they are shaken
    want = cell.result(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        got = cell.result(model, x)
    got.float().pow(2).mean().backward()
    assert all(
        torch.isfinite(p.grad).all() for p in model.adaptations["main"].parameters() if p.grad is not None
    )
    assert torch.isfinite(got).all()
    bed.close(got.float(), want, BF16_BOUND)
