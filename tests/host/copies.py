"""Copies of one model or adaptation, many times over: several times as fast as `copy.deepcopy`, and as independent of each other.

The whole is pickled once, in memory, its tensors apart; each copy is unpickled with copies of the tensors. What is one tensor in the
original (tied weights) is one in a copy.
"""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

from torch import Tensor


class Template:
    """What copies are made of. It holds on to the original's tensors: leave these alone."""

    def __init__(self, whole: Any):
        file = io.BytesIO()
        writer = _Writer(file)
        writer.dump(whole)
        self.written, self.tensors = file.getvalue(), writer.tensors

    def copy(self) -> Any:
        return _Reader(self.written, self.tensors).load()


class _Writer(pickle.Pickler):
    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self.numbers: dict[int, int] = {}

    def persistent_id(self, thing: Any) -> int | None:
        if not isinstance(thing, Tensor):
            return None
        if id(thing) not in self.numbers:
            self.numbers[id(thing)] = len(self.tensors)
            self.tensors.append(thing)
        return self.numbers[id(thing)]


class _Reader(pickle.Unpickler):
    def __init__(self, written: bytes, tensors: list[Tensor]):
        super().__init__(io.BytesIO(written))
        self.tensors = tensors
        self.made: dict[int, Any] = {}

    def persistent_load(self, number: int) -> Tensor:
        return copy.deepcopy(self.tensors[number], self.made)
