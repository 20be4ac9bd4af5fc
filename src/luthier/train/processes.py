"""Several processes under torchrun, by way of Accelerate; one process is the case in which nothing is exchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from luthier.errors import DataError, OptionError, RunError
from luthier.train.launched import world

R = TypeVar("R")


class Processes:
    """This process among all of a run. device: where its model lies, or must go when each process has a GPU of its own."""

    sharded = False
    """Whether each holds a part of the base: then every forward is a common one, and all must take as many."""

    def __init__(self, device: Any):
        self.rank, self.world, self.device = 0, 1, torch.device(device)
        if world() > 1:
            from accelerate import PartialState

            state = PartialState(cpu=self.device.type == "cpu")
            self.rank, self.world, self.device = state.process_index, state.num_processes, state.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Element-wise sum over processes; every process gets it."""
        if self.world == 1:
            return tensor
        summed = tensor.to(self.device)
        torch.distributed.all_reduce(summed)
        return summed

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        if self.world == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def from_main(self, value: Any) -> Any:
        """The main process's value, everywhere."""
        if self.world == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def evaluating(self) -> Processes:
        """Those among which rows to evaluate are shared out: all, or, where every forward is a common one, each for itself."""
        if not self.sharded:
            return self
        alone = copy.copy(self)
        alone.rank, alone.world = 0, 1
        return alone

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            torch.distributed.barrier()

    def main_first(self, act: Callable[[], R]) -> R | None:
        """Let the main process act alone; if it fails, all raise. Others get None."""
        result, failure = None, None
        if self.main:
            try:
                result = act()
            except Exception as error:
                failure = error
        said = self.from_main(None if failure is None else str(failure) or type(failure).__name__)
        if failure is not None:
            raise failure
        if said is not None:
            raise RunError(said)
        return result

    def check_rows(self, batch_size: int, rows: int) -> None:
        """Each needs a row of a step's batch; that the last batch of an epoch may leave some without is provided for."""
        if batch_size < self.world:
            raise OptionError(
                f"A batch of {batch_size} rows cannot be shared by {self.world} processes: raise --batch-size to {self.world} "
                "or more, or start fewer processes."
            )
        if rows < self.world:
            raise DataError(
                f"{rows} training rows cannot be shared by {self.world} processes: give more rows, or start fewer processes."
            )

    def check_equal(self, tensors: dict[str, Tensor]) -> None:
        """All processes must begin with the same numbers."""
        if self.world > 1:
            figure = float(sum(t.detach().double().abs().sum() for t in tensors.values()))
            if len(set(self.gather(figure))) > 1:
                raise RunError(
                    "The processes begin with different tensors: give all of them the same seed and model."
                )
