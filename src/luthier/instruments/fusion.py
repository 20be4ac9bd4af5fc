"""Which adapters a fusion (`adapter_fusion`, S078) listens to: mean attention on each, by layer, over the tokens of some rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.errors import OptionError


@torch.no_grad()
def weights(fitted: Any, rows: Any, *, batch_size: int = 32) -> dict[str, dict[str, float]]:
    """{site: {member: mean weight}}. rows: a split with inputs; padding does not count. OptionError for what is no fusion."""
    from luthier.host import Adapted
    from luthier.methods.adapters.adapter_fusion import NOTE, AdapterFusion
    from luthier.train.batches import encode, in_order

    adaptation, model = fitted.adaptation, fitted.model
    if not isinstance(adaptation.method, AdapterFusion):
        raise OptionError(f"{adaptation.method.name} has no weights of members: give an adapter_fusion.")
    names = list(adaptation.members)
    total: dict[str, Any] = {}
    count: dict[str, int] = {}
    encoded = encode(model.preprocess, rows, fitted.task, head=adaptation.head, targets=False)
    adapted: Any = Adapted(model.base)
    with adapted.attached(adaptation):
        adapted.eval()
        for _, batch in in_order(encoded, batch_size, model.device):
            for site, weight in adapted(batch).notes[NOTE]:
                kept = _of_tokens(weight, batch.get("attention_mask")).double()
                total[site] = total.get(site, 0) + kept.sum(0)
                count[site] = count.get(site, 0) + len(kept)
    means = {site: (held / count[site]).tolist() for site, held in total.items()}
    return {site: dict(zip(names, mean, strict=True)) for site, mean in means.items()}


def _of_tokens(weights: Tensor, mask: Tensor | None) -> Tensor:
    """(tokens, members): those of all rows that are no padding."""
    same = mask is not None and mask.shape == weights.shape[:-1]
    return weights[mask.bool()] if same else weights.flatten(0, -2)  # type: ignore[union-attr]
