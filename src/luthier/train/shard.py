"""A base too large for one device: its weights in parts, one on each process, by torch's `fully_shard`; adaptations stay whole.

Every block, and every table or matrix outside the blocks, is a unit: whole while its forward or backward runs, else a DTensor of
which each process holds a part. A unit is a root of its own, because a forward may begin at the model, at its body (below a
head) or in `generate`; the hooks are on the modules, so forwards that the host exchanges are covered too. Small
parameters outside the blocks and tied ones stay whole. Not Accelerate's FSDP, which falls back to plain DDP on CPUs.

A base that was sharded stays sharded: whoever wants it whole loads it again.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError, OptionError
from luthier.host.adaptation import Adaptation
from luthier.host.places import Stack
from luthier.host.sites import is_linear
from luthier.host.structure import Structure
from luthier.train.processes import Processes


def is_part(tensor: Tensor) -> bool:
    """Whether a parameter is a DTensor, of which this process holds a part."""
    return hasattr(tensor, "to_local")


def is_sharded(base: nn.Module) -> bool:
    return any(is_part(p) for p in base.parameters())


def refuse_parts(model: Any, what: str) -> None:
    """For work in which not all processes take part alike. ModelError."""
    if is_sharded(model.base):
        raise ModelError(
            f"The base of {model.name} is sharded, which {what} cannot use: load the model again."
        )


def local_bytes(base: nn.Module) -> int:
    """Bytes of the base's parameters on this process."""
    held = (p.to_local() if is_part(p) else p for p in base.parameters())  # type: ignore[attr-defined]
    return sum(t.numel() * t.element_size() for t in held)


def units(base: nn.Module, structure: Structure) -> Iterator[str]:
    """Paths of the modules that are sharded, each with all that it holds. ModelError for a model without blocks."""
    owners = Counter(id(p) for m in base.modules() for p in m._parameters.values() if p is not None)
    inside: set[int] = set()
    blocks = [path for tower in structure.towers for path in tower.blocks]
    if not blocks:
        raise ModelError(f"{structure.model} has no blocks to shard: run it without shard.")
    for path in blocks:
        block = base.get_submodule(path)
        if id(block) in inside:
            continue  # one block that is called many times
        own = Counter(id(p) for m in block.modules() for p in m._parameters.values() if p is not None)
        if any(owners[p] != n for p, n in own.items()):
            raise ModelError(
                f"{path} shares a weight with another module: {structure.model} cannot be sharded."
            )
        inside |= {id(m) for m in block.modules()}
        yield path
    for path, module in base.named_modules():
        weight = module._parameters.get("weight")
        if id(module) in inside or weight is None or owners[id(weight)] > 1:
            continue
        if (
            path
            and next(module.children(), None) is None
            and (isinstance(module, nn.Embedding) or is_linear(module))
        ):
            yield path


def check(adaptation: Adaptation, base: nn.Module, processes: Processes) -> None:
    """Refuse what sharding cannot serve. OptionError, ModelError."""
    if processes.world == 1:
        raise OptionError(
            "shard=True needs several processes: torchrun --nproc-per-node 2 -m luthier fit ... --shard"
        )
    for placed in adaptation.every_placed():
        if isinstance(placed.part, Stack):
            raise ModelError(
                f"{placed.part.name} walks through the blocks itself, when their weights are put away again: leave out shard, "
                "or choose a method that leaves the walk to the model (lora)."
            )
    own = sum(p.numel() * p.element_size() for p in adaptation.parameters())
    saved = sum(p.numel() * p.element_size() for p in base.parameters()) * (1 - 1 / processes.world)
    if own >= saved:
        raise ModelError(
            f"{adaptation.method.name} keeps {own:,} bytes of its own whole on every process, and sharding the base saves "
            f"{saved:,.0f}: leave out shard, or choose a method that trains less."
        )


def shard(base: nn.Module, structure: Structure, processes: Processes) -> None:
    """Shard `base` in place over all processes, and bring the rest of it to this process's device."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # prompts are cut off from what a block returns by a view; nothing writes into it
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    if not is_sharded(base):
        mesh = init_device_mesh(processes.device.type, (processes.world,))
        for path in list(units(base, structure)):
            fully_shard(base.get_submodule(path), mesh=mesh, reshard_after_forward=True)
    for module in base.modules():
        for p in module._parameters.values():
            if p is not None and not is_part(p):
                p.data = p.data.to(processes.device)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(processes.device)
    processes.sharded = True


def bring(run: Any, device: Any) -> None:
    """What trains, and what its optimiser remembers, to the device that the base came to."""
    for adaptation in run.adapted.adaptations.values():
        adaptation.to(device)
    for values in run.optimiser.state.values() if run.optimiser is not None else ():
        for key, value in values.items():
            if torch.is_tensor(value) and value.dim():
                values[key] = value.to(device)
