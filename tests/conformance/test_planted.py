"""Faults planted in the real host: each is caught by the property that is named for it, and by no other.

On the method and architecture of a fault every property is checked twice: all hold without it, exactly one fails with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from luthier.errors import LuthierError
from luthier.host import adapted, context, files, merge, placed
from luthier.host import bridge as attention
from luthier.host.places import activation
from luthier.host.places.weight import WeightEdit
from luthier.train import snapshot
from tests.conformance.cells import Cell
from tests.conformance.properties import PROPERTIES


@dataclass(frozen=True)
class Fault:
    """plant(monkeypatch) puts it into the host; fails: the one property that then does not hold on `cell`."""

    plant: Callable[[pytest.MonkeyPatch], None]
    cell: Cell
    fails: str


def dead_site(patch: pytest.MonkeyPatch) -> None:
    """The edit of block 0 is computed, and dropped."""
    real = activation.ActivationHooks._edited

    def edited(self: Any, h: torch.Tensor, module: Any) -> torch.Tensor:
        new = real(self, h, module)
        return h + 0 * new if self.at.site.layer == 0 else new

    patch.setattr(activation.ActivationHooks, "_edited", edited)


def wrong_scale(patch: pytest.MonkeyPatch) -> None:
    """Merging adds nine tenths of the change."""
    real = WeightEdit.parameters

    def parameters(self: Any, at: Any, module: Any, now: Any, ctx: Any) -> Any:
        out = real(self, at, module, now, ctx)
        return {k: now[k] + 0.9 * (v - now[k]) if v is not now[k] else v for k, v in out.items()}

    patch.setattr(WeightEdit, "parameters", parameters)


def into_the_tied_weight(patch: pytest.MonkeyPatch) -> None:
    """A merge replaces the parameter in every module that holds it."""
    real = merge.merge

    def everywhere(model: Any, name: str, given: Any) -> None:
        holders = {
            path: [
                m
                for m in model.base.modules()
                if m is not owner and m._parameters.get("weight") is owner.weight
            ]
            for path, owner in model.base.named_modules()
            if isinstance(owner._parameters.get("weight"), torch.nn.Parameter)
        }
        real(model, name, given)
        for path in model.merged[name]:
            for m in holders.get(path, ()):
                m._parameters["weight"] = model.base.get_submodule(path).weight

    patch.setattr(merge, "merge", everywhere)


def dropped_key(patch: pytest.MonkeyPatch) -> None:
    """A file's first tensor is read as zeros."""
    real = files.read_tensors

    def read(folder: Any, card: Any) -> Any:
        tensors = real(folder, card)
        first = min(tensors)
        return {**tensors, first: torch.zeros_like(tensors[first])}

    patch.setattr(files, "read_tensors", read)


def lost_mask(patch: pytest.MonkeyPatch) -> None:
    """What does not train (a mask) is as new after a resume."""
    real = snapshot.put_back

    def put_back(run: Any, state: Any, tensors: Any) -> None:
        real(run, state, tensors)
        for at in run.main.at():
            if "piece" in at.values:
                at.values["piece"].data.fill_(1.0)

    patch.setattr(snapshot, "put_back", put_back)


def wrong_mask(patch: pytest.MonkeyPatch) -> None:
    """A prefix is hidden in the rows whose first key is."""
    real = attention._lengthened

    def lengthened(module: Any, mask: Any, q: Any, k: Any, n: int, rows: Any) -> Any:
        out = real(module, mask, q, k, n, rows)
        if out is None or out.dim() != 4:
            return out
        first, out = out[:, :, -1:, n : n + 1], out.clone()
        out[..., :n] = out[..., :n] & first if out.dtype == torch.bool else torch.minimum(out[..., :n], first)
        return out

    patch.setattr(attention, "_lengthened", lengthened)


def another_context(patch: pytest.MonkeyPatch) -> None:
    """A block is recomputed under a context in which only the other adaptation is active."""
    real = context.Context.again

    def again(self: Any, *inside: Any) -> Any:
        import dataclasses

        return real(dataclasses.replace(self, active=tuple(n for n in self.active if n == "other")), *inside)

    patch.setattr(context.Context, "again", again)


class ForAll:
    """What a ContextVar must not be: one value for all threads."""

    def __init__(self, value: Any):
        self.value = value

    def get(self) -> Any:
        return self.value

    def set(self, value: Any) -> Any:
        old, self.value = self.value, value
        return old

    def reset(self, token: Any) -> None:
        self.value = token


def leaking_context(patch: pytest.MonkeyPatch) -> None:
    """The current context is process-wide."""
    shared = ForAll(None)
    from luthier.host import entry

    for module in (context, adapted, placed, merge, attention, entry):
        patch.setattr(module, "CURRENT", shared)


FAULTS = {
    "an adapter on a dead site": Fault(dead_site, Cell("adapter", "bert"), "nothing_is_dead"),
    "a merge with the wrong scale": Fault(
        wrong_scale, Cell("lora", "bert"), "merged_equals_unmerged_and_unmerge_is_bitwise"
    ),
    "a merge into a tied weight": Fault(
        into_the_tied_weight, Cell("lora", "gpt2"), "ties_survive_also_after_resizing"
    ),
    "a loader that drops a key": Fault(dropped_key, Cell("lora", "bert"), "a_file_holds_all_of_it"),
    "a mask lost on resume": Fault(
        lost_mask, Cell("xprompt", "bert"), "a_run_resumes_bitwise_inside_every_phase"
    ),
    "a prefix with the wrong mask": Fault(
        wrong_mask, Cell("p_tuning_v2", "llama"), "rows_do_not_mix_and_padding_is_not_seen"
    ),
    "a recompute under another context": Fault(
        another_context, Cell("lora", "bert"), "checkpointing_gives_the_same_gradients"
    ),
    "a context that leaks between two threads": Fault(
        leaking_context, Cell("lora", "bert"), "threads_do_not_see_each_other"
    ),
}


def failing(cell: Cell) -> set[str]:
    """Names of the properties that do not hold; those that do not apply are left out, as the suite tests that they are refused."""
    found = set()
    for name, held in PROPERTIES.items():
        if cell.why_not(held.needs) is not None:
            continue
        try:
            held.check(cell)
        except (AssertionError, LuthierError, RuntimeError, pytest.fail.Exception):
            found.add(name)
    return found


@pytest.mark.parametrize("name", FAULTS)
def test_exactly_the_named_property_fails(name: str) -> None:
    fault = FAULTS[name]
    fault.cell.new(fault.cell.base())  # made before the fault is planted
    for held in PROPERTIES.values():
        fault.cell.why_not(held.needs)
    with pytest.MonkeyPatch.context() as patch:
        fault.plant(patch)
        assert failing(fault.cell) == {fault.fails}
    assert failing(fault.cell) == set()
