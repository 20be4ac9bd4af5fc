"""Units of many sites that stay within one budget, the strongest first: triplets of AdaLoRA, or whatever has a score and a cost."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def strongest(
    scores: Mapping[str, Tensor], budget: int, costs: Mapping[str, int] | None = None
) -> dict[str, list[int]]:
    """{site: rising indices of what stays}, by falling score over all sites; of equals the first site's.

    scores: {site: (units,)}. costs: of one unit at each site, which all together are at most `budget`; None: 1 each. A unit that
    costs more than what is left is passed over.
    """
    offered = [
        (-v, i, k, name) for i, (name, own) in enumerate(scores.items()) for k, v in enumerate(own.tolist())
    ]
    kept: dict[str, list[int]] = {name: [] for name in scores}
    for _, _, k, name in sorted(offered):
        cost = 1 if costs is None else costs[name]
        if cost <= budget:
            kept[name].append(k)
            budget -= cost
    return {name: sorted(own) for name, own in kept.items()}
