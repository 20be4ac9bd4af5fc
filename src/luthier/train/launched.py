"""How this process was started: alone, or beside others by torchrun. Says so without loading torch."""

from __future__ import annotations

import os


def world() -> int:
    """Processes of this start; 1 where nobody started several."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Whether this process prints and writes: the first of them."""
    return int(os.environ.get("RANK", "0")) == 0 or world() == 1


def first_to_fail() -> bool:
    """Whether no other process has failed yet: one says why, and what follows from its end is nobody's business.

    The processes ask the store that brought them together, which needs no collective and so works whatever the others do.
    """
    if world() == 1:
        return True
    try:
        from datetime import timedelta

        from torch.distributed import TCPStore

        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=5),
        )
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"luthier/failed/{start}", 1) == 1
    except (ImportError, KeyError, ValueError, RuntimeError):  # the store is gone: better twice than never
        return True
