"""How this process was started: alone, or beside others by torchrun. Says so without loading torch."""

from __future__ import annotations

import os
from typing import Any


def world() -> int:
    """Processes of this start; 1 where nobody started several."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Whether this process prints and writes: the first of them."""
    return int(os.environ.get("RANK", "0")) == 0 or world() == 1


def store(seconds: float = 300) -> Any:
    """The key-value store that brought the processes together; keys are of this start alone."""
    from datetime import timedelta

    from torch.distributed import PrefixStore, TCPStore

    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    held = TCPStore(*where, is_master=False, timeout=timedelta(seconds=seconds))
    return PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), held)


def first_to_fail() -> bool:
    """Whether no other process has failed yet: one says why, and what follows from its end is nobody's business.

    The processes ask the store that brought them together, which needs no collective and so works whatever the others do.
    """
    if world() == 1:
        return True
    try:
        return store(seconds=5).add("luthier/failed", 1) == 1
    except (ImportError, KeyError, ValueError, RuntimeError):  # the store is gone: better twice than never
        return True
