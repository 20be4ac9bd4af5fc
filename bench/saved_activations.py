"""What changes of query, key and value keep for the backward pass, as a multiple of their shared input: LoRA here and with peft, and
every other change of weights here.

python bench/saved_activations.py    a bf16 model, width 384, 32 rows of 64 tokens, rank 8

Methods whose rank is not a number of directions, and those without one, have their own sizes. Counted: unique storages that autograd saves, casts included, weights left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timing

OTHERS = (
    "rslora", "lora_plus", "lora_pro", "pissa", "soma", "adalora", "pego", "selective_lora", "petalface", "chain_of_lora", "dora",
    "loha", "lokr", "soka", "diffusekrona", "vera", "randlora", "oft", "boft", "fourierft", "waveft", "glora",
)  # fmt: skip
OWN = ("vera", "randlora")
"""Their rank is that of a frozen base."""


def saved(model: Any, weights: Any, x: Any) -> float:
    """Bytes saved for backward by `model(x)` over the bytes of x."""
    from luthier.instruments.saved import saved as meter

    with meter(weights) as kept:
        y = model(x)
    y.float().sum().backward()
    return kept.bytes / (x.numel() * x.element_size())


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    given = timing.arguments(__doc__, argv)
    import torch
    from peft import LoraConfig, get_peft_model
    from torch import nn

    from luthier import methods
    from luthier.host import Adaptation, Adapted

    rows, tokens, width = (4, 64, 128) if given.smoke else (32, 64, 384)

    class Projections(nn.Module):
        """Query, key and value of one input, one behind the other."""

        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.query(x), self.key(x), self.value(x)], -1)

    x = torch.randn(rows, tokens, width, dtype=torch.bfloat16, requires_grad=True)
    figures = []

    def ours(name: str, **options: Any) -> float:
        adapted = Adapted(Projections().bfloat16())
        kind = methods.get(name)
        if name not in OWN and hasattr(kind, "rank"):
            options["rank"] = 8
        method = kind(targets="query | key | value", **options)
        adapted.attach("main", Adaptation.new(method, adapted.base))
        adapted.train()
        return saved(adapted.base, adapted.parameters(), x)

    for dropout, limit in ((0.0, 1.1), (0.1, 1.3)):
        config = LoraConfig(r=8, target_modules=["query", "key", "value"], lora_dropout=dropout)
        theirs = get_peft_model(Projections().bfloat16(), config).train()  # type: ignore[arg-type]
        name = f"saved for backward by LoRA on q, k, v, {'with' if dropout else 'without'} dropout"
        figures.append(
            timing.figure(
                name, ours("lora", dropout=dropout), limit, "multiples of the input", peer=saved(theirs, theirs.parameters(), x),
                peer_version=timing.peft_version(),
            )
        )  # fmt: skip
    figures += [timing.figure(f"saved by {name}", ours(name), 1.1, "multiples of the input") for name in OTHERS]
    return timing.write("saved_activations", figures, given)


if __name__ == "__main__":
    main()
