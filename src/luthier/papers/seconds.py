"""How long a step takes with one method and with another, for the checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def least_seconds(
    base: Any, batch: Mapping[str, Any], arms: Mapping[str, Any], *, turns: int, update: bool = True
) -> dict[str, float]:
    """{arm: the least seconds of forward, backward and, with `update`, AdamW}, over so many turns of a fresh adaptation.

    The arms take turns, so that what else the machine does meets all of them.
    """
    import time

    import torch

    from luthier.host import Adaptation, Adapted

    best = dict.fromkeys(arms, float("inf"))
    for _ in range(turns):
        for name, method in arms.items():
            made = Adaptation.new(method, base)
            adapted: Any = Adapted(base)
            with adapted.attached(made):
                optimiser = torch.optim.AdamW(made.trainable().values(), lr=0.1)
                began = time.perf_counter()
                adapted(batch).logits.square().mean().backward()
                if update:
                    optimiser.step()
                best[name] = min(best[name], time.perf_counter() - began)
    return best
